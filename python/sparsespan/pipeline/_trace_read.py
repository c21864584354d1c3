"""Traces from files: nothing in them is taken on trust."""

from __future__ import annotations

import bisect
import json
from typing import Any

from ._trace import _SLACK, _TRACKS, LANES, Arrow, Sample, Trace, TraceSpan

__all__ = ["read"]

Event = dict[str, Any]


def _events(text: str) -> tuple[list[Event], str]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"trace: line {error.lineno}, column {error.colno}: {error.msg}") from None
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
        raise ValueError('trace: needs an object with "traceEvents", a list of events')
    other = document.get("otherData", {}) if isinstance(document, dict) else {}
    return events, str(other.get("figures", "measured"))


def _number(event: Event, key: str) -> float:
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"trace: event {event.get('name')!r} has {key} {value!r}, needs a number")
    return float(value)


def _lane(event: Event) -> str:
    tid = int(_number(event, "tid"))
    if not 0 <= tid < _TRACKS * len(LANES):
        raise ValueError(f"trace: event {event.get('name')!r} has tid {tid}, needs 0 to {_TRACKS * len(LANES) - 1}")
    return LANES[tid // _TRACKS]


def _check_nesting(slices: list[Event]) -> None:
    rows: dict[tuple[int, int], list[Event]] = {}
    for event in slices:
        rows.setdefault((event["pid"], event["tid"]), []).append(event)
    for (pid, _), row in rows.items():
        stack: list[Event] = []
        for event in sorted(row, key=lambda e: (e["ts"], -e["dur"])):
            while stack and stack[-1]["ts"] + stack[-1]["dur"] <= event["ts"] + _SLACK:
                stack.pop()
            if stack and event["ts"] + event["dur"] > stack[-1]["ts"] + stack[-1]["dur"] + _SLACK:
                raise ValueError(
                    f"trace: rank {pid}, {_lane(event)}: {event['name']!r} ({event['ts']:g} to "
                    f"{event['ts'] + event['dur']:g} us) begins inside {stack[-1]['name']!r} and ends after it, needs "
                    "spans beside or inside one another"
                )
            stack.append(event)


def _edges(slices: list[Event], edge: str) -> dict[tuple[int, int], list[tuple[float, int]]]:
    """Times at which spans of a track begin or end, in order, with the spans' numbers."""
    found: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for i, e in enumerate(slices):
        found.setdefault((e["pid"], e["tid"]), []).append((e["ts"] + (e["dur"] if edge == "end" else 0.0), i))
    return {track: sorted(row) for track, row in found.items()}


def _holder(edges: dict[tuple[int, int], list[tuple[float, int]]], event: Event) -> int:
    """The span whose edge an end of an arrow is tied to."""
    row = edges.get((event["pid"], event["tid"]), [])
    at = bisect.bisect_left(row, (event["ts"] - _SLACK, -1))
    if at == len(row) or row[at][0] > event["ts"] + _SLACK:
        raise ValueError(f"trace: arrow {event.get('id')} at {event['ts']:g} us on rank {event['pid']} has no span")
    return row[at][1]


def _arrows(events: list[Event], slices: list[Event]) -> list[Arrow]:
    begins: dict[tuple[Any, Any], Event] = {}
    ends: dict[tuple[Any, Any], Event] = {}
    for event in events:
        side = {"s": begins, "f": ends}.get(str(event.get("ph")))
        if side is None:
            continue
        for needed in ("ts", "pid", "tid"):
            _number(event, needed)
        key = (event.get("cat"), event.get("id"))
        if key in side:
            raise ValueError(
                f"trace: arrow {key[1]} of {key[0]!r} has two {'sources' if side is begins else 'targets'}"
            )
        side[key] = event
    for key in begins.keys() ^ ends.keys():
        raise ValueError(f"trace: arrow {key[1]} of {key[0]!r} has no {'target' if key in begins else 'source'}")
    starts, finishes = _edges(slices, "start"), _edges(slices, "end")
    arrows = []
    for key, begin in begins.items():
        end = ends[key]
        if end["ts"] < begin["ts"] - _SLACK:
            raise ValueError(
                f"trace: arrow {key[1]} of {key[0]!r} points back: from {begin['ts']:g} to {end['ts']:g} us"
            )
        late = key[0] == "prefetch"
        source = _holder(finishes if late else starts, begin)
        arrows.append(Arrow(str(begin.get("name")), source, _holder(starts if late else finishes, end)))
    return arrows


def read(text: str) -> Trace:
    """:meth:`Trace.from_json`."""
    events, figures = _events(text)
    slices = [e for e in events if e.get("ph") == "X"]
    spans = []
    for event in slices:
        ts, dur = _number(event, "ts"), _number(event, "dur")
        if dur < 0:
            raise ValueError(f"trace: event {event.get('name')!r} lasts {dur:g} us, needs 0 or more")
        lane, args = _lane(event), event.get("args") or {}
        name, rank = str(event.get("name")), int(_number(event, "pid"))
        spans.append(TraceSpan(rank, lane, name, ts * 1e-6, (ts + dur) * 1e-6, args))
    _check_nesting(slices)
    samples = []
    for event in events:
        if event.get("ph") == "C":
            value = _number(event.get("args") or {}, "value")
            if value < 0:
                raise ValueError(f"trace: counter {event.get('name')!r} is {value:g} at {event.get('ts')} us")
            samples.append(Sample(int(_number(event, "pid")), str(event["name"]), _number(event, "ts") * 1e-6, value))
    return Trace(spans, _arrows(events, slices), samples, figures)
