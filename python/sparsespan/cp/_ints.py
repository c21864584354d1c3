"""Integer metadata as a plain list."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["int_list"]


def int_list(op: str, name: str, values: Any) -> list[int]:
    """One integer or a one-dimensional array of integers as a list."""
    array = np.asarray(values)
    if array.size == 0:
        return []
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} has dtype {array.dtype}, needs integers")
    if array.ndim > 1:
        raise ValueError(f"{op}: {name} has shape {list(array.shape)}, needs one number for each request")
    return [int(v) for v in array.reshape(-1)]
