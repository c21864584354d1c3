"""Twins of :mod:`sparsespan.indexer`."""

from __future__ import annotations

import numpy as np

__all__ = ["mqa_logits"]


def _scores(q: np.ndarray, k: np.ndarray, weights: np.ndarray, k_scale: np.ndarray | None) -> np.ndarray:
    """Scores of one row: q [Hi, D], k [n, D], weights [Hi] -> [n]."""
    dots = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T
    scores = np.asarray(weights, np.float64) @ np.maximum(dots, 0.0)
    return scores if k_scale is None else scores * np.asarray(k_scale, np.float64)


def mqa_logits(
    q: np.ndarray,
    k: np.ndarray,
    weights: np.ndarray,
    ks: np.ndarray,
    ke: np.ndarray,
    k_scale: np.ndarray | None = None,
) -> np.ndarray:
    """``(sum_h relu(q[t, h] . k[s]) * weights[t, h]) * k_scale[s]`` inside [ks, ke), else -inf; float64."""
    out = np.full((len(q), len(k)), -np.inf)
    for t, (start, end) in enumerate(zip(ks, ke)):
        if start < end:
            window = slice(int(start), int(end))
            out[t, window] = _scores(q[t], k[window], weights[t], None if k_scale is None else k_scale[window])
    return out
