"""Costs and time lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ._schedule import Action, Schedule
from ._trace import Trace

__all__ = ["Costs", "Simulation", "Span", "simulate"]

Cost = float | Callable[[int, int], float]


@dataclass(frozen=True)
class Costs:
    """What actions cost, in any one unit of time.

    Parameters
    ----------
    F, B, I, W : float, or function of (stage, micro-batch)
        Forward, full backward, its input half, its weight half.
    overlap : float, optional
        An OVERLAP_F_B cell; the sum of its parts when not given.
    prefill : float, :class:`ChunkCost`, or function of (length, prefix)
        A prefill chunk.
    decode : float, or function of (tokens, step)
        A decode batch. A MIXED cell costs the sum of its parts.
    sample, fetch, reduce_grad : float
    stage_weights : [stages] float, optional
        Factor on all compute of a stage, such as its layers. An overlapped pair takes the larger of its two.
    latency : float
        Of every message.
    bandwidth : float
        Bytes per unit of time; 0 is infinite.
    message_bytes : float
        Of a message: per micro-batch for F and B, per token for prefill and decode.
    kv_bytes_per_token : float or [stages] float, optional
        KV of a token on one stage.
    measured : mapping {(kind, stage, micro-batch): float}, optional
        What prefill chunks (kind "P"), decode batches ("D") and samples ("S", 0 where absent) took in a run; instead of
        ``prefill``, ``decode`` and ``sample``. :meth:`from_trace` makes it.
    """

    F: Cost = 1.0
    B: Cost = 2.0
    I: Cost = 1.0  # noqa: E741
    W: Cost = 1.0
    overlap: float | None = None
    prefill: Cost | Any = 1.0
    decode: Cost = 1.0
    sample: float = 0.0
    fetch: float = 0.0
    reduce_grad: float = 0.0
    stage_weights: Sequence[float] | None = None
    latency: float = 0.0
    bandwidth: float = 0.0
    message_bytes: float = 0.0
    kv_bytes_per_token: float | Sequence[float] | None = None
    measured: Mapping[tuple[str, int, int], float] | None = None

    @classmethod
    def from_trace(cls, trace: Trace, **others: Any) -> Costs:
        """Costs of the batches of a run, in seconds; of a batch on several ranks of a stage the longest.

        Examples
        --------
        >>> from sparsespan.pipeline import Costs, Trace, TraceSpan
        >>> took = [TraceSpan(0, "compute", "0P0@0:0+64", 1.0, 1.5, {"kind": "P", "stage": 0, "microbatch": 0})]
        >>> Costs.from_trace(Trace(took)).measured
        {('P', 0, 0): 0.5}
        """
        measured: dict[tuple[str, int, int], float] = {}
        for span in trace.spans:
            if span.lane == "compute" and span.args.get("kind") in ("P", "D", "S") and "microbatch" in span.args:
                key = (span.args["kind"], span.args["stage"], span.args["microbatch"])
                measured[key] = max(measured.get(key, 0.0), span.end - span.start)
        return cls(**others, measured=measured)

    def _took(self, action: Any) -> float:
        key = (action.kind, action.stage, action.microbatch)
        took = (self.measured or {}).get(key)
        if took is None and action.kind != "S":
            raise ValueError(f"Costs: measured has no {key}, needs every batch on every stage")
        return took or 0.0

    def _lower(self) -> Any:
        core = _core.pipeline.Costs()
        for kind in ("F", "B", "I", "W"):
            value = getattr(self, kind)
            core.set(kind, _asked(value, "stage", "microbatch") if callable(value) else float(value))
        for kind, value, names in (
            ("P", self.prefill, ("length", "start")),
            ("D", self.decode, ("length", "start")),
        ):
            priced: Any = value
            if callable(value) and not isinstance(value, _core.pipeline.ChunkCost):
                priced = _asked(value, *names)
            core.set(kind, priced)
        core.set("S", float(self.sample))
        if self.measured is not None:
            for kind in ("P", "D", "S"):
                core.set(kind, self._took)
        core.set("FETCH", float(self.fetch))
        core.set("REDUCE_GRAD", float(self.reduce_grad))
        core.overlap = self.overlap
        core.stage_weights = [float(w) for w in self.stage_weights or []]
        core.set_link(self.latency, self.bandwidth)
        core.message_bytes = self.message_bytes
        kv = self.kv_bytes_per_token
        core.kv_bytes = [] if kv is None else [float(v) for v in np.atleast_1d(np.asarray(kv, np.float64))]
        return core


def _asked(function: Callable[[int, int], float], first: str, second: str) -> Callable[[Any], float]:
    return lambda action: float(function(getattr(action, first), getattr(action, second)))


class Span(NamedTuple):
    """One action on the time line. ``lane`` is "compute", "send", "receive" or "weights"."""

    rank: int
    lane: str
    start: float
    end: float
    action: Action


_LANES = {"FETCH": "weights", "EVICT": "weights"}


def _lane(kind: str) -> str:
    if kind.startswith("SEND_"):
        return "send"
    return "receive" if kind.startswith("RECV_") else _LANES.get(kind, "compute")


class Simulation:
    """The outcome of :func:`simulate`; everything per rank is a list.

    Attributes
    ----------
    makespan : float
        The end of the last action.
    busy : list of float
        Time in compute.
    bubble : list of float
        makespan - busy.
    peak_activations : list of int
        Most (stage, micro-batch) pairs held at once, from the start of F to the end of B or W; without a backward, to
        the end of the pass.
    peak_kv_bytes : list of float
        Most KV held at once; a request's KV is held from its first chunk to its last action on the rank.
    start, end : list of float64 [steps]
        Times of every cell of the schedule.
    timeline : iterable of Span
        All actions, rank by rank.
    message_bytes : float
        As the costs have it.
    """

    def __init__(self, schedule: Schedule, core: Any, message_bytes: float = 0.0) -> None:
        self.schedule = schedule
        self.message_bytes = message_bytes
        self.makespan: float = core.makespan
        self.busy: list[float] = core.busy
        self.bubble: list[float] = core.bubble
        self.peak_activations: list[int] = core.peak_activations
        self.peak_kv_bytes: list[float] = core.peak_kv_bytes
        self._core = core

    @property
    def start(self) -> list[np.ndarray]:
        """Start of every cell, by rank."""
        return list(self._core.start)

    @property
    def end(self) -> list[np.ndarray]:
        """End of every cell, by rank."""
        return list(self._core.end)

    @property
    def timeline(self) -> list[Span]:
        """Spans of all actions, idle cells apart."""
        return list(self._spans())

    def _spans(self) -> Iterator[Span]:
        for rank, (cells, starts, ends) in enumerate(zip(self.schedule.ranks, self.start, self.end)):
            for action, start, end in zip(cells, starts.tolist(), ends.tolist()):
                if action is not None:
                    yield Span(rank, _lane(action.kind), start, end, action)

    def __repr__(self) -> str:
        return f"<Simulation: makespan {self.makespan:g}, {len(self.busy)} ranks, largest bubble {max(self.bubble):g}>"


def simulate(schedule: Schedule, costs: Costs | None = None, *, transport: str = "overlapped") -> Simulation:
    """Run a schedule on paper.

    Parameters
    ----------
    schedule : Schedule
    costs : Costs
        The defaults are F = I = W = 1 and B = 2.
    transport : {"overlapped", "buffered", "blocking"}
        Where the schedule has messages. ``"overlapped"``: they have lanes of their own beside compute, only what needs
        the data waits. ``"buffered"``: one lane, a receive stands still until its message has come. ``"blocking"``: one
        lane, a send also stands still until the receiver stands at its receive, and both until the message has passed.

    Returns
    -------
    Simulation

    Raises
    ------
    ScheduleError
        If the schedule cannot run.
    ValueError
        If a cost is negative, or they or their sum are not finite.

    Notes
    -----
    An action starts when its rank is free and what it needs is there. In a compute-only schedule latency and bytes lie
    on the edge between two ranks. Linear in the actions. Twin: :func:`sparsespan.reference.pipeline.simulate`.

    Examples
    --------
    >>> from sparsespan.pipeline import Costs, one_f_one_b, simulate
    >>> run = simulate(one_f_one_b(ranks=4, microbatches=8), Costs(F=1, B=2))
    >>> run.makespan, run.bubble, run.peak_activations
    (33.0, [9.0, 9.0, 9.0, 9.0], [4, 3, 2, 1])
    """
    given = costs or Costs()
    core = _core.pipeline.simulate(schedule._core, given._lower(), transport)
    if not math.isfinite(core.makespan):
        raise ValueError(f"simulate: costs add up to {core.makespan}, need a finite sum")
    return Simulation(schedule, core, given.message_bytes)
