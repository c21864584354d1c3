"""What goes from one pipeline stage to the next: hidden rows, and the indices of a group that the cut divides."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .. import _core
from ..comm import Work
from ..pipeline._messages import DATA_TAG, HEADER_TAG, Envelope, Parcel
from ._ranks import Ranks, place

__all__ = ["Relay", "from_last_stage", "giving_up_together", "trusted_line"]

_IN_FLIGHT = 2  # passes whose rows may wait for the next stage; then the sender waits itself


class Relay:
    """The messages of one call of a model, on one rank: with its peers on the stage before and on the one behind.

    Rows are the rank's own shard, as its plan has them on every stage: nothing is gathered on the way. A message says
    what it is (kind, pass, stages, batch, dtype, shape) and is refused when it is not what this stage has there.

    Parameters
    ----------
    comm : Communicator or None
        The line of this rank's peers, one on each stage; None for a model of one stage.
    come : mapping {kind: (width, dtype)}
        What comes in.
    go : collection of str
        What goes out.
    """

    def __init__(self, comm: Any, come: Mapping[str, tuple[int, Any]], go: tuple[str, ...]) -> None:
        self.comm: Any = comm if comm is not None and comm.size > 1 else None
        self.stage, self.stages = place(self.comm)
        self.first, self.last = self.stage == 0, self.stage == self.stages - 1
        self._come, self._go = dict(come), go
        self._expected: deque[list[Parcel]] = deque()
        self._posted: deque[list[Work]] = deque()

    def expect(self, number: int, batch: str, rows: int) -> None:
        """Await the rows of a pass: they may come while the one before it is computed."""
        if self.first:
            return
        parcels = []
        for kind, (width, dtype) in self._come.items():
            out = np.empty((rows, width), dtype)
            envelope = Envelope(kind, number, self.stage - 1, self.stage, batch, out.dtype.name, out.shape)
            parcels.append(Parcel(self.comm, self.stage - 1, envelope, partial(np.asarray, out)))
        self._expected.append(parcels)

    def take(self) -> tuple[Any, Any] | None:
        """Hidden rows and indices (or None) of the pass that was first expected; nothing comes to the first stage."""
        if self.first:
            return None
        arrays = {parcel.envelope.kind: parcel.wait() for parcel in self._expected.popleft()}
        return arrays["hidden_states"], arrays.get("indices")

    def give(self, number: int, batch: str, hidden: Any, indices: Any) -> None:
        """Start to send the rows of a pass; waits only for the second pass before it to be taken."""
        if self.last:
            return
        while len(self._posted) >= _IN_FLIGHT:
            self._let_go()
        works: list[Work] = []
        for kind in self._go:
            data = np.ascontiguousarray(hidden if kind == "hidden_states" else indices)
            envelope = Envelope(kind, number, self.stage, self.stage + 1, batch, data.dtype.name, data.shape)
            works.append(self.comm.isend(envelope.words(), self.stage + 1, HEADER_TAG))
            works.append(self.comm.isend(data, self.stage + 1, DATA_TAG))
        self._posted.append(works)

    def poll(self) -> None:
        """Move on what can move: on some transports nothing does between calls."""
        while self._posted and all([work.test() for work in self._posted[0]]):
            self._posted.popleft()
        if self._expected:
            # One after the other, and no further than the first that waits: data follow each other on one channel.
            all(parcel.test() for parcel in self._expected[0])

    def end(self) -> None:
        """Wait until everything has been taken."""
        while self._posted:
            self._let_go()

    def _let_go(self) -> None:
        for work in self._posted.popleft():
            work.wait()


def trusted_line(comm: Any) -> Any:
    """The same communicator; what it moves is not compared before, for its messages say themselves what they are.

    A comparison costs a round trip each, on transports where nothing moves between calls.
    """
    _core.comm.trust(comm._native)
    return comm


def from_last_stage(comm: Any, array: np.ndarray | None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What the last stage has, on every stage; the others give None."""
    if comm is None or comm.size == 1:
        return np.asarray(array)
    data = np.empty(shape, dtype) if array is None else np.ascontiguousarray(array, dtype)
    return np.asarray(comm.broadcast(data, comm.size - 1))


@contextmanager
def giving_up_together(ranks: Ranks) -> Iterator[None]:
    """With pipeline stages: who fails tells all that could wait for it."""
    try:
        yield
    except BaseException as error:
        for comm in (ranks.pp, ranks.tp, ranks.cp, ranks.experts) if ranks.pp is not None else ():
            if comm is not None:
                comm.abort(f"stage {ranks.pp.rank} raised {type(error).__name__}: {error}")
        raise
