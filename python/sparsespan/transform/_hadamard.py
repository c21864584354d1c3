"""The Hadamard transform."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["hadamard_transform"]


def hadamard_transform(x: Any, scale: float = 1.0, *, out: Any = None, threads: int = 0) -> Any:
    """Multiply each row by the Hadamard matrix.

    Parameters
    ----------
    x : array [..., n], float32 or bfloat16
        ``n`` is a power of two; the last axis is contiguous.
    scale : float
        Factor on the result. The indexer uses ``n ** -0.5``, which makes the transform its own inverse.
    out : array like ``x``, optional
        Written instead of a new array; shares no memory with ``x``.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array like ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor bfloat16.
    ValueError
        If ``n`` is no power of two, or ``out`` does not fit.

    Notes
    -----
    ``out = round(scale * (H_n @ x))`` with ``H[i, j] = (-1) ** popcount(i & j)`` (Sylvester's order), butterflies in
    float32 for strides 1, 2, 4, ..., one rounding to the dtype of ``x``. Source: DeepSeek-V3.2 ``rotate_activation``;
    reference: :func:`sparsespan.reference.transform.hadamard_transform`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.transform import hadamard_transform
    >>> hadamard_transform(np.array([[1, 2, 3, 4]], np.float32))
    array([[10., -2., -4.,  0.]], dtype=float32)
    """
    return call(_core.transform.hadamard_transform, x, scale, out=out, threads=threads)
