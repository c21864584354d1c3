"""A Hugging Face checkpoint on disk: its config, and its tensors by name, held against what the config asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._config import ModelConfig, parse_config
from ._safetensors import CheckpointError, TensorFile, TensorInfo, read_json
from ._weights import layer_tensors

__all__ = ["Checkpoint", "expected_tensors"]

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FLOATS = ("F32", "BF16", "F16")
LISTED = 12  # names that an error shows of each kind


def _mlp(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this config holds, scales of float8 weights apart.

    Notes
    -----
    Names as transformers saves ``deepseek_v32`` and ``glm_moe_dsa``, which are those of the published checkpoints.
    """
    c, hidden = config, config.dims.hidden
    names: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, hidden)}
    for i in range(c.num_hidden_layers):
        layer = f"model.layers.{i}."
        shapes = layer_tensors(c.dims, c.indexer_types[i] == "full")
        shapes["post_attention_layernorm.weight"] = (hidden,)
        if c.mlp_layer_types[i] == "dense":
            shapes |= _mlp("mlp", hidden, c.intermediate_size)
        else:
            shapes["mlp.gate.weight"] = (c.n_routed_experts, hidden)
            shapes["mlp.gate.e_score_correction_bias"] = (c.n_routed_experts,)
            for e in range(c.n_routed_experts):
                shapes |= _mlp(f"mlp.experts.{e}", hidden, c.moe_intermediate_size)
            shapes |= _mlp("mlp.shared_experts", hidden, c.moe_intermediate_size * c.n_shared_experts)
        names |= {layer + name: shape for name, shape in shapes.items()}
    names["model.norm.weight"] = (hidden,)
    if not c.tie_word_embeddings:
        names["lm_head.weight"] = (c.vocab_size, hidden)
    return names


def may_be_float8(name: str) -> bool:
    """Projections are; embeddings, norms, the router and the indexer's weights_proj never."""
    return (name.endswith("_proj.weight") and not name.endswith("weights_proj.weight")) or name.endswith(
        (".kv_a_proj_with_mqa.weight", ".indexer.wq_b.weight", ".indexer.wk.weight")
    )


class Checkpoint:
    """An opened checkpoint; nothing but headers has been read.

    Parameters
    ----------
    path : path
        Folder with config.json and model.safetensors, or model.safetensors.index.json and its shards.

    Raises
    ------
    CheckpointError
        What is wrong, file and name; all tensors that are missing, unexpected or of another shape in one message.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: is no folder, needs the one with config.json")
        self.config = parse_config(read_json(self.path / "config.json", 1 << 24), str(self.path / "config.json"))
        self._file_of = self._open()
        self._require_experts()
        self._hold_against(expected_tensors(self.config))

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file_of[name].read(name)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor."""
        return self._file_of[name].tensors[name]

    def under(self, prefix: str) -> Mapping[str, Any]:
        """The tensors of one layer (``model.layers.3.``) by the rest of their names; read when asked for."""
        return _Under(self, prefix)

    def names(self) -> Iterator[str]:
        """All tensor names."""
        return iter(self._file_of)

    def _open(self) -> dict[str, TensorFile]:
        if (self.path / INDEX).exists():
            return self._open_shards()
        if not (self.path / SINGLE).exists():
            raise CheckpointError(f"{self.path}: has neither {SINGLE} nor {INDEX}")
        file = TensorFile(self.path / SINGLE)
        return dict.fromkeys(file.tensors, file)

    def _open_shards(self) -> dict[str, TensorFile]:
        index = read_json(self.path / INDEX, 1 << 28)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise CheckpointError(f"{self.path / INDEX}: needs weight_map, from tensor names to file names")
        files: dict[str, TensorFile] = {}
        for shard in sorted(set(shards.values())):
            # A name that leads out of the folder could map any file of the machine.
            if not re.fullmatch(r"[\w.-]+", shard) or shard.startswith("."):
                raise CheckpointError(f"{self.path / INDEX}: shard {shard!r} is no plain file name")
            files[shard] = TensorFile(self.path / shard)
        for shard, file in files.items():
            for name in file.tensors:
                if shards.get(name) != shard:
                    raise CheckpointError(
                        f"{file.path}: holds {name!r}, which the index has in {shards.get(name, 'no file')}"
                    )
        absent = [f"{name} (in {s})" for name, s in shards.items() if name not in files[s].tensors]
        if absent:
            raise CheckpointError(f"{self.path / INDEX}: names what its shards do not hold: {_some(absent)}")
        return {name: files[shard] for name, shard in shards.items()}

    def _require_experts(self) -> None:
        """Refuse a number of experts that is far from what the files hold, before each is given its names."""
        c = self.config
        needs = 3 * c.n_routed_experts * c.mlp_layer_types.count("sparse")
        if needs > 100_000 and needs > 2 * len(self._file_of):
            raise CheckpointError(
                f"{self.path}: tensors do not fit config.json; n_routed_experts = {c.n_routed_experts} needs {needs} "
                f"tensors of experts, the files hold {len(self._file_of)} tensors in all"
            )

    def _hold_against(self, expected: dict[str, tuple[int, ...]]) -> None:
        missing = [name for name in expected if name not in self._file_of]
        unexpected, wrong = [], []
        for name in self._file_of:
            weight = name.removesuffix("_scale_inv")
            if name in expected:
                wrong += self._wrong(name, expected[name])
            elif weight != name and weight in expected and weight in self._file_of:
                wrong += self._wrong_scale(name, weight, expected[weight])
            elif not self._extra_layer(name):
                unexpected.append(name)
        problems = [
            f"{len(names)} {word}: {_some(names)}"
            for word, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", wrong))
            if names
        ]
        if problems:
            raise CheckpointError(f"{self.path}: tensors do not fit config.json; " + "; ".join(problems))

    def _extra_layer(self, name: str) -> bool:
        """Layers behind the last one are draft (MTP) layers, which are not run."""
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        return layer is not None and int(layer[1]) >= self.config.num_hidden_layers

    def _wrong(self, name: str, shape: tuple[int, ...]) -> list[str]:
        info = self.info(name)
        allowed: tuple[str, ...] = FLOATS
        if self.config.quantized and may_be_float8(name):
            allowed = (*FLOATS, "F8_E4M3")
        if info.shape != shape:
            return [f"{name} is {list(info.shape)}, needs {list(shape)}"]
        if info.dtype not in allowed:
            return [f"{name} is {info.dtype}, needs {' or '.join(allowed)}"]
        if info.dtype == "F8_E4M3" and name + "_scale_inv" not in self._file_of:
            return [f"{name} is F8_E4M3 without {name}_scale_inv"]
        return []

    def _wrong_scale(self, name: str, weight: str, shape: tuple[int, ...]) -> list[str]:
        info = self.info(name)
        needs = tuple(-(-n // 128) for n in shape)
        if self.info(weight).dtype != "F8_E4M3":
            return [f"{name} stands beside a weight that is {self.info(weight).dtype}, needs F8_E4M3"]
        if info.shape != needs or info.dtype not in ("F32", "F8_E8M0"):
            return [f"{name} is {info.dtype} {list(info.shape)}, needs F32 or F8_E8M0 {list(needs)}"]
        return []


class _Under(Mapping[str, Any]):
    """A checkpoint seen from one prefix."""

    def __init__(self, checkpoint: Checkpoint, prefix: str) -> None:
        self._checkpoint, self._prefix = checkpoint, prefix

    def __getitem__(self, name: str) -> Any:
        try:
            return self._checkpoint[self._prefix + name]
        except KeyError:
            raise KeyError(self._prefix + name) from None

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._checkpoint

    def __iter__(self) -> Iterator[str]:
        return (n[len(self._prefix) :] for n in self._checkpoint.names() if n.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown}, and {len(names) - LISTED} more"
