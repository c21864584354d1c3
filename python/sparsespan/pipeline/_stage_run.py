"""One schedule on one rank, action by action."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import cp
from ._batch import Batch
from ._mailbox import Mailbox, together
from ._messages import dtype_of
from ._recorder import Recorder
from ._schedule import Schedule
from ._stage import Stage, StageInput, StageProgram
from ._stage_buffers import Meter
from ._trace import Trace

__all__ = ["PipelineRun", "Run"]

_PATIENCE = 0.02  # of a batch's time: what its messages may cost to be seen off at once, not a layer later


@dataclass
class PipelineRun:
    """What a run left on this rank.

    Attributes
    ----------
    rows : {micro-batch: array}
        On the last stage: hidden states of all rows, or of each request's last one, as ``collect`` says.
    tokens : {micro-batch: int64 [requests]}
        On the last stage, what ``sample`` gave.
    peak_bytes : int
        Most bytes of buffers, hidden states and what ``forward`` allocated, held at once (counted).
    trace : Trace or None
        Of all ranks.
    state : object
        What the program's ``state`` made, after the last batch.
    """

    rows: dict[int, Any] = field(default_factory=dict)
    tokens: dict[int, np.ndarray] = field(default_factory=dict)
    peak_bytes: int = 0
    trace: Trace | None = None
    state: Any = None


class Run:
    """One schedule on one rank, action by action."""

    def __init__(
        self,
        stage: Stage,
        program: StageProgram,
        schedule: Schedule,
        batches: Mapping[int, Batch],
        collect: str | None,
        slots: int,
    ) -> None:
        self.stage, self.program, self.batches, self.collect = stage, program, batches, collect
        self.actions = [a for a in schedule.ranks[stage.index] if a is not None]
        self.dtype = dtype_of(program.dtype)
        self.hands_over = any(a.kind == "SEND_X" for a in self.actions)
        self.recorder = Recorder(stage.world.rank)
        self.mail = Mailbox(stage, program, self.actions, batches, self.recorder, slots)
        self.meter = Meter()
        self.meter.take(self.mail.nbytes)
        self.inputs: Mapping[int, Any] = {}
        self.result = PipelineRun(state=program.state() if program.state else None)
        self.arrived: dict[int, dict[str, np.ndarray]] = {}
        self.held: dict[int, dict[str, Any]] = {}  # what forward gave and nobody has taken yet
        self.tokens: dict[int, Any] = {}  # by slot
        self.dry: set[int] | None = None  # in a dry run: the batches that are computed for their memory
        self.patience = 0.0
        self._taken: list[int] = []
        self._uses: dict[int, int] = {}
        for a in self.actions:
            if a.kind in ("SEND_F", "SEND_X", "S"):
                self._uses[a.microbatch] = self._uses.get(a.microbatch, 0) + 1

    def poll(self) -> None:
        if self.program.shard is not None:
            self.program.shard.poll()
        if self.dry is None:
            self.mail.poll()

    def count(self, nbytes: int) -> None:
        self._taken.append(nbytes)
        self.meter.take(nbytes)

    # ---- one action ------------------------------------------------------------------------------------------------

    def do(self, action: Any) -> None:
        kind = action.kind
        if kind in ("P", "D", "MIXED"):
            for leaf in action.parts or [action]:
                self.compute(leaf)
        elif kind == "S":
            self.sample(action.microbatch)
        elif kind.startswith("SEND_"):
            self.settle()
            self.send(action)
        else:
            self.settle()
            self.receive(action, self.mail.receive(action))
        self.poll()

    def pretend(self, action: Any) -> None:
        """The same without messages: what would come in is zeros, what would go out is dropped."""
        if action.kind.startswith("RECV_"):
            self.receive(action, self.mail.zeros(action))
        elif action.kind in ("SEND_F", "SEND_X"):
            self.use(action.microbatch)
        elif action.kind != "SEND_T":
            self.do(action)

    def settle(self) -> None:
        """No weight is on its way when a message to another stage starts."""
        if self.program.shard is not None:
            self.program.shard.wait_all()

    def send(self, action: Any) -> None:
        mb = action.microbatch
        if action.kind == "SEND_T":
            self.mail.send(action, {"tokens": self.result.tokens[mb]}, self.patience)
            return
        names = ["indices"] if action.kind == "SEND_X" else list(self.program.tensors)
        if action.kind == "SEND_X" and "indices" not in self.held[mb]:
            raise ValueError(
                f"forward: stage {self.stage.index} gave no indices for micro-batch {mb}, needs (hidden, indices): the "
                "next stage starts with a layer that shares them"
            )
        self.mail.send(action, {name: self.held[mb][name] for name in names}, self.patience)
        self.use(mb)

    def receive(self, action: Any, arrays: dict[str, np.ndarray]) -> None:
        if action.kind == "RECV_T":
            self.tokens[self.batches[action.microbatch].request] = arrays["tokens"]
        else:
            self.arrived.setdefault(action.microbatch, {}).update(arrays)

    def use(self, mb: int) -> None:
        """One of those who need the output of a batch has taken it."""
        self._uses[mb] = self._uses.get(mb, 1) - 1
        if self._uses[mb] <= 0:
            self.meter.give(sum(int(a.nbytes) for a in self.held.pop(mb).values()))

    # ---- compute ---------------------------------------------------------------------------------------------------

    def entering(self, batch: Batch) -> dict[str, Any]:
        """Rows of a batch on this rank, as they come in."""
        if not self.stage.first:
            return self.mail.gather(self.arrived.pop(batch.microbatch), batch)
        if self.dry is not None:
            shape = (batch.plan.num_rows, self.program.width)
            rows: Any = np.zeros(
                shape[: 1 if self.program.embed else 2], np.int64 if self.program.embed else self.dtype
            )
        elif batch.kind == "prefill":
            rows = self.inputs[batch.request][batch.start : batch.start + batch.length]
        else:
            rows = self.tokens.get(batch.request, self.inputs.get(batch.request))
        rows = cp.split(np.asarray(rows), batch.plan, self.stage.rank if self.stage.cp > 1 else 0)
        hidden = self.program.embed(rows) if self.program.embed else rows
        entered = {"hidden_states": hidden}
        if self.program.residual:
            entered["residual"] = np.zeros_like(hidden)
        for name, array in entered.items():
            self.check(name, array, batch, "embed" if self.program.embed else "inputs")
            self.count(int(array.nbytes))
        return entered

    def check(self, name: str, array: Any, batch: Batch, who: str) -> None:
        rows, width = self.mail.rows(batch), self.program.topk if name == "indices" else self.program.width
        dtype = np.dtype("int32") if name == "indices" else self.dtype
        if not isinstance(array, np.ndarray) or array.shape != (rows, width) or array.dtype != dtype:
            has = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(
                f"{who}: {name} of micro-batch {batch.microbatch} on stage {self.stage.index} is {has}, needs "
                f"{dtype} {[rows, width]}"
            )

    def compute(self, leaf: Any) -> None:
        batch = self.batches[leaf.microbatch]
        self._taken = []
        args = {"kind": leaf.kind, "stage": leaf.stage, "microbatch": leaf.microbatch}
        begun = time.monotonic()
        with self.recorder.span("compute", str(leaf), **args):
            entered = self.entering(batch)
            left = self.leaving(self.forward(entered, batch), batch)
        self.patience = _PATIENCE * (time.monotonic() - begun)
        # What forward gave back may be what it was given: the slot is about to be used again.
        for name, array in left.items():
            if any(np.may_share_memory(array, old) for old in entered.values()):
                left[name] = array.copy()
        self.count(sum(int(a.nbytes) for a in left.values()))
        self._taken.pop()  # these stay
        self.held[leaf.microbatch] = left
        self.finish(batch)

    def forward(self, entered: Mapping[str, Any], batch: Batch) -> Any:
        if self.dry is not None and batch.microbatch not in self.dry:
            rows = self.mail.rows(batch)
            given = {name: np.zeros((rows, self.program.width), self.dtype) for name in self.program.tensors}
            return (given, np.zeros((rows, self.program.topk), np.int32)) if self.hands_over else given
        hidden, residual, indices = (entered.get(name) for name in ("hidden_states", "residual", "indices"))
        return self.program.forward(StageInput(hidden, residual, indices, batch, self.stage, self.result.state, self))

    def leaving(self, given: Any, batch: Batch) -> dict[str, Any]:
        indices = None
        if isinstance(given, tuple):
            given, indices = given
        left = dict(given) if isinstance(given, Mapping) else {"hidden_states": given}
        if set(left) != set(self.program.tensors):
            raise ValueError(
                f"forward: gives {sorted(left)} on stage {self.stage.index}, needs {sorted(self.program.tensors)}"
            )
        if indices is not None and self.hands_over:
            left["indices"] = indices
        for name, array in left.items():
            self.check(name, array, batch, "forward")
        return left

    def finish(self, batch: Batch) -> None:
        mb = batch.microbatch
        self.mail.release(mb)
        if self.stage.last and self.collect == "all":
            rows = together(self.stage, self.held[mb]["hidden_states"], batch, "all")
            self.result.rows[mb] = rows
            self.count(int(rows.nbytes))
        self.meter.give(sum(self._taken))
        self._taken = []
        if mb not in self._uses:
            self.use(mb)

    def sample(self, mb: int) -> None:
        batch = self.batches[mb]
        rows = together(self.stage, self.held[mb]["hidden_states"], batch, "last")
        self._taken = []
        self.count(int(rows.nbytes))
        if self.collect == "last":
            self.result.rows[mb] = np.array(rows)
        if self.program.sample is not None:
            with self.recorder.span(
                "compute", f"{self.stage.index}S{mb}", kind="S", stage=self.stage.index, microbatch=mb
            ):
                tokens = np.asarray(self.program.sample(rows, batch), np.int64).reshape(-1)
            if len(tokens) != batch.plan.num_requests:
                raise ValueError(
                    f"sample: gives {len(tokens)} tokens for micro-batch {mb}, needs {batch.plan.num_requests}"
                )
            self.result.tokens[mb] = tokens
            if self.stage.first and batch.kind == "decode":
                self.tokens[batch.request] = tokens
        self.meter.give(sum(self._taken))
        self._taken = []
        self.use(mb)
