"""DSA models, layer by layer and whole: every product with a weight goes through :func:`linear`."""

from __future__ import annotations

from ._caches import PagedCaches
from ._checkpoint import Checkpoint, expected_tensors
from ._config import ModelConfig, parse_config
from ._dcp import Dcp
from ._decoder import DecoderLayer
from ._dims import LayerDims, layer_dims, rope_table
from ._grid import Grid
from ._hand_over import HandOver
from ._layer import DsaLayer
from ._linear import Linear, linear
from ._make import dsa_layer
from ._mlp import Mlp
from ._model import Model, load
from ._moe import MoE, route
from ._pd import PdGrid, PdRanks
from ._pool import KvPool, PoolFull
from ._ranks import Ranks
from ._safetensors import CheckpointError, TensorFile, write_tensors
from ._sampling import sample
from ._stopwatch import Stopwatch
from ._taps import Tap
from ._tiny import tiny_config, write_tiny
from ._tokenizer import ByteTokenizer, open_tokenizer
from ._weights import LayerWeights, layer_tensors, seeded_tensors

__all__ = [
    "ByteTokenizer",
    "Checkpoint",
    "CheckpointError",
    "Dcp",
    "DecoderLayer",
    "DsaLayer",
    "Grid",
    "HandOver",
    "KvPool",
    "LayerDims",
    "LayerWeights",
    "Linear",
    "Mlp",
    "MoE",
    "Model",
    "ModelConfig",
    "PagedCaches",
    "PdGrid",
    "PdRanks",
    "PoolFull",
    "Ranks",
    "Stopwatch",
    "Tap",
    "TensorFile",
    "dsa_layer",
    "expected_tensors",
    "layer_dims",
    "layer_tensors",
    "linear",
    "load",
    "open_tokenizer",
    "parse_config",
    "rope_table",
    "route",
    "sample",
    "seeded_tensors",
    "tiny_config",
    "write_tensors",
    "write_tiny",
]
