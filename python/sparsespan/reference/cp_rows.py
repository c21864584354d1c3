"""Twins of the prefill ops between ranks. A group is the list of what each rank has; nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .attention import sparse_mla
from .indexer import select, to_slots
from .quant import concat_and_cache_mla, gather_indexer_k, indexer_k_quant_and_cache, read_kv

__all__ = ["exchange_heads", "gather_rows", "o_proj", "prefill_attention", "split", "write_all"]


def split(x: np.ndarray, rank_rows: Sequence[int]) -> np.ndarray:
    """Row ``rank_rows[i]`` of ``x`` at i; zeros for -1."""
    out = np.zeros((len(rank_rows), *x.shape[1:]), x.dtype)
    for i, row in enumerate(rank_rows):
        if row >= 0:
            out[i] = x[row]
    return out


def gather_rows(parts: Sequence[np.ndarray], rank_rows: Sequence[Sequence[int]], total: int) -> np.ndarray:
    """The batch from the ranks' rows; of a row that several ranks have, the lowest rank's."""
    out = np.zeros((total, *parts[0].shape[1:]), parts[0].dtype)
    for part, rows in reversed(list(zip(parts, rank_rows, strict=True))):
        for i, row in enumerate(rows):
            if row >= 0:
                out[row] = part[i]
    return out


def write_all(c_kv: np.ndarray, k_pe: np.ndarray, k_index: np.ndarray | None, caches: Any, slots: np.ndarray) -> None:
    """One rank writes every row of the batch."""
    concat_and_cache_mla(c_kv, k_pe, caches.kv, slots, caches.layout, caches.page_size, caches.scale_rule)
    if k_index is not None:
        layout, scale_fmt = caches.index_layout, caches.scale_fmt
        indexer_k_quant_and_cache(k_index, caches.index, slots, caches.page_size, layout, scale_fmt)


def prefill_attention(
    q: np.ndarray,
    index_q: np.ndarray,
    weights: np.ndarray,
    caches: Any,
    block_table: np.ndarray,
    row_to_request: np.ndarray,
    positions: np.ndarray,
    topk: int,
    sm_scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(out, lse, logical indices) of the whole batch on one rank, float64; the caches hold all keys."""
    seen = [positions[row_to_request == s] + 1 for s in range(len(block_table))]
    lens = [ends.max(initial=0) for ends in seen]
    starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int64)
    k, scale = gather_indexer_k(caches.index, block_table, starts, caches.page_size, caches.index_layout)
    ks = starts[row_to_request]
    packed = select(index_q, k, weights, ks, ks + positions + 1, scale, topk)
    slots = to_slots(packed, row_to_request, block_table, caches.page_size, ks)
    every = np.arange(caches.kv.shape[0] * caches.page_size)
    kv = read_kv(caches.kv, every, caches.layout, caches.page_size)
    out, lse, _ = sparse_mla(q, kv, slots, sm_scale)
    return out, lse, np.where(packed >= 0, packed - ks[:, None], -1)


def exchange_heads(xs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """``Z_r = X[:, columns of r]`` with X the tokens of all ranks in order of rank."""
    return np.split(np.concatenate(xs), len(xs), axis=1)


def o_proj(xs: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each rank's tokens times the whole weight, float64; ``weights`` are the ranks' input-major shards."""
    whole = np.concatenate([np.asarray(w, np.float64) for w in weights])
    return [np.asarray(x, np.float64).reshape(len(x), -1) @ whole for x in xs]
