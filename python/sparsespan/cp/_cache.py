"""The KV path of prefill context parallelism."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import _core
from ..comm import Communicator, Work
from ._plan import CpPlan
from ._start import need_comm, need_plan, start

__all__ = ["LayerCache", "gather_kv_and_cache"]


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """The paged caches of one layer on one rank.

    Parameters
    ----------
    kv : array [pages, page_size, width]
        Latent and rope, of ``layout``.
    index : array [pages, page_size, width], optional
        Index keys, of ``index_layout``; None in a layer that has no indexer of its own. One page table serves both.
    layout, index_layout : str
        See :func:`sparsespan.quant.kv_layout`.
    page_size : int
        Tokens per page.
    scale_rule, scale_fmt
        As in :func:`sparsespan.quant.concat_and_cache_mla` and :func:`sparsespan.quant.indexer_k_quant_and_cache`.
    """

    kv: Any
    index: Any = None
    layout: str = "fp8_656"
    index_layout: str = "index_132"
    page_size: int = 64
    scale_rule: str = "official"
    scale_fmt: str | None = "ue8m0"

    def _core_form(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def gather_kv_and_cache(
    comm: Communicator,
    c_kv: Any,
    k_pe: Any,
    k_index: Any,
    caches: LayerCache,
    plan: CpPlan,
    slot_mapping: Any,
    *,
    timeout: float | None = None,
    threads: int = 0,
    validate: str = "full",
) -> Work:
    """Start bringing a layer's new keys into the whole caches of every rank; ``wait()`` ends it.

    Parameters
    ----------
    comm : Communicator
        Of as many ranks as the plan has; every rank calls this.
    c_kv : array [n, 512], float32 or bfloat16
        This rank's latent rows in local order (``n = plan.counts[rank]``), after their norm.
    k_pe : array [n, 64] or [n, 1, 64], float32 or bfloat16
        Rope keys, already rotated with this rank's ``plan.positions``: after the gather it would be too late.
    k_index : array [n, 128] or [n, 1, 128], float32 or bfloat16, or None
        Index keys, ready to be stored; None in a layer that shares another layer's top-k.
    caches : LayerCache
        This rank's caches; ``caches.index`` is None exactly when ``k_index`` is.
    plan : CpPlan
    slot_mapping : int array [T] (or [pad_to])
        Slot of each row of the batch, -1 skips the row. The ranks' slots may differ, their skipped rows may not.
    timeout : float, optional
        Seconds.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` looks at no slot and no value, as in :func:`sparsespan.quant.concat_and_cache_mla`.

    Returns
    -------
    Work
        Compute the queries, then ``wait()``: it ends the gather and writes all rows of the batch. Until then the caches
        are as they were; when it raises they still are.

    Raises
    ------
    ValueError, TypeError, IndexError
        Before anything is sent: local rows that do not match the plan, a communicator of another size, a slot outside
        a cache or named twice, a value that fp8 cannot hold.
    RankMismatch
        If the ranks follow different plans, layouts, scale rules or skipped rows.
    CommError
        As any operation between ranks.

    Notes
    -----
    One all-gather carries, per token, what the caches store: latent | rope | index key. The rank that has a row
    quantises it; the others copy its bytes. So the caches are byte for byte what one rank would write with
    :func:`~sparsespan.quant.concat_and_cache_mla` and :func:`~sparsespan.quant.indexer_k_quant_and_cache`, and a token
    takes 1152 + 256 = 1408 bytes with bfloat16 caches, 656 + 132 = 788 with fp8 ones. A rank receives
    ``(N-1) padded_len`` tokens, pad rows included; no pad row is written. Source: vllm-ascend's fused gather (it
    moves bfloat16 and quantises afterwards). Reference: :func:`sparsespan.reference.cp_rows.write_all`.
    """
    core = need_plan("gather_kv_and_cache", plan)._core
    comm = need_comm("gather_kv_and_cache", comm)
    if not isinstance(caches, LayerCache):
        raise TypeError(f"gather_kv_and_cache: caches is a {type(caches).__name__}, needs a cp.LayerCache")
    return start(
        comm, _core.cp.gather_kv_and_cache, c_kv, k_pe, k_index, caches._core_form(), core, slot_mapping, threads,
        timeout, validate,
    )  # fmt: skip
