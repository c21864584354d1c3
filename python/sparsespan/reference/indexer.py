"""Twins of :mod:`sparsespan.indexer`."""

from __future__ import annotations

import ml_dtypes
import numpy as np

__all__ = [
    "mqa_logits",
    "paged_mqa_logits",
    "paged_select",
    "read_index_cache",
    "row_lengths",
    "select",
    "to_slots",
    "topk",
]


def _scores(q: np.ndarray, k: np.ndarray, weights: np.ndarray, k_scale: np.ndarray | None) -> np.ndarray:
    """Scores of one row: q [Hi, D], k [n, D], weights [Hi] -> [n]."""
    dots = np.asarray(q, np.float64) @ np.asarray(k, np.float64).T
    scores = np.asarray(weights, np.float64) @ np.maximum(dots, 0.0)
    return np.asarray(scores if k_scale is None else scores * np.asarray(k_scale, np.float64))


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


def topk(
    scores: np.ndarray,
    k: int,
    lengths: np.ndarray | None = None,
    row_starts: np.ndarray | None = None,
    base: str = "packed",
    nan: str = "raise",
    order: str = "index",
) -> np.ndarray:
    """The k best of each row's window: score descending, then smaller index; -1 behind them."""
    out = np.full((len(scores), k), -1, np.int32)
    for t, row in enumerate(scores):
        start = 0 if row_starts is None else int(row_starts[t])
        end = len(row) if lengths is None else start + int(lengths[t])
        window = np.asarray(row[start:end], np.float64)
        missing = np.isnan(window)
        if nan == "raise" and missing.any():
            raise ValueError(f"scores has a NaN score at row {t}, column {start + int(missing.argmax())}")
        # Equal floats compare equal, -0.0 and +0.0 too; the last key is the first that counts.
        ranked = np.lexsort((np.arange(len(window)), -np.where(missing, 0.0, window), missing))[:k]
        chosen = ranked if order == "score" else np.sort(ranked)
        out[t, : len(chosen)] = chosen + (0 if base == "row" else start)
    return out


def select(
    q: np.ndarray,
    k: np.ndarray,
    weights: np.ndarray,
    ks: np.ndarray,
    ke: np.ndarray,
    k_scale: np.ndarray | None = None,
    topk: int = 2048,
    nan: str = "raise",
) -> np.ndarray:
    """``topk`` of ``mqa_logits``, packed indices. Float64 scores may order near ties otherwise than float32 ones."""
    scores = mqa_logits(q, k, weights, ks, ke, k_scale)
    lengths = np.maximum(np.asarray(ke, np.int64) - np.asarray(ks, np.int64), 0)
    return _topk(scores, topk, lengths, ks, nan=nan)


def row_lengths(context_lens: np.ndarray, next_n: int) -> np.ndarray:
    """Keys that each of the B * next_n rows sees, from [B] (a staircase that ends at the length) or [B, next_n]."""
    lens = np.asarray(context_lens, np.int64)
    if lens.ndim == 1:
        lens = np.maximum(lens[:, None] - next_n + np.arange(next_n) + 1, 0)
    return lens.reshape(-1)


def read_index_cache(
    cache: np.ndarray, pages: np.ndarray, length: int, page_size: int, layout: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Keys 0..length-1 of a sequence on the given pages: (k [length, 128], scale [length] or None)."""
    used = cache.reshape(len(cache), -1)[np.asarray(pages[: -(-length // page_size)], np.int64)]
    if layout != "index_132":
        return used.reshape(-1, 128)[:length], None
    # A page holds the values of all of its tokens, then their scales.
    raw = np.ascontiguousarray(used).view(np.uint8)
    values = raw[:, : page_size * 128].reshape(-1, 128)[:length].view(ml_dtypes.float8_e4m3fn)
    scales = np.ascontiguousarray(raw[:, page_size * 128 :]).reshape(-1).view(np.float32)[:length]
    return values, scales


def paged_mqa_logits(
    q: np.ndarray,
    kv_cache: np.ndarray,
    weights: np.ndarray,
    context_lens: np.ndarray,
    block_table: np.ndarray,
    page_size: int,
    max_context_len: int,
    layout: str = "index_132",
) -> np.ndarray:
    """Scores of logical positions below each row's length, else -inf; float64."""
    rows = q.reshape(-1, *q.shape[-2:])
    next_n = len(rows) // max(1, len(block_table))
    out = np.full((len(rows), max_context_len), -np.inf)
    for row, length in enumerate(row_lengths(context_lens, next_n)):
        k, scale = read_index_cache(kv_cache, block_table[row // next_n], int(length), page_size, layout)
        out[row, :length] = _scores(rows[row], k, weights[row], scale)
    return out


def paged_select(
    q: np.ndarray,
    kv_cache: np.ndarray,
    weights: np.ndarray,
    context_lens: np.ndarray,
    block_table: np.ndarray,
    page_size: int,
    topk: int = 2048,
    layout: str = "index_132",
    nan: str = "raise",
) -> np.ndarray:
    """``topk`` of ``paged_mqa_logits``, logical indices."""
    rows = q.reshape(-1, *q.shape[-2:])
    lengths = row_lengths(context_lens, len(rows) // max(1, len(block_table)))
    longest = int(lengths.max(initial=0))
    scores = paged_mqa_logits(q, kv_cache, weights, context_lens, block_table, page_size, longest, layout)
    return _topk(scores, topk, lengths, nan=nan)


def to_slots(
    indices: np.ndarray,
    row_to_request: np.ndarray,
    block_table: np.ndarray,
    page_size: int,
    ks: np.ndarray | None = None,
) -> np.ndarray:
    """``block_table[request, logical // page_size] * page_size + logical % page_size``; -1 stays -1."""
    out = np.full(indices.shape, -1, np.int32)
    for t, row in enumerate(indices):
        named = row != -1
        logical = row[named].astype(np.int64) - (0 if ks is None else int(ks[t]))
        pages = np.asarray(block_table, np.int64)[int(row_to_request[t]), logical // page_size]
        out[t, named] = pages * page_size + logical % page_size
    return out


_topk = topk
