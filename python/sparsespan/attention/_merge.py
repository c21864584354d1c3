"""The merge of partial attention results."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["merge_states"]


def merge_states(
    outs: Any, lses: Any, attn_sink: Any = None, *, out_dtype: str | None = None, out: Any = None, threads: int = 0
) -> tuple[Any, Any]:
    """Merge attention over n disjoint sets of keys into attention over their union.

    Parameters
    ----------
    outs : array [n, T, H, D], float32 or bfloat16
        Partial outputs, each normalised over its own keys, without the sink.
    lses : float32 [n, T, H]
        Natural log, without the sink. -inf and +inf both mark an empty part, whose output is not looked at.
    attn_sink : float32 [H], optional
        As in :func:`sparse_mla`; enters once, after the last merge.
    out_dtype, out, threads
        As in :func:`dense_mla`.

    Returns
    -------
    out : array [T, H, D]
        0 where all parts are empty.
    lse : float32 [T, H]
        Without the sink; -inf where all parts are empty.

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit; a NaN sink.

    Notes
    -----
    ``out = (e^(la - m) a + e^(lb - m) b) / (e^(la - m) + e^(lb - m))`` pair by pair in float32, i with i + stride for
    strides P/2, ..., 2, 1 with P the power of two at or above n; a weight of 0 contributes exactly 0. With parts from
    :func:`sparse_mla` of ranks that own lanes ``r mod n`` (``lane_of``, ``out_dtype="float32"``) the result has the
    bits of one rank. Sources: FlashInfer ``merge_states`` (base 2 there), vLLM ``merge_attn_states``; reference:
    :func:`sparsespan.reference.attention.merge_states`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.attention import merge_states
    >>> outs = np.array([1, 5, 9], np.float32).reshape(3, 1, 1, 1)
    >>> out, lse = merge_states(outs, np.array([0, 0, -np.inf], np.float32).reshape(3, 1, 1))
    >>> out.item(), lse.item()
    (3.0, 0.6931471824645996)
    """
    result: tuple[Any, Any] = call(_core.attention.merge_states, outs, lses, attn_sink, out_dtype or "", out, threads)
    return result
