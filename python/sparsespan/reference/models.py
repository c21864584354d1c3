"""Float64 twins of :mod:`sparsespan.models`."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import quant

__all__ = ["linear"]


def linear(x: Any, w: Any, weight_scale_inv: Any = None, *, block: int = 128) -> np.ndarray:
    """``x @ w.T`` in float64; float8 weights are ``bfloat16(code * scale)`` first. See the op of this name."""
    if weight_scale_inv is not None:
        w = quant.weight_dequant(w, weight_scale_inv, block)
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    if w.ndim == 3:
        return np.einsum("thk,hnk->thn", x, w)
    return np.asarray(x @ w.T)
