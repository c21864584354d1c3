"""What one layer needs to know about its model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from .. import transform
from ..cp import AttentionDims, attention_dims

__all__ = ["LayerDims", "layer_dims", "rope_table"]


@dataclasses.dataclass(frozen=True)
class LayerDims:
    """Dims and constants of one attention layer; names as in :class:`sparsespan.cp.AttentionDims`.

    Made by :func:`layer_dims`. The latent has 512 dims and the indexer's keys 128, the rope part of both 64: the paged
    caches are made for these.

    Attributes
    ----------
    hidden, heads, q_lora, nope, v_head : int
    index_heads, topk : int
    eps : float
        Of the norm before the layer.
    latent_eps : float
        Of the norms of the query and KV latents: 1e-6 in transformers and DeepSeek's code, whatever ``eps`` is.
    theta, yarn_factor, yarn_original, yarn_beta_fast, yarn_beta_slow, mscale, mscale_all_dim : float
        Of the rope table; ``yarn_factor`` 1 is plain rope.
    index_rope_interleaved : bool
        Whether the indexer pairs (2i, 2i + 1) as MLA does (GLM-5), or (i, i + 32) (DeepSeek-V3.2).
    """

    hidden: int
    heads: int
    q_lora: int
    nope: int
    v_head: int
    index_heads: int
    topk: int
    index_rope_interleaved: bool
    kv_lora: int = 512
    rope: int = 64
    index_dim: int = 128
    eps: float = 1e-6
    latent_eps: float = 1e-6
    theta: float = 1e4
    yarn_factor: float = 1.0
    yarn_original: int = 4096
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        for name, needs in (("kv_lora", 512), ("rope", 64), ("index_dim", 128)):
            if getattr(self, name) != needs:
                raise ValueError(f"LayerDims: {name} is {getattr(self, name)}, needs {needs}: the paged caches' layout")
        for name in ("hidden", "heads", "q_lora", "nope", "v_head", "index_heads", "topk"):
            if getattr(self, name) < 1:
                raise ValueError(f"LayerDims: {name} is {getattr(self, name)}, needs at least 1")

    @property
    def sm_scale(self) -> float:
        """Softmax scale of the un-absorbed heads, with YaRN's factor."""
        return transform.yarn_softmax_scale(self.nope + self.rope, self.yarn_factor, self.mscale_all_dim)


# What AttentionDims does not tell. GLM-5.2 has theta 8e6 and, as GLM-5, no YaRN.
_EXTRA: dict[str, dict[str, Any]] = {
    "v3.2": {"index_rope_interleaved": False, "yarn_factor": 40.0},
    "glm-5": {"index_rope_interleaved": True, "theta": 1e6, "eps": 1e-5},
    "glm-5.2": {"index_rope_interleaved": True, "theta": 8e6, "eps": 1e-5},
}


def layer_dims(model: str | AttentionDims | LayerDims, **changes: Any) -> LayerDims:
    """Look up the dims of a model's layers, with some of them changed.

    Parameters
    ----------
    model : str, AttentionDims or LayerDims
        ``"v3.2"``, ``"glm-5"`` or ``"glm-5.2"``, or dims whose ``name`` is one of these.
    **changes
        Fields of :class:`LayerDims` to set otherwise; ``hidden=64, heads=2`` makes a small layer.

    Returns
    -------
    LayerDims

    Raises
    ------
    ValueError, TypeError
        A model without an indexer, a field that does not exist, a dim that does not fit.

    Examples
    --------
    >>> from sparsespan.models import layer_dims
    >>> dims = layer_dims("v3.2")
    >>> dims.heads, dims.topk, round(dims.sm_scale, 8)
    (128, 2048, 0.13523378)
    """
    if isinstance(model, LayerDims):
        return dataclasses.replace(model, **changes)
    dims = attention_dims(model)
    if dims.name not in _EXTRA:
        raise ValueError(f"layer_dims: model is {dims.name!r}, needs {', '.join(map(repr, _EXTRA))}: a DSA model")
    shared = {f.name for f in dataclasses.fields(LayerDims)} & {f.name for f in dataclasses.fields(AttentionDims)}
    return LayerDims(**{name: getattr(dims, name) for name in shared} | _EXTRA[dims.name] | changes)


@functools.lru_cache(maxsize=8)
def _table(dims: LayerDims, rows: int) -> Any:
    return transform.yarn_cos_sin(
        rows, dims.rope, base=dims.theta, factor=dims.yarn_factor, original_max_position=dims.yarn_original,
        beta_fast=dims.yarn_beta_fast, beta_slow=dims.yarn_beta_slow, mscale=dims.mscale,
        mscale_all_dim=dims.mscale_all_dim,
    )  # fmt: skip


def rope_table(dims: LayerDims, positions: int) -> Any:
    """cos | sin table of at least ``positions`` rows; layers of one model share it, and it grows by doubling."""
    rows = 1024
    while rows < positions:
        rows *= 2
    return _table(dims, rows)
