"""Twins of DCP decode: all ranks in one place, float64, by definition.

S = interleave, N = ranks. ``kv[s]`` is the whole context of request s; a rank sees the rows that it owns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .attention import merge_states, sparse_mla
from .cp_dcp import logical, owner
from .indexer import topk

__all__ = ["dcp_decode", "dcp_partials", "dcp_select", "global_topk"]

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


def global_topk(
    scores: Sequence[np.ndarray], k: int, s: int, context_lens: np.ndarray | None = None, nan: str = "raise"
) -> np.ndarray:
    """Top-k [T, k] of the scores of all ranks, ``scores[r]`` [T, S_r]: brought together, then ranked as one row."""
    n, rows = len(scores), len(scores[0])
    out = np.full((rows, k), -1, np.int32)
    for t in range(rows):
        positions = np.concatenate([logical(r, np.arange(x.shape[1]), s, n) for r, x in enumerate(scores)])
        values = np.concatenate([x[t] for x in scores])
        seen = positions >= 0 if context_lens is None else positions < context_lens[t]
        order = np.argsort(positions[seen])
        chosen = topk(values[seen][order][None], k, nan=nan)[0]
        chosen = chosen[chosen >= 0]
        out[t, : len(chosen)] = positions[seen][order][chosen]
    return out


def dcp_select(
    scores: np.ndarray, context_lens: np.ndarray, k: int, s: int, n: int, index_k: str = "replicated"
) -> np.ndarray:
    """Choices [N, T, k] of every rank from the whole scores [T, S]: alike, or for "union" each rank's own."""
    whole = topk(scores, k, context_lens)
    if index_k != "union":
        return np.stack([whole] * n)
    out = np.full((n, len(scores), k), -1, np.int32)
    for r in range(n):
        for t, length in enumerate(context_lens):
            own = np.flatnonzero(owner(np.arange(length), s, n) == r)
            best = topk(scores[t : t + 1, own], k)[0]
            best = best[best >= 0]
            out[r, t, : len(best)] = own[best]
    return out
