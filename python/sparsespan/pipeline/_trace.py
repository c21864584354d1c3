"""One form for what happened and what is said to happen: spans in lanes, arrows between them, counters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Arrow", "LaneSummary", "Sample", "Trace", "TraceSpan"]

LANES = ("compute", "comm", "prefetch")
_TRACKS = 100  # thread ids of one lane: spans of a lane that overlap get tracks of their own
_SLACK = 1e-3  # microseconds: what a decimal fraction may lose


class TraceSpan(NamedTuple):
    """Something that took time; seconds."""

    rank: int
    lane: str
    name: str
    start: float
    end: float
    args: dict[str, Any] = {}  # noqa: RUF012  never written to


class Arrow(NamedTuple):
    """From one span to another; given by their numbers in :attr:`Trace.spans`."""

    name: str
    source: int
    target: int


class Sample(NamedTuple):
    """A counter of a rank has this value from here on."""

    rank: int
    name: str
    time: float
    value: float


class LaneSummary(NamedTuple):
    """A lane of a rank: seconds in which it has something, and the rest of the whole run."""

    rank: int
    lane: str
    spans: int
    busy: float
    bubble: float


def _merged(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same times, as intervals that lie apart."""
    apart: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if apart and start <= apart[-1][1]:
            apart[-1] = (apart[-1][0], max(end, apart[-1][1]))
        else:
            apart.append((start, end))
    return apart


@dataclass
class Trace:
    """Spans of all ranks, on one clock.

    Parameters
    ----------
    spans : list of TraceSpan
        Lanes are "compute", "comm" and "prefetch".
    arrows : list of Arrow
        "message" from a send to its receive, "prefetch" from a fetch to the first span that uses it.
    samples : list of Sample
        Counters, such as bytes in flight.
    figures : {"measured", "modelled"}
    """

    spans: list[TraceSpan] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    figures: str = "measured"

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return 1 + max((s.rank for s in self.spans), default=-1)

    @property
    def start(self) -> float:
        """When the first span begins."""
        return min((s.start for s in self.spans), default=0.0)

    @property
    def makespan(self) -> float:
        """From the begin of the first span to the end of the last one."""
        return max((s.end for s in self.spans), default=0.0) - self.start

    def _busy(self, rank: int, lane: str) -> list[tuple[float, float]]:
        return _merged((s.start, s.end) for s in self.spans if (s.rank, s.lane) == (rank, lane))

    def summary(self) -> list[LaneSummary]:
        """Busy and bubble time of every lane that is used; the compute lane of every rank."""
        lines = []
        for rank, lane in itertools.product(range(self.ranks), LANES):
            spans = sum((s.rank, s.lane) == (rank, lane) for s in self.spans)
            if spans or lane == "compute":
                busy = sum(end - start for start, end in self._busy(rank, lane))
                lines.append(LaneSummary(rank, lane, spans, busy, self.makespan - busy))
        return lines

    def overlap(self) -> float:
        """Seconds in which two or more ranks compute."""
        busy = [interval for rank in range(self.ranks) for interval in self._busy(rank, "compute")]
        edges = sorted(edge for start, end in busy for edge in ((start, 1), (end, -1)))
        total, level, last = 0.0, 0, 0.0
        for time, step in edges:
            total += (time - last) * (level >= 2)
            level, last = level + step, time
        return total

    def tracks(self) -> list[int]:
        """For each span its track within its lane: spans on one track lie beside or inside one another."""
        stacks: dict[tuple[int, str], list[list[float]]] = {}
        track = [0] * len(self.spans)
        for i in sorted(range(len(self.spans)), key=lambda i: (self.spans[i].start, -self.spans[i].end)):
            span = self.spans[i]
            rows = stacks.setdefault((span.rank, span.lane), [])
            for ends in rows:
                while ends and ends[-1] <= span.start:
                    ends.pop()
            nests = span.lane == "compute"
            fits = (n for n, ends in enumerate(rows) if not ends or (nests and span.end <= ends[-1]))
            track[i] = next(fits, len(rows))
            if track[i] == len(rows):
                rows.append([])
            rows[track[i]].append(span.end)
        return track

    def depths(self) -> list[int]:
        """For each span how many hold it on its track."""
        track = self.tracks()
        stacks: dict[tuple[int, str, int], list[float]] = {}
        depth = [0] * len(self.spans)
        for i in sorted(range(len(self.spans)), key=lambda i: (self.spans[i].start, -self.spans[i].end)):
            span = self.spans[i]
            ends = stacks.setdefault((span.rank, span.lane, track[i]), [])
            while ends and ends[-1] <= span.start:
                ends.pop()
            depth[i] = len(ends)
            ends.append(span.end)
        return depth

    # ---- Chrome / Perfetto JSON ----------------------------------------------------------------------------------

    def to_json(self, *, unit_us: float = 1e6) -> str:
        """JSON for chrome://tracing or ui.perfetto.dev: a process for each rank, threads for its lanes.

        Parameters
        ----------
        unit_us : float
            Microseconds of one unit of the spans' time.
        """
        track, zero = self.tracks(), self.start if self.figures == "measured" else 0.0
        place = [
            {"pid": s.rank, "tid": _TRACKS * LANES.index(s.lane) + t} for s, t in zip(self.spans, track, strict=True)
        ]

        def at(time: float) -> float:
            return (time - zero) * unit_us

        events: list[dict[str, Any]] = []
        for rank in range(self.ranks):
            events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        named = {(p["pid"], p["tid"]) for p in place} | {(rank, 0) for rank in range(self.ranks)}
        for rank, tid in sorted(named):
            name = LANES[tid // _TRACKS] + (f" {tid % _TRACKS + 1}" if tid % _TRACKS else "")
            events.append({"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": name}})
        for span, where in zip(self.spans, place, strict=True):
            dur = (span.end - span.start) * unit_us
            event = {"ph": "X", "name": span.name, "cat": span.lane, "ts": at(span.start), "dur": dur, **where}
            events.append({**event, "args": span.args} if span.args else event)
        for number, arrow in enumerate(self.arrows):
            tie = {"name": arrow.name, "cat": arrow.name, "id": number}
            begin, end = self.spans[arrow.source], self.spans[arrow.target]
            # A message leaves when its send begins; what was fetched is there when the fetch ends.
            left = begin.end if arrow.name == "prefetch" else begin.start
            came = end.start if arrow.name == "prefetch" else end.end
            events.append({"ph": "s", "ts": at(left), **tie, **place[arrow.source]})
            events.append({"ph": "f", "bp": "e", "ts": at(came), **tie, **place[arrow.target]})
        for sample in self.samples:
            event = {"ph": "C", "name": sample.name, "pid": sample.rank, "ts": at(sample.time)}
            events.append({**event, "args": {"value": sample.value}})
        return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"figures": self.figures}})

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read what :meth:`to_json` wrote, and check it.

        Raises
        ------
        ValueError
            If it is no such document; spans of one track cross; an arrow has no source, no target, or points back in
            time; or a counter is negative.
        """
        from ._trace_read import read

        return read(text)
