"""A stage's messages: what comes in is posted ahead, what goes out does not hold up the next batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import cp
from ._batch import Batch
from ._messages import Envelope, Outbox, Parcel, dtype_of
from ._recorder import Recorder
from ._stage import Stage, StageProgram
from ._stage_buffers import IntermediateTensors

__all__ = ["Mailbox", "together"]

_AHEAD = 2  # messages whose headers are awaited before their turn


class Mailbox:
    """Buffers and messages of one run on one rank.

    ``actions`` are the rank's own, in order. A batch takes a slot of the receive buffers when its first data come in
    and gives it back when it has been computed. Of each kind ``out_slots`` messages can be on their way.
    """

    def __init__(
        self,
        stage: Stage,
        program: StageProgram,
        actions: Sequence[Any],
        batches: Mapping[int, Batch],
        recorder: Recorder,
        out_slots: int,
    ) -> None:
        self.stage, self.program, self.batches, self.recorder = stage, program, batches, recorder
        self.actions = actions
        everything = dict(program.tensors)
        if any(a.kind == "RECV_X" for a in actions):
            everything["indices"] = ((program.topk,), "int32")
        self._rows = everything
        receives = any(a.kind in ("RECV_F", "RECV_X") for a in actions)
        most = max((self.rows(batch) for batch in batches.values()), default=0)
        self.slots = _most_waiting(actions) + 1 if receives else 1
        self.buffers = IntermediateTensors(most if receives else 0, everything, tp=stage.tp, slots=self.slots)
        gathers = receives and stage.tp > 1
        self._whole = IntermediateTensors(most if gathers else 0, everything, slots=1)
        self._free = list(range(self.slots))
        self._slot_of: dict[int, int] = {}
        self.outbox = Outbox(stage.lines, slots=out_slots, blocking=stage.blocking_sends)
        self._moves_alone = stage.lines._native.kind == "threads"
        self._reserve(most)
        self._upcoming = deque(a for a in actions if a.kind.startswith("RECV_"))
        self._posted: deque[tuple[Any, list[Parcel]]] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, which are there from the first batch to the last."""
        return self.buffers.nbytes + self._whole.nbytes + self.outbox.nbytes

    def rows(self, batch: Batch) -> int:
        """Rows of a batch that this rank computes."""
        return int(batch.plan.counts[self.stage.rank if self.stage.cp > 1 else 0])

    def slice(self, batch: Batch) -> slice:
        """Of those, the rows that this rank sends and receives."""
        n, tp = self.rows(batch), self.stage.tp
        size = -(-n // tp)
        first = min(self.stage.rank * size, n) if tp > 1 else 0
        return slice(first, min(first + size, n))

    def _reserve(self, most: int) -> None:
        kinds = {a.kind for a in self.actions}
        full = -(-most // self.stage.tp)
        if "SEND_F" in kinds:
            for name, (shape, dtype) in self.program.tensors.items():
                self.outbox.reserve(name, (full, *shape), dtype_of(dtype))
        if "SEND_X" in kinds:
            self.outbox.reserve("indices", (full, self.program.topk), np.dtype("int32"))
        if "SEND_T" in kinds:
            requests = max(batch.plan.num_requests for batch in self.batches.values())
            self.outbox.reserve("tokens", (requests,), np.dtype("int64"))

    # ---- out -----------------------------------------------------------------------------------------------------

    def _envelope(self, kind: str, microbatch: int, source: int, target: int) -> Envelope:
        batch = self.batches[microbatch]
        if kind == "tokens":
            shape: tuple[int, ...] = (batch.plan.num_requests,)
            dtype = "int64"
        else:
            cut = self.slice(batch)
            one, dtype = {**self.program.tensors, "indices": ((self.program.topk,), "int32")}[kind]
            shape = (cut.stop - cut.start, *one)
        return Envelope(kind, microbatch, source, target, batch.identity, dtype, shape)

    def send(self, action: Any, tensors: Mapping[str, Any], patience: float) -> None:
        """Start the messages of a SEND action, and stay ``patience`` seconds with them where they need a hand."""
        stage = self.stage
        target = 0 if action.kind == "SEND_T" else action.stage + 1
        for kind, data in tensors.items():
            envelope = self._envelope(kind, action.microbatch, action.stage, target)
            part = data if kind == "tokens" else data[self.slice(self.batches[action.microbatch])]
            args = {
                "sends": f"{kind} {action.microbatch} from {stage.world.rank}",
                "bytes": int(part.nbytes),
                "peer": stage.peer(target),
            }

            def done(begin: float, end: float, args: dict[str, Any] = args) -> None:
                self.recorder.add("comm", str(action), begin, end, **args)

            self.outbox.post(stage.peer(target), envelope, part, done)
        if not self._moves_alone:
            self.outbox.linger(patience)

    # ---- in ------------------------------------------------------------------------------------------------------

    def _post(self) -> None:
        action = self._upcoming.popleft()
        names = {"RECV_F": list(self.program.tensors), "RECV_X": ["indices"], "RECV_T": ["tokens"]}[action.kind]
        source = self.stage.pp - 1 if action.kind == "RECV_T" else action.stage - 1
        parcels = []
        for name in names:
            envelope = self._envelope(name, action.microbatch, source, action.stage)
            parcels.append(Parcel(self.stage.lines, self.stage.peer(source), envelope, self._place(envelope)))
        self._posted.append((action, parcels))

    def _place(self, envelope: Envelope) -> Callable[[], np.ndarray]:
        def place() -> np.ndarray:
            if envelope.kind == "tokens":
                return np.empty(envelope.shape, np.int64)
            if envelope.microbatch not in self._slot_of:
                self._slot_of[envelope.microbatch] = self._free.pop(0)
            return self._view(envelope.microbatch)[envelope.kind][: envelope.shape[0]]

        return place

    def _view(self, microbatch: int) -> dict[str, np.ndarray]:
        return self.buffers.view(self.rows(self.batches[microbatch]), self._slot_of[microbatch])

    def poll(self) -> None:
        """Move on what can move. Behind a layer shard nothing is awaited ahead: its broadcasts come first."""
        self.outbox.poll()
        if self.program.shard is not None:
            return
        while len(self._posted) < _AHEAD and self._upcoming:
            self._post()
        # In order: the data of one message follow those of the message before on the same channel.
        for action, parcels in self._posted:
            held = action.kind == "RECV_T" or action.microbatch in self._slot_of or bool(self._free)
            if not held or not _arrived(parcels):
                break

    def receive(self, action: Any) -> dict[str, np.ndarray]:
        """What a RECV action brings."""
        if not self._posted:
            self._post()
        first, parcels = self._posted.popleft()
        arrays = {}
        for parcel in parcels:
            array = arrays[parcel.envelope.kind] = parcel.wait()
            source = self.stage.peer(parcel.envelope.source)
            self.recorder.add(
                "comm", str(first), parcel.opened, parcel.ended, bytes=int(array.nbytes), peer=source,
                receives=f"{parcel.envelope.kind} {action.microbatch} from {source}",
            )  # fmt: skip
        return arrays

    def zeros(self, action: Any) -> dict[str, np.ndarray]:
        """What a RECV action would bring, in a run that sends nothing."""
        if action.kind == "RECV_T":
            return {"tokens": np.zeros(self.batches[action.microbatch].plan.num_requests, np.int64)}
        if action.microbatch not in self._slot_of:
            self._slot_of[action.microbatch] = self._free.pop(0)
        names = ["indices"] if action.kind == "RECV_X" else list(self.program.tensors)
        arrays = {name: self._view(action.microbatch)[name] for name in names}
        for array in arrays.values():
            array[...] = 0
        return arrays

    def gather(self, arrays: Mapping[str, np.ndarray], batch: Batch) -> dict[str, np.ndarray]:
        """Whole rows of what came in; under ``tp`` the ranks bring their slices together."""
        if self.stage.tp == 1:
            return dict(arrays)
        n = self.rows(batch)
        size = -(-n // self.stage.tp)
        counts = [max(0, min(size, n - r * size)) for r in range(self.stage.tp)]
        whole = self._whole.view(n)
        mine = counts[self.stage.rank]
        for name, array in arrays.items():
            self.stage.comm.all_gather(array[:mine], counts, out=whole[name], plan=batch.identity)
        return {name: whole[name] for name in arrays}

    def release(self, microbatch: int) -> None:
        """The batch has been computed: its slot is free."""
        if microbatch in self._slot_of:
            self._free.append(self._slot_of.pop(microbatch))


def _arrived(parcels: Sequence[Parcel]) -> bool:
    """Move on what can move; True once all are there. A channel gives data in the order in which they were asked for:
    nobody asks before the one in front has, even if both headers came between two looks."""
    there = True
    for parcel in parcels:
        there = parcel.test() and there
        if not parcel.asked:
            return False
    return there


def _most_waiting(actions: Sequence[Any]) -> int:
    """Most batches that have come in and not been computed."""
    waiting: set[int] = set()
    most = 0
    for action in actions:
        if action.kind in ("RECV_F", "RECV_X"):
            waiting.add(action.microbatch)
        for leaf in action.parts or [action]:
            if leaf.kind in ("P", "D"):
                waiting.discard(leaf.microbatch)
        most = max(most, len(waiting))
    return most


def together(stage: Stage, hidden: Any, batch: Batch, rows: str) -> Any:
    """All rows of a batch, or each request's last one, on every rank of the stage."""
    if stage.cp > 1:
        return cp.gather_rows(stage.comm, hidden, batch.plan, rows=rows)
    return hidden[batch.plan.last_row_index if rows == "last" else batch.plan.restore_index]
