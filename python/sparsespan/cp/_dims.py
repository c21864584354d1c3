"""Attention dimensions of published models: what the closed formulas of this family need."""

from __future__ import annotations

import dataclasses

__all__ = ["AttentionDims", "attention_dims"]


@dataclasses.dataclass(frozen=True)
class AttentionDims:
    """Attention part of a model; ``index_layers`` 0 means dense attention without an indexer.

    Field names follow the models' configuration files, shortened: ``q_lora`` is ``q_lora_rank``, ``nope`` is
    ``qk_nope_head_dim``, ``rope`` is ``qk_rope_head_dim``, ``v_head`` is ``v_head_dim``, ``topk`` is ``index_topk``.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    v_head: int
    index_layers: int = 0
    index_heads: int = 0
    index_dim: int = 0
    topk: int = 0

    def cache_bytes(self, cache: str) -> tuple[int, int]:
        """Bytes of one token in one layer: (latent, index-K) for ``"bf16"`` or ``"fp8"``.

        fp8 is one byte per element, a float32 scale per 128 elements, and the rope part in bfloat16.
        """
        if cache == "bf16":
            return 2 * (self.kv_lora + self.rope), 2 * self.index_dim
        if cache == "fp8":
            latent = self.kv_lora + self.kv_lora // 128 * 4 + 2 * self.rope
            return latent, self.index_dim + self.index_dim // 128 * 4
        raise ValueError(f"cache is {cache!r}, needs 'bf16' or 'fp8'")


_V3 = AttentionDims("v3.1", 61, 7168, 128, 1536, 512, 128, 64, 128)
_GLM5 = AttentionDims("glm-5", 78, 6144, 64, 2048, 512, 192, 64, 256, 78, 32, 128, 2048)
_MODELS = {
    m.name: m
    for m in (
        _V3,
        dataclasses.replace(_V3, name="v3.2", index_layers=61, index_heads=64, index_dim=128, topk=2048),
        _GLM5,
        dataclasses.replace(_GLM5, name="glm-5.2", index_layers=21),
    )
}


def attention_dims(model: str | AttentionDims) -> AttentionDims:
    """Look up a model's attention dimensions.

    Parameters
    ----------
    model : str or AttentionDims
        ``"v3.1"`` (DeepSeek-V3 and V3.1, dense MLA), ``"v3.2"``, ``"glm-5"`` or ``"glm-5.2"`` (an indexer on 21 of the
        78 layers; the others reuse its top-k). Dimensions are returned as they are.

    Returns
    -------
    AttentionDims

    Raises
    ------
    ValueError
        If the name is not known.

    Notes
    -----
    Sources: the models' config.json files. Draft (MTP) layers are not counted.

    Examples
    --------
    >>> from sparsespan import cp
    >>> dims = cp.attention_dims("v3.2")
    >>> dims.cache_bytes("bf16"), dims.cache_bytes("fp8")
    ((1152, 256), (656, 132))
    """
    if isinstance(model, AttentionDims):
        return model
    if model not in _MODELS:
        raise ValueError(f"model is {model!r}, needs {', '.join(map(repr, _MODELS))} or AttentionDims")
    return _MODELS[model]
