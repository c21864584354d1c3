"""Where chosen keys lie in a paged cache. Public as :mod:`sparsespan.indexer`."""

from __future__ import annotations

from typing import Any

from . import _core
from ._interop import call

__all__ = ["to_slots"]


def to_slots(
    indices: Any,
    row_to_request: Any,
    block_table: Any,
    page_size: int,
    ks: Any = None,
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Turn logical or packed indices into slots of a paged cache.

    Parameters
    ----------
    indices : array [T, K], int32
        Logical indices, or packed ones when ``ks`` is given; -1 stays -1.
    row_to_request : array [T], int32 or int64
        Row of ``block_table`` per row of ``indices``; -1 marks a padding row, all of whose indices are -1.
    block_table : array [B, max_blocks], int32 or int64
        Entries that no index needs are never read.
    page_size : int
    ks : array [T], int32 or int64, optional
        The packed row of each request's first key: ``logical = packed - ks[row]``.
    out : array [T, K], int32, optional
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        "trusted" looks at each index once, so that a refusal may leave ``out`` half-written.

    Returns
    -------
    array [T, K], int32
        ``block_table[request, logical // page_size] * page_size + logical % page_size``.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.
    IndexError
        If an index other than -1 lies outside its request's pages, or a page is negative or too large for int32 slots.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import to_slots
    >>> table = np.array([[5, 3], [9, 0]])
    >>> to_slots(np.array([[0, 65, -1], [64, 127, 3]], np.int32), np.array([0, 1]), table, 64)
    array([[320, 193,  -1],
           [  0,  63, 579]], dtype=int32)
    """
    return call(
        _core.indexer.to_slots,
        indices,
        row_to_request,
        block_table,
        page_size,
        ks,
        out=out,
        threads=threads,
        validate=validate,
    )
