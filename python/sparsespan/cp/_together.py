"""Calls of ops that all ranks of a group make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._interop import call
from ..comm import as_comm
from ._dcp import DcpLayout

__all__ = ["core_of", "together"]


def core_of(op: str, layout: Any) -> Any:
    """Return the native layout behind a DcpLayout."""
    if not isinstance(layout, DcpLayout):
        raise TypeError(f"{op}: layout is a {type(layout).__name__}, needs a DcpLayout from cp.dcp_layout(...)")
    return layout._core


def together(function: Callable[..., Any], comm: Any, *args: Any) -> Any:
    """Call a core function with the group first; an error between ranks leaves its record like any operation's."""
    group = as_comm(comm)
    return group._guard(lambda: call(function, group._native, *args))
