"""DSA attention of one layer under prefill context parallelism: the ops in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import indexer, quant
from ..attention import sparse_mla
from ..comm import Communicator
from ._cache import LayerCache, gather_kv_and_cache
from ._plan import CpPlan
from ._start import need_comm, need_plan

__all__ = ["PrefillResult", "prefill_attention", "prefill_select", "prefill_slots"]


_WAYS = ("packed", "paged")


class PrefillResult(NamedTuple):
    """What :func:`prefill_attention` gives for this rank's rows, in local order."""

    out: Any
    lse: Any
    indices: Any


def prefill_slots(plan: CpPlan, block_table: Any, page_size: int) -> np.ndarray:
    """Slot of each row of the batch, from the page tables.

    Parameters
    ----------
    plan : CpPlan
    block_table : int array [B, pages]
        Page of logical positions ``i * page_size`` and up of each request.
    page_size : int
        Tokens per page.

    Returns
    -------
    int64 [T]
        ``block_table[s, p // page_size] * page_size + p % page_size`` for row i of request s at ``p = P + i``; -1 for
        pad rows.

    Raises
    ------
    ValueError, TypeError, IndexError
        For a table of another shape or dtype, too few pages, or no page (-1) within a request's length.
    """
    table = np.asarray(block_table)
    lens = plan.prefix_lens + plan.real_lens
    if page_size < 1:
        raise ValueError(f"prefill_slots: page_size is {page_size}, needs at least 1")
    if table.dtype not in (np.int32, np.int64):
        raise TypeError(f"prefill_slots: block_table has dtype {table.dtype}, needs int32 or int64; convert it first")
    if table.ndim != 2 or len(table) != plan.num_requests:
        raise ValueError(
            f"prefill_slots: block_table has shape {list(table.shape)}, needs [{plan.num_requests}, pages]: one row "
            f"for each of the plan's requests"
        )
    short = np.flatnonzero((plan.real_lens > 0) & (lens > table.shape[1] * page_size))
    if len(short):
        raise ValueError(
            f"prefill_slots: block_table has {table.shape[1]} pages of {page_size} for request {short[0]}, needs room "
            f"for its {lens[short[0]]} tokens"
        )
    used = np.where(plan.real_lens > 0, lens, 0)[:, None] > np.arange(table.shape[1]) * page_size
    wrong = np.argwhere(used & (table < 0))
    if len(wrong):
        row, column = wrong[0]
        raise IndexError(
            f"prefill_slots: block_table is {table[row, column]} in row {row}, column {column}, within the request's "
            f"{lens[row]} tokens; needs a page"
        )
    request = np.repeat(np.arange(plan.num_requests), np.diff(plan.cu_seqlens))
    offset = np.arange(plan.num_rows) - plan.cu_seqlens[request]
    real = offset < plan.real_lens[request]
    slots = np.full(plan.num_rows, -1, np.int64)
    request, position = request[real], (plan.prefix_lens[request] + offset)[real]
    slots[real] = table[request, position // page_size].astype(np.int64) * page_size + position % page_size
    return slots


def prefill_select(
    plan: CpPlan,
    rank: int,
    index_q: Any,
    weights: Any,
    caches: LayerCache,
    block_table: Any,
    topk: int = 2048,
    *,
    by: str = "packed",
    rows: Any = None,
    threads: int = 0,
) -> np.ndarray:
    """Choose the ``topk`` best positions for a rank's rows over the whole index cache.

    Parameters
    ----------
    plan : CpPlan
    rank : int
    index_q : array [n, Hi, 128]
        Indexer queries of the rank's rows in local order.
    weights : float32 [n, Hi]
    caches : LayerCache
        ``caches.index`` holds the keys of prefix and batch.
    block_table : int array [B, pages]
    topk : int
    by : {"packed", "paged"}
        Gather the keys of the rank's requests into one packed stream and select there, or read the pages where they
        lie. The answers are the same; packed is faster for many rows, paged needs no second copy of the keys.
    rows : integers [n], optional
        Local rows that are asked for, where they are not all.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    int32 [n, topk]
        Logical positions, ascending, then -1; pad rows have none.
    """
    if by not in _WAYS:
        raise ValueError(f"prefill_select: by is {by!r}, needs 'packed' or 'paged'")
    table, page_size, layout = np.asarray(block_table), caches.page_size, caches.index_layout
    request, context = plan.row_to_request(rank), plan.context_lens(rank)
    asked = plan.request_counts(rank)
    if rows is not None:
        request, context = request[rows], context[rows]
        asked = np.bincount(request[request >= 0], minlength=plan.num_requests)
    if by == "paged":
        rows = table[np.maximum(request, 0)] if len(table) else np.zeros((len(request), 0), np.int32)
        found = indexer.paged_select(
            index_q, caches.index, weights, context, rows, page_size, topk, layout, threads=threads
        )
        return np.asarray(found)
    # Only the requests that have rows here: the keys of the others are not read.
    lens = np.where(asked > 0, plan.prefix_lens + plan.real_lens, 0)
    starts = np.concatenate([[0], np.cumsum(lens)])
    k, scale = quant.gather_indexer_k(caches.index, table, starts, page_size, layout, threads=threads)
    ks = np.where(request >= 0, starts[request], 0)
    packed = np.asarray(indexer.select(index_q, k, weights, ks, ks + context, scale, topk, threads=threads))
    return np.where(packed >= 0, packed - ks[:, None], -1).astype(np.int32)


def _check_shared(plan: CpPlan, rank: int, indices: Any) -> None:
    """Another layer's choice for these rows: logical, causal, none for padding."""
    chosen, context = np.asarray(indices), plan.context_lens(rank)
    if chosen.ndim != 2 or len(chosen) != len(context):
        raise ValueError(
            f"prefill_attention: indices has shape {list(chosen.shape)}, needs [{len(context)}, K]: one row for each "
            f"local row of rank {rank}"
        )
    wrong = np.argwhere((chosen < -1) | (chosen >= context[:, None]))
    if len(wrong):
        row, column = wrong[0]
        raise IndexError(
            f"prefill_attention: indices is {chosen[row, column]} in row {row}, column {column}, needs -1 or a logical "
            f"position below the {context[row]} that the row sees"
        )


def prefill_attention(
    comm: Communicator,
    plan: CpPlan,
    caches: LayerCache,
    c_kv: Any,
    k_pe: Any,
    k_index: Any,
    queries: Callable[[np.ndarray], Any] | Any,
    *,
    sm_scale: float,
    block_table: Any,
    slot_mapping: Any = None,
    topk: int = 2048,
    rope: Callable[[Any, Any, np.ndarray], tuple[Any, Any]] | None = None,
    indices: Any = None,
    by: str = "packed",
    attn_sink: Any = None,
    out_dtype: str | None = None,
    timeout: float | None = None,
    threads: int = 0,
) -> PrefillResult:
    """Attention of one layer for this rank's rows: gather and cache the keys, select, attend.

    Parameters
    ----------
    comm : Communicator
        Of as many ranks as the plan has; every rank calls this.
    plan : CpPlan
        Any scheme, with prefixes, decode rows and padding as they come.
    caches : LayerCache
        This rank's caches. The prefixes are in them; the batch's rows are there afterwards, on every rank.
    c_kv, k_pe, k_index : array [n, 512], [n, 64], [n, 128]
        This rank's rows as in :func:`gather_kv_and_cache`; ``k_index`` None in a layer that shares a top-k.
    queries : callable(positions) -> (q, index_q, index_weights), or that tuple
        Called when the gather is under way, with the logical position of each local row. ``q`` is [n, H, 576] or
        (q_nope [n, H, 512], q_pe [n, H, 64]), absorbed and rotated; ``index_q`` [n, Hi, 128] and ``index_weights``
        float32 [n, Hi] are ready for :func:`sparsespan.indexer.select`. In a layer that shares a top-k it gives
        (q, None, None).
    sm_scale : float
        As in :func:`sparsespan.attention.sparse_mla`.
    block_table : int array [B, pages]
        Pages of each request, prefix and new rows.
    slot_mapping : int array [T], optional
        Default: :func:`prefill_slots`.
    topk : int
    rope : callable(k_pe, k_index, positions) -> (k_pe, k_index), optional
        Turns this rank's keys with its own positions before they are gathered. None: they come rotated.
    indices : int32 [n, K], optional
        Logical positions that an earlier layer selected for the same plan; needed exactly when ``k_index`` is None.
    by : {"packed", "paged"}
        See :func:`prefill_select`.
    attn_sink, out_dtype
        As in :func:`sparsespan.attention.sparse_mla`.
    timeout : float, optional
        Seconds that the gather waits for its peers.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    PrefillResult
        ``out`` [n, H, 512], ``lse`` float32 [n, H] and ``indices`` int32 [n, topk] (logical) of the local rows; pad
        rows have out 0, lse -inf and no index. :func:`gather_rows` brings them together.

    Raises
    ------
    ValueError, TypeError, IndexError, CommError
        As the ops that it is made of.

    Notes
    -----
    Order: ``rope`` on local keys; one fused all-gather starts; ``queries`` runs; the gather ends and the caches are
    written; :func:`prefill_select` over prefix and batch with each row's causal end; ``sparse_mla`` on the paged cache.
    Indices, out and lse are bit for bit those of one rank, for every scheme and any N. Source: vllm-ascend's order of
    a layer (SFA with context parallelism). Reference: :func:`sparsespan.reference.cp_rows.prefill_attention`.
    """
    op = "prefill_attention"
    need_plan(op, plan)
    comm = need_comm(op, comm)
    rank = comm.rank
    if not isinstance(caches, LayerCache):
        raise TypeError(f"{op}: caches is a {type(caches).__name__}, needs a cp.LayerCache")
    if by not in _WAYS:
        raise ValueError(f"{op}: by is {by!r}, needs 'packed' or 'paged'")
    if (indices is None) == (k_index is None):
        has = "neither k_index nor indices is" if indices is None else "k_index and indices are both"
        raise ValueError(f"{op}: {has} given, needs one: a layer selects with its own index keys or shares a top-k")
    if comm.size != plan.world_size:
        raise ValueError(f"{op}: comm has {comm.size} ranks, needs the plan's {plan.world_size}")
    if indices is not None:
        _check_shared(plan, rank, indices)
    elif topk < 1:
        raise ValueError(f"{op}: topk is {topk}, needs at least 1")
    request = plan.row_to_request(rank)
    positions = np.where(request >= 0, plan.positions(rank), 0)
    if rope is not None:
        k_pe, k_index = rope(k_pe, k_index, positions)
    if slot_mapping is None:
        slot_mapping = prefill_slots(plan, block_table, caches.page_size)
    work = gather_kv_and_cache(comm, c_kv, k_pe, k_index, caches, plan, slot_mapping, timeout=timeout, threads=threads)
    q, index_q, weights = queries(positions) if callable(queries) else queries
    work.wait()
    if indices is None:
        indices = prefill_select(plan, rank, index_q, weights, caches, block_table, topk, by=by, threads=threads)
    slots = indexer.to_slots(indices, request, block_table, caches.page_size, threads=threads)
    out, lse, _ = sparse_mla(
        q, caches.kv, slots, sm_scale, attn_sink=attn_sink, layout=caches.layout, page_size=caches.page_size,
        out_dtype=out_dtype, threads=threads,
    )  # fmt: skip
    return PrefillResult(out, lse, indices)
