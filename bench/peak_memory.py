"""`python peak_memory.py S ROWS`: the peak of a process that makes the arrays and runs select and sparse_mla."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from sparsespan.attention import sparse_mla
from sparsespan.indexer import select


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def _noise(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Filled piece by piece: a float32 original of the whole would be the peak."""
    out = np.empty(shape, dtype)
    rng = np.random.default_rng(0)
    for begin in range(0, shape[0], 1024):
        part = out[begin : begin + 1024]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32).astype(dtype)
    return out


def main() -> None:
    length, rows = int(sys.argv[1]), int(sys.argv[2])
    warm = np.zeros((1, 1, 576), ml_dtypes.bfloat16)
    sparse_mla(warm, warm[0], np.zeros((1, 1), np.int32), 1.0)  # the thread pool and its arenas are not the ops' own
    before = _status("VmRSS")
    q = _noise((rows, 128, 576), ml_dtypes.bfloat16)
    kv = _noise((length, 576), ml_dtypes.bfloat16)
    index_q, index_k = (_noise(s, ml_dtypes.float8_e4m3fn) for s in ((rows, 64, 128), (length, 128)))
    weights = np.ones((rows, 64), np.float32)
    ke = np.linspace(length - rows, length, rows, endpoint=False).astype(np.int32) + 1
    arrays = sum(a.nbytes for a in (q, kv, index_q, index_k))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    chosen = select(index_q, index_k, weights, np.zeros(rows, np.int32), ke, np.ones(length, np.float32), 2048)
    sparse_mla(q, kv, chosen, 192**-0.5)
    peak = _status("VmHWM")
    print(json.dumps({"peak": peak, "grown": peak - before, "arrays": arrays}))


if __name__ == "__main__":
    main()
