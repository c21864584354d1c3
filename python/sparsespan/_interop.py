"""Arrays of any family in, the same family out.

Ops run on NumPy arrays (bfloat16 and float8 through ml_dtypes). A DLPack tensor (torch, JAX, CuPy on the host) goes in
without a copy, and results come back as tensors of its library, again without a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _core

__all__ = ["call"]


class _Export:
    """A NumPy array behind the DLPack protocol: NumPy itself exports neither bfloat16 nor float8."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **_: Any) -> Any:
        return _core.dlpack.to_capsule(self._array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def _to_numpy(value: Any) -> np.ndarray:
    if getattr(value, "requires_grad", False):
        raise ValueError("a tensor requires grad; sparsespan ops have no backward: pass tensor.detach()")
    try:
        capsule = value.__dlpack__(max_version=(1, 1))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = value.__dlpack__()
    return _core.dlpack.from_capsule(capsule)


def _is_foreign(value: Any) -> bool:
    return hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic))


def _returner(value: Any) -> Callable[[np.ndarray], Any]:
    root = type(value).__module__.partition(".")[0]
    library = sys.modules[root]
    if root == "jax" or root == "jaxlib":
        library = sys.modules["jax"].dlpack
    convert = getattr(library, "from_dlpack", None)
    if convert is None:
        return lambda array: array
    return lambda array: convert(_Export(array))


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a core function with every DLPack tensor seen as a NumPy array; give results in the callers' family.

    ``out=`` objects come back as the very objects that were passed.
    """
    home: Callable[[np.ndarray], Any] | None = None
    originals: dict[int, Any] = {}

    def convert(value: Any) -> Any:
        nonlocal home
        if isinstance(value, tuple):
            return tuple(convert(v) for v in value)
        if not _is_foreign(value):
            return value
        array = _to_numpy(value)
        originals[id(array)] = (array, value)
        home = home or _returner(value)
        return array

    converted_args = [convert(a) for a in args]
    converted_kwargs = {k: convert(v) for k, v in kwargs.items()}
    result = function(*converted_args, **converted_kwargs)
    if home is None:
        return result

    def give_back(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(give_back(v) for v in value)
        if isinstance(value, np.ndarray):
            known = originals.get(id(value))
            return known[1] if known is not None and known[0] is value else home(value)
        return value

    return give_back(result)
