"""Twins of DCP decode: all ranks in one place, float64, by definition.

S = interleave, N = ranks. ``kv[s]`` is the whole context of request s; a rank sees the rows that it owns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .attention import merge_states, sparse_mla
from .cp_dcp import owner

__all__ = ["dcp_decode", "dcp_partials"]

Pair = tuple[np.ndarray, np.ndarray]


def dcp_partials(
    q: np.ndarray, kv: Sequence[np.ndarray], indices: np.ndarray, requests: np.ndarray, sm_scale: float, s: int, n: int,
    d_v: int = 512,
) -> Pair:  # fmt: skip
    """Out [N, T, H, d_v] and lse [N, T, H]: all heads over the keys of each rank alone."""
    outs = np.zeros((n, *np.shape(q)[:2], d_v))
    lses = np.full((n, *np.shape(q)[:2]), -np.inf)
    for r in range(n):
        for t, request in enumerate(requests):
            mine = np.where(owner(indices[t], s, n) == r, indices[t], -1)
            if (mine >= 0).any():
                out, lse, _ = sparse_mla(q[t : t + 1], kv[request], mine[None], sm_scale, d_v)
                outs[r, t], lses[r, t] = out[0], lse[0]
    return outs, lses


def dcp_decode(
    q: np.ndarray, kv: Sequence[np.ndarray], indices: np.ndarray, requests: np.ndarray, sm_scale: float, s: int, n: int,
    d_v: int = 512, attn_sink: np.ndarray | None = None,
) -> Pair:  # fmt: skip
    """Out [T, H, d_v] and lse [T, H] of all heads, whichever rank they end on."""
    return merge_states(*dcp_partials(q, kv, indices, requests, sm_scale, s, n, d_v), attn_sink)
