"""Schedules that really run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._batch import Batch, batches_of
from ._check import ScheduleError, validate
from ._lower import add_send_recv
from ._recorder import gather_trace
from ._schedule import Schedule
from ._stage import Stage, StageProgram
from ._stage_run import PipelineRun, Run

__all__ = ["dummy_run", "run_pipeline"]

_RUNS = ("P", "D", "S", "MIXED", "SEND_F", "RECV_F", "SEND_X", "RECV_X", "SEND_T", "RECV_T")
Contexts = Mapping[int, Sequence[int]]


def _prepared(
    stage: Stage,
    program: StageProgram,
    schedule: Schedule,
    contexts: Contexts | None,
    rules: Mapping[str, Any],
) -> tuple[Schedule, dict[int, Batch], int]:
    """The schedule with its messages, proved; its batches; and how many messages can be on their way."""
    for name, given, kind in (("program", program, StageProgram), ("schedule", schedule, Schedule)):
        if not isinstance(given, kind):
            raise TypeError(f"run_pipeline: {name} is a {type(given).__name__}, needs a {kind.__name__}")
    shard = program.shard
    if shard is not None and shard.ranks != stage.comm.size:
        raise ValueError(
            f"run_pipeline: program.shard is over {shard.ranks} ranks, needs the {stage.comm.size} of stage.comm"
        )
    for rank, row in enumerate(schedule.ranks):
        for action in row:
            stages = set() if action is None else {part.stage for part in action.parts or [action]}
            if action is not None and (action.kind not in _RUNS or stages != {rank}):
                raise ValueError(
                    f"run_pipeline: schedule has {action} on rank {rank}, needs prefill, decode and sample actions "
                    "with stage r on rank r"
                )
    if not schedule.communicates and stage.pp > 1:
        validate(schedule, ranks=stage.pp, stages=stage.pp)
        layers = {k: v for k, v in rules.items() if k in ("stage_layers", "index_layers")}
        schedule = add_send_recv(schedule, **layers)
    slots = _out_slots(stage, schedule, rules)
    batches = batches_of(schedule, contexts, stage.scheme, stage.cp)
    kinds = {a.kind for row in schedule.ranks for a in row if a is not None}
    if "SEND_T" in kinds and program.sample is None:
        raise ValueError("run_pipeline: program.sample is None, needs it: the schedule sends tokens round")
    if "SEND_X" in kinds and program.topk < 1:
        raise ValueError(f"run_pipeline: program.topk is {program.topk}, needs the width of the indices handed over")
    return schedule, batches, slots


def _out_slots(stage: Stage, schedule: Schedule, rules: Mapping[str, Any]) -> int:
    """Messages of a kind that a rank may have on their way: 2, where a schedule also ends when sends block."""
    proof = {"ranks": stage.pp, "stages": stage.pp, **rules}
    try:
        validate(schedule, sends="blocking", **proof)
        return 1 if stage.blocking_sends else 2
    except ScheduleError:
        if stage.blocking_sends:
            raise
    validate(schedule, sends="buffered", **proof)
    return max(sum(a is not None and a.kind.startswith("SEND_") for a in row) for row in schedule.ranks)


def _check_inputs(batches: Mapping[int, Batch], inputs: Mapping[int, Any]) -> None:
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f"run_pipeline: inputs is a {type(inputs).__name__}, needs a mapping of requests and slots to rows"
        )
    for batch in batches.values():
        prefill = batch.kind == "prefill"
        if not prefill and batch.start > 0:
            continue  # the tokens of the step before
        needs = batch.start + batch.length if prefill else batch.length
        if batch.request not in inputs:
            raise ValueError(f"run_pipeline: inputs has no {batch.request}, needs the rows of every request and slot")
        if len(inputs[batch.request]) < needs:
            raise ValueError(
                f"run_pipeline: inputs[{batch.request}] has {len(inputs[batch.request])} rows, needs {needs}"
            )


def _agree(stage: Stage, schedule: Schedule, batches: Mapping[int, Batch], program: StageProgram, words: str) -> None:
    """All ranks follow one schedule over the same lengths, and none has refused its part."""
    text = "|".join(
        [schedule.to_csv(), *(b.identity for b in batches.values()), str(program.tensors), str(program.topk)]
    )
    plan = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    told = stage.world.all_gather(np.array([bool(words)], np.int64), plan=f"pipeline {plan}").tolist()
    if words:
        raise ValueError(words)
    if any(told):
        raise ValueError(f"run_pipeline: rank {told.index(1)} refused its inputs")


def run_pipeline(
    stage: Stage,
    program: StageProgram,
    schedule: Schedule,
    inputs: Mapping[int, Any] | None = None,
    *,
    contexts: Contexts | None = None,
    collect: str | None = "last",
    trace: bool = False,
    **rules: Any,
) -> PipelineRun:
    """Carry out a serving schedule between stages. Collective: every rank of ``stage.world`` calls it.

    Parameters
    ----------
    stage : Stage
        This rank's place.
    program : StageProgram
        What it computes.
    schedule : Schedule
        Prefill, decode and sample actions with stage r on rank r (:func:`chunked_prefill`, :func:`decode_loop`,
        :func:`mixed_prefill_decode`, or one's own), with messages or without. It is proved first.
    inputs : mapping {request or slot: array}
        First stage: token ids [tokens] or rows [tokens, width] of each request, from its position 0 on; for decode the
        tokens of a slot's first step. Other stages do not look at it.
    contexts : mapping {slot: [requests] int}, optional
        Decode: keys of each request before the slot's first step; 0 when not given.
    collect : {"last", "all", None}
        What the last stage keeps in ``rows``: each request's last row where a batch is sampled; all rows of every
        batch, gathered over ``cp``; nothing.
    trace : bool
        Gather the spans of all ranks.
    **rules
        Limits for :func:`validate`. ``stage_layers`` and ``index_layers`` make stages hand top-k indices over.

    Returns
    -------
    PipelineRun

    Raises
    ------
    ScheduleError
        If the schedule cannot run.
    MessageError
        If a message of another type, shape, dtype or batch comes to a stage boundary.
    RankMismatch
        If ranks call with different schedules or lengths.
    ValueError
        If an argument or what a callable gives does not fit.

    Notes
    -----
    A send is asynchronous and double buffered; the header of the next message is awaited while a batch is computed. A
    batch's plan follows from its lengths on every stage, and its fingerprint travels with each message. Nothing moves
    between calls of a communicator: a long ``forward`` that spans processes calls :meth:`StageInput.poll`,
    :meth:`StageInput.span` or :meth:`StageInput.layer` now and then.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.comm import run_ranks
    >>> from sparsespan.pipeline import Stage, StageProgram, chunked_prefill, run_pipeline
    >>> def rank(comm):
    ...     stage = Stage(comm, pp=2, cp=2)
    ...     program = StageProgram(lambda x: x.hidden + x.positions[:, None], width=1, dtype="int64")
    ...     return run_pipeline(stage, program, chunked_prefill(2, [4, 2]), {0: np.zeros((6, 1), int)}).rows
    >>> run_ranks(4, rank)[3]
    {1: array([[10]])}
    """
    if collect not in ("last", "all", None):
        raise ValueError(f"run_pipeline: collect is {collect!r}, needs 'last', 'all' or None")
    schedule, batches, slots = _prepared(stage, program, schedule, contexts, rules)
    words = ""
    if stage.first:
        try:
            _check_inputs(batches, {} if inputs is None else inputs)
        except ValueError as refusal:
            words = str(refusal)
    _agree(stage, schedule, batches, program, words)
    run = Run(stage, program, schedule, batches, collect, slots)
    run.inputs = {} if inputs is None else inputs
    begun = time.monotonic()
    run.poll()
    for action in run.actions:
        run.do(action)
    run.settle()
    run.mail.outbox.flush()
    run.result.peak_bytes = run.meter.peak
    if trace:
        # The broadcasts of a layer shard are in the prefetch lane.
        run.recorder.collectives(stage.comm, begun, "broadcast" if program.shard is not None else "")
        run.result.trace = gather_trace(stage.world, run.recorder.spans)
    return run.result


def _widest(batches: Mapping[int, Batch]) -> set[int]:
    """Batches that no other exceeds in both rows and prefix: where memory peaks."""
    sizes = {mb: (b.kind, b.length, max(b.prefix_lens, default=0)) for mb, b in batches.items()}
    return {
        mb
        for mb, (kind, length, prefix) in sizes.items()
        if not any(
            k == kind and n >= length and p >= prefix and ((n, p) != (length, prefix) or other < mb)
            for other, (k, n, p) in sizes.items()
        )
    }


def dummy_run(
    stage: Stage,
    program: StageProgram,
    schedule: Schedule,
    *,
    contexts: Contexts | None = None,
    collect: str | None = "last",
    **rules: Any,
) -> int:
    """Predict ``peak_bytes`` of :func:`run_pipeline` without a message. Collective within each stage.

    Allocates the same buffers and the same slices of a batch, and calls ``forward`` with zeros on the batches that
    nothing exceeds in rows and prefix, with a state of its own: the keys of chunks that are left out are not there.

    Returns
    -------
    int
        Bytes (counted). Equal to the real run's where what ``forward`` allocates grows with rows and prefix.
    """
    schedule, batches, slots = _prepared(stage, program, schedule, contexts, rules)
    run = Run(stage, program, schedule, batches, collect, slots)
    run.dry = _widest(batches)
    for action in run.actions:
        run.pretend(action)
    run.settle()
    return run.meter.peak
