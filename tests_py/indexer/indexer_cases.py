"""Shapes and windows that the peers test with, as seeded arrays."""

import ml_dtypes
import numpy as np

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
DTYPES = (FP8, BF16, np.float32)


def calc_diff(x, y):
    """DeepGEMM's measure, 1 - 2 sum(xy) / sum(x^2 + y^2), over entries that are finite in both."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    norm = (x * x + y * y).sum()
    return 0.0 if norm == 0 else 1 - 2 * (x * y).sum() / norm


def inputs(rng, rows, keys, heads=8, dim=128, q_dtype=FP8, k_dtype=FP8, mean=0.0, std=1.0):
    q = (mean + std * rng.standard_normal((rows, heads, dim))).astype(q_dtype)
    k = (mean + std * rng.standard_normal((keys, dim))).astype(k_dtype)
    weights = rng.standard_normal((rows, heads)).astype(np.float32)
    scale = np.exp2(rng.integers(-6, 3, keys)).astype(np.float32) if k_dtype is FP8 else None
    return q, k, weights, scale


def causal(rows, keys):
    """One request whose last row is the newest key."""
    return np.zeros(rows, np.int32), np.arange(keys - rows + 1, keys + 1, dtype=np.int32)


def deepgemm(rows, keys):
    """DeepGEMM's own test: the diagonal is excluded, and the first row is empty when rows == keys."""
    return np.zeros(rows, np.int32), np.arange(rows, dtype=np.int32) + keys - rows


def zigzag(rows, keys, world_size=4):
    """Rank world_size // 3 of a zig-zag split: an early and a late chunk of one sequence."""
    chunk, rank = rows // 2, world_size // 3
    late = 2 * world_size - 1 - rank
    ke = np.concatenate([np.arange(chunk) + rank * chunk, np.arange(chunk) + late * chunk]) + 1
    return np.zeros(rows, np.int32), np.minimum(ke, keys).astype(np.int32)


def packed(lengths, gap=0, dtype=np.int32):
    """Several requests one behind the other in k, `gap` unused keys between them; all of their rows."""
    ks, ke, start = [], [], 0
    for n in lengths:
        ks += [start] * n
        ke += [start + i + 1 for i in range(n)]
        start += n + gap
    return np.array(ks, dtype), np.array(ke, dtype), start


WINDOWS = {
    "causal": (*causal(40, 200), 200),
    "square": (*causal(65, 65), 65),
    "deepgemm": (*deepgemm(64, 64), 64),
    "deepgemm_long": (*deepgemm(24, 333), 333),
    "zigzag": (*zigzag(48, 192), 192),
    "one": packed([64]),
    "four": packed([5, 17, 40, 100]),
    "gap": packed([20, 20], gap=5000),
    "many": packed([3] * 20 + [7] * 10),
    "wide": packed([5, 17, 40], dtype=np.int64),
    "empty_rows": (np.array([0, 7, 9, 9, 50]), np.array([0, 3, 9, 10, 50]), 50),
}
