"""RMSNorm and LayerNorm."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call

__all__ = ["add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(x: Any, w: Any, eps: float, cast: str = "after", *, out: Any = None, threads: int = 0) -> Any:
    """Divide each row by its root mean square and multiply by a weight.

    Parameters
    ----------
    x : array [..., n], float32 or bfloat16
        The last axis is contiguous.
    w : array [n], float32 or bfloat16
        Weight; used in float32.
    eps : float
        Added to the mean square: 1e-6 (DeepSeek-V3.2), 1e-5 (GLM-5).
    cast : {"after", "before"}
        Where the value is rounded to the dtype of ``x``. ``"after"``: once, after the product with ``w`` (DeepSeek's
        code). ``"before"``: before that product, and again after it (transformers). The same for float32.
    out : array like ``x``, optional
        Written instead of a new array. It may be ``x`` itself (same memory, shape and strides); any other overlap
        with an input is refused.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array like ``x``

    Raises
    ------
    TypeError
        If a dtype is not one of those named.
    ValueError
        If ``w`` does not have the last axis of ``x``, ``eps`` is negative or not finite, ``cast`` is neither of the
        two, or ``out`` does not fit.

    Notes
    -----
    ``out = round(x * (1 / sqrt(mean(x ** 2) + eps)) * w)`` in float32. The row sum has one order: element ``i`` goes to
    partial ``i % 16``, partials merge in strides 8, 4, 2, 1; so a row's bits depend on that row alone. Squares
    overflow beyond 1.8e19, as in the peers. Sources: DeepSeek-V3.2 ``RMSNorm``, transformers ``DeepseekV32RMSNorm``;
    reference: :func:`sparsespan.reference.transform.rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.transform import rms_norm
    >>> rms_norm(np.array([[3, -4]], np.float32), np.array([1, 10], np.float32), 0.0)
    array([[  0.84852815, -11.313709  ]], dtype=float32)
    """
    return call(_core.transform.rms_norm, x, w, eps, cast, out=out, threads=threads)


def add_rms_norm(
    x: Any,
    residual: Any,
    w: Any,
    eps: float,
    cast: str = "after",
    *,
    out: Any = None,
    residual_out: Any = None,
    threads: int = 0,
) -> tuple[Any, Any]:
    """RMSNorm of ``x + residual``, and that sum.

    Parameters
    ----------
    x, residual : array [..., n], float32 or bfloat16
        Both of one dtype and shape; the last axis is contiguous.
    w, eps, cast, threads
        As for :func:`rms_norm`.
    out : array like ``x``, optional
        Written instead of a new array; may be ``x`` itself.
    residual_out : array like ``x``, optional
        Written instead of a new array; may be ``residual`` itself.

    Returns
    -------
    out : array like ``x``
        The norm of the float32 sum: the sum is not rounded before it (transformers does round it).
    residual_out : array like ``x``
        ``x + residual``, rounded once.

    Raises
    ------
    TypeError, ValueError
        As :func:`rms_norm`; also if ``residual`` differs from ``x`` in dtype or shape.

    Notes
    -----
    Source: DeepSeek-V3.2 ``RMSNorm.forward`` with a residual. Reference:
    :func:`sparsespan.reference.transform.add_rms_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.transform import add_rms_norm
    >>> x = np.array([[1, -2]], np.float32)
    >>> add_rms_norm(x, 2 * x, np.ones(2, np.float32), 0.0)
    (array([[ 0.6324555, -1.264911 ]], dtype=float32), array([[ 3., -6.]], dtype=float32))
    """
    result: tuple[Any, Any] = call(
        _core.transform.add_rms_norm,
        x,
        residual,
        w,
        eps,
        cast,
        out=out,
        residual_out=residual_out,
        threads=threads,
    )
    return result


def layer_norm(x: Any, w: Any, b: Any, eps: float = 1e-6, *, out: Any = None, threads: int = 0) -> Any:
    """Centre each row, divide it by its standard deviation, multiply by a weight and add a bias.

    Parameters
    ----------
    x : array [..., n], float32 or bfloat16
        The last axis is contiguous.
    w, b : array [n], float32 or bfloat16
        Weight and bias; used in float32.
    eps : float
        Added to the variance. The indexer's ``k_norm`` has 1e-6 in DeepSeek-V3.2 and in GLM-5, whatever the model's
        ``rms_norm_eps``.
    out : array like ``x``, optional
        Written instead of a new array. It may be ``x`` itself (same memory, shape and strides); any other overlap
        with an input is refused.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array like ``x``

    Raises
    ------
    TypeError
        If a dtype is not one of those named.
    ValueError
        If ``w`` or ``b`` does not have the last axis of ``x``, ``eps`` is negative or not finite, or ``out`` does not
        fit.

    Notes
    -----
    ``out = round((x - mean) * (1 / sqrt(var + eps)) * w + b)`` in float32 with the biased variance, taken from centred
    values in a second pass; row sums in the order of :func:`rms_norm`. Source: DeepSeek-V3.2 ``LayerNorm``; reference:
    :func:`sparsespan.reference.transform.layer_norm`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.transform import layer_norm
    >>> layer_norm(np.array([[1, 2, 3]], np.float32), np.ones(3, np.float32), np.zeros(3, np.float32)).round(4)
    array([[-1.2247,  0.    ,  1.2247]], dtype=float32)
    """
    return call(_core.transform.layer_norm, x, w, b, eps, out=out, threads=threads)
