"""Writers of a sharded cache: each rank stores the rows that it owns."""

from __future__ import annotations

from typing import Any

from .. import quant
from ._dcp import DcpLayout

__all__ = ["dcp_write_index", "dcp_write_kv"]


def dcp_write_kv(
    c_kv: Any,
    k_pe: Any,
    kv_cache: Any,
    positions: Any,
    block_table: Any,
    layout: DcpLayout,
    rank: int,
    *,
    row_to_request: Any = None,
    kv_layout: str = "bf16_576",
    scale_rule: str = "official",
    threads: int = 0,
    validate: str = "full",
) -> None:
    """Store the new tokens that a rank owns in its shard of the KV cache.

    Parameters
    ----------
    c_kv, k_pe : arrays [T, 512] and [T, 64], float32 or bfloat16
        All new tokens of the step, as every rank has them; rows of other ranks are not even read.
    kv_cache : array
        The rank's paged cache of ``kv_layout``, written in place.
    positions : array [T], int32 or int64
        Logical positions, -1 = a padding row.
    block_table : array [R, W], int32 or int64
        Page ids, one column per virtual page.
    layout : DcpLayout
    rank : int
    row_to_request : array [T], optional
        Row of ``block_table`` of each token; not needed when it has one row.
    kv_layout : {"bf16_576", "fp8_656", "f32_576"}
    scale_rule : str
        See :func:`sparsespan.quant.concat_and_cache_mla`, which this calls with ``layout.slot_mapping(...)``.

    Raises
    ------
    IndexError
        As ``layout.slot_mapping``, on every rank alike.
    ValueError, TypeError
        As :func:`sparsespan.quant.concat_and_cache_mla`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> layout = cp.dcp_layout(interleave=1, world_size=2, page_size=2)
    >>> cache = np.zeros((1, 2, 576), np.float32)
    >>> rows = np.arange(1.0, 5.0, dtype=np.float32)[:, None]  # positions 0..3 hold 1..4
    >>> c_kv, k_pe = np.repeat(rows, 512, axis=1), np.repeat(rows, 64, axis=1)
    >>> cp.dcp_write_kv(c_kv, k_pe, cache, np.arange(4), np.array([[0]]), layout, rank=1, kv_layout="f32_576")
    >>> cache[0, :, 0].tolist()
    [2.0, 4.0]
    """
    slots = layout.slot_mapping(positions, block_table, rank, row_to_request)
    quant.concat_and_cache_mla(
        c_kv, k_pe, kv_cache, slots, kv_layout, layout.page_size, scale_rule, threads=threads, validate=validate
    )


def dcp_write_index(
    k: Any,
    index_cache: Any,
    positions: Any,
    block_table: Any,
    layout: DcpLayout,
    rank: int,
    *,
    replicated: bool = False,
    row_to_request: Any = None,
    index_layout: str = "index_132",
    scale_fmt: str | None = "ue8m0",
    threads: int = 0,
    validate: str = "full",
) -> None:
    """Store indexer keys: those that the rank owns, or with ``replicated`` all of them.

    Parameters
    ----------
    k : array [T, 128], float32 or bfloat16
        Indexer keys of all new tokens of the step.
    index_cache : array
        Paged cache of ``index_layout``. Sharded: as many pages as the KV cache. Replicated: N times as many, and the
        pages of a token are those of ``layout.replicated_table(block_table)``.
    replicated : bool
        True for ``cp.dcp_select(index_k="replicated")``, False for the designs that shard index-K.
    index_layout : {"index_132", "index_bf16", "index_f32"}
    scale_fmt : str, optional
        See :func:`sparsespan.quant.indexer_k_quant_and_cache`.

    Other parameters, and refusals, are those of :func:`dcp_write_kv`; an example is at :func:`dcp_select`.
    """
    slots = layout.slot_mapping(positions, block_table, rank, row_to_request)  # refuses on every rank alike
    if replicated:
        whole = DcpLayout(1, 1, layout.page_size)
        slots = whole.slot_mapping(positions, layout.replicated_table(block_table), 0, row_to_request)
    quant.indexer_k_quant_and_cache(
        k, index_cache, slots, layout.page_size, index_layout, scale_fmt, threads=threads, validate=validate
    )
