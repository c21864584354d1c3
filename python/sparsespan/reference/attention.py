"""Twins of :mod:`sparsespan.attention`."""

from __future__ import annotations

import numpy as np

__all__ = ["dense_mla", "merge_states", "mha", "sparse_mha", "sparse_mla"]

F64 = np.float64


def _softmax_rows(scores: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``scores`` [H, n], ``values`` [n, D] or [H, n, D] -> out [H, D], lse [H], max [H]; n = 0 is an empty row."""
    heads, n = scores.shape
    if n == 0:
        empty = np.full(heads, -np.inf)
        return np.zeros((heads, values.shape[-1])), empty, empty
    m = scores.max(axis=1)
    # Scores of -inf alone weigh nothing: the same as no key, not 0 / 0.
    nothing = np.isneginf(m)
    p = np.exp(scores - np.where(nothing, 0.0, m)[:, None])
    total = np.where(nothing, 1.0, p.sum(axis=1))
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


def dense_mla(
    q: np.ndarray,
    kv_cache: np.ndarray,
    row_to_request: np.ndarray,
    context_lens: np.ndarray,
    block_table: np.ndarray,
    page_size: int,
    sm_scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Row i of a request's n sees positions below ``L - n + i + 1``; ``kv_cache`` decoded: [pages, page_size, 576]."""
    indices = np.full((len(q), max(1, int(np.max(context_lens, initial=0)))), -1, np.int64)
    for b, length in enumerate(context_lens):
        rows = np.flatnonzero(np.asarray(row_to_request) == b)
        position = np.arange(length)
        slot = np.asarray(block_table, np.int64)[b, position // page_size] * page_size + position % page_size
        for i, t in enumerate(rows):
            seen = max(0, length - len(rows) + i + 1)
            indices[t, :seen] = slot[:seen]
    return sparse_mla(q, np.asarray(kv_cache).reshape(-1, q.shape[-1]), indices, sm_scale)[:2]


def _expanded(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, keys: list[np.ndarray], sm_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Row t attends to rows ``keys[t]`` of k and v; query head h uses key head h // (H // Hk)."""
    q, k, v = (np.asarray(x, F64) for x in (q, k, v))
    rows, heads = q.shape[:2]
    head = np.arange(heads) // max(1, heads // max(1, k.shape[1]))
    out, lse = np.zeros((rows, heads, v.shape[2])), np.zeros((rows, heads))
    for t in range(rows):
        ks, vs = k[keys[t]][:, head], v[keys[t]][:, head]
        out[t], lse[t], _ = _softmax_rows(sm_scale * np.einsum("hd,nhd->hn", q[t], ks), vs.transpose(1, 0, 2))
    return out, lse


def mha(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, cu_q: np.ndarray, cu_k: np.ndarray, sm_scale: float,
    causal: bool = True,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ragged multi-head attention; causal: row i of n sees the first ``L - n + i + 1`` of its request's L keys."""
    keys = []
    for b in range(len(cu_q) - 1):
        rows, length = int(cu_q[b + 1] - cu_q[b]), int(cu_k[b + 1] - cu_k[b])
        for i in range(rows):
            seen = max(0, length - rows + i + 1) if causal else length
            keys.append(int(cu_k[b]) + np.arange(seen))
    return _expanded(q, k, v, keys, sm_scale)


def sparse_mha(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, indices: np.ndarray, sm_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Row t attends to rows ``indices[t]`` of k and v, -1 = none."""
    return _expanded(q, k, v, [row[row != -1] for row in np.asarray(indices)], sm_scale)


def merge_states(
    outs: np.ndarray, lses: np.ndarray, attn_sink: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``sum_i outs[i] exp(lses[i] - lse)`` with ``lse = ln sum_i exp(lses[i])``; infinite lses mark empty parts."""
    outs, lses = np.asarray(outs, F64), np.asarray(lses, F64)
    empty = np.isinf(lses)
    m = np.where(empty, -np.inf, lses).max(axis=0, initial=-np.inf)
    m = np.where(np.isneginf(m), 0.0, m)
    weight = np.where(empty, 0.0, np.exp(np.where(empty, 0.0, lses) - m))
    total = weight.sum(axis=0)
    out = (np.where(empty[..., None], 0.0, outs) * weight[..., None]).sum(axis=0)
    out = out / np.where(total == 0.0, 1.0, total)[..., None]
    with np.errstate(divide="ignore"):
        lse = m + np.log(total)
    return _with_sink(out, lse, attn_sink), lse
