"""What is known of the model beside what was captured."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from ... import models

__all__ = ["Facts"]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Dims and constants of the model, and, with a checkpoint, its weights.

    Attributes
    ----------
    dims : LayerDims
    model : Model, optional
        On one rank in float32; lets hypotheses go through projections.
    routed_scaling : float
    grids : tuple of (scheme, N)
        Context-parallel splits that are thought of first.
    """

    dims: models.LayerDims
    model: Any = None
    routed_scaling: float = 1.0
    grids: tuple[tuple[str, int], ...] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Facts:
        """Of a checkpoint."""
        model = models.load(path, dtype="float32")
        return cls(model.config.dims, model, model.config.routed_scaling_factor)

    def mlp(self, layer: int) -> Any:
        """Feed-forward part of a layer."""
        return self.model.layers[layer].mlp

    def heads(self, layer: int, latent: np.ndarray) -> np.ndarray | None:
        """Attention in the latent space through W_UV."""
        if self.model is None:
            return None
        up = self.model.layers[layer].attention.weights.w_uv
        return np.asarray(up(np.ascontiguousarray(latent, np.float32)), np.float64)

    def out(self, layer: int, heads: np.ndarray) -> np.ndarray | None:
        """Heads through the output projection."""
        if self.model is None:
            return None
        o = self.model.layers[layer].attention.weights.o
        return np.asarray(o(np.ascontiguousarray(heads.reshape(len(heads), -1), np.float32)), np.float64)
