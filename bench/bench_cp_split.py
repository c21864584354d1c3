"""split_plan at serving scale: a step of 1M rows in 10,000 requests over 32 ranks, and how time grows from 100K rows.

The "peer" is ten times a plan of a tenth of the batch: a ratio of 1 is linear growth, 1M / 100K is 10 / ratio. Best of
nine, sizes in turns.
"""

from __future__ import annotations

import time

import numpy as np

from sparsespan.cp import split_plan

SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even")


def _batch(scheme: str, total: int) -> np.ndarray:
    requests = total // 100
    if scheme == "thd_even":
        return np.concatenate([[0], np.cumsum(np.resize([64, 128], requests))])
    cuts = np.sort(np.random.default_rng(0).integers(0, total + 1, requests - 1))
    return np.concatenate([[0], cuts, [total]])


def _once(scheme: str, cu: np.ndarray) -> float:
    start = time.perf_counter()
    split_plan(scheme, cu, None, 32)
    return time.perf_counter() - start


def rows(quick: bool):
    for scheme in SCHEMES:
        small, large = _batch(scheme, 100_000), _batch(scheme, 1_000_000)
        times = [(_once(scheme, small), _once(scheme, large)) for _ in range(3 if quick else 9)]
        best_small, best_large = (min(t) for t in zip(*times))
        yield {
            "op": "cp.split_plan",
            "shape": f"{scheme}, 1M rows, N=32",
            "ours_ms": best_large * 1e3,
            "peer": "10 x (100K rows)",
            "peer_ms": 10 * best_small * 1e3,
            "ratio": 10 * best_small / best_large,
            "bytes_per_row": split_plan(scheme, large, None, 32).nbytes / int(large[-1]),
        }
