"""Schedules with one thing wrong: what a validator has to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pipeline import Schedule

__all__ = ["MUTATIONS", "prove_mutations", "schedule_mutations"]

MUTATIONS = ("drop", "duplicate", "swap", "swap across ranks", "retarget", "identity")


def _of_action(schedule: Schedule, text: str) -> Iterator[tuple[str, str]]:
    """An action that is another one: a message of another micro-batch or stage, a batch of other rows."""
    from ..pipeline import Action

    action = Action(text)
    if action.kind.startswith(("SEND", "RECV")):
        for m in range(schedule.microbatches):
            if m != action.microbatch:
                yield "retarget", f"{action.stage}{action.kind}{m}"
        for stage in range(schedule.stages):
            if stage != action.stage:
                yield "retarget", f"{stage}{action.kind}{action.microbatch}"
    if action.kind in ("P", "D"):
        yield "identity", text + "1"  # ten times as many tokens, and some


def schedule_mutations(schedule: Schedule) -> Iterator[tuple[str, Schedule]]:
    """Every schedule that differs from a given one in one place.

    Yields
    ------
    (str, Schedule)
        "drop" or "duplicate" an action, "swap" it with the next one, "swap across ranks" with what the next rank does
        in the same step, "retarget" a message to another micro-batch or stage, or turn the "identity" of a batch.

    Examples
    --------
    >>> from sparsespan.pipeline import gpipe
    >>> from sparsespan.testing import schedule_mutations
    >>> [what for what, _ in schedule_mutations(gpipe(1, 1))]
    ['drop', 'duplicate', 'swap', 'drop', 'duplicate']
    """
    from ..pipeline import Schedule

    rows = [[str(a) for a in row if a is not None] for row in schedule.ranks]

    def rebuilt(changed: list[list[str]]) -> Schedule:
        return Schedule(changed, stages=schedule.stages, microbatches=schedule.microbatches, mode=schedule.mode)

    def with_row(rank: int, row: list[str]) -> Schedule:
        return rebuilt([row if r == rank else old for r, old in enumerate(rows)])

    for rank, row in enumerate(rows):
        for i, text in enumerate(row):
            yield "drop", with_row(rank, row[:i] + row[i + 1 :])
            yield "duplicate", with_row(rank, row[: i + 1] + row[i:])
            if i + 1 < len(row):
                yield "swap", with_row(rank, [*row[:i], row[i + 1], row[i], *row[i + 2 :]])
            if rank + 1 < len(rows) and i < len(rows[rank + 1]):
                other = rows[rank + 1]
                changed = list(rows)
                changed[rank] = [*row[:i], other[i], *row[i + 1 :]]
                changed[rank + 1] = [*other[:i], text, *other[i + 1 :]]
                yield "swap across ranks", rebuilt(changed)
            for what, other_text in _of_action(schedule, text):
                yield what, with_row(rank, [*row[:i], other_text, *row[i + 1 :]])


def _work(schedule: Schedule) -> list[str]:
    return sorted(str(a) for row in schedule.ranks for a in row if a is not None)


def prove_mutations(schedule: Schedule) -> Counter[tuple[str, str]]:
    """Count how the validator judges every single mutation of a schedule.

    Returns
    -------
    Counter of (mutation, outcome)
        "refused"; "harmless" where it is accepted, does the same work, and runs to its end in simulation with
        overlapped, buffered and blocking messages; "wrong" where it is accepted and any of this does not hold.
    """
    from ..pipeline import ScheduleError, simulate, validate

    counts: Counter[tuple[str, str]] = Counter()
    for what, mutated in schedule_mutations(schedule):
        try:
            validate(mutated)
        except ScheduleError:
            counts[what, "refused"] += 1
            continue
        try:
            for transport in ("overlapped", "buffered", "blocking"):
                simulate(mutated, transport=transport)
        except ScheduleError:
            counts[what, "wrong"] += 1
            continue
        counts[what, "harmless" if _work(mutated) == _work(schedule) else "wrong"] += 1
    return counts
