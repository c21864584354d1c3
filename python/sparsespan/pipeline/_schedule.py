"""Schedules and their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _core

__all__ = ["Action", "Schedule"]

Action = _core.pipeline.Action


class Schedule:
    """For each rank the ordered list of its actions.

    Parameters
    ----------
    ranks : sequence of sequences
        ``ranks[r]`` holds what rank ``r`` does, in order: :class:`Action`, its text, or None for an idle cell.
    stages, microbatches : int, optional
        How many there must be; read off the actions when not given.
    mode : {"train", "forward", "serve"}, optional
        What has to happen to a micro-batch on every stage: F and a backward (B, or I and W); F only; or a prefill chunk
        P or decode batch D. Read off the actions when not given.

    Raises
    ------
    ScheduleError
        If a text does not parse; the message gives line and column.
    TypeError
        If a cell is none of the above.

    Notes
    -----
    The text of an action is ``<stage><kind><microbatch>``, as in ``torch.distributed.pipelining``:

    ========================  ======================================================================================
    ``2F0 2B0 2I0 2W0``       forward; full backward; its input half; its weight half
    ``2SEND_F0 3RECV_F0``     hidden states to the next stage; ``_B`` gradients to the previous one; ``_X`` the top-k
                              indices of a shared indexer to the next one; ``_T`` the sampled token from the last stage
                              to the first
    ``2FETCH 2EVICT``         weights of a stage come and go; ``UNSHARD`` and ``RESHARD`` in torch's files
    ``2REDUCE_GRAD``          gradients of a stage are reduced
    ``1P5@0:4096+2048``       prefill on stage 1 as micro-batch 5: request 0, logical positions 4096 .. 6143
    ``1D6@2:17+8``            decode on stage 1 as micro-batch 6: slot 2, step 17, 8 tokens
    ``3S6``                   the last stage samples the token of micro-batch 6
    ``(0F7;7B3)OVERLAP_F_B``  a forward and a backward at once
    ``(1P5@0:0+64;1D6@2:0+8)MIXED``  parts of one forward
    ========================  ======================================================================================

    Examples
    --------
    >>> from sparsespan.pipeline import Schedule
    >>> s = Schedule([["0F0", "0B0"], [None, "1F0", "1B0"]])
    >>> s.mode, s.stages, s.microbatches
    ('train', 2, 1)
    >>> print(s)
    step   0   1   2
    rank 0 0F0 0B0 .
    rank 1 .   1F0 1B0
    """

    __slots__ = ("_core",)
    __hash__ = None  # type: ignore[assignment]
    _core: Any

    def __init__(
        self,
        ranks: Sequence[Sequence[Any]],
        *,
        stages: int | None = None,
        microbatches: int | None = None,
        mode: str | None = None,
    ) -> None:
        self._core = _core.pipeline.Schedule(
            ranks, -1 if stages is None else stages, -1 if microbatches is None else microbatches, mode or ""
        )

    @classmethod
    def _wrap(cls, core: Any) -> Schedule:
        schedule = cls.__new__(cls)
        schedule._core = core
        return schedule

    @classmethod
    def from_csv(
        cls, text: str, *, stages: int | None = None, microbatches: int | None = None, mode: str | None = None
    ) -> Schedule:
        """Read one row for each rank, as ``torch.distributed.pipelining`` writes them; empty fields are idle cells."""
        if not isinstance(text, str):
            raise TypeError(f"Schedule.from_csv: text is {type(text).__name__}, needs str: the rows themselves")
        core = _core.pipeline.Schedule.from_csv(
            text, -1 if stages is None else stages, -1 if microbatches is None else microbatches, mode or ""
        )
        return cls._wrap(core)

    def to_csv(self, *, torch: bool = False) -> str:
        """One row for each rank; ``torch=True`` writes torch's words for FETCH and EVICT."""
        return str(self._core.to_csv(torch))

    @property
    def ranks(self) -> list[list[Action | None]]:
        """A copy of the lists."""
        return list(self._core.to_lists())

    @property
    def stages(self) -> int:
        """Number of stages."""
        return int(self._core.stages)

    @property
    def microbatches(self) -> int:
        """Number of micro-batches."""
        return int(self._core.microbatches)

    @property
    def mode(self) -> str:
        """``"train"``, ``"forward"`` or ``"serve"``."""
        return str(self._core.mode)

    @property
    def size(self) -> int:
        """Number of actions, idle cells apart; a bracket counts once."""
        return int(self._core.size)

    @property
    def communicates(self) -> bool:
        """Whether sends and receives stand in the lists."""
        return bool(self._core.communicates)

    def __len__(self) -> int:
        return len(self._core)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and bool(self._core.equals(other._core))

    def __str__(self) -> str:
        return str(self._core.grid()).rstrip("\n")

    def __repr__(self) -> str:
        return (
            f"<Schedule: {self.mode}, {len(self)} ranks, {self.stages} stages, {self.microbatches} micro-batches, "
            f"{self.size} actions>"
        )
