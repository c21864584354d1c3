"""How many tokens a DCP group holds, and how many heads a kernel sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["CapacityMixin", "DcpCapacity", "DcpHeads"]


@dataclass(frozen=True)
class DcpCapacity:
    """Counted capacity of one DCP group.

    Attributes
    ----------
    pages : int
        Usable virtual pages; the same number of pages on each rank.
    tokens_per_rank : int
        KV rows on one rank: ``pages * B``.
    tokens : int
        Context that the group holds, and what an engine reports: ``pages * B * N``.
    page_bytes : int
        One page on one rank, all layers, with its share of index-K.
    baseline_tokens : int
        The same memory on one rank without DCP.
    gain : float
        ``(kv + ik) / (kv / N + ik / shards)``: ``tokens`` against ``baseline_tokens`` before rounding to pages.
    """

    pages: int
    tokens_per_rank: int
    tokens: int
    page_bytes: int
    baseline_tokens: int
    gain: float


@dataclass(frozen=True)
class DcpHeads:
    """Query heads of one rank: before the gather, after it, and after padding for the kernel."""

    local: int
    gathered: int
    padded: int


class CapacityMixin:
    """Part of :class:`sparsespan.cp.DcpLayout`."""

    world_size: int
    _core: Any

    def capacity(
        self,
        memory_bytes: int,
        kv_layout: str | int = "bf16_576",
        index_layout: str | int | None = "index_bf16",
        index_k: str | int = "replicated",
        *,
        kv_layers: int = 1,
        index_layers: int | None = None,
        reserved_bytes: int = 0,
        reserved_pages: int = 0,
    ) -> DcpCapacity:
        """Count the tokens that fit into ``memory_bytes`` per rank.

        Parameters
        ----------
        memory_bytes : int
            Memory of one rank for KV and index-K.
        kv_layout : str or int
            Name of a layout ("bf16_576", "fp8_656", ...) or bytes per token and layer.
        index_layout : str, int or None
            "index_bf16", "index_132", "index_f32" or bytes per token and layer; None for a model without one (V3.1).
        index_k : {"replicated", "sharded"} or int
            Whether every rank holds the whole index-K, or how many ranks share one copy (partial replication:
            ``world_size / shards`` groups of consecutive ranks, :meth:`index_groups`).
        kv_layers, index_layers : int
            Layers with latent KV and layers with an indexer (IndexShare has fewer); ``index_layers`` defaults to
            ``kv_layers``.
        reserved_bytes : int
            Taken off first: workspaces that grow under DCP.
        reserved_pages : int
            Pages that hold no request, such as page 0 of SGLang's pools.

        Returns
        -------
        DcpCapacity

        Raises
        ------
        ValueError
            For an unknown layout, or shards that do not divide ``world_size``, with the nearest that do.

        Notes
        -----
        With replicated index-K eight ranks hold 3.5 times (bf16) or 4.65 times (bf16 latent, ``index_132``) the tokens
        of one, not 8 times: index-K costs ``N * ik`` per local row. Reference:
        :func:`sparsespan.reference.cp_dcp.capacity`.

        Examples
        --------
        >>> from sparsespan.cp import dcp_layout
        >>> layout = dcp_layout(1, 8, 64)
        >>> [round(layout.capacity(2**30, "bf16_576", ik).gain, 2) for ik in ("index_bf16", "index_132", None)]
        [3.52, 4.65, 8.0]
        >>> layout.capacity(2**30, index_k="sharded").gain
        8.0
        """
        names = {"replicated": 1, "sharded": self.world_size}
        if isinstance(index_k, str) and index_k not in names:
            raise ValueError(
                f'dcp_layout.capacity: index_k is "{index_k}", needs "replicated", "sharded" or the number of ranks '
                "that share one copy"
            )
        shards = names[index_k] if isinstance(index_k, str) else index_k
        layers = kv_layers if index_layers is None else index_layers
        return DcpCapacity(
            *self._core.capacity(
                memory_bytes, reserved_bytes, kv_layout, index_layout, shards, kv_layers, layers, reserved_pages
            )
        )

    def index_groups(self, shards: int) -> list[list[int]]:
        """Ranks that together hold one copy of a partly replicated index-K: runs of ``shards`` consecutive ranks."""
        if shards < 1 or self.world_size % shards:
            raise ValueError(
                f"dcp_layout.index_groups: shards is {shards}, needs a divisor of world_size = {self.world_size}"
            )
        return [list(range(first, first + shards)) for first in range(0, self.world_size, shards)]

    def heads(self, num_heads: int, tp: int, multiple: int = 64) -> DcpHeads:
        """Query heads that a decode kernel sees after the gather over the DCP group, and the padding it needs.

        Parameters
        ----------
        num_heads : int
            Query heads of the model (128 in DeepSeek-V3.2).
        tp : int
            Attention TP; the DCP group lies inside it.
        multiple : int
            The kernel's head tile (64 on SM90 ``flashmla_sparse``).

        Examples
        --------
        >>> from sparsespan.cp import dcp_layout
        >>> dcp_layout(1, 4, 64).heads(128, tp=8)
        DcpHeads(local=16, gathered=64, padded=64)
        """
        return DcpHeads(*self._core.heads(num_heads, tp, multiple))
