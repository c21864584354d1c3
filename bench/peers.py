"""The libraries that take turns with us. An absent one is skipped, in words."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import ml_dtypes
import numpy as np
from session import SESSION

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn


def torch_or_none() -> Any:
    if importlib.util.find_spec("torch") is None:
        SESSION.note("torch: not installed, skipped")
        return None
    return importlib.import_module("torch")


def to_torch(array: np.ndarray) -> Any:
    """A tensor over the same bytes; ml_dtypes' bf16 and e4m3 become torch's."""
    torch = importlib.import_module("torch")
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    if array.dtype == FP8:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array)


def native_ops(namespace: str, module: str) -> Any:
    """torch.ops.<namespace> of a peer that is installed, else None, and said."""
    if importlib.util.find_spec(module) is None:
        SESSION.note(f"{module}: not installed, its CPU ops were skipped")
        return None
    try:
        importlib.import_module(f"{module}._C" if module == "vllm" else module)
        return getattr(importlib.import_module("torch").ops, namespace)
    except Exception as failure:  # a foreign library may raise whatever it likes
        SESSION.note(f"{module}: cannot be loaded here ({failure}), its CPU ops were skipped")
        return None
