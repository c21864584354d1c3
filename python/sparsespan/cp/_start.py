"""What the operations between ranks share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .._interop import call
from ..comm import Communicator, Work
from ._plan import CpPlan

__all__ = ["need_comm", "need_plan", "start"]


def need_comm(op: str, comm: Any) -> Communicator:
    """Refuse what is no communicator; ``as_comm`` is not applied, because every call would count from 0."""
    if isinstance(comm, Communicator):
        return comm
    raise TypeError(f"{op}: comm is a {type(comm).__name__}, needs a Communicator; make one once with comm.as_comm")


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
