"""Memory for KV caches."""

from __future__ import annotations

import operator

import numpy as np

from . import _core
from ._interop import call

__all__ = ["empty_kv_pool"]

_MOST_BYTES = 1 << 46  # more than a process can address


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"empty_kv_pool: {name} is {value!r}, needs an integer") from None


def empty_kv_pool(layout: str, pages: int, page_size: int = 64, *, threads: int = 0) -> np.ndarray:
    """Make the memory of a paged KV cache, on huge pages where the system gives them.

    Rows that top-k chose lie all over the cache: with pages of 4 KB nearly each of them misses the translation cache,
    and a gather from a large pool takes 1.3 to 1.4 times as long. The pool lies at a multiple of 2 MB, asks for huge
    pages (``madvise``), and is touched for the first time by the threads that ops run on.

    Parameters
    ----------
    layout : str
        Name of a layout, see :func:`sparsespan.quant.kv_layout`.
    pages : int
        Number of pages, at least 0.
    page_size : int
        Tokens per page, at least 1.
    threads : int
        Threads that touch the pages; 0 for the default.

    Returns
    -------
    numpy.ndarray
        ``[pages, page_size, width]`` of the layout's dtype, zeros, C-contiguous. The memory goes back to the system
        when the last array that looks at it is gone.

    Raises
    ------
    ValueError
        If ``layout`` is unknown, ``pages`` is negative, ``page_size`` is below 1, or their product is beyond what a
        process can address.
    MemoryError
        If the system has no such room.

    Notes
    -----
    A wish, not a promise: with transparent huge pages switched off (``sparsespan doctor`` tells) the pool is an
    ordinary one, and every op works on it all the same.

    Examples
    --------
    >>> import sparsespan
    >>> pool = sparsespan.empty_kv_pool("fp8_656", pages=4)
    >>> pool.shape, pool.dtype.name, int(pool.max())
    ((4, 64, 656), 'uint8', 0)
    """
    from .quant import kv_layout

    kind = call(kv_layout, layout)
    pages, page_size = _integer("pages", pages), _integer("page_size", page_size)
    if pages < 0:
        raise ValueError(f"empty_kv_pool: pages is {pages}, needs at least 0")
    if page_size < 1:
        raise ValueError(f"empty_kv_pool: page_size is {page_size}, needs at least 1")
    size = pages * page_size * kind.width * kind.dtype.itemsize
    if size > _MOST_BYTES:
        raise ValueError(f"empty_kv_pool: pages is {pages}, asks for {size} bytes, needs at most {_MOST_BYTES}")
    return call(_core.empty_kv_pool, size, threads).view(kind.dtype).reshape(pages, page_size, kind.width)
