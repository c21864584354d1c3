"""Scores of every visible key. Public as :mod:`sparsespan.indexer`."""

from __future__ import annotations

from typing import Any

from . import _core
from ._interop import call

__all__ = ["mqa_logits", "paged_mqa_logits"]


def mqa_logits(
    q: Any,
    k: Any,
    weights: Any,
    ks: Any,
    ke: Any,
    k_scale: Any = None,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Score the keys that each query row sees, over packed keys.

    Parameters
    ----------
    q : array [T, Hi, D], float8_e4m3fn, bfloat16 or float32
        A query scale (``q_scale``) is folded into ``weights``. The last axis is contiguous, here and below.
    k : array [S, D], float8_e4m3fn, bfloat16 or float32
        One shared key head. Its dtype may differ from that of ``q``.
    weights : array [T, Hi], float32
        Any sign.
    ks, ke : array [T], int32 or int64
        Row ``t`` sees the packed keys ``ks[t] <= s < ke[t]``, both in [0, S]; ``ks >= ke`` is an empty row. Keys that
        no row sees are never read.
    k_scale : array [S], float32, optional
        Factor per key, only with float8 keys; none is the same as ones.
    clean_logits : bool
        Whether entries outside the windows become -inf. False leaves them as they are.
    max_seqlen_k : int
        Above 0: compressed logits ``[T, max_seqlen_k]`` whose column ``j`` is key ``ks[t] + j``. Needs
        ``clean_logits=False``.
    out : array [T, S] or [T, max_seqlen_k], float32, optional
        Rows may be padded; shares no memory with an input.
    threads : int
        0 takes :func:`sparsespan.num_threads`. The bits do not depend on it.
    validate : {"full", "trusted"}
        "trusted" skips the scan of ``k_scale``.

    Returns
    -------
    array [T, S] or [T, max_seqlen_k], float32

    Raises
    ------
    TypeError
        If a dtype is none of those named.
    ValueError
        If shapes do not fit, ``ks`` or ``ke`` lie outside [0, S], a visible key's scale is NaN, infinite or negative, a
        window is longer than ``max_seqlen_k``, or ``out`` does not fit.

    Notes
    -----
    ``out[t, s] = (sum_h relu(q[t, h] . k[s]) * weights[t, h]) * k_scale[s]``, dot products and sums in float32, ``d``
    and ``h`` ascending (in a fixed tree at the level ``amx``). NaN stays NaN through the relu. From the level ``avx2``
    upwards float32 subnormals count as zero inside the op. Source: DeepSeek-V3.2 ``fp8_index``, DeepGEMM
    ``fp8_mqa_logits``; reference: :func:`sparsespan.reference.indexer.mqa_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import mqa_logits
    >>> q = np.array([[[1, 0], [0, 1]], [[1, 0], [0, 1]]], np.float32)
    >>> k = np.array([[2, -1], [3, 5], [1, 1]], np.float32)
    >>> mqa_logits(q, k, np.array([[1, 10], [1, -1]], np.float32), ks=np.array([0, 1]), ke=np.array([2, 3]))
    array([[  2.,  53., -inf],
           [-inf,  -2.,   0.]], dtype=float32)
    """
    return call(
        _core.indexer.mqa_logits,
        q,
        k,
        weights,
        ks,
        ke,
        k_scale,
        clean_logits,
        max_seqlen_k,
        out=out,
        threads=threads,
        validate=validate,
    )


def paged_mqa_logits(
    q: Any,
    kv_cache: Any,
    weights: Any,
    context_lens: Any,
    block_table: Any,
    page_size: int,
    max_context_len: int,
    layout: str = "index_132",
    *,
    clean_logits: bool = True,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Score the keys that each query row sees, over a paged index cache.

    Parameters
    ----------
    q : array [B, next_n, Hi, 128] or [T, Hi, 128], float8_e4m3fn, bfloat16 or float32
        ``T = B * next_n`` rows, request by request.
    kv_cache : array [pages, page_size, width]
        By ``layout``; also ``[pages, page_size, 1, width]`` and ``[pages, page_size * width]``. Pages may be padded.
    weights : array [T, Hi], float32
    context_lens : array [B] or [B, next_n], int32 or int64
        ``[B]``: the length at the request's last row; row ``t`` of ``next_n`` sees ``length - next_n + t + 1``
        keys (none when that is negative). ``[B, next_n]``: the keys that each row sees.
    block_table : array [B, max_blocks], int32 or int64
        Page of each block of ``page_size`` positions. Entries past a request's length are never read.
    page_size : int
    max_context_len : int
        Columns of the result; no row may see more.
    layout : {"index_132", "index_bf16", "index_f32"}
        See :mod:`sparsespan.quant`.
    clean_logits : bool
        Whether columns past a row's length become -inf. False leaves them as they are.
    out : array [T, max_context_len], float32, optional
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        "trusted" skips the scan of the cache's scales.

    Returns
    -------
    array [T, max_context_len], float32
        Columns are logical positions.

    Raises
    ------
    TypeError
        If a dtype is none of those named.
    ValueError
        If shapes do not fit, a length is negative or more than the block table or ``max_context_len`` holds, or a
        visible key's scale is NaN, infinite or negative.
    IndexError
        If a block table entry inside a length names no page.

    Notes
    -----
    The formula and the bits are those of :func:`mqa_logits` over the gathered keys. Source: DeepGEMM
    ``fp8_paged_mqa_logits`` (both forms of ``context_lens``); reference:
    :func:`sparsespan.reference.indexer.paged_mqa_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import paged_mqa_logits
    >>> cache = np.zeros((3, 2, 128), np.float32)  # 3 pages of 2 tokens
    >>> cache[2, :, 0], cache[0, :, 0] = [1, 2], [3, 4]
    >>> q = np.zeros((1, 2, 1, 128), np.float32)  # one request, two rows
    >>> q[..., 0] = 1
    >>> paged_mqa_logits(q, cache, np.ones((2, 1), np.float32), np.array([3]), np.array([[2, 0]]), 2, 4, "index_f32")
    array([[  1.,   2., -inf, -inf],
           [  1.,   2.,   3., -inf]], dtype=float32)
    """
    return call(
        _core.indexer.paged_mqa_logits,
        q,
        kv_cache,
        weights,
        context_lens,
        block_table,
        page_size,
        max_context_len,
        layout,
        clean_logits,
        out=out,
        threads=threads,
        validate=validate,
    )
