"""Twins of :mod:`sparsespan.transform`."""

from __future__ import annotations

import numpy as np

__all__ = ["hadamard_transform"]


def hadamard_transform(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """``scale * (x @ H_n)`` in float64, with ``H[i, j] = (-1) ** popcount(i & j)``."""
    n = x.shape[-1]
    i = np.arange(n, dtype=np.uint64)
    h = 1.0 - 2.0 * (np.bitwise_count(i[:, None] & i[None, :]) % 2)
    return scale * (np.asarray(x, np.float64) @ h)
