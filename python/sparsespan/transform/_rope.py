"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["apply_rope"]


def apply_rope(
    x: Any,
    positions: Any,
    cos_sin: Any,
    interleaved: bool,
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Turn the pairs of each row by the angles of its position.

    Parameters
    ----------
    x : array [T, ..., d], float32 or bfloat16
        ``d`` is even and all of it is turned: pass the rope part as a slice (``q[..., 512:]``). The last axis is
        contiguous; the axes between the first and the last (heads) lie one behind the other.
    positions : array [T], int32 or int64
        Logical position of each row of the first axis, ``0 <= position < max_positions``.
    cos_sin : array [max_positions, d], float32
        ``cos[d / 2] | sin[d / 2]`` per position, as :func:`yarn_cos_sin` makes it. It stays float32, as in DeepSeek's
        code; peers that round the table to bfloat16 differ by up to 2^-9 of a component.
    interleaved : bool
        True: pairs ``(2i, 2i + 1)`` (GPT-J; MLA in DeepSeek-V3.2 and GLM-5, indexer in GLM-5). False: pairs
        ``(i, i + d / 2)`` (neox; indexer in DeepSeek-V3.2). There is no default: the wrong one gives plausible output.
    out : array like ``x``, optional
        Written instead of a new array. It may be ``x`` itself (same memory, shape and strides: rope in place);
        any other overlap with an input is refused.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` skips the scan of ``positions``: a position outside the table then reads foreign memory.

    Returns
    -------
    array like ``x``
        In the layout of ``x``: an interleaved input stays interleaved.

    Raises
    ------
    TypeError
        If a dtype is not one of those named.
    ValueError
        If ``d`` is odd, shapes do not fit each other, or ``out`` does not fit.
    IndexError
        If a position lies outside the table; the message names row and value.

    Notes
    -----
    ``(a, b) -> (a cos - b sin, a sin + b cos)`` in float32, products and sum each rounded, then one rounding to the
    dtype of ``x``: the complex product of DeepSeek-V3.2 ``apply_rotary_emb``, bit for bit given the same table. The
    function of that purpose in transformers (``apply_rotary_pos_emb_interleave``) takes interleaved pairs but returns
    them in half-split order: equal scores, another cache. Reference:
    :func:`sparsespan.reference.transform.apply_rope`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.transform import apply_rope, yarn_cos_sin
    >>> table = yarn_cos_sin(16, 4)
    >>> x = np.array([[1, 0, 1, 0]], np.float32)
    >>> apply_rope(x, np.array([3]), table, interleaved=True).round(4)
    array([[-0.99  ,  0.1411,  0.9996,  0.03  ]], dtype=float32)
    """
    return call(
        _core.transform.apply_rope, x, positions, cos_sin, interleaved, out=out, threads=threads, validate=validate
    )
