"""Twins of :mod:`sparsespan.attention`."""

from __future__ import annotations

import numpy as np

__all__ = ["sparse_mla"]

F64 = np.float64


def _softmax_rows(scores: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``scores`` [H, n], ``values`` [n, D] or [H, n, D] -> out [H, D], lse [H], max [H]; n = 0 is an empty row."""
    heads, n = scores.shape
    if n == 0:
        empty = np.full(heads, -np.inf)
        return np.zeros((heads, values.shape[-1])), empty, empty
    m = scores.max(axis=1)
    p = np.exp(scores - m[:, None])
    total = p.sum(axis=1)
    out = np.einsum("hn,hnd->hd" if values.ndim == 3 else "hn,nd->hd", p, values)
    return out / total[:, None], m + np.log(total), m


def _with_sink(out: np.ndarray, lse: np.ndarray, attn_sink: np.ndarray | None) -> np.ndarray:
    """``out`` / (1 + exp(sink - lse)), over the last axis of ``lse`` (heads)."""
    if attn_sink is None:
        return out
    with np.errstate(over="ignore", invalid="ignore"):
        factor = np.where(np.isneginf(lse), 0.0, 1.0 / (1.0 + np.exp(np.asarray(attn_sink, F64) - lse)))
    return out * factor[..., None]


def sparse_mla(
    q: np.ndarray,
    kv: np.ndarray,
    indices: np.ndarray,
    sm_scale: float,
    d_v: int = 512,
    topk_length: np.ndarray | None = None,
    attn_sink: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Softmax over ``sm_scale * q . kv[index]``, values ``kv[index, :d_v]``; packed float rows, -1 = none, no lanes."""
    q, kv = np.asarray(q, F64), np.asarray(kv).reshape(-1, np.shape(kv)[-1])
    rows, heads = q.shape[:2]
    indices = np.asarray(indices).reshape(rows, np.shape(indices)[-1])
    out, lse, top = np.zeros((rows, heads, d_v)), np.zeros((rows, heads)), np.zeros((rows, heads))
    for t in range(rows):
        used = indices[t] if topk_length is None else indices[t, : topk_length[t]]
        keys = np.asarray(kv[used[used != -1]], F64)
        out[t], lse[t], top[t] = _softmax_rows(sm_scale * (q[t] @ keys.T), keys[:, :d_v])
    return _with_sink(out, lse, attn_sink), lse, top
