"""Tokens out of paged caches, and whole caches from one layout into another."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["convert_kv", "gather_indexer_k", "read_kv"]


def read_kv(
    cache: Any,
    slots: Any,
    layout: str,
    page_size: int,
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Decode the tokens at given slots of a paged cache.

    Parameters
    ----------
    cache : array [pages, page_size, width] (or with a head axis of 1, or the last two axes in one)
    slots : array [...], int32 or int64
        -1 gives a row of zeros; slots may repeat.
    layout : str
        Any of :func:`sparsespan.quant.kv_layout_names`.
    page_size : int
        Tokens per page.
    out : array [..., dim], optional
        Written instead of a new array.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` looks at neither slots nor scales; a slot outside the cache then reads outside it.

    Returns
    -------
    array [..., dim]
        Of the layout's ``decoded`` dtype: what is stored for plain layouts; bfloat16 for ``"fp8_656"``; float32 for
        ``"index_132"``.

    Raises
    ------
    IndexError
        If a slot is neither -1 nor in ``[0, pages * page_size)``; its place and value are named.
    ValueError
        If a scale of a slot that is read is NaN, infinite or negative (SGLang's writer leaves NaN for a zero tile), or
        shapes do not fit.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    ``"fp8_656"`` latent: ``bfloat16(float(e4m3) * scale)``, nearest even, as FlashMLA's reader; any scale is honoured,
    powers of two or not. ``"index_132"``: the float32 product. Reference:
    :func:`sparsespan.reference.quant.read_kv`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.quant import read_kv
    >>> cache = np.arange(2 * 2 * 128, dtype=np.float32).reshape(2, 2, 128)
    >>> read_kv(cache, np.array([[3, -1], [0, 3]]), "index_f32", 2)[..., 0]
    array([[384.,   0.],
           [  0., 384.]], dtype=float32)
    """
    return call(_core.quant.read_kv, cache, slots, layout, page_size, out, threads, validate)


def gather_indexer_k(
    cache: Any,
    block_table: Any,
    cu_seq_lens: Any,
    page_size: int,
    layout: str = "index_132",
    *,
    out: tuple[Any, Any] | None = None,
    threads: int = 0,
    validate: str = "full",
) -> tuple[Any, Any]:
    """Bring the index keys of several requests into one packed array.

    Parameters
    ----------
    cache : array [pages, page_size, width]
    block_table : array [B, max_blocks], int32 or int64
        Page of each logical block of a request. Entries past its length are never read.
    cu_seq_lens : array [B + 1], int32 or int64
        Ascending from 0: request ``b`` gets rows ``cu_seq_lens[b]`` to ``cu_seq_lens[b + 1] - 1``.
    page_size : int
        Tokens per page.
    layout : {"index_132", "index_bf16", "index_f32"}
    out : (array, array or None), optional
        ``k`` and ``scale`` to write instead of new arrays.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` does not look at the pages named by ``block_table``.

    Returns
    -------
    k : array [S, 128]
        float8_e4m3fn codes for ``"index_132"``, else the stored values; packed index space.
    scale : array [S], float32, or None where the layout has none
        Copied as it is: the ops that take ``k_scale`` check it.

    Raises
    ------
    IndexError
        If an entry of ``block_table`` within a request's length is no page; row, column and value are named.
    ValueError
        If ``cu_seq_lens`` does not ascend from 0, or a request is longer than its row of ``block_table`` covers.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    Does the work of vLLM's ``cp_gather_indexer_k_quant_cache``. Reference:
    :func:`sparsespan.reference.quant.gather_indexer_k`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.quant import gather_indexer_k
    >>> cache = np.arange(3 * 2 * 128, dtype=np.float32).reshape(3, 2, 128)
    >>> k, scale = gather_indexer_k(cache, np.array([[2, 0], [1, -7]]), np.array([0, 3, 4]), 2, "index_f32")
    >>> k[:, 0], scale
    (array([512., 640.,   0., 256.], dtype=float32), None)
    """
    function = _core.quant.gather_indexer_k
    k, scale = call(function, cache, block_table, cu_seq_lens, layout, page_size, out, threads, validate)
    return k, scale


def convert_kv(
    cache: Any, src: str, dst: str, *, scale_rule: str = "official", out: Any = None, threads: int = 0
) -> Any:
    """Bring a whole paged cache from one layout into another of the same kind.

    Parameters
    ----------
    cache : array [pages, page_size, width] of layout ``src``
        Its shape gives the page size.
    src, dst : str
        Both of latent and rope, or both of index keys. Equal names copy the bytes.
    scale_rule : {"official", "flashmla", "sglang", "vllm"}
        For fp8 destinations, as in :func:`concat_and_cache_mla`.
    out : array [pages, page_size, width] of layout ``dst``, optional
        Written instead of a new array; its pages may be padded.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array [pages, page_size, width] of layout ``dst``

    Raises
    ------
    ValueError
        If the two layouts are of different kinds, or a shape does not fit.
    TypeError
        If the dtype of ``cache`` is not that of ``src``.

    Notes
    -----
    A token becomes what a writer would store of what :func:`read_kv` gives: the bfloat16 value of ``"fp8_656"``, for
    one, rounded once more where ``dst`` is narrower. Unwritten tokens may hold anything, so data is never refused; a
    tile with NaN or infinity becomes NaN codes with scale 1. Reference:
    :func:`sparsespan.reference.quant.convert_kv`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.quant import convert_kv
    >>> cache = np.full((1, 2, 576), 0.3, np.float32)
    >>> convert_kv(cache, "f32_576", "fp8_656").shape
    (1, 2, 656)
    """
    return call(_core.quant.convert_kv, cache, src, dst, scale_rule, out, threads)
