"""Multi-head latent attention in its absorbed form."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call, query_parts

__all__ = ["dense_mla", "sparse_mla"]


def sparse_mla(
    q: Any,
    kv: Any,
    indices: Any,
    sm_scale: float,
    d_v: int = 512,
    topk_length: Any = None,
    attn_sink: Any = None,
    layout: str | None = None,
    page_size: int | None = None,
    extra: Any = None,
    lane_of: Any = None,
    *,
    out_dtype: str | None = None,
    out: Any = None,
    validate: str = "full",
    threads: int = 0,
) -> tuple[Any, Any, Any]:
    """Attend each query row to the keys that its indices name: MLA in its absorbed form, values inside the keys.

    One op for prefill, chunked prefill and decode. There is no causal logic: causality is in the indices.

    Parameters
    ----------
    q : array [T, H, Dqk], float32 or bfloat16, or a tuple of two
        Absorbed queries, latent part first, rope part last; the tuple is (q_nope [T, H, 512], q_pe [T, H, 64]).
        Outer strides are free, here and in ``kv``.
    kv : array
        Without ``layout``: packed rows [S, Dqk] or [S, 1, Dqk], float32 or bfloat16. With ``layout``: the paged cache,
        ``f32_576``, ``bf16_576`` or ``fp8_656`` (uint8 bytes), [pages, page_size, width]; pages may be padded.
    indices : int32 or int64 [T, K] or [T, 1, K]
        packed rows of ``kv``, or with ``layout`` slots (page * page_size + offset). -1 means none. A repeated index
        counts as often as it occurs.
    sm_scale : float
        Factor on the scores: ``(d_nope + d_rope) ** -0.5`` of the original heads (192 or 256), times YaRN's mscale
        squared where the model has it. Never guessed.
    d_v : int
        Values are the first ``d_v`` columns of ``kv``, 1 <= d_v <= Dqk.
    topk_length : int [T], optional
        Columns of ``indices`` in use; what stands behind is never read.
    attn_sink : float32 [H], optional
        A logit in natural units, not scaled by ``sm_scale``, that takes weight but has no value. -inf has no effect,
        +inf gives ``out`` 0. It enters ``out`` only.
    layout : {"f32_576", "bf16_576", "fp8_656"}, optional
        Byte layout of the paged cache. fp8_656 decodes to ``bfloat16(e4m3 * scale)``.
    page_size : int, optional
        Tokens per page; needed with ``layout``.
    extra : None
        A second cache (DeepSeek-V4) is not there yet: anything but None is refused.
    lane_of : int [T, K], optional
        DCP lane 0..7 of each index (ignored where the index is -1 or past ``topk_length``). Partial results are formed
        per lane, normalised in float32 and merged in the fixed tree of strides 4, 2, 1, as :func:`merge_states` does:
        ranks that own lanes ``r mod N`` then get the bits of one rank.
    out_dtype : {"float32", "bfloat16"}, optional
        Default: the dtype of ``q``. "float32" for partial results.
    out : array or tuple (out, lse, max_logits), optional
        Written instead of new arrays; entries may be None.
    validate : {"full", "trusted"}
        "trusted" skips the scan of ``indices`` and ``lane_of``: out-of-range values are then undefined behaviour.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    out : array [T, H, d_v]
    lse : float32 [T, H]
        ``ln(sum_j exp(s_j))``, without the sink; -inf for a row without keys.
    max_logits : float32 [T, H]
        ``max_j s_j`` with ``s_j = sm_scale * q . kv_j``; -inf for a row without keys.

    Raises
    ------
    IndexError
        An index that is neither -1 nor in range, or a lane outside 0..7; names row, column and value.
    TypeError, ValueError
        A dtype, shape or length that does not fit; a NaN sink; ``out`` that is read-only or overlaps an input.

    Notes
    -----
    ``p_j = exp(s_j - lse)``, ``out = sum_j p_j kv_j[:d_v] / (1 + exp(sink - lse))``; sums in float32, one rounding at
    the end. Keys are cut into blocks of 256 by the row's own valid indices, blocks are merged in a fixed tree: a row
    has the same bits for any number of threads and any batch. Sources: FlashMLA ``flash_mla_sparse_fwd`` and
    ``flash_mla_with_kvcache`` (which mark an empty row's lse with +inf); reference:
    :func:`sparsespan.reference.attention.sparse_mla`.

    At the levels ``avx512_bf16`` and ``amx``, with bfloat16 queries and keys that are bfloat16 or fp8, products are
    those of bfloat16 with float32 sums, and the weights ``exp(s_j - max)`` are rounded to bfloat16 before they
    multiply values (lse sums them unrounded): an output moves by up to 2^-9 of the weighted mean of ``|v|``. From
    ``avx2`` upwards float32 subnormals count as zero inside the op.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.attention import sparse_mla
    >>> kv = np.eye(4, dtype=np.float32)
    >>> q = np.zeros((1, 1, 4), np.float32)
    >>> out, lse, _ = sparse_mla(q, kv, np.array([[0, 2, -1]], np.int32), sm_scale=0.5, d_v=3)
    >>> out
    array([[[0.5, 0. , 0.5]]], dtype=float32)
    >>> bool(abs(lse[0, 0] - np.log(2)) < 1e-6)
    True
    """
    if extra is not None:
        raise ValueError("sparse_mla: extra is given, needs None; a second cache (DeepSeek-V4) is not supported yet")
    if layout == "":
        raise ValueError('sparse_mla: layout is "", needs the name of a layout, or None for packed rows')
    if layout is not None and page_size is None:
        raise ValueError(f'sparse_mla: page_size is None, needs the tokens per page of the "{layout}" cache')
    if layout is None and page_size is not None:
        raise ValueError("sparse_mla: page_size is given without layout, needs the cache's layout beside it")
    q_nope, q_pe = query_parts("sparse_mla", q)
    result: tuple[Any, Any, Any] = call(
        _core.attention.sparse_mla, q_nope, q_pe, kv, indices, sm_scale, d_v, topk_length, attn_sink, layout or "",
        page_size or 0, lane_of, out_dtype or "", out, validate, threads,
    )  # fmt: skip
    return result


def dense_mla(
    q: Any,
    kv_cache: Any,
    row_to_request: Any,
    context_lens: Any,
    block_table: Any,
    page_size: int,
    sm_scale: float,
    layout: str,
    *,
    out_dtype: str | None = None,
    out: Any = None,
    validate: str = "full",
    threads: int = 0,
) -> tuple[Any, Any]:
    """Attend each query row to all tokens of its request, bottom-right causal: dense MLA over a paged cache.

    Parameters
    ----------
    q : array [T, H, 576] or tuple, float32 or bfloat16
        As in :func:`sparse_mla`.
    kv_cache : array [pages, page_size, width]
        Paged cache of ``layout``.
    row_to_request : int [T]
        The request of each row, 0..B-1. Rows of one request stand in the order of their positions.
    context_lens : int [B]
        Tokens of each request in the cache, its query rows included; 0 is legal.
    block_table : int [B, pages_per_request]
        Page of logical positions ``i * page_size`` and up. Entries past the length are never read.
    page_size, sm_scale, layout, out_dtype, out, validate, threads
        As in :func:`sparse_mla`; ``out`` may be a tuple (out, lse).

    Returns
    -------
    out : array [T, H, 512]
    lse : float32 [T, H]
        -inf for a row that sees nothing.

    Raises
    ------
    IndexError
        A request or, within a length, a page out of range.
    TypeError, ValueError
        A dtype, shape or length that does not fit.

    Notes
    -----
    The i-th (from 0) of a request's n rows sees logical positions below ``L - n + i + 1``; with n > L the first rows
    see nothing. Bit for bit :func:`sparse_mla` over the same keys in the same order. Source: FlashMLA
    ``flash_mla_with_kvcache`` (dense, causal); reference: :func:`sparsespan.reference.attention.dense_mla`.
    """
    q_nope, q_pe = query_parts("dense_mla", q)
    result: tuple[Any, Any] = call(
        _core.attention.dense_mla, q_nope, q_pe, kv_cache, row_to_request, context_lens, block_table, page_size,
        sm_scale, layout, out_dtype or "", out, validate, threads,
    )  # fmt: skip
    return result
