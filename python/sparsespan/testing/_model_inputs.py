"""One DSA layer of a published model: its dims, and seeded random tensors in the place of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .. import transform

__all__ = ["MODELS", "Inputs", "ModelDims", "make_inputs", "rope_table"]

BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True)
class ModelDims:
    """Attention dims of one layer (Hugging Face config of the model)."""

    name: str
    heads: int
    index_heads: int
    sm_scale: float
    theta: float
    yarn: bool
    index_rope_interleaved: bool
    latent: int = 512
    rope: int = 64
    index_dim: int = 128
    topk: int = 2048


MODELS = {
    # (128 + 64) ** -0.5 * (0.1 * ln 40 + 1) ** 2; the scale follows the un-absorbed head dim, never 576.
    "v3.2": ModelDims("DeepSeek-V3.2", 128, 64, 0.1352337789, 1e4, True, False),
    "glm-5": ModelDims("GLM-5", 64, 32, 256**-0.5, 1e6, False, True),
}


@dataclass
class Inputs:
    """What the projections of a layer would hand over for ``T`` tokens, before RoPE."""

    q_latent: np.ndarray  # [T, H, 512] bf16
    q_rope: np.ndarray  # [T, H, 64] bf16
    c_kv: np.ndarray  # [T, 512] bf16
    k_rope: np.ndarray  # [T, 64] bf16
    index_q: np.ndarray  # [T, Hi, 128] bf16
    index_k: np.ndarray  # [T, 128] bf16
    index_weights: np.ndarray  # [T, Hi] f32


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    x = rng.standard_normal(shape, dtype=np.float32)
    if scale != 1.0:
        x *= np.float32(scale)
    return x.astype(BF16)


def make_inputs(model: ModelDims, tokens: int, seed: tuple[int, ...]) -> Inputs:
    """Seeded tensors of the real shapes; scales chosen so that scores spread as they do in a trained layer."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((tokens, model.index_heads), dtype=np.float32)
    return Inputs(
        q_latent=_normal(rng, (tokens, model.heads, model.latent), 0.5),
        q_rope=_normal(rng, (tokens, model.heads, model.rope), 0.5),
        c_kv=_normal(rng, (tokens, model.latent)),
        k_rope=_normal(rng, (tokens, model.rope)),
        index_q=_normal(rng, (tokens, model.index_heads, model.index_dim)),
        index_k=_normal(rng, (tokens, model.index_dim)),
        index_weights=weights * np.float32(model.index_heads**-0.5 * model.index_dim**-0.5),
    )


def rope_table(model: ModelDims, positions: int) -> Any:
    """cos | sin table [positions, 64] of the model (YaRN x40 for V3.2)."""
    if model.yarn:
        return transform.yarn_cos_sin(
            positions, dim=model.rope, base=model.theta, factor=40.0, original_max_position=4096
        )
    return transform.yarn_cos_sin(positions, dim=model.rope, base=model.theta)
