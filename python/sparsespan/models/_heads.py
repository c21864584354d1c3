"""The output projection, whole or over the ranks that share the heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._weights import LayerWeights

__all__ = ["join_columns", "project_out"]


def join_columns(comm: Any, x: Any) -> Any:
    """[t, n] of every rank side by side: [t, N * n]."""
    parts = comm.all_gather(np.ascontiguousarray(x)).reshape(comm.size, *x.shape)
    return np.ascontiguousarray(np.moveaxis(parts, 0, 1)).reshape(len(x), comm.size * x.shape[1])


def project_out(hidden: Any, heads: Any, weights: LayerWeights, tp: Any, threads: int) -> Any:
    """``hidden + o_proj(heads)``; heads [t, h, v] are this rank's.

    "reduce" adds the ranks' products, which rounds otherwise than one rank does; "gather" brings the heads together and
    gives each rank some columns of the result, whose bits are then one rank's.
    """
    rows = np.ascontiguousarray(heads).reshape(len(hidden), heads.shape[1] * heads.shape[2])
    if tp is None or tp.size == 1:
        return hidden + weights.o(rows, threads=threads)
    if weights.o_proj == "reduce":
        part = weights.o(rows, out_dtype="float32", threads=threads)
        return hidden + tp.all_reduce(part).astype(hidden.dtype)
    return hidden + join_columns(tp, weights.o(join_columns(tp, rows), threads=threads))
