"""Tiny models that transformers itself makes and saves, with random weights of one seed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from ...models import tiny_config

__all__ = ["LENGTHS", "MODELS", "SEEDS", "TOKENS", "Fixture", "fixture", "libraries"]

MODELS = ("deepseek_v32", "glm_moe_dsa")
# Found by find_seed: the first of each model with which nothing is close to a tie. Looked at again whenever used.
SEEDS = {"deepseek_v32": 6, "glm_moe_dsa": 5}
# Two prompts are longer than index_topk, one passes it while tokens are generated.
LENGTHS, TOKENS = (90, 25, 61), 64
_CHANGES: dict[str, dict[str, Any]] = {
    "deepseek_v32": {"num_hidden_layers": 4, "index_topk": 32},
    # Of two stages the second begins with a layer that takes the indices of one on the first.
    "glm_moe_dsa": {
        "num_hidden_layers": 5, "index_topk": 32,
        "indexer_types": ["full", "full", "shared", "shared", "full"],
    },
}  # fmt: skip


def libraries() -> tuple[Any, Any]:
    """Import torch and transformers.

    Raises
    ------
    ValueError
        One of them is not installed, or it does not know the models.
    """
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            f"parity with transformers needs torch and transformers: pip install torch transformers ({error})"
        ) from None
    known = getattr(transformers, "CONFIG_MAPPING", {})
    absent = [name for name in MODELS if name not in known]
    if absent:
        raise ValueError(
            f"transformers {transformers.__version__} does not know {', '.join(absent)}, needs one that does: "
            "pip install -U transformers"
        )
    return torch, transformers


class Fixture:
    """A model of transformers, eager and float32, and the prompts that it is asked.

    Attributes
    ----------
    model : str
    seed : int
    peer : transformers.PreTrainedModel
    prompts : list of int64 [n]
    """

    def __init__(self, model: str, seed: int) -> None:
        torch, transformers = libraries()
        self.model, self.seed = model, seed
        fields = tiny_config(model, **_CHANGES[model])
        for name in ("architectures", "model_type", "dtype"):
            del fields[name]
        config = transformers.AutoConfig.for_model(model, **fields)
        self.peer = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
        ).eval()
        with torch.no_grad():
            for name, tensor in self.peer.state_dict().items():
                tensor.copy_(torch.from_numpy(_values(name, tuple(tensor.shape), seed)))
        rng = np.random.default_rng([seed, *b"prompts"])
        self.prompts = [rng.integers(0, 256, n) for n in LENGTHS]

    def save(self, folder: Path) -> None:
        """Write the checkpoint, by transformers."""
        logging = libraries()[1].utils.logging
        bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self.peer.save_pretrained(folder)
        finally:
            if bar:
                logging.enable_progress_bar()


def fixture(model: str, seed: int | None = None) -> Fixture:
    """Make a tiny model in transformers: MoE, 32 indexer heads, IndexShare where the model has it.

    Parameters
    ----------
    model : {"deepseek_v32", "glm_moe_dsa"}
    seed : int, optional
        Of weights and prompts; default the one of :data:`SEEDS`.

    Raises
    ------
    ValueError
        Another model, torch or transformers not installed.
    """
    if model not in MODELS:
        raise ValueError(f"parity: model is {model!r}, needs one of {', '.join(map(repr, MODELS))}")
    return Fixture(model, SEEDS[model] if seed is None else seed)


def _values(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random values that keep the residual stream near unit size; NumPy's, so that no version of torch matters."""
    x = np.random.default_rng([seed, *name.encode()]).standard_normal(shape, np.float32)
    if name.endswith(("e_score_correction_bias", ".bias")):
        return x * np.float32(0.1)
    if len(shape) == 1:
        return np.float32(1) + x * np.float32(0.1)
    return x if "embed_tokens" in name else x * np.float32(shape[-1] ** -0.5)
