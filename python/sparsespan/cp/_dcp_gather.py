"""Rebuilding a range of every request, or whole pages, from the shards of a DCP layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._interop import call

if TYPE_CHECKING:
    from ._dcp import DcpLayout

__all__ = ["DcpBlockGather", "DcpGatherPlan", "GatherMixin"]


@dataclass(frozen=True, eq=False)
class DcpGatherPlan:
    """What each rank sends to rebuild ranges of the requests, and where each position lands.

    Attributes
    ----------
    send_rows : int
        Rows that every rank sends. Rank r's rows stand at ``r * send_rows`` of the gathered buffer.
    padded : array [R] int64
        Rows of each request in the send buffer, the same on every rank.
    base : array [R] int64
        Where they begin.
    first : array [R] int64
        Local row that stands there: the window is cut at whole rounds of ``N * S`` positions.
    source_rows : array [sum of lengths] int64
        Gathered row of each position, request by request: ``gathered[source_rows]`` is in logical order.
    """

    layout: DcpLayout
    lengths: np.ndarray
    starts: np.ndarray | None
    send_rows: int
    padded: np.ndarray
    base: np.ndarray
    first: np.ndarray
    source_rows: np.ndarray

    def rank_rows(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Request and local row of each of the rank's send rows; local -1 = padding, whatever it holds is not read."""
        request, local = self.layout._core.send_rows(self.lengths, self.starts, rank)
        return request, local


@dataclass(frozen=True, eq=False)
class DcpBlockGather:
    """Whole pages gathered from every rank: rank-major ``[N, len(ids), B]`` rows.

    Attributes
    ----------
    ids : array [n] int64
        Pages that every rank sends, ascending, each once.
    inverse : array [R, W] int64
        Place of each page of the block table in ``ids``, -1 = not sent.
    """

    layout: DcpLayout
    ids: np.ndarray
    inverse: np.ndarray

    def rows(self, positions: Any, row_to_request: Any = None) -> Any:
        """Gathered row of each position: right for every interleave.

        ``owner(p) * n * B + inverse[request, local(p) // B] * B + local(p) % B``; -1 stays -1.
        """
        return call(self._rows, positions, row_to_request)

    def _rows(self, positions: np.ndarray, row_to_request: np.ndarray | None) -> np.ndarray:
        if row_to_request is None and len(self.inverse) != 1:
            raise ValueError(
                f"DcpBlockGather.rows: row_to_request is not given, needs one request per position because the table "
                f"has {len(self.inverse)} rows"
            )
        page_size = self.layout.page_size
        owner = np.asarray(self.layout.owner(positions), np.int64)
        local = np.asarray(self.layout.local(positions), np.int64)
        request = np.zeros_like(local) if row_to_request is None else np.asarray(row_to_request, np.int64)
        real = local >= 0
        column = np.where(real, local // page_size, 0)
        inside = (column < self.inverse.shape[1]) & (request >= 0) & (request < len(self.inverse))
        place = np.full(local.shape, -1, np.int64)
        place[real & inside] = self.inverse[request[real & inside], column[real & inside]]
        missing = real & (place < 0)
        if missing.any():
            at = int(np.flatnonzero(missing.reshape(-1))[0])
            raise IndexError(
                f"DcpBlockGather.rows: positions row {at} is {np.asarray(positions).reshape(-1)[at]} of request "
                f"{request.reshape(-1)[at]}, its page was not gathered"
            )
        rows = (owner * len(self.ids) + place) * page_size + local % page_size
        return np.where(real, rows, -1)

    @property
    def table(self) -> np.ndarray:
        """Paged form [R, W * N]: column ``j * N + r`` is ``inverse[j] + r * len(ids)``; -1 where nothing was sent.

        Raises
        ------
        ValueError
            If ``interleave != page_size``: pages then hold no consecutive positions and a paged kernel would read
            the wrong tokens. :meth:`rows` is right for every interleave.
        """
        if not self.layout.transferable_pages:
            raise ValueError(
                f"DcpBlockGather.table: interleave is {self.layout.interleave}, needs page_size = "
                f"{self.layout.page_size}: a page holds no consecutive positions; use rows(positions)"
            )
        ranks = np.arange(self.layout.world_size, dtype=np.int64) * len(self.ids)
        table = np.where(self.inverse[..., None] < 0, -1, self.inverse[..., None] + ranks)
        return table.reshape(len(self.inverse), self.inverse.shape[1] * self.layout.world_size)


class GatherMixin:
    """Part of :class:`sparsespan.cp.DcpLayout`."""

    _core: Any

    def gather_plan(self, lengths: Any, starts: Any = None) -> DcpGatherPlan:
        """Plan an all-gather that rebuilds a range of every request (index-K or latent rows of a prefix).

        Parameters
        ----------
        lengths : array [R], int32 or int64
        starts : array [R], int32 or int64, optional
            First position of each range; 0 when not given.

        Returns
        -------
        DcpGatherPlan

        Notes
        -----
        Request s takes ``ceil((start + length) / (N * S)) * S - start // (N * S) * S`` rows on every rank, so that the
        send buffers have one size and no sizes are exchanged. Reference:
        :func:`sparsespan.reference.cp_dcp.gather_plan`.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> plan = dcp_layout(1, 2, 4).gather_plan(np.array([3, 2]))
        >>> plan.send_rows, plan.source_rows
        (3, array([0, 3, 1, 2, 5]))
        """
        lengths = np.array(call(np.asarray, lengths))
        starts = None if starts is None else np.array(call(np.asarray, starts))
        return DcpGatherPlan(self, lengths, starts, *self._core.gather_plan(lengths, starts))  # type: ignore[arg-type]

    def packed_rows(
        self, indices: Any, prefix_len: int, total_len: int, index_topk: int, *, out: Any = None, threads: int = 0
    ) -> Any:
        """Rows of selected positions in ``[rank-major gathered prefix | new tokens]`` of one request, unpermuted.

        Parameters
        ----------
        indices : array [T, K], int32 or int64
            Logical positions below ``total_len``, -1 = none.
        prefix_len, total_len : int
            Gathered prefix, and prefix with the new tokens behind it.
        index_topk : int
            The selector's K.

        Returns
        -------
        array [T, K] like ``indices``
            ``owner(p) * send + local(p)`` in the prefix, ``N * send + p - prefix_len`` behind it; -1 stays -1.

        Raises
        ------
        ValueError
            If ``prefix_len + 1 < index_topk``: then some rows have fewer keys than K and need a causal crop, which
            permuted rows do not survive.
        """
        return call(self._core.packed_rows, indices, prefix_len, total_len, index_topk, out, threads)

    def block_gather(self, block_table: Any, lengths: Any = None) -> DcpBlockGather:
        """Plan a gather of the pages that a batch refers to, each once.

        Parameters
        ----------
        block_table : array [R, W], int32 or int64
            Page ids, -1 = none.
        lengths : array [R], int32 or int64, optional
            Only pages that hold a position below it are sent; dummy entries beyond are left out.

        Returns
        -------
        DcpBlockGather

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.cp import dcp_layout
        >>> gather = dcp_layout(1, 2, 2).block_gather(np.array([[7, 3], [7, 5]]))
        >>> gather.ids, gather.rows(np.array([0, 1, 2, 3, 4]), np.array([1, 1, 1, 1, 1]))
        (array([3, 5, 7]), array([ 4, 10,  5, 11,  2]))
        """
        return DcpBlockGather(self, *call(self._core.block_gather, block_table, lengths))  # type: ignore[arg-type]
