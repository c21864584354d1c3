"""`python peak_memory.py S ROWS`: the peak of a process that makes the arrays and runs select and sparse_mla."""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from sparsespan.attention import sparse_mla
from sparsespan.indexer import select

PR_SET_THP_DISABLE = 41  # of Linux's prctl.h


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


def _both(length: int, rows: int) -> int:
    """Makes the arrays and runs the two ops; the high-water mark is that of the ops. Returns the arrays' bytes."""
    q = _noise((rows, 128, 576), ml_dtypes.bfloat16)
    kv = _noise((length, 576), ml_dtypes.bfloat16)
    index_q, index_k = (_noise(s, ml_dtypes.float8_e4m3fn) for s in ((rows, 64, 128), (length, 128)))
    weights = np.ones((rows, 64), np.float32)
    ke = np.linspace(length - rows, length, rows, endpoint=False).astype(np.int32) + 1
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew
    chosen = select(index_q, index_k, weights, np.zeros(rows, np.int32), ke, np.ones(length, np.float32), 2048)
    sparse_mla(q, kv, chosen, 192**-0.5)
    return sum(a.nbytes for a in (q, kv, index_q, index_k))


def main() -> None:
    length, rows = int(sys.argv[1]), int(sys.argv[2])
    with contextlib.suppress(AttributeError, OSError):  # another system
        ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # huge pages round short lengths up
    _both(4096, 64)  # the threads and the scratch that each of them keeps do not grow with the sequence
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    arrays = _both(length, rows)
    peak = _status("VmHWM")
    print(json.dumps({"peak": peak, "grown": peak - before, "arrays": arrays}))


if __name__ == "__main__":
    main()
