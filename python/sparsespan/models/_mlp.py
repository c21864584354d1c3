"""The dense feed-forward part of a layer; an expert is one of these. Rows never meet each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._heads import spread_product
from ._weights import load_linear

__all__ = ["Mlp"]


def _silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x) in float32; exp of the negative magnitude only, so that nothing overflows."""
    e = np.exp(-np.abs(x))
    return x * (np.where(x >= 0, np.float32(1), e) / (np.float32(1) + e))


class Mlp:
    """``down(silu(gate(x)) * up(x))``, whole or with the inner width spread over the ranks of ``tp``."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str, tp: Any = None, how: str = "gather") -> None:
        rank, ranks = (0, 1) if tp is None else (tp.rank, tp.size)
        hidden, width = tensors[f"{prefix}.down_proj.weight"].shape
        if width % ranks or hidden % ranks:
            raise ValueError(f"{prefix}: {ranks} ranks do not divide its width of {width} and its output of {hidden}")
        inner, outer = ((rank * n // ranks, (rank + 1) * n // ranks) for n in (width, hidden))
        self.gate = load_linear(tensors, f"{prefix}.gate_proj", rows=inner)
        self.up = load_linear(tensors, f"{prefix}.up_proj", rows=inner)
        part = {"rows": outer} if how == "gather" else {"columns": inner}
        self.down = load_linear(tensors, f"{prefix}.down_proj", **part)
        self._tp, self._how = tp, how

    def __call__(self, x: Any, threads: int = 0) -> Any:
        gate = self.gate(x, threads=threads)
        up = self.up(x, threads=threads)
        # The activation is rounded to the model's dtype, and the product again, as in transformers.
        gate = _silu(gate.astype(np.float32)).astype(gate.dtype)
        return spread_product(gate * up, self.down, self._how, self._tp, threads)
