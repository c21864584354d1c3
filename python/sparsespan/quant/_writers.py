"""Rows into paged caches."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["concat_and_cache_mla", "indexer_k_quant_and_cache"]


def concat_and_cache_mla(
    c_kv: Any,
    k_pe: Any,
    cache: Any,
    slot_mapping: Any,
    layout: str,
    page_size: int,
    scale_rule: str = "official",
    *,
    threads: int = 0,
    validate: str = "full",
) -> None:
    """Store latent and rope rows at their slots of a paged KV cache.

    Parameters
    ----------
    c_kv : array [T, 512], float32 or bfloat16
        Latent after its norm.
    k_pe : array [T, 64] or [T, 1, 64], float32 or bfloat16
        Rope key, already rotated.
    cache : array [pages, page_size, width] (or with a head axis of 1, or the last two axes in one)
        Written in place; dtype and width follow from the layout. Pages may be padded, tokens may not.
    slot_mapping : array [T], int32 or int64
        Slot of each row; -1 skips the row, which is then not even read.
    layout : {"f32_576", "bf16_576", "fp8_656"}
    page_size : int
        Tokens per page.
    scale_rule : {"official", "flashmla", "sglang", "vllm"}
        How fp8 scales are made; other layouts have none.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` looks at no slot and no value: a slot outside the cache then writes outside it, of two rows with
        one slot either may stay (or a mixture), and a tile with a NaN or infinity becomes NaN codes with scale 1.

    Raises
    ------
    IndexError
        If a slot is neither -1 nor in ``[0, pages * page_size)``; row and value are named.
    ValueError
        If two rows name one slot (both are named), a value to be quantised is NaN or infinite, or shapes do not fit.
        The cache is untouched whenever an error is raised.
    TypeError
        If a dtype does not fit.

    Notes
    -----
    Per tile of 128, in float32, with ceil2 the next power of two: official ``ceil2(max(amax, 1e-4) / 448)`` (DeepSeek's
    act_quant), flashmla ``ceil2(max(amax / 448, 1e-4))``, sglang ``amax / 448``, vllm ``max(amax / 448, 2**-126)``;
    then ``e4m3(clamp(x / scale, -448, 448))``. A zero tile gives zeros and a finite scale under every rule: where
    SGLang divides 0 by 0 and stores NaN, the scale here is 2**-126. SGLang's fused kernel multiplies by ``1 / scale``,
    which may turn a tie; its reference and this op divide. Plain layouts store float32 or bfloat16 (nearest even)
    values as they come, NaN included. Reference: :func:`sparsespan.reference.quant.concat_and_cache_mla`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.quant import concat_and_cache_mla, kv_layout, read_kv
    >>> cache = kv_layout("fp8_656").zeros(pages=2, page_size=4)
    >>> c_kv, k_pe = np.full((2, 512), 3, np.float32), np.ones((2, 64), np.float32)
    >>> concat_and_cache_mla(c_kv, k_pe, cache, np.array([5, -1]), "fp8_656", 4)
    >>> read_kv(cache, np.array([5, 7]), "fp8_656", 4)[:, 510:514].astype(np.float32)
    array([[3., 3., 1., 1.],
           [0., 0., 0., 0.]], dtype=float32)
    """
    function = _core.quant.concat_and_cache_mla
    call(function, c_kv, k_pe, cache, slot_mapping, layout, page_size, scale_rule, threads, validate)


def indexer_k_quant_and_cache(
    k: Any,
    cache: Any,
    slot_mapping: Any,
    page_size: int,
    layout: str = "index_132",
    scale_fmt: str | None = "ue8m0",
    *,
    threads: int = 0,
    validate: str = "full",
) -> None:
    """Store indexer keys at their slots of a paged cache.

    Parameters
    ----------
    k : array [T, 128] or [T, 1, 128], float32 or bfloat16
    cache : array [pages, page_size, width]
        As in :func:`concat_and_cache_mla`. For ``"index_132"`` this is only a byte view: scales lie at the page's tail.
    slot_mapping : array [T], int32 or int64
        Slot of each row; -1 skips the row.
    page_size : int
        Tokens per page.
    layout : {"index_132", "index_bf16", "index_f32"}
    scale_fmt : {"ue8m0", None}
        ``"index_132"`` only: powers of two, or any float32 scale.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        As in :func:`concat_and_cache_mla`.

    Raises
    ------
    IndexError, ValueError, TypeError
        As in :func:`concat_and_cache_mla`; the cache is untouched.

    Notes
    -----
    ``"index_132"`` holds exactly ``act_quant(k, 128, scale_fmt)``. vLLM's writer of this name divides by 448: the same
    powers of two, other scales within 1 ulp. Reference:
    :func:`sparsespan.reference.quant.indexer_k_quant_and_cache`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.quant import indexer_k_quant_and_cache, kv_layout, read_kv
    >>> cache = kv_layout("index_132").zeros(pages=1, page_size=2)
    >>> indexer_k_quant_and_cache(np.full((1, 128), 7, np.float32), cache, np.array([1]), 2)
    >>> cache.reshape(-1)[256:].view(np.float32)  # the tail: one scale per token
    array([0.      , 0.015625], dtype=float32)
    """
    function = _core.quant.indexer_k_quant_and_cache
    call(function, k, cache, slot_mapping, layout, page_size, scale_fmt, threads, validate)
