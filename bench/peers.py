"""The libraries that take turns with us. An absent one is skipped, in words."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
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


def _cpu_has(flag: str) -> bool:
    try:
        return f" {flag} " in Path("/proc/cpuinfo").read_text().replace("\n", " ")
    except OSError:
        return False


def _load(module: str) -> None:
    """Of vLLM the extension alone: its ops are wanted, and the package around it imports half a serving engine."""
    if module != "vllm":
        importlib.import_module(module)
        return
    torch = importlib.import_module("torch")
    folders = importlib.util.find_spec(module).submodule_search_locations
    found = [path for folder in folders for path in sorted(Path(folder).glob("_C.*so"))]
    if not found:
        raise ImportError("it has no _C, as a build for a CPU has")
    if not _cpu_has("avx512_bf16"):  # loading it anyway would end this process
        raise ImportError("its _C is built for AVX512-BF16")
    torch.ops.load_library(str(found[0]))


def native_ops(namespace: str, module: str) -> Any:
    """torch.ops.<namespace> of a peer that is installed, else None, and said."""
    if importlib.util.find_spec(module) is None:
        SESSION.note(f"{module}: not installed, its CPU ops were skipped")
        return None
    try:
        _load(module)
        return getattr(importlib.import_module("torch").ops, namespace)
    except Exception as failure:  # a foreign library may raise whatever it likes
        SESSION.note(f"{module}: cannot be loaded here ({failure}), its CPU ops were skipped")
        return None
