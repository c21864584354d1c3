"""Calls of ops that all ranks of a group make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._interop import call
from ..comm import as_comm

__all__ = ["together"]


def together(function: Callable[..., Any], comm: Any, *args: Any) -> Any:
    """Call a core function with the group first; an error between ranks leaves its record like any operation's."""
    group = as_comm(comm)
    return group._guard(lambda: call(function, group._native, *args))
