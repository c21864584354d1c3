"""A model's config.json: what is understood, and what is refused by name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ..indexer import index_share_layers
from ._dims import LayerDims
from ._safetensors import CheckpointError

__all__ = ["ModelConfig", "parse_config"]

ARCHITECTURES = {"deepseek_v32": "DeepseekV32ForCausalLM", "glm_moe_dsa": "GlmMoeDsaForCausalLM"}
MOST, MOST_LAYERS = 2**31 - 1, 10_000  # of a field, and of layers: each makes an entry before a file is opened
# A field that changes the arithmetic, with the only value that is implemented.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "rope_interleave": True,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A DSA model as its config.json tells it; field names are those of the file.

    Attributes
    ----------
    dims : LayerDims
        Of every attention layer.
    indexer_types : tuple of {"full", "shared"}
        Per layer.
    mlp_layer_types : tuple of {"dense", "sparse"}
        Per layer.
    quantized : bool
        Whether linear weights may be float8 with ``weight_scale_inv``.
    """

    model_type: str
    dims: LayerDims
    num_hidden_layers: int
    vocab_size: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str
    quantized: bool
    eos_token_ids: tuple[int, ...]
    indexer_types: tuple[str, ...]
    mlp_layer_types: tuple[str, ...]

    @property
    def index_layers(self) -> tuple[int, ...]:
        """Layers that have an indexer, and so a cache of index keys."""
        return tuple(layer for layer, kind in enumerate(self.indexer_types) if kind == "full")


class _Fields:
    """Typed reads of a JSON object; each failure names the field."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            has = self._has(name, value)
            raise CheckpointError(f"{self.where}: {has}, needs a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None, least: float = 0.0) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        # JSON as Python reads it has NaN and Infinity.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= sys.float_info.max:
            raise CheckpointError(f"{self.where}: {self._has(name, value)}, needs a finite number >= {least:g}")
        return float(value)

    def _has(self, name: str, value: Any) -> str:
        return f"{name} is missing" if value is None else f"{name} is {value!r}"

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {name} is {value!r}, needs true or false")
        return value


def _rope(fields: _Fields) -> dict[str, Any]:
    """Fields of LayerDims out of ``rope_parameters`` (new) or ``rope_theta`` and ``rope_scaling`` (old)."""
    values, where = fields.values, fields.where
    spelled = (values.get(name) for name in ("rope_parameters", "rope_scaling"))
    rope: Any = next((one for one in spelled if one not in (None, {})), {})
    if not isinstance(rope, Mapping):
        raise CheckpointError(f"{where}: rope_parameters is {rope!r}, needs an object")
    inner = _Fields({"rope_theta": values.get("rope_theta"), **rope}, f"{where}: rope_parameters")
    kind = rope.get("rope_type", rope.get("type", "default"))
    found: dict[str, Any] = {"theta": inner.number("rope_theta", 1e4, least=1)}
    if kind == "default":
        return found
    if kind != "yarn":
        raise CheckpointError(f'{where}: rope_type is {kind!r}, needs "default" or "yarn"')
    for name in ("attention_factor", "truncate"):
        if rope.get(name) not in (None, True):
            raise CheckpointError(f"{where}: rope_parameters has {name} = {rope[name]!r}, which is not supported")
    mscale, all_dim = inner.number("mscale", 0), inner.number("mscale_all_dim", 0)
    if all_dim and not mscale:
        raise CheckpointError(f"{where}: rope_parameters has mscale_all_dim without mscale, which is not supported")
    return found | {
        "yarn_factor": inner.number("factor", least=1),
        "yarn_original": inner.whole("original_max_position_embeddings"),
        "yarn_beta_fast": inner.number("beta_fast", 32),
        "yarn_beta_slow": inner.number("beta_slow", 1),
        # Without both, cos and sin carry the whole factor m(1) and the softmax scale none.
        "mscale": mscale if all_dim else 1.0,
        "mscale_all_dim": all_dim,
    }


def _quantized(values: Mapping[str, Any], where: str) -> bool:
    quantization = values.get("quantization_config")
    if quantization is None:
        return False
    if not isinstance(quantization, Mapping):
        raise CheckpointError(f"{where}: quantization_config is {quantization!r}, needs an object")
    method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
    if method != "fp8" or block != [128, 128] or quantization.get("fmt", "e4m3") != "e4m3":
        raise CheckpointError(
            f"{where}: quantization_config has quant_method {method!r}, fmt {quantization.get('fmt')!r}, "
            f'weight_block_size {block!r}; needs "fp8", "e4m3" and [128, 128]'
        )
    return True


def _kinds(fields: _Fields, layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(indexer_types, mlp_layer_types)."""
    values, where = fields.values, fields.where
    mlp = values.get("mlp_layer_types")
    if mlp is None:
        dense = min(fields.whole("first_k_dense_replace", 3, 0), layers)
        mlp = ["dense"] * dense + ["sparse"] * (layers - dense)
    if not isinstance(mlp, list) or len(mlp) != layers or any(kind not in ("dense", "sparse") for kind in mlp):
        raise CheckpointError(f'{where}: mlp_layer_types needs {layers} entries, "dense" or "sparse"')
    if values["model_type"] == "deepseek_v32":
        return ("full",) * layers, tuple(mlp)
    try:
        return tuple(index_share_layers(values)), tuple(mlp)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def _eos(values: Mapping[str, Any], where: str) -> tuple[int, ...]:
    eos = values.get("eos_token_id")
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if any(isinstance(e, bool) or not isinstance(e, int) for e in eos):
        raise CheckpointError(f"{where}: eos_token_id is {values['eos_token_id']!r}, needs token ids")
    return tuple(eos)


def _dims(fields: _Fields) -> LayerDims:
    glm = fields.values["model_type"] == "glm_moe_dsa"
    return LayerDims(
        hidden=fields.whole("hidden_size"),
        heads=fields.whole("num_attention_heads"),
        q_lora=fields.whole("q_lora_rank"),
        kv_lora=fields.whole("kv_lora_rank"),
        nope=fields.whole("qk_nope_head_dim"),
        rope=fields.whole("qk_rope_head_dim"),
        v_head=fields.whole("v_head_dim"),
        index_heads=fields.whole("index_n_heads"),
        index_dim=fields.whole("index_head_dim"),
        topk=fields.whole("index_topk"),
        eps=fields.number("rms_norm_eps"),
        index_rope_interleaved=fields.flag("indexer_rope_interleave", glm),
        **_rope(fields),
    )


def _architecture(values: Mapping[str, Any], where: str) -> str:
    """The model_type, if it is one that is implemented."""
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        has = "missing" if kind is None else repr(kind)
        raise CheckpointError(f"{where}: model_type is {has}, needs one of {', '.join(ARCHITECTURES)}")
    named = values.get("architectures")
    if named is not None and named != [ARCHITECTURES[kind]]:
        raise CheckpointError(f"{where}: architectures is {named!r}, needs {[ARCHITECTURES[kind]]!r} for {kind}")
    return kind


def parse_config(values: Any, where: str = "config.json") -> ModelConfig:
    """Read the fields of a config.json.

    Parameters
    ----------
    values : mapping
        The parsed file.
    where : str
        What refusals call it.

    Returns
    -------
    ModelConfig

    Raises
    ------
    CheckpointError
        An architecture, quantisation or setting that is not implemented, a field that is missing or of a wrong type.

    Notes
    -----
    Both spellings of rope are read (``rope_parameters``; ``rope_theta`` with ``rope_scaling``), and all ways of
    IndexShare (:func:`sparsespan.indexer.index_share_layers`). Source: the configuration classes ``deepseek_v32`` and
    ``glm_moe_dsa`` of transformers 5.23.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{where}: is no JSON object")
    kind = _architecture(values, where)
    for name, wanted in FIXED.items():
        if values.get(name) not in (None, wanted):
            raise CheckpointError(f"{where}: {name} is {values[name]!r}, only {wanted!r} is supported")
    fields = _Fields(values, where)
    layers = fields.whole("num_hidden_layers", most=MOST_LAYERS)
    indexers, mlps = _kinds(fields, layers)
    dtype = next((values[name] for name in ("dtype", "torch_dtype") if values.get(name) is not None), "bfloat16")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f'{where}: dtype is {dtype!r}, needs "float32", "bfloat16" or "float16"')
    try:
        dims = _dims(fields)
    except CheckpointError:  # names the file itself
        raise
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    experts, groups = fields.whole("n_routed_experts", 256), fields.whole("n_group", 1)
    chosen, kept = fields.whole("num_experts_per_tok", 8), fields.whole("topk_group", 1)
    if "sparse" in mlps and (
        experts % groups or experts // groups < 2 or kept > groups or chosen > experts // groups * kept
    ):
        raise CheckpointError(
            f"{where}: {experts} experts in {groups} groups, of which {kept} are kept, cannot give {chosen} a token"
        )
    return ModelConfig(
        model_type=kind,
        dims=dims,
        num_hidden_layers=layers,
        vocab_size=fields.whole("vocab_size"),
        intermediate_size=fields.whole("intermediate_size"),
        moe_intermediate_size=fields.whole("moe_intermediate_size", None if "sparse" in mlps else 1),
        n_routed_experts=experts,
        n_shared_experts=fields.whole("n_shared_experts", 1),
        num_experts_per_tok=chosen,
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=fields.flag("norm_topk_prob", True),
        routed_scaling_factor=fields.number("routed_scaling_factor", 1.0),
        max_position_embeddings=fields.whole("max_position_embeddings"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=dtype,
        quantized=_quantized(values, where),
        eos_token_ids=_eos(values, where),
        indexer_types=indexers,
        mlp_layer_types=mlps,
    )
