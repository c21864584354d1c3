"""Rows of a layer over a KV cache that tensor-parallel ranks share (DCP)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import cp
from ._caches import PagedCaches
from ._taps import seen

__all__ = ["Dcp"]


@dataclasses.dataclass(frozen=True)
class Dcp:
    """How the ranks of a tensor-parallel group share the KV cache.

    With the defaults 1, 2, 4 and 8 ranks give the same bits of attention.

    Attributes
    ----------
    layout : DcpLayout
        From :func:`sparsespan.cp.dcp_layout`; its page size is that of the caches, and a column of the block table is a
        virtual page.
    combine, payload
        As in :func:`sparsespan.cp.dcp_decode`.
    index_k : str
        Where index keys lie, as in :func:`sparsespan.cp.dcp_select`; "replicated" needs N times the pages for them.
    """

    layout: cp.DcpLayout
    combine: str = "a2a"
    payload: str = "fp32"
    index_k: str = "replicated"

    def store(
        self, comm: Any, caches: PagedCaches, layer: int, keys: tuple[Any, Any, Any], positions: Any, request: Any,
        threads: int,
    ) -> None:  # fmt: skip
        """Write what this rank keeps of new keys that every rank has."""
        latent, k_pe, index = keys
        cp.dcp_write_kv(
            latent, k_pe, caches.kv[layer], positions, caches.block_table, self.layout, comm.rank,
            row_to_request=request, kv_layout=caches.kv_layout, threads=threads,
        )  # fmt: skip
        if index is not None:
            cp.dcp_write_index(
                index, caches.index_k[layer], positions, caches.block_table, self.layout, comm.rank,
                replicated=self.index_k == "replicated", row_to_request=request, index_layout=caches.index_layout,
                threads=threads,
            )  # fmt: skip

    def select(
        self, comm: Any, caches: PagedCaches, layer: int, q: Any, weights: Any, positions: Any, request: Any,
        topk: int, threads: int,
    ) -> Any:  # fmt: skip
        """Logical positions of each row's keys; rows are seen as requests of one row each."""
        table = np.ascontiguousarray(caches.block_table[np.maximum(request, 0)])
        return cp.dcp_select(
            comm, q, caches.index_k[layer], weights, _context(positions, request), table, self.layout, topk,
            index_k=self.index_k, index_layout=caches.index_layout, threads=threads,
        )  # fmt: skip

    def attend(
        self, comm: Any, caches: PagedCaches, layer: int, q: Any, indices: Any, positions: Any, request: Any,
        sm_scale: float, threads: int,
    ) -> Any:  # fmt: skip
        """Attention of this rank's heads over the keys of all ranks."""
        out, lse = cp.dcp_decode(
            comm, q, caches.kv[layer], indices, self.layout, caches.block_table, sm_scale, row_to_request=request,
            context_lens=_context(positions, request), kv_layout=caches.kv_layout, combine=self.combine,
            payload=self.payload, threads=threads,
        )  # fmt: skip
        seen(lse=lse)
        return out


def _context(positions: Any, request: Any) -> np.ndarray:
    """Keys that each row may see; padding rows none."""
    return np.where(request >= 0, positions + 1, 0)
