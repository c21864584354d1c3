"""Quantisation with a scale per group, and its inverse for weights."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .. import _core
from .._interop import call

__all__ = ["act_quant", "weight_dequant"]


def act_quant(
    x: Any,
    block_size: int = 128,
    scale_fmt: str | None = None,
    *,
    out: tuple[Any, Any] | None = None,
    threads: int = 0,
    validate: str = "full",
) -> tuple[Any, Any]:
    """Quantise to fp8 with one scale per group of the last axis.

    Parameters
    ----------
    x : array [..., N], float32 or bfloat16
        Finite; the last axis is contiguous.
    block_size : int
        Elements that share a scale; divides N.
    scale_fmt : {None, "ue8m0"}
        ``"ue8m0"`` rounds each scale up to a power of two.
    out : (array, array), optional
        ``y`` and ``scale`` to write instead of new arrays.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` skips the search for NaN and infinity; a group that holds one then becomes NaN codes with scale 1.

    Returns
    -------
    y : array [..., N], float8_e4m3fn
    scale : array [..., N / block_size], float32
        ``float(y) * scale`` approximates ``x``. Powers of two are float32 too, as in the peers.

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor bfloat16.
    ValueError
        If N is no multiple of ``block_size``, ``x`` holds a NaN or an infinity (row and column are named; leading axes
        count as one), or ``out`` does not fit.

    Notes
    -----
    In float32: ``t = max(max|x|, 1e-4) * float32(1/448)``; ``scale = ceil2(t)`` for ue8m0, else ``t``;
    ``y = e4m3(clamp(x / scale, -448, 448))``, a true division, rounded to nearest even, subnormals kept. ceil2 goes by
    the bits. A zero group has scale 2.2e-7 (ue8m0: 2**-22) and zeros. Source: DeepSeek-V3.2 ``act_quant``; peers that
    divide by 448 get the same powers of two, and other scales within 1 ulp. Reference:
    :func:`sparsespan.reference.quant.act_quant`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.quant import act_quant
    >>> y, scale = act_quant(np.array([[1, 2, 3, 4]], np.float32), block_size=4, scale_fmt="ue8m0")
    >>> y.astype(np.float32), scale
    (array([[ 64., 128., 192., 256.]], dtype=float32), array([[0.015625]], dtype=float32))
    """
    y, scale = call(_core.quant.act_quant, x, block_size, scale_fmt, out, threads, validate)
    return y, scale


def _is_float32(dtype: Any) -> bool:
    try:
        name = np.dtype(dtype).name
    except (TypeError, UnicodeError):
        name = str(dtype).removeprefix("torch.")
    if name not in ("bfloat16", "float32"):
        raise TypeError(f"weight_dequant: dtype is {name}, needs bfloat16 or float32")
    return name == "float32"


def weight_dequant(
    w: Any,
    scale_inv: Any,
    block: int = 128,
    dtype: Any = ml_dtypes.bfloat16,
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Expand an fp8 weight with one scale per square block.

    Parameters
    ----------
    w : array [M, N], float8_e4m3fn
    scale_inv : array [ceil(M / block), ceil(N / block)], float32 or float8_e8m0fnu
        Multiplier (the name is the checkpoint's); finite and >= 0. Bytes that are e8m0 must be viewed as such.
    block : int
        Side of a block; blocks at the right and lower edge may be smaller.
    dtype : {ml_dtypes.bfloat16, numpy.float32}, or its name, or torch's
        Of the result.
    out : array [M, N] of bfloat16 or float32, optional
        Written instead of a new array; its own dtype counts.
    threads : int
        0 takes :func:`sparsespan.num_threads`.
    validate : {"full", "trusted"}
        ``"trusted"`` skips the look at the scales.

    Returns
    -------
    array [M, N]

    Raises
    ------
    TypeError
        If a dtype is not one of the above.
    ValueError
        If the shape of ``scale_inv`` does not follow from ``w`` and ``block``, or a scale is NaN, infinite or negative
        (row and column are named).

    Notes
    -----
    ``round(float(w[i, j]) * scale_inv[i // block, j // block])`` with the product in float32. NaN codes stay NaN.
    Source: DeepSeek-V3.2 ``weight_dequant``, with ragged edges as in vLLM. Reference:
    :func:`sparsespan.reference.quant.weight_dequant`.

    Examples
    --------
    >>> import ml_dtypes
    >>> import numpy as np
    >>> from sparsespan.quant import weight_dequant
    >>> w = np.ones((2, 3), ml_dtypes.float8_e4m3fn)
    >>> weight_dequant(w, np.array([[2, 0.5]], np.float32), block=2, dtype=np.float32)
    array([[2. , 2. , 0.5],
           [2. , 2. , 0.5]], dtype=float32)
    """
    to_float32 = _is_float32(dtype)
    return call(_core.quant.weight_dequant, w, scale_inv, block, to_float32, out, threads, validate)
