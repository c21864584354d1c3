"""Row-wise transforms around attention: RoPE and its tables, Hadamard, RMSNorm, LayerNorm."""

from __future__ import annotations

from ._hadamard import hadamard_transform
from ._norms import add_rms_norm, layer_norm, rms_norm
from ._rope import apply_rope
from ._yarn import yarn_cos_sin, yarn_frequencies, yarn_softmax_scale

__all__ = [
    "add_rms_norm",
    "apply_rope",
    "hadamard_transform",
    "layer_norm",
    "rms_norm",
    "yarn_cos_sin",
    "yarn_frequencies",
    "yarn_softmax_scale",
]
