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
from ._refusals import parameter, translate

__all__ = ["call", "query_parts"]


class _Export:
    """A NumPy array behind the DLPack protocol: NumPy itself exports neither bfloat16 nor float8."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **_: Any) -> Any:
        return _core.dlpack.to_capsule(self._array)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def _to_numpy(op: str, name: str, value: Any) -> np.ndarray:
    if getattr(value, "requires_grad", False):
        raise ValueError(
            f"{op}: {name} requires grad, needs a tensor without: ops have no backward: pass tensor.detach()"
        )
    # torch may owe a tensor the change of sign: its memory holds the negated values, and DLPack would show those.
    if getattr(value, "is_neg", bool)():
        raise ValueError(f"{op}: {name} is a lazily negated view, needs plain memory; pass tensor.resolve_neg()")
    try:
        try:
            capsule = value.__dlpack__(max_version=(1, 1))
        except TypeError:  # a producer from before DLPack 1.0
            capsule = value.__dlpack__()
        return _core.dlpack.from_capsule(capsule)
    except TypeError as error:
        raise TypeError(f"{op}: {name} cannot be read through DLPack: {error}") from None
    except (BufferError, ValueError, RuntimeError) as error:
        raise ValueError(f"{op}: {name} cannot be read through DLPack: {error}") from None


def _plain(function: Callable[..., Any], key: int | str, value: Any) -> Any:
    """Give NumPy floats, and 0-d arrays where a number is wanted, as Python numbers: the core cuts other 3.7 to 3."""
    if isinstance(value, np.ndarray) and value.ndim == 0 and "Supports" in parameter(function, key)[1]:
        value = value[()]
    return float(value) if isinstance(value, np.floating) else value


def _is_foreign(value: Any) -> bool:
    return hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic))


def _returner(value: Any) -> Callable[[np.ndarray], Any]:
    root = type(value).__module__.partition(".")[0]
    library = sys.modules.get(root)
    if root == "jax" or root == "jaxlib":
        library = sys.modules["jax"].dlpack
    convert = getattr(library, "from_dlpack", None)
    if convert is None:
        return lambda array: array
    return lambda array: convert(_Export(array))


class _Arguments:
    """One call's tensors as arrays and back. No closures over themselves: such a cycle would keep the tensors alive."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._home: Callable[[np.ndarray], Any] | None = None
        self._originals: dict[int, Any] = {}

    def take(self, key: int | str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.take(key, v) for v in value)
        if not _is_foreign(value):
            if isinstance(value, np.ndarray) and value.ndim > 0:
                self._originals[id(value)] = (value, value)
            return _plain(self._function, key, value)
        name = getattr(self._function, "__name__", "sparsespan")
        array = _to_numpy(name, parameter(self._function, key)[0], value)
        if array.ndim == 0:
            return _plain(self._function, key, array)
        self._originals[id(array)] = (array, value)
        self._home = self._home or _returner(value)
        return array

    def give_back(self, value: Any) -> Any:
        if self._home is None:
            return value
        if isinstance(value, tuple):
            return tuple(self.give_back(v) for v in value)
        if isinstance(value, np.ndarray):
            known = self._originals.get(id(value))
            return known[1] if known is not None and known[0] is value else self._home(value)
        return value


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a core function with every DLPack tensor seen as a NumPy array; give results in the callers' family.

    ``out=`` objects come back as the very objects that were passed.
    """
    arguments = _Arguments(function)
    converted_args = [arguments.take(i, a) for i, a in enumerate(args)]
    converted_kwargs = {k: arguments.take(k, v) for k, v in kwargs.items()}
    try:
        result = function(*converted_args, **converted_kwargs)
    except (TypeError, ValueError, MemoryError) as error:
        told = translate(function, error, converted_args, converted_kwargs)
        if told is error:
            raise
        raise told from None
    return arguments.give_back(result)


def query_parts(op: str, q: Any) -> tuple[Any, Any]:
    """(q_nope, q_pe) as attention takes queries, or (q, None) for one array."""
    if not isinstance(q, tuple):
        return q, None
    if len(q) != 2:
        raise ValueError(f"{op}: q is a tuple of {len(q)}, needs (q_nope, q_pe) or one array")
    return q
