"""Slots, writes and page tables of a DCP layout, and every span that scales with its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._interop import call

__all__ = ["DcpSpans", "TableMixin"]


@dataclass(frozen=True)
class DcpSpans:
    """Sizes that an engine derives from one pool of ``tokens_per_rank`` rows on each of N ranks (tokens, not bytes).

    Attributes
    ----------
    page : int
        Physical page on one rank, B.
    virtual_page : int
        B * N: page of the allocator, the prefix (radix) cache, the scheduler and the draft pool.
    kv_event_block : int
        Block size to advertise with KV events; a router that expects B never hits.
    capacity : int
        Tokens to report and to allocate: tokens_per_rank * N.
    kv_rows : int
        Physical rows of the KV pool on one rank, with one page for the dummy row.
    index_rows : int
        Physical rows of an index-K pool that every rank holds whole: (tokens_per_rank + B) * N, not
        tokens_per_rank * N + B, which ends one page too early on the last page.
    draft_rows : int
        Rows of a draft model's pool, which is whole on every rank.
    request_headroom : int
        Positions that a request's row needs beyond its length: one virtual page.
    """

    page: int
    virtual_page: int
    kv_event_block: int
    capacity: int
    kv_rows: int
    index_rows: int
    draft_rows: int
    request_headroom: int


class TableMixin:
    """Part of :class:`sparsespan.cp.DcpLayout`."""

    interleave: int
    world_size: int
    page_size: int
    _core: Any

    @property
    def virtual_page_size(self) -> int:
        """Positions that share one page id: ``page_size * world_size``. The page of allocator and prefix cache."""
        return self.page_size * self.world_size

    def spans(self, tokens_per_rank: int) -> DcpSpans:
        """Every span that scales with the ranks, for a KV pool of ``tokens_per_rank`` rows on each.

        Examples
        --------
        >>> from sparsespan.cp import dcp_layout
        >>> spans = dcp_layout(1, 8, 64).spans(6400)
        >>> spans.capacity, spans.kv_event_block, spans.index_rows
        (51200, 512, 51712)
        """
        if tokens_per_rank < 0 or tokens_per_rank % self.page_size:
            raise ValueError(
                f"dcp_layout.spans: tokens_per_rank is {tokens_per_rank}, needs a multiple of page_size = "
                f"{self.page_size}; nearest valid: {max(0, tokens_per_rank) // self.page_size * self.page_size}"
            )
        rows = tokens_per_rank + self.page_size
        page = self.virtual_page_size
        whole = rows * self.world_size
        return DcpSpans(self.page_size, page, page, tokens_per_rank * self.world_size, rows, whole, whole, page)

    def pages_for(self, length: int) -> int:
        """Block-table columns of a request: ``ceil(length / (B * N))``, the same on every rank."""
        if length < 0:
            raise ValueError(f"dcp_layout.pages_for: length is {length}, needs at least 0")
        return -(-length // self.virtual_page_size)

    def slot_mapping(
        self, positions: Any, block_table: Any, rank: int, row_to_request: Any = None, *, out: Any = None
    ) -> Any:
        """Slot of each new token on a rank, -1 where another rank holds it.

        Parameters
        ----------
        positions : array [T], int32 or int64
            Logical positions, -1 = padding row.
        block_table : array [R, W], int32 or int64
            Page ids, one column per *virtual* page; the same table on every rank.
        rank : int
        row_to_request : array [T], int32 or int64, optional
            Row of ``block_table`` of each token; not needed when it has one row.
        out : array [T] int64, optional

        Returns
        -------
        array [T] int64
            ``table[request, p // (B * N)] * B + local(p) % B``, or -1. Over the ranks each real token has one slot.

        Raises
        ------
        IndexError
            For a position beyond the table, a page id below 0 where a token needs one, or a request out of range: on
            every rank alike, whoever owns the token.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> dcp_layout(4, 4, 4).slot_mapping(np.array([0, 3, 4, 16]), np.array([[9, 2]]), rank=0)
        array([36, 39, -1,  8])
        """
        return call(self._core.slot_mapping, positions, block_table, rank, row_to_request, out)

    def write_plan(self, locations: Any, rank: int, shape: str = "compacted", dummy: int = 0) -> Any:
        """What a rank writes of a step's new tokens, from their virtual locations.

        Parameters
        ----------
        locations : array [T], int32 or int64
            Virtual locations that the allocator (page ``B * N``) gave, -1 = padding row.
        rank : int
        shape : {"compacted", "fixed"}
            "compacted" for eager steps, "fixed" for graph replay.
        dummy : int
            Physical row that takes the others' tokens when ``shape="fixed"``; -1 if the writer skips -1.

        Returns
        -------
        (rows, slots) : arrays [n] int64, if compacted
            Rows of the step that this rank writes, and their physical rows.
        slots : array [T] int64, if fixed

        Raises
        ------
        ValueError
            If a location stands in two rows (a token is written once, its index key too), or is the dummy row.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> v = np.array([256, 257, 258, 259, 512, 513])
        >>> dcp_layout(1, 2, 64).write_plan(v, 1, shape="fixed")
        array([  0, 128,   0, 129,   0, 256])
        """
        if shape == "compacted":
            return call(self._core.writes, locations, rank)
        if shape == "fixed":
            return call(self._core.fixed_writes, locations, rank, dummy)
        raise ValueError(f'dcp_layout.write_plan: shape is "{shape}", needs "compacted" or "fixed"')

    def page_table(self, locations: Any) -> Any:
        """Page ids of each request's virtual pages: ``locations[:, ::B*N] // (B*N)``, -1 past its end.

        Parameters
        ----------
        locations : array [R, L], int32 or int64
            Virtual location of each position (``req_to_token``), -1 past a request's end.

        Returns
        -------
        array [R, ceil(L / (B * N))] int64
            The same on every rank: page q of the allocator is physical page q everywhere.

        Raises
        ------
        ValueError
            If a virtual page does not start at a multiple of ``B * N`` or is not consecutive: the sign of an allocator
            whose page is ``B``.
        """
        return call(self._core.page_table, locations, False)

    def replicated_page_table(self, locations: Any) -> Any:
        """The same for an index cache of page B that every rank holds whole: ``locations[:, ::B] // B``."""
        return call(self._core.page_table, locations, True)

    def chunk_rows(self, locations: Any, start: int, rank: int) -> Any:
        """Physical rows that a rank holds of positions ``start .. start + L - 1`` stored at ``locations`` [L].

        With S = 1 this is ``locations[(rank - start) % N :: N] // N``. Refuses locations that are not at the place in
        their virtual page that the position has.
        """
        return call(self._core.chunk_rows, locations, start, rank)

    def replicated_table(self, block_table: Any, sub_blocks: int = 1, lengths: Any = None) -> Any:
        """Block table of an index cache that every rank holds whole, from the DCP block table.

        Parameters
        ----------
        block_table : array [R, W], int32 or int64
            Page ids, -1 = none.
        sub_blocks : int
            Kernel blocks per page, if the table counts those.
        lengths : array [R], int32 or int64, optional
            Rows of length 0 (padding of a static batch) become 0.

        Returns
        -------
        array [R, W * N] like ``block_table``
            Column ``j * N + r`` is ``block * N + r``: N index pages per page; the slot of position p is
            ``table[p // B] * B + p % B`` with B the (kernel) block.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> dcp_layout(1, 2, 64).replicated_table(np.array([[10, 11, 12, 13]]), sub_blocks=2)
        array([[20, 21, 22, 23, 24, 25, 26, 27]])
        """
        return call(self._core.replicated_table, block_table, lengths, sub_blocks)

    def kernel_block_table(self, block_table: Any, kernel_block: int) -> Any:
        """Expand each page into its ``B / kernel_block`` kernel blocks; slots stay the same.

        Local row l of a request is then at ``table[l // kernel_block] * kernel_block + l % kernel_block``.
        """
        if kernel_block < 1 or self.page_size % kernel_block:
            raise ValueError(
                f"dcp_layout.kernel_block_table: kernel_block is {kernel_block}, needs a divisor of page_size = "
                f"{self.page_size}"
            )
        per_page = self.page_size // kernel_block

        def expand(table: np.ndarray) -> np.ndarray:
            blocks = table[..., None] * per_page + np.arange(per_page, dtype=table.dtype)
            return np.where(table[..., None] < 0, -1, blocks).astype(table.dtype).reshape(*table.shape[:-1], -1)

        return call(expand, block_table)
