"""Attention on expanded heads."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["mha", "sparse_mha"]


def mha(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    sm_scale: float,
    causal: bool = True,
    *,
    out_dtype: str | None = None,
    out: Any = None,
    threads: int = 0,
) -> tuple[Any, Any]:
    """Multi-head attention on expanded heads, ragged batch.

    Parameters
    ----------
    q : array [Tq, H, Dqk], float32 or bfloat16
    k, v : array [Tk, Hk, Dqk] and [Tk, Hk, Dv], float32 or bfloat16
        ``H`` is a multiple of ``Hk``; query head h uses key head ``h // (H // Hk)``.
    cu_q, cu_k : int [B + 1]
        Prefix sums: rows of request b are ``cu[b] .. cu[b + 1] - 1``; they start at 0 and end at Tq and Tk.
    sm_scale : float
    causal : bool
        Bottom-right: the i-th of n rows of a request with L keys sees its first ``L - n + i + 1``.
    out_dtype, out, threads
        As in :func:`dense_mla`.

    Returns
    -------
    out : array [Tq, H, Dv]
    lse : float32 [Tq, H]

    Raises
    ------
    TypeError, ValueError
        A dtype, shape or prefix sum that does not fit.

    Notes
    -----
    Source: FlashMLA's and FlashAttention's varlen forward; reference: :func:`sparsespan.reference.attention.mha`.
    """
    result: tuple[Any, Any] = call(
        _core.attention.mha, q, k, v, cu_q, cu_k, sm_scale, causal, out_dtype or "", out, threads
    )
    return result


def sparse_mha(
    q: Any,
    k: Any,
    v: Any,
    indices: Any,
    sm_scale: float,
    topk_length: Any = None,
    *,
    out_dtype: str | None = None,
    out: Any = None,
    validate: str = "full",
    threads: int = 0,
) -> tuple[Any, Any]:
    """Attend each row to the keys that its indices name, on expanded heads (Dqk 192 and Dv 128 in DeepSeek-V3.2).

    Parameters
    ----------
    q : array [T, H, Dqk], float32 or bfloat16
    k, v : array [S, Hk, Dqk] and [S, Hk, Dv], float32 or bfloat16
        Heads as in :func:`mha`.
    indices : int [T, K] or [T, 1, K]
        packed rows of ``k`` and ``v``, the same for all heads; -1 means none.
    sm_scale, topk_length, out_dtype, out, validate, threads
        As in :func:`sparse_mla`; ``out`` may be a tuple (out, lse).

    Returns
    -------
    out : array [T, H, Dv]
    lse : float32 [T, H]

    Raises
    ------
    IndexError
        An index that is neither -1 nor in range; names row, column and value.
    TypeError, ValueError
        A dtype, shape or length that does not fit.

    Notes
    -----
    Equals :func:`sparse_mla` on absorbed queries, up to rounding. Reference:
    :func:`sparsespan.reference.attention.sparse_mha`.

    Rows that name each key at most once, as a top-k makes them, share staged keys with their neighbours: fastest where
    neighbouring rows want much the same keys. The order of such a row's indices changes no bit, nor does a longer k.
    """
    result: tuple[Any, Any] = call(
        _core.attention.sparse_mha, q, k, v, indices, sm_scale, topk_length, out_dtype or "", out, validate, threads
    )
    return result
