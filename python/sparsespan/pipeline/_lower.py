"""Passes from compute-only schedules to ones that can be carried out."""

from __future__ import annotations

from collections.abc import Sequence

from .. import _core
from ._check import rules
from ._schedule import Schedule

__all__ = ["add_fetch_evict", "add_send_recv", "merge_backward"]


def add_send_recv(
    schedule: Schedule,
    *,
    stage_layers: Sequence[int] | None = None,
    index_layers: Sequence[str] | None = None,
) -> Schedule:
    """Add the messages between stages on different ranks.

    Parameters
    ----------
    schedule : Schedule
        Valid, without messages.
    stage_layers, index_layers : optional
        As in :func:`~sparsespan.pipeline.validate`: SEND_X and RECV_X are added where a stage starts with a layer that
        shares the indexer of the layer below.

    Returns
    -------
    Schedule
        Without idle cells. A send follows its action at once; its receive enters the peer's list at the same moment, so
        all ranks meet their messages in one order and the schedule ends even when sends block.

    Raises
    ------
    ScheduleError
        If the schedule is not valid.
    ValueError
        If it has messages already.

    Examples
    --------
    >>> from sparsespan.pipeline import add_send_recv, gpipe
    >>> print(add_send_recv(gpipe(2, 1)))
    step   0        1        2        3
    rank 0 0F0      0SEND_F0 0RECV_B0 0B0
    rank 1 1RECV_F0 1F0      1B0      1SEND_B0
    """
    return Schedule._wrap(_core.pipeline.add_send_recv(schedule._core, rules(stage_layers, index_layers)))


def add_fetch_evict(
    schedule: Schedule,
    max_active: int = 3,
    *,
    stage_bytes: Sequence[float] | None = None,
    budget: float | None = None,
) -> Schedule:
    """Fetch the weights of a stage before its first use, evict them when their place is needed.

    Parameters
    ----------
    schedule : Schedule
        Valid, without FETCH and EVICT; before messages are added.
    max_active : int
        Stages held at once; what is not needed now is a prefetch of the stages that come next in the list.
    stage_bytes, budget : [stages] and float, optional
        Weights in bytes and the bytes that a rank may hold.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If one action alone needs more than the limits allow.
    """
    core = _core.pipeline.add_fetch_evict(
        schedule._core, max_active, list(stage_bytes or []), -1.0 if budget is None else budget
    )
    return Schedule._wrap(core)


def merge_backward(schedule: Schedule) -> Schedule:
    """Turn every I that is directly followed by its W into one B; idle cells go."""
    return Schedule._wrap(_core.pipeline.merge_backward(schedule._core))
