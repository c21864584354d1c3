"""What the operations between ranks share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .._interop import call
from ..comm import Communicator, Work, as_comm
from ._plan import CpPlan

__all__ = ["need_comm", "need_plan", "start"]


def need_comm(op: str, comm: Any) -> Communicator:
    """Make a communicator of what the caller has."""
    try:
        return as_comm(comm)
    except TypeError as error:
        raise TypeError(str(error).replace("as_comm: x", f"{op}: comm", 1)) from None


def need_plan(op: str, plan: Any) -> CpPlan:
    """Refuse what is no plan."""
    if isinstance(plan, CpPlan):
        return plan
    raise TypeError(f"{op}: plan is a {type(plan).__name__}, needs a CpPlan; cp.split_plan makes one")


def start(comm: Communicator, function: Callable[..., Any], *args: Any) -> Work:
    """Call a core function that starts an operation: arrays of any family, errors with their record."""
    native: list[Any] = []

    @functools.wraps(function)
    def result_only(*a: Any) -> Any:
        work, result = function(*a)
        native.append(work)
        return result

    result = comm._guard(lambda: call(result_only, comm._native, *args))
    return Work(comm, native[0], result)
