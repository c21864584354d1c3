"""Layers of DSA models: every product with a weight goes through :func:`linear`."""

from __future__ import annotations

from ._caches import PagedCaches
from ._dims import LayerDims, layer_dims, rope_table
from ._layer import DsaLayer, dsa_layer
from ._linear import Linear, linear
from ._weights import LayerWeights, layer_tensors, seeded_tensors

__all__ = [
    "DsaLayer",
    "LayerDims",
    "LayerWeights",
    "Linear",
    "PagedCaches",
    "dsa_layer",
    "layer_dims",
    "layer_tensors",
    "linear",
    "rope_table",
    "seeded_tensors",
]
