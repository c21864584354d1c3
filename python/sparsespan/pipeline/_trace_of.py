"""A simulation as a trace."""

from __future__ import annotations

from typing import Any

from ._simulate import Simulation, Span
from ._trace import Arrow, Sample, Trace, TraceSpan

__all__ = ["as_trace"]

_LANE_OF = {"compute": "compute", "send": "comm", "receive": "comm", "weights": "prefetch"}


def _details(span: Span) -> dict[str, Any]:
    a = span.action
    details: dict[str, Any] = {"kind": a.kind, "stage": a.stage}
    if a.microbatch >= 0:
        details["microbatch"] = a.microbatch
    return details


def _message(span: Span, stages: int) -> tuple[str, int, int]:
    """What names a message at both ends: its channel, the stage that it leaves, its micro-batch."""
    kind, stage = span.action.kind[-1], span.action.stage
    if span.lane == "receive":
        stage = {"F": stage - 1, "X": stage - 1, "B": stage + 1}.get(kind, stages - 1)
    return kind, stage, span.action.microbatch


def _message_sizes(simulation: Simulation) -> dict[int, float]:
    """Bytes of each micro-batch's message: the costs know them for F and B, and for each token of P and D."""
    unit = simulation.message_bytes
    sizes: dict[int, float] = {}
    for span in simulation.timeline:
        for leaf in span.action.parts or [span.action]:
            sizes.setdefault(leaf.microbatch, unit * (leaf.length if leaf.kind in ("P", "D") else 1))
    return sizes


def _in_flight(simulation: Simulation, trace: Trace) -> list[Sample]:
    """Bytes that a rank has sent and its peer does not have yet; messages where the costs give them no bytes."""
    name = "bytes in flight" if simulation.message_bytes > 0 else "messages in flight"
    sizes = _message_sizes(simulation) if simulation.message_bytes > 0 else {}
    steps: list[tuple[float, int, float]] = []
    for arrow in trace.arrows:
        if arrow.name == "message":
            source, target = trace.spans[arrow.source], trace.spans[arrow.target]
            size = sizes.get(source.args.get("microbatch", -1), 1.0)
            steps += [(source.start, source.rank, size), (target.end, source.rank, -size)]
    return running(name, steps)


def running(name: str, steps: list[tuple[float, int, float]]) -> list[Sample]:
    """Samples of a counter that steps (time, rank, by) change."""
    level: dict[int, float] = {}
    samples: list[Sample] = []
    for time, rank, by in sorted(steps):
        level[rank] = max(0.0, level.get(rank, 0.0) + by)
        samples.append(Sample(rank, name, time, level[rank]))
    return samples


def _fetches(trace: Trace) -> list[Arrow]:
    """From each fetch to the first compute span of its stage on its rank."""
    arrows: list[Arrow] = []
    waiting: dict[tuple[int, int], int] = {}
    for i, span in enumerate(trace.spans):
        stages = span.args["stages"]
        if span.args["kind"] == "FETCH":
            waiting[span.rank, stages[0]] = i
        elif span.lane == "compute":
            for stage in stages:
                source = waiting.pop((span.rank, stage), None)
                if source is not None:
                    arrows.append(Arrow("prefetch", source, i))
    return arrows


def as_trace(run: Simulation | Trace) -> Trace:
    """The trace of a simulation; a trace as it is."""
    if isinstance(run, Trace):
        return run
    trace = Trace(figures="modelled")
    open_messages: dict[tuple[str, int, int], dict[str, int]] = {}
    for i, span in enumerate(run.timeline):
        leaves = span.action.parts or [span.action]
        args = {**_details(span), "stages": [leaf.stage for leaf in leaves]}
        if span.action.parts:
            args["parts"] = [str(leaf) for leaf in leaves]
        trace.spans.append(TraceSpan(span.rank, _LANE_OF[span.lane], str(span.action), span.start, span.end, args))
        if span.lane in ("send", "receive"):
            open_messages.setdefault(_message(span, run.schedule.stages), {})[span.lane] = i
    for ends in open_messages.values():
        trace.arrows.append(Arrow("message", ends["send"], ends["receive"]))
    trace.arrows += _fetches(trace)
    trace.samples = _in_flight(run, trace)
    return trace
