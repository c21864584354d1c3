"""Small random checkpoints in the real format."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ._checkpoint import expected_tensors, may_be_float8
from ._config import parse_config
from ._safetensors import write_tensors
from ._tokenizer import byte_alphabet

__all__ = ["tiny_config", "write_tiny"]

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
BOS, EOS, PAD, VOCAB = 256, 257, 258, 272
_COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 8,
    "num_key_value_heads": 8, "q_lora_rank": 48, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    # 32 indexer heads: with few, many scores are exactly zero and tie.
    "index_n_heads": 32, "index_head_dim": 128, "index_topk": 64, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
    "hidden_act": "silu", "attention_bias": False, "max_position_embeddings": 32768, "vocab_size": VOCAB,
    "tie_word_embeddings": False, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
    "initializer_range": 0.02, "use_cache": True,
}  # fmt: skip
_MODELS: dict[str, dict[str, Any]] = {
    "deepseek_v32": {
        "architectures": ["DeepseekV32ForCausalLM"], "num_hidden_layers": 6, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "n_group": 4, "topk_group": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 163840,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4096,
            "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
        },
    },
    "glm_moe_dsa": {
        "architectures": ["GlmMoeDsaForCausalLM"], "num_hidden_layers": 8, "qk_nope_head_dim": 24, "v_head_dim": 32,
        "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5, "index_topk_freq": 4, "index_skip_topk_offset": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 8000000.0},
    },
}  # fmt: skip


def tiny_config(model: str, **changes: Any) -> dict[str, Any]:
    """A config.json of a few hundred thousand parameters with everything switched on: YaRN or IndexShare, MoE, groups.

    Parameters
    ----------
    model : {"deepseek_v32", "glm_moe_dsa"}
    **changes
        Fields to set otherwise.

    Examples
    --------
    >>> from sparsespan.models import parse_config, tiny_config
    >>> config = parse_config(tiny_config("glm_moe_dsa"))
    >>> "".join(kind[0] for kind in config.indexer_types)
    'fffsssfs'
    """
    if model not in _MODELS:
        raise ValueError(f"tiny_config: model is {model!r}, needs {' or '.join(map(repr, _MODELS))}")
    return {"model_type": model, "dtype": "float32"} | _COMMON | _MODELS[model] | changes


def _values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random values that keep the residual stream near unit size and attention away from uniform."""
    x = np.random.default_rng([seed, *name.encode()]).standard_normal(shape, np.float32)
    if name.endswith(("e_score_correction_bias", ".bias")):
        return x * np.float32(0.1)
    if len(shape) == 1:
        return np.float32(1) + x * np.float32(0.1)
    return x if "embed_tokens" in name else x * np.float32(1 / math.sqrt(shape[1]))


def _quantise(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and per block of 128 x 128 the power of two that brings the largest value to at most 448."""
    rows, columns = (-(-n // 128) for n in w.shape)
    padded = np.zeros((rows * 128, columns * 128), np.float32)
    padded[: w.shape[0], : w.shape[1]] = np.abs(w)
    amax = np.maximum(padded.reshape(rows, 128, columns, 128).max((1, 3)), 1e-4)
    scale = np.exp2(np.ceil(np.log2(amax / 448))).astype(np.float32)
    wide = np.repeat(np.repeat(scale, 128, 0), 128, 1)[: w.shape[0], : w.shape[1]]
    return (w / wide).astype(FP8), scale


def _tensors(config: dict[str, Any], seed: int, dtype: str) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, shape in expected_tensors(parse_config(config)).items():
        x = _values(name, shape, seed)
        if dtype == "float8" and may_be_float8(name):
            tensors[name], tensors[name + "_scale_inv"] = _quantise(x)
        elif dtype == "float32" or name.endswith("e_score_correction_bias"):
            tensors[name] = x
        else:
            tensors[name] = x.astype(np.float16 if dtype == "float16" else BF16)
    return tensors


def _tokenizer() -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json: a token is a byte, and three special ones."""
    special = {"<s>": BOS, "</s>": EOS, "<pad>": PAD}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {character: byte for byte, character in enumerate(byte_alphabet())}
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in special.items()],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab | special,
            "merges": [],
        },
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "model_max_length": 32768, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    return document, settings


def write_tiny(
    path: Path | str, model: str, *, seed: int = 0, dtype: str = "float32", shards: int = 1, **changes: Any
) -> Path:
    """Write a small random checkpoint with a byte-level tokenizer, as Hugging Face lays them out.

    Parameters
    ----------
    path : path
        Folder; made if it is missing, refused if it holds something.
    model : {"deepseek_v32", "glm_moe_dsa"}
    seed : int
    dtype : {"float32", "bfloat16", "float16", "float8"}
        float8 quantises projections in blocks of 128 x 128 with ``weight_scale_inv``; the rest is bfloat16.
    shards : int
        Above 1: so many files and ``model.safetensors.index.json``.
    **changes
        Fields of config.json to set otherwise.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        A model or dtype that does not exist, more shards than tensors, a folder that is not empty.
    """
    if dtype not in ("float32", "bfloat16", "float16", "float8"):
        raise ValueError(f'write_tiny: dtype is {dtype!r}, needs "float32", "bfloat16", "float16" or "float8"')
    if shards < 1:
        raise ValueError(f"write_tiny: shards is {shards}, needs at least 1")
    config = tiny_config(model, **({"dtype": "bfloat16" if dtype == "float8" else dtype} | changes))
    if dtype == "float8":
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
        }  # fmt: skip
    tensors = _tensors(config, seed, dtype)
    if shards > len(tensors):
        raise ValueError(f"write_tiny: shards is {shards}, needs at most {len(tensors)}, one for each tensor")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"write_tiny: {folder} is a file, needs a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"write_tiny: {folder} is not empty, needs a new folder")
    if shards == 1:
        write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    else:
        _write_shards(folder, tensors, shards)
    document, settings = _tokenizer()
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}
    for name, content in (
        ("config.json", config), ("tokenizer.json", document), ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _write_shards(folder: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    names = list(tensors)
    places: dict[str, str] = {}
    for n in range(shards):
        part = names[n * len(names) // shards : (n + 1) * len(names) // shards]
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        write_tensors(folder / file, {name: tensors[name] for name in part}, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
