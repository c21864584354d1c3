"""Time lines to look at: text, SVG, Chrome / Perfetto traces."""

from __future__ import annotations

import json
from typing import Any
from xml.sax.saxutils import escape

from ._simulate import Simulation, Span

__all__ = ["chrome_trace", "text_timeline", "to_svg"]

_COLOURS = {
    "F": "#7aa6dc", "B": "#8cc28c", "I": "#8fd0c8", "W": "#c9b3e0", "OVERLAP_F_B": "#e3b778", "P": "#7aa6dc",
    "D": "#e3b778", "MIXED": "#d8927c", "S": "#e07a9a", "REDUCE_GRAD": "#b0b0b0",
}  # fmt: skip
_LANE_COLOURS = {"send": "#999999", "receive": "#cccccc", "weights": "#d9d08a"}
_LANES = ("compute", "send", "receive", "weights")


def _label(span: Span) -> str:
    parts = span.action.parts or [span.action]
    return "|".join(f"{p.kind}{p.microbatch}" if p.microbatch >= 0 else p.kind for p in parts)


def text_timeline(simulation: Simulation, *, width: int = 120) -> str:
    """Compute lanes as text: one row for each rank, one letter for each slice of time, a dot where it idles.

    Parameters
    ----------
    simulation : Simulation
    width : int
        Columns. When all times are whole numbers and the makespan is shorter, one column is one unit of time.

    Returns
    -------
    str

    Examples
    --------
    >>> from sparsespan.pipeline import gpipe, simulate, text_timeline
    >>> print(text_timeline(simulate(gpipe(2, 2))))
    rank 0 FF...BBBB
    rank 1 .FFBBBB..
    """
    if width < 1:
        raise ValueError(f"text_timeline: width is {width}, needs at least 1")
    spans = simulation.timeline
    whole = simulation.makespan <= width and all(s.start.is_integer() and s.end.is_integer() for s in spans)
    columns = max(1, int(simulation.makespan)) if whole else width
    span_of_column = (simulation.makespan or 1.0) / columns
    rows = [["."] * columns for _ in simulation.busy]
    for span in spans:
        if span.lane != "compute" or span.end <= span.start:
            continue
        letter = (
            "X" if span.action.kind == "OVERLAP_F_B" else "M" if span.action.kind == "MIXED" else span.action.kind[0]
        )
        first = min(columns - 1, int(span.start / span_of_column + 0.5))
        for column in range(first, min(columns, max(first + 1, int(span.end / span_of_column + 0.5)))):
            rows[span.rank][column] = letter
    return "\n".join(f"rank {rank} " + "".join(row) for rank, row in enumerate(rows))


def to_svg(simulation: Simulation, *, width: int = 1200, row: int = 24) -> str:
    """The time line as a picture: one band for each rank, thin bands below it for messages and weights.

    Parameters
    ----------
    simulation : Simulation
    width, row : int
        Pixels of the whole and of a band.

    Returns
    -------
    str
        An SVG document.
    """
    spans = simulation.timeline
    lanes = [lane for lane in _LANES if lane == "compute" or any(s.lane == lane for s in spans)]
    heights = {lane: row if lane == "compute" else row // 3 for lane in lanes}
    pitch = sum(heights.values()) + 6
    left, scale = 60, (width - 70) / (simulation.makespan or 1.0)
    ranks, pale = len(simulation.busy), ' fill-opacity="0.6"'  # a rank's further stages are paler than its first
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{pitch * len(simulation.busy) + 24}" '
        'font-family="sans-serif" font-size="10">'
    ]
    for rank in range(len(simulation.busy)):
        out.append(f'<text x="4" y="{pitch * rank + row / 2 + 4:.1f}">rank {rank}</text>')
    for span in spans:
        height = heights[span.lane]
        y = pitch * span.rank + sum(heights[lane] for lane in lanes[: lanes.index(span.lane)])
        x, w = left + span.start * scale, (span.end - span.start) * scale
        if w <= 0:
            continue
        colour = _LANE_COLOURS.get(span.lane) or _COLOURS.get(span.action.kind, "#bbbbbb")
        title = escape(f"{span.action}: {span.start:g} .. {span.end:g}")
        out.append(
            f'<rect x="{x:.2f}" y="{y}" width="{w:.2f}" height="{height}" fill="{colour}" stroke="#fff" '
            f'stroke-width="0.5"{pale if span.action.stage >= ranks else ""}><title>{title}</title></rect>'
        )
        label = _label(span)
        if span.lane == "compute" and w > 6 * len(label):
            out.append(f'<text x="{x + w / 2:.2f}" y="{y + row / 2 + 4:.1f}" text-anchor="middle">{label}</text>')
    out.append(
        f'<text x="{left}" y="{pitch * len(simulation.busy) + 16}">makespan {simulation.makespan:g}, '
        f"largest bubble {max(simulation.bubble, default=0.0):g}</text></svg>"
    )
    return "\n".join(out)


def chrome_trace(simulation: Simulation, *, unit_us: float = 1.0) -> str:
    """The time line as Chrome / Perfetto JSON: a process for each rank, a thread for each lane, arrows for messages.

    Parameters
    ----------
    simulation : Simulation
    unit_us : float
        Microseconds of one unit of time.

    Returns
    -------
    str
        JSON for chrome://tracing or ui.perfetto.dev.
    """
    events: list[dict[str, Any]] = []
    sent: dict[tuple[str, int, int], int] = {}
    for rank in range(len(simulation.busy)):
        events.append({"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        for lane in _LANES:
            events.append(
                {"ph": "M", "name": "thread_name", "pid": rank, "tid": _LANES.index(lane), "args": {"name": lane}}
            )
    for span in simulation.timeline:
        place = {"pid": span.rank, "tid": _LANES.index(span.lane)}
        start, end = span.start * unit_us, span.end * unit_us
        events.append({"ph": "X", "name": str(span.action), "cat": span.lane, "ts": start, "dur": end - start, **place})
        if span.lane not in ("send", "receive"):
            continue
        kind, stage = span.action.kind[-1], span.action.stage
        # A message is known by its channel, its micro-batch and the stage it leaves.
        if span.lane == "receive":
            stage = {"F": stage - 1, "X": stage - 1, "B": stage + 1}.get(kind, simulation.schedule.stages - 1)
        flow = sent.setdefault((kind, stage, span.action.microbatch), len(sent))
        arrow = {"name": "message", "cat": "message", "id": flow, **place}
        if span.lane == "send":
            events.append({"ph": "s", "ts": start, **arrow})
        else:
            events.append({"ph": "f", "bp": "e", "ts": end, **arrow})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
