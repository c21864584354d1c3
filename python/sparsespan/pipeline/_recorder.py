"""What a rank did, as spans; and the spans of all ranks, as one trace."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..comm import Communicator
from ._layer_shard import LayerShard
from ._trace import Arrow, Trace, TraceSpan
from ._trace_of import running

__all__ = ["Recorder", "gather_trace"]


class Recorder:
    """Spans of one rank, in seconds of :func:`time.monotonic`."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.spans: list[TraceSpan] = []
        self._reached: dict[int, float] = {}
        self._fetches = itertools.count()

    def add(self, lane: str, name: str, start: float, end: float, **args: Any) -> None:
        """Something that began and ended."""
        self.spans.append(TraceSpan(self.rank, lane, name, start, end, args))

    @contextmanager
    def span(self, lane: str, name: str, **args: Any) -> Iterator[None]:
        """What runs inside; nothing is kept of what raises."""
        start = time.monotonic()
        yield
        self.add(lane, name, start, time.monotonic(), **args)

    @contextmanager
    def fetched(self, shard: LayerShard, layer: int) -> Iterator[str]:
        """Around reach and wait: the fetch of the layer that is used now began when an earlier layer was reached."""
        order, start = shard.layers, time.monotonic()
        ahead = order[(layer - order[0] + shard.prefetch) % len(order)]
        begun = start if ahead == layer else self._reached.pop(layer, start)
        self._reached[ahead] = start
        fetch = f"{self.rank}.{next(self._fetches)}"
        yield fetch
        if not shard.keeps(layer):
            end = time.monotonic()
            self.add("prefetch", f"fetch {layer}", begun, end, fetch=fetch, bytes=shard.layer_bytes)

    def collectives(self, comm: Communicator, since: float, without: str) -> None:
        """What the stage's own ranks exchanged meanwhile."""
        for e in comm.timeline():
            if e["start"] >= since and e["op"] != without:
                self.add("comm", e["op"], e["start"], e["end"], bytes=e["bytes"])


def _arrows(spans: list[TraceSpan]) -> list[Arrow]:
    ends: dict[str, dict[str, int]] = {}
    for i, span in enumerate(spans):
        for side in ("sends", "receives", "fetch", "uses"):
            if side in span.args:
                ends.setdefault(str(span.args[side]), {})[side] = i
    arrows = []
    for both in ends.values():
        if {"sends", "receives"} <= both.keys():
            arrows.append(Arrow("message", both["sends"], both["receives"]))
        elif {"fetch", "uses"} <= both.keys():
            arrows.append(Arrow("prefetch", both["fetch"], both["uses"]))
    return arrows


def as_trace(spans: list[TraceSpan]) -> Trace:
    """Spans of all ranks with their arrows, and the bytes that are on their way: sent, or fetched ahead."""
    trace = Trace(spans, _arrows(spans))
    sent: list[tuple[float, int, float]] = []
    fetched: list[tuple[float, int, float]] = []
    for arrow in trace.arrows:
        source = spans[arrow.source]
        nbytes = float(source.args["bytes"])
        if arrow.name == "message":
            end = max(source.start, spans[arrow.target].end)
            sent += [(source.start, source.rank, nbytes), (end, source.rank, -nbytes)]
        else:
            fetched += [(source.start, source.rank, nbytes), (source.end, source.rank, -nbytes)]
    trace.samples = running("bytes in flight", sent) + running("prefetched bytes in flight", fetched)
    return trace


def gather_trace(comm: Communicator, spans: list[TraceSpan]) -> Trace:
    """The spans of all ranks on every rank. Collective."""
    text = np.frombuffer(json.dumps(spans).encode(), np.uint8)
    sizes = comm.all_gather(np.array([text.size])).tolist()
    joined = comm.all_gather(text, sizes).tobytes()
    cuts = np.cumsum([0, *sizes])
    rows = [row for a, b in itertools.pairwise(cuts) for row in json.loads(joined[a:b])]
    return as_trace([TraceSpan(*row) for row in rows])
