"""Who holds which token of a shared KV cache: the owner maps of decode context parallelism."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from .._interop import call
from ._dcp_capacity import CapacityMixin
from ._dcp_gather import GatherMixin
from ._dcp_tables import TableMixin

__all__ = ["DcpLayout", "dcp_layout"]

_MAP = _core.cp.DcpMap


@dataclass(frozen=True, repr=False)
class DcpLayout(TableMixin, GatherMixin, CapacityMixin):
    """Where the tokens of a request lie when ``world_size`` ranks share its KV cache. Made by :func:`dcp_layout`.

    Positions go round the ranks in runs of ``interleave``. A *virtual page* of ``page_size * world_size`` positions
    has one page id, the same on every rank, and ``page_size`` rows of it on each. One object owns the three numbers,
    and every span that scales with the ranks is derived from it.

    Index spaces: ``logical`` is a position in the request, ``local`` a row of one rank's shard of it, ``slot`` a
    physical row of a rank's cache, ``location`` an allocator's virtual row. Virtual pages begin at multiples of
    ``world_size * interleave``, so :meth:`owner` and :meth:`local` take locations as well: the local row of a location
    is its physical row. Only -1 means "none"; it stays -1 and is never put through a modulo.

    Attributes
    ----------
    interleave, world_size, page_size : int
        S, N and B of the formulas.
    """

    interleave: int
    world_size: int
    page_size: int

    def __post_init__(self) -> None:
        core = _core.cp.DcpLayout(self.interleave, self.world_size, self.page_size)
        object.__setattr__(self, "_core", core)

    def __repr__(self) -> str:
        return str(self._core.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return (DcpLayout, (self.interleave, self.world_size, self.page_size))

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, the same for equal layouts in every process and on every machine.

        FNV-1a (64 bit) over ``repr``: ranks compare it before they move data.
        """
        return str(self._core.fingerprint)

    @property
    def transferable_pages(self) -> bool:
        """Whether a page holds consecutive positions (``interleave == page_size``, or one rank).

        PD transfer, KV pools and the peers' compact block tables need it; :meth:`block_gather` does not.
        """
        return self.interleave == self.page_size or self.world_size == 1

    def owner(self, positions: Any) -> Any:
        """Rank that holds each position: ``(p // S) % N``; -1 stays -1.

        Parameters
        ----------
        positions : int or array [...], int32 or int64
            Logical positions or virtual locations, -1 = none.

        Returns
        -------
        int or array like ``positions``

        Raises
        ------
        IndexError
            For a value below -1, naming row, column and value.

        Notes
        -----
        Reference: :func:`sparsespan.reference.cp_dcp.owner`.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> dcp_layout(2, 2, 4).owner(np.array([0, 1, 2, 3, 4, -1]))
        array([ 0,  0,  1,  1,  0, -1])
        """
        return self._map(_MAP.owner, positions)

    def local(self, positions: Any) -> Any:
        """Row of each position on its owner: ``p // (N * S) * S + p % S``; -1 stays -1. Arguments as :meth:`owner`."""
        return self._map(_MAP.local, positions)

    def logical(self, rank: int, local: Any) -> Any:
        """Position of each local row of a rank: ``l // S * (N * S) + rank * S + l % S``; -1 stays -1.

        The inverse of :meth:`owner` and :meth:`local` (the map that peers call ``global``).
        """
        return self._map(_MAP.logical, local, operator.index(rank))

    def local_len(self, lengths: Any, rank: int | None = None) -> Any:
        """How many of the first ``lengths`` positions a rank holds.

        Parameters
        ----------
        lengths : int or array [...], int32 or int64
            Numbers of tokens, at least 0; padding rows of a static batch have length 0.
        rank : int, optional
            None gives all ranks on a new last axis.

        Returns
        -------
        int or array like ``lengths``, with a last axis [N] if ``rank`` is None

        Notes
        -----
        ``L // (N * S) * S + clip(L - L // (N * S) * (N * S) - r * S, 0, S)``; the ranks' lengths sum to ``L``. A
        rank may hold 0 tokens. Reference: :func:`sparsespan.reference.cp_dcp.local_len`.

        Examples
        --------
        >>> from sparsespan.cp import dcp_layout
        >>> dcp_layout(1, 4, 4).local_len(13)
        array([4, 3, 3, 3])
        """
        return self._map(_MAP.local_len, lengths, rank)

    def visible_len(self, positions: Any, rank: int | None = None) -> Any:
        """Keys of a rank that the query at each position sees, itself included: ``local_len(p + 1, rank)``.

        Give every row of a verify or prefill batch its own position. -1 (a padding row) sees 0 keys. The count is
        inclusive: leaving out the query's own key is a known peer bug (vllm-ascend 11849).
        """
        return self._map(_MAP.visible_len, positions, rank)

    def local_window(self, start: int, length: int, rank: int) -> tuple[int, int]:
        """First local row and number of rows that a rank holds of positions ``start .. start + length - 1``."""
        if length < 0:
            raise ValueError(f"dcp_layout.local_window: length is {length}, needs at least 0")
        first = self.local_len(start, rank)
        return first, self.local_len(start + length, rank) - first

    def remap_topk(
        self,
        indices: Any,
        rank: int,
        return_lanes: bool = False,
        return_counts: bool = False,
        *,
        context_lens: Any = None,
        topk_length: Any = None,
        out: Any = None,
        threads: int = 0,
        validate: str = "full",
    ) -> Any:
        """Turn selected positions into a rank's local rows: its own first, in the order given, then -1.

        Parameters
        ----------
        indices : array [T, K], int32 or int64
            Logical positions, -1 = none (anywhere in the row); the last axis is contiguous.
        rank : int
        return_lanes : bool
            Also return ``(position // S) % 8`` of each kept entry, then -1. Needs 1, 2, 4 or 8 ranks: only then each
            of the 8 lanes lies on one rank (rank r holds the lanes congruent to r).
        return_counts : bool
            Also return how many entries each row kept: kernels that stop there gain from sharding, others do not.
        context_lens : array [T], int32 or int64, optional
            Keys that each row may name; an index at or above it is refused.
        topk_length : array [T], int32 or int64, optional
            Entries of ``indices`` past it are never read.
        out : array like ``indices``, optional
        threads : int
            0 takes :func:`sparsespan.num_threads`. A row's result depends on that row alone.
        validate : {"full", "trusted"}
            "trusted" skips the scan of ``indices`` for values out of range.

        Returns
        -------
        local : array [T, K] like ``indices``
            Local rows of ``rank``, -1 = none.
        lanes : array [T, K] like ``indices``, if ``return_lanes``
        counts : array [T] int32, if ``return_counts``

        Raises
        ------
        IndexError
            For an index below -1 or not below ``context_lens``, naming row, column and value.
        ValueError
            For shapes that do not fit, a bad ``topk_length``, or lanes with another number of ranks.

        Notes
        -----
        ``mine = p >= 0 and owner(p) == rank``. The test ``p >= 0`` bears load: ``-1 % N`` is ``N - 1``, so without it
        the last rank owns the padding. Kernels must not crop the result causally: local rows and queries have different
        coordinates. The result is in the coordinates of the request's shard; its slots follow from the same block
        table, ``table[request, local // B] * B + local % B``. Reference:
        :func:`sparsespan.reference.cp_dcp.remap_topk`.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> dcp_layout(1, 4, 4).remap_topk(np.array([[0, 7, 13, 2, 9, -1]]), rank=1)
        array([[ 3,  2, -1, -1, -1, -1]])
        """
        local, lanes, counts = call(
            self._core.remap_topk, indices, rank, context_lens, topk_length, return_lanes, return_counts, out, threads,
            validate,
        )  # fmt: skip
        results = (local, *([lanes] if return_lanes else []), *([counts] if return_counts else []))
        return results if len(results) > 1 else local

    def _map(self, kind: Any, values: Any, rank: int | None = 0) -> Any:
        if isinstance(values, (int, np.integer)):
            one = self._core.map(kind, np.array([values], np.int64), rank or 0, rank is None, 0)[0]
            return one if rank is None else int(one)
        return call(self._core.map, kind, values, rank or 0, rank is None, 0)


def dcp_layout(interleave: int, world_size: int, page_size: int) -> DcpLayout:
    """Lay a KV cache out over the ranks of a decode context parallel group.

    Parameters
    ----------
    interleave : int
        S: run of positions on one rank. 1 spreads every new token; ``page_size`` keeps pages transferable. vLLM's
        ``cp_kv_cache_interleave_size``.
    world_size : int
        N: ranks that share the cache; with PCP and DCP both sharding, ``pcp * dcp`` and rank ``pcp_rank * dcp +
        dcp_rank``.
    page_size : int
        B: rows of one physical page on one rank, a multiple of ``interleave``.

    Returns
    -------
    DcpLayout

    Raises
    ------
    ValueError
        If a number is below 1 or ``page_size`` is no multiple of ``interleave``, with the nearest that is.

    Examples
    --------
    >>> from sparsespan.cp import dcp_layout
    >>> layout = dcp_layout(interleave=1, world_size=4, page_size=64)
    >>> layout
    dcp_layout(interleave=1, world_size=4, page_size=64)
    >>> layout.virtual_page_size, layout.owner(13), layout.local(13), layout.logical(1, 3)
    (256, 1, 3, 13)
    """
    return DcpLayout(interleave, world_size, page_size)
