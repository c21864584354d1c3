"""What the actions of a serving schedule stand for: which rows of which requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import cp
from ._schedule import Schedule

__all__ = ["Batch", "batches_of"]


@dataclass(frozen=True)
class Batch:
    """The rows of one micro-batch; the same on every stage, for it follows from the schedule and the lengths alone.

    Attributes
    ----------
    kind : {"prefill", "decode"}
    microbatch : int
    request : int
        The request of a prefill chunk; the slot of a decode batch.
    start, length : int
        Prefill: logical positions ``start .. start + length - 1``. Decode: step, and number of requests.
    prefix_lens : tuple of int
        Keys of each request of the batch before this one.
    """

    kind: str
    microbatch: int
    request: int
    start: int
    length: int
    prefix_lens: tuple[int, ...]
    scheme: str
    ranks: int

    @cached_property
    def plan(self) -> cp.CpPlan:
        """Which rank of a stage computes which rows. Decode rows stand on every rank."""
        if self.kind == "prefill":
            return cp.split_plan(self.scheme, [0, self.length], list(self.prefix_lens), self.ranks)
        rows = ["decode"] * self.length
        return cp.split_plan(
            self.scheme, np.arange(self.length + 1), np.asarray(self.prefix_lens, np.int64), self.ranks, rows
        )

    @property
    def identity(self) -> str:
        """Words that are the same on all stages exactly when they mean the same rows."""
        rows = f"{self.kind} {self.request} {self.start}+{self.length} after {self.prefix_lens}"
        return f"{rows}, {self.plan.fingerprint:016x}"


def _contexts(contexts: Mapping[int, Sequence[int]] | None, slot: int, requests: int) -> list[int]:
    given = (contexts or {}).get(slot)
    if given is None:
        return [0] * requests
    if len(given) != requests:
        raise ValueError(
            f"run_pipeline: contexts[{slot}] has {len(given)} lengths, needs {requests}, the requests of slot {slot}"
        )
    return [int(n) for n in given]


def batches_of(
    schedule: Schedule, contexts: Mapping[int, Sequence[int]] | None, scheme: str, ranks: int
) -> dict[int, Batch]:
    """The batch of every micro-batch."""
    found: dict[int, Batch] = {}
    leaves: list[Any] = [
        leaf for row in schedule.ranks for action in row if action is not None for leaf in action.parts or [action]
    ]
    for leaf in leaves:
        if leaf.microbatch in found or leaf.kind not in ("P", "D"):
            continue
        if leaf.kind == "P":
            prefix: tuple[int, ...] = (leaf.start,)
        else:
            prefix = tuple(n + leaf.start for n in _contexts(contexts, leaf.request, leaf.length))
        kind = "prefill" if leaf.kind == "P" else "decode"
        found[leaf.microbatch] = Batch(
            kind, leaf.microbatch, leaf.request, leaf.start, leaf.length, prefix, scheme, ranks
        )
    return found
