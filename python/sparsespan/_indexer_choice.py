"""The best keys of each row. Public as :mod:`sparsespan.indexer`."""

from __future__ import annotations

from typing import Any

from . import _core
from ._interop import call

__all__ = ["paged_select", "select", "topk"]


def topk(
    scores: Any,
    k: int,
    lengths: Any = None,
    row_starts: Any = None,
    base: str = "packed",
    nan: str = "raise",
    order: str = "index",
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Choose the ``k`` best scores of each row's window, exactly.

    Parameters
    ----------
    scores : array [T, S], float32
        Rows may be padded; the last axis is contiguous.
    k : int
        At least 1; may exceed S.
    lengths : array [T], int32 or int64, optional
        Row ``t`` has the window ``[start, start + lengths[t])``; without it, to the end of the row.
    row_starts : array [T], int32 or int64, optional
        Where the windows start; without it, at column 0.
    base : {"packed", "row"}
        "packed" gives columns of ``scores``; "row" counts from the row's start (logical when the row starts at its
        request's first key).
    nan : {"raise", "lowest"}
        A NaN inside a window is an error, or ranks below -inf.
    order : {"index", "score"}
        "index" gives ascending indices; "score" the best first, equal ones by index.
    out : array [T, k], int32, optional
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        "trusted" lists windows of up to ``k`` scores without looking for NaN in them.

    Returns
    -------
    array [T, k], int32
        -1 where a window has fewer than ``k`` scores, at the end of the row.

    Raises
    ------
    TypeError
        If a dtype is none of those named.
    ValueError
        If ``k`` is below 1, a window leaves the row, or a window holds NaN: then ``out`` is filled with -1.

    Notes
    -----
    The order is total: score descending, then smaller index; -0.0 equals +0.0. So the choice is the same for every
    implementation that keeps it. A score of -inf inside the window counts as a score. Source: DeepGEMM and flashinfer's
    radix top-k (``tie_break`` smallest index); reference: :func:`sparsespan.reference.indexer.topk`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import topk
    >>> scores = np.array([[3, 1, 2, 2], [5, 6, 7, 8]], np.float32)
    >>> topk(scores, 3, lengths=np.array([4, 2]), row_starts=np.array([0, 1]))
    array([[ 0,  2,  3],
           [ 1,  2, -1]], dtype=int32)
    >>> topk(scores, 2, order="score")
    array([[0, 2],
           [3, 2]], dtype=int32)
    """
    return call(
        _core.indexer.topk,
        scores,
        k,
        lengths,
        row_starts,
        base,
        nan,
        order,
        out=out,
        threads=threads,
        validate=validate,
    )


def select(
    q: Any,
    k: Any,
    weights: Any,
    ks: Any,
    ke: Any,
    k_scale: Any = None,
    topk: int = 2048,
    *,
    nan: str = "raise",
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Choose the ``topk`` best packed keys of each query row: :func:`mqa_logits` and :func:`topk` in one.

    Parameters
    ----------
    q, k, weights, ks, ke, k_scale
        As in :func:`mqa_logits`.
    topk : int
        At least 1.
    nan : {"raise", "lowest"}
        As in :func:`topk`.
    out : array [T, topk], int32, optional
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        "trusted" skips the scan of ``k_scale`` and lists windows of up to ``topk`` keys without scoring them.

    Returns
    -------
    array [T, topk], int32
        Packed indices, ascending, then -1. ``logical = packed - ks[row]`` where ``ks`` is the request's first key.

    Raises
    ------
    TypeError, ValueError
        As :func:`mqa_logits` and :func:`topk`.

    Notes
    -----
    The result equals ``topk(mqa_logits(...), topk, lengths=ke - ks, row_starts=ks)`` bit for bit, and the ``[T, S]``
    scores never exist: memory beyond the inputs and ``out`` grows with threads and ``topk``, not with T or S.
    Reference: :func:`sparsespan.reference.indexer.select`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import select
    >>> q = np.ones((2, 1, 1), np.float32)
    >>> k = np.array([[3], [1], [2], [9], [7]], np.float32)
    >>> select(q, k, np.ones((2, 1), np.float32), ks=np.array([0, 3]), ke=np.array([3, 4]), topk=2)
    array([[ 0,  2],
           [ 3, -1]], dtype=int32)
    """
    return call(
        _core.indexer.select,
        q,
        k,
        weights,
        ks,
        ke,
        k_scale,
        topk,
        nan,
        out=out,
        threads=threads,
        validate=validate,
    )


def paged_select(
    q: Any,
    kv_cache: Any,
    weights: Any,
    context_lens: Any,
    block_table: Any,
    page_size: int,
    topk: int = 2048,
    layout: str = "index_132",
    *,
    nan: str = "raise",
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Choose the ``topk`` best positions of each query row: :func:`paged_mqa_logits` and :func:`topk` in one.

    Parameters
    ----------
    q, kv_cache, weights, context_lens, block_table, page_size, layout
        As in :func:`paged_mqa_logits`.
    topk : int
        At least 1.
    nan : {"raise", "lowest"}
        As in :func:`topk`.
    out : array [T, topk], int32, optional
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        "trusted" skips the scan of scales and lists rows that see up to ``topk`` keys without scoring them.

    Returns
    -------
    array [T, topk], int32
        Logical indices, ascending, then -1; :func:`to_slots` turns them into slots.

    Raises
    ------
    TypeError, ValueError, IndexError
        As :func:`paged_mqa_logits` and :func:`topk`.

    Notes
    -----
    Equals ``topk(paged_mqa_logits(...), topk, lengths)`` bit for bit, without the scores' memory. Reference:
    :func:`sparsespan.reference.indexer.paged_select`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import paged_select
    >>> cache = np.zeros((3, 2, 128), np.float32)
    >>> cache[2, :, 0], cache[0, :, 0] = [1, 2], [3, 4]
    >>> q = np.zeros((1, 2, 1, 128), np.float32)
    >>> q[..., 0] = 1
    >>> paged_select(q, cache, np.ones((2, 1), np.float32), np.array([3]), np.array([[2, 0]]), 2, 2, "index_f32")
    array([[0, 1],
           [1, 2]], dtype=int32)
    """
    return call(
        _core.indexer.paged_select,
        q,
        kv_cache,
        weights,
        context_lens,
        block_table,
        page_size,
        topk,
        layout,
        nan,
        out=out,
        threads=threads,
        validate=validate,
    )
