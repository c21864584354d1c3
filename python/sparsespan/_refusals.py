"""Sentences for what the binding layer refuses by itself: it names neither the argument nor the mend."""

from __future__ import annotations

import operator
import re
import reprlib
from collections.abc import Callable
from typing import Any

__all__ = ["parameter", "translate"]

_BOUNDS = {"threads": 31, "n": 31}  # bits of the C++ integer behind an argument; all others have 63


def _parameters(function: Callable[..., Any]) -> list[tuple[str, str]]:
    """Names and types of a core function, from the signature that heads its docstring."""
    head = (function.__doc__ or "").partition(" -> ")[0].partition("(")[2]
    parameters = re.findall(r"(\w+): (.*?)(?: = [^,]*)?(?:, (?=\w+: )|\)$)", head)
    return parameters[1:] if parameters[:1] and parameters[0][0] == "self" else parameters


def parameter(function: Callable[..., Any], key: int | str) -> tuple[str, str]:
    """Name and type of an argument given by position or by name; the type is empty when it is not known."""
    parameters = _parameters(function)
    if isinstance(key, str):
        return key, dict(parameters).get(key, "")
    return parameters[key] if key < len(parameters) else (f"argument {key}", "")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _complaint(name: str, kind: str, value: Any) -> Exception | None:
    """What is wrong with one value, or None. The order of tests follows the most telling word of the type."""
    if value is None and "None" in kind:
        return None
    has = f"{name} is {reprlib.repr(value)}"
    if "SupportsInt" in kind and "[" not in kind:
        try:
            number = operator.index(value)
        except TypeError:
            return TypeError(f"{has}, needs an integer")
        bits = _BOUNDS.get(name, 63)
        fits = -(2**bits) <= number < 2**bits
        return None if fits else ValueError(f"{has}, needs an integer of at most {bits} bits")
    if "SupportsFloat" in kind and "[" not in kind:
        return None if _is_number(value) else TypeError(f"{has}, needs a number")
    if kind == "bool":
        return None if isinstance(value, bool) else TypeError(f"{has}, needs True or False")
    if kind.startswith("str"):
        return None if _is_text(value) else TypeError(f"{has}, needs a string")
    return None


def _from_signature(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Exception | None:
    parameters = _parameters(function)
    given = [(name, kind, value) for (name, kind), value in zip(parameters, args, strict=False)]
    given += [(name, kind, kwargs[name]) for name, kind in parameters[len(given) :] if name in kwargs]
    return next((c for c in (_complaint(*g) for g in given) if c is not None), None)


def translate(function: Callable[..., Any], error: Exception, args: Any, kwargs: dict[str, Any]) -> Exception:
    """Return ``error``, or the same refusal in a sentence that begins with the op and names the argument."""
    op, text = getattr(function, "__name__", "sparsespan"), str(error)
    if isinstance(error, TypeError) and "incompatible function arguments" in text:
        complaint = _from_signature(function, args, kwargs)
        return error if complaint is None else type(complaint)(f"{op}: {complaint}")
    if isinstance(error, ValueError) and text.startswith("parallel_for: "):
        return type(error)(op + text[len("parallel_for") :])
    if isinstance(error, MemoryError) or "array is too big" in text or text.startswith("vector::"):
        what = text if text.startswith("Unable to allocate") else "the sizes of its arguments ask for too much memory"
        return MemoryError(f"{op}: {what}")
    return error
