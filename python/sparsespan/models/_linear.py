"""The one place where a model multiplies by a weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core, _interop
from .._interop import call
from ._stopwatch import timed

__all__ = ["Linear", "linear"]


def linear(
    x: Any,
    w: Any,
    weight_scale_inv: Any = None,
    *,
    block: int = 128,
    out_dtype: str | None = None,
    out: Any = None,
    validate: str = "full",
    threads: int = 0,
) -> Any:
    """Multiply rows by a weight as checkpoints store it: ``x @ w.T``.

    Parameters
    ----------
    x : array [..., K], float32 or bfloat16
        With a ``w`` of three axes [T, H, K]: head ``h`` meets ``w[h]``. The last axis is contiguous, here and in ``w``.
    w : array [N, K] or [H, N, K], float32, bfloat16, float16 or float8_e4m3fn
        Widened to float32 a block at a time: there is never a float32 copy of the whole.
    weight_scale_inv : array [ceil(N / block), ceil(K / block)], float32 or float8_e8m0fnu, optional
        Multipliers (the name is the checkpoint's) of a float8 ``w`` [N, K]: needed with it, refused without.
    block : int
        Side of the blocks that share a multiplier.
    out_dtype : {"float32", "bfloat16"}, optional
        Default: the dtype of ``x``.
    out : array [..., N] or [T, H, N], optional
        Written instead of a new array; its own dtype counts.
    validate : {"full", "trusted"}
        "trusted" skips the look at the multipliers.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array [..., N] or [T, H, N]
        Of the family of ``x``: rows of a torch tensor give a torch tensor, whatever holds the weight, and the other way
        round.

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit, scales that are NaN, infinite or negative.

    Notes
    -----
    ``out[t, n] = round(sum_k x[t, k] * w[n, k])`` in float32. The sum is formed in lanes: element ``k`` goes to partial
    sum ``k % lanes``, ascending, with 16 lanes (avx512), 8 (avx2) or 4 (generic), and the lanes are added in strides
    ``lanes / 2, ..., 2, 1``. So a row has the same bits for any number of threads and any batch around it. A BLAS
    promises neither: OpenBLAS 0.3.31 gives [16, 1000] x [1000, 100] other bits with two threads than with one, and its
    rows others in a batch of 8 than in one of 16. Float8 weights are ``bfloat16(code * scale)``: ``linear(x, w, s)``
    has the bits of ``linear(x, weight_dequant(w, s))``. Reference: :func:`sparsespan.reference.models.linear`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.models import linear
    >>> linear(np.array([[1, 2], [3, 4]], np.float32), np.array([[1, 1], [0, 1], [2, 0]], np.float32))
    array([[3., 2., 2.],
           [7., 4., 6.]], dtype=float32)
    """
    if isinstance(x, np.ndarray):
        w, weight_scale_inv = _as_numpy("w", w), _as_numpy("weight_scale_inv", weight_scale_inv)
    return call(_core.models.linear, x, w, weight_scale_inv, block, out_dtype or "", out, threads, validate)


def _as_numpy(name: str, value: Any) -> Any:
    return _interop._to_numpy("linear", name, value) if _interop._is_foreign(value) else value


class Linear:
    """A weight and, when it is float8, its scales: ``Linear(w)(x)`` is ``linear(x, w)``.

    Attributes
    ----------
    weight : array [N, K] or [H, N, K]
        NumPy, or a tensor that can be read through DLPack.
    weight_scale_inv : array or None
    """

    __slots__ = ("weight", "weight_scale_inv")

    def __init__(self, weight: Any, weight_scale_inv: Any = None) -> None:
        self.weight = weight
        self.weight_scale_inv = weight_scale_inv

    def __call__(self, x: Any, *, out_dtype: str | None = None, threads: int = 0) -> Any:
        scale = self.weight_scale_inv
        return timed("linear", linear, x, self.weight, scale, out_dtype=out_dtype, threads=threads)

    def __repr__(self) -> str:
        return f"Linear({list(self.weight.shape)} {str(self.weight.dtype).removeprefix('torch.')})"

    @property
    def nbytes(self) -> int:
        """Bytes of the weight and its scales."""
        return int(self.weight.nbytes + (0 if self.weight_scale_inv is None else self.weight_scale_inv.nbytes))
