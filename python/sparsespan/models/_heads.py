"""Products whose inner dimension is spread over ranks: of heads, of a feed-forward width."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._kept import join_columns
from ._taps import seen
from ._weights import LayerWeights

__all__ = ["project_out", "spread_product"]


def spread_product(rows: Any, weight: Any, how: str, tp: Any, threads: int) -> Any:
    """``rows @ w.T`` where each rank has some columns of ``rows``.

    "reduce" adds the ranks' products (``weight`` is some columns of w), which rounds otherwise than one rank does.
    "gather" brings the rows together and gives each rank some columns of the result (``weight`` is some rows of w),
    whose bits are then one rank's.
    """
    if tp is None or tp.size == 1:
        return weight(rows, threads=threads)
    if how == "reduce":
        return tp.all_reduce(weight(rows, out_dtype="float32", threads=threads)).astype(rows.dtype)
    return join_columns(tp, weight(join_columns(tp, rows), threads=threads))


def project_out(hidden: Any, heads: Any, weights: LayerWeights, tp: Any, threads: int) -> Any:
    """``hidden + o_proj(heads)``; heads [t, h, v] are this rank's."""
    rows = np.ascontiguousarray(heads).reshape(len(hidden), heads.shape[1] * heads.shape[2])
    out = spread_product(rows, weights.o, weights.o_proj, tp, threads)
    seen(heads=heads, o_proj=out)
    return hidden + out
