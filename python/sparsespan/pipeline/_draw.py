"""Time lines to look at: text, SVG, Chrome / Perfetto traces."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

from ._simulate import Simulation
from ._trace import LANES, Trace, TraceSpan
from ._trace_of import as_trace

__all__ = ["chrome_trace", "text_timeline", "to_svg"]

_COLOURS = {
    "F": "#7aa6dc", "B": "#8cc28c", "I": "#8fd0c8", "W": "#c9b3e0", "OVERLAP_F_B": "#e3b778", "P": "#7aa6dc",
    "D": "#e3b778", "MIXED": "#d8927c", "S": "#e07a9a", "REDUCE_GRAD": "#b0b0b0",
}  # fmt: skip
_LANE_COLOURS = {"comm": "#a8a8a8", "prefetch": "#d9d08a"}
_PLAIN = re.compile(r"\d+([A-Z_]+?)_?(\d+)?(@.*)?$")


def _short(action: str) -> str:
    match = _PLAIN.match(action)
    return f"{match[1]}{match[2] or ''}" if match else action


def _label(span: TraceSpan) -> str:
    return "|".join(_short(part) for part in span.args.get("parts", [span.name]))


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


class _Page:
    """Where bands lie: a tall one for compute, thin ones below it for each track of the other lanes."""

    def __init__(self, trace: Trace, ranks: int, width: int, row: int) -> None:
        self.track = trace.tracks()
        used = {(s.lane, t) for s, t in zip(trace.spans, self.track, strict=True)} | {("compute", 0)}
        self.top: dict[tuple[str, int], int] = {}
        self.height: dict[tuple[str, int], int] = {}
        y = 0
        for band in sorted(used, key=lambda b: (LANES.index(b[0]), b[1])):
            self.top[band], self.height[band] = y, row if band[0] == "compute" else row // 3
            y += self.height[band]
        self.pitch, self.left = y + 6, 60
        self.bottom = self.pitch * ranks
        self.scale = (width - 70) / (trace.makespan or 1.0)


def to_svg(run: Simulation | Trace, *, width: int = 1200, row: int = 24) -> str:
    """The time line as a picture: one band for each rank, thin bands below it for messages and weights.

    Parameters
    ----------
    run : Simulation or Trace
    width, row : int
        Pixels of the whole and of a band.

    Returns
    -------
    str
        An SVG document.
    """
    trace = as_trace(run)
    ranks = len(run.busy) if isinstance(run, Simulation) else trace.ranks
    page = _Page(trace, ranks, width, row)
    zero, stages = trace.start, run.schedule.stages if isinstance(run, Simulation) else ranks
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{page.bottom + 24}" '
        'font-family="sans-serif" font-size="10">'
    ]
    for rank in range(ranks):
        out.append(f'<text x="4" y="{page.pitch * rank + row / 2 + 4:.1f}">rank {rank}</text>')
    # What holds others comes first: they lie on top of it.
    for depth, track, span in sorted(zip(trace.depths(), page.track, trace.spans, strict=True), key=lambda d: d[0]):
        x, w = page.left + (span.start - zero) * page.scale, (span.end - span.start) * page.scale
        if w <= 0:
            continue
        y, height = page.pitch * span.rank + page.top[span.lane, track], page.height[span.lane, track]
        if depth > 0:  # a strip at the foot of what holds it
            y, height = y + height - row // 4, row // 4
        colour = _LANE_COLOURS.get(span.lane) or _COLOURS.get(span.args.get("kind", ""), "#bbbbbb")
        # A rank's further stages are paler than its first.
        pale = ' fill-opacity="0.6"' if stages > ranks and span.args.get("stage", 0) >= ranks else ""
        title = escape(f"{span.name}: {span.start - zero:g} .. {span.end - zero:g}")
        out.append(
            f'<rect x="{x:.2f}" y="{y}" width="{w:.2f}" height="{height}" fill="{colour}" '
            f'stroke="#fff" stroke-width="0.5"{pale}><title>{title}</title></rect>'
        )
        label = _label(span) if span.lane == "compute" and depth == 0 else ""
        if label and w > 6 * len(label):
            out.append(
                f'<text x="{x + w / 2:.2f}" y="{y + row / 2 + 4:.1f}" text-anchor="middle">{escape(label)}</text>'
            )
    bubble = max((s.bubble for s in trace.summary() if s.lane == "compute"), default=0.0)
    out.append(
        f'<text x="{page.left}" y="{page.bottom + 16}">{trace.figures}: makespan {trace.makespan:g}, largest bubble '
        f"{bubble:g}</text></svg>"
    )
    return "\n".join(out)


def chrome_trace(run: Simulation | Trace, *, unit_us: float | None = None) -> str:
    """The time line as Chrome / Perfetto JSON: a process for each rank, a thread for each lane, arrows for messages.

    Parameters
    ----------
    run : Simulation or Trace
    unit_us : float, optional
        Microseconds of one unit of time: 1 for a simulation when not given, a million for a trace, which has seconds.

    Returns
    -------
    str
        JSON for chrome://tracing or ui.perfetto.dev; :meth:`Trace.from_json` reads and checks it.

    Examples
    --------
    >>> from sparsespan.pipeline import Trace, add_send_recv, chrome_trace, gpipe, simulate
    >>> trace = Trace.from_json(chrome_trace(simulate(add_send_recv(gpipe(2, 2)))))
    >>> trace.figures, len(trace.arrows), [line.lane for line in trace.summary()]
    ('modelled', 4, ['compute', 'comm', 'compute', 'comm'])
    """
    if unit_us is None:
        unit_us = 1.0 if isinstance(run, Simulation) else 1e6
    return as_trace(run).to_json(unit_us=unit_us)
