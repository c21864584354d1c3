import itertools
import json
import xml.etree.ElementTree as ElementTree

import pytest

from sparsespan.pipeline import (
    Costs,
    Schedule,
    add_fetch_evict,
    add_send_recv,
    chrome_trace,
    chunked_prefill,
    decode_loop,
    dualpipe_v,
    gpipe,
    interleaved,
    simulate,
    text_timeline,
    to_svg,
)


def runs():
    yield simulate(add_send_recv(dualpipe_v(4, 10)), Costs(latency=0.25))
    yield simulate(add_send_recv(decode_loop(3, 3)), Costs(latency=0.25))
    yield simulate(add_send_recv(add_fetch_evict(interleaved(2, 4), 1)), Costs(latency=0.25, fetch=2))
    yield simulate(chunked_prefill(4, [8, 4, 2]), Costs(prefill=lambda c, h: c + h / 8))


def test_text():
    assert text_timeline(simulate(gpipe(2, 2))).splitlines() == ["rank 0 FF...BBBB", "rank 1 .FFBBBB.."]
    rows = text_timeline(simulate(dualpipe_v(4, 10)), width=66).splitlines()
    assert all(len(row) == len("rank 0 ") + 66 for row in rows)
    assert [row.count(".") for row in rows] == [6] * 4  # the bubble
    seconds = simulate(chunked_prefill(4, [8, 8, 4]), Costs(prefill=lambda c, h: c / 1000))
    rows = text_timeline(seconds, width=40).splitlines()
    assert all(len(row) == len("rank 0 ") + 40 for row in rows) and rows[3].count(".") == 22  # waits 24 of 44 units
    with pytest.raises(ValueError, match="width is 0"):
        text_timeline(seconds, width=0)


def test_svg_is_a_document_with_every_span():
    for run in runs():
        root = ElementTree.fromstring(to_svg(run))
        rects = [e for e in root.iter() if e.tag.endswith("rect")]
        assert len(rects) == sum(1 for s in run.timeline if s.end > s.start)
        width = float(root.get("width"))
        assert all(float(r.get("x")) + float(r.get("width")) <= width for r in rects)
    ElementTree.fromstring(to_svg(simulate(Schedule([[]]))))


def test_trace():
    for run in runs():
        events = json.loads(chrome_trace(run))["traceEvents"]
        slices = [e for e in events if e["ph"] == "X"]
        assert len(slices) == len(run.timeline)
        tracks = {}
        for e in slices:
            tracks.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"]))
        assert {tid // 100 for _, tid in tracks} <= {0, 1, 2}
        for spans in tracks.values():  # no simulated span holds another: one after the other
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(spans)))
        begins = {e["id"]: e for e in events if e["ph"] == "s"}
        ends = {e["id"]: e for e in events if e["ph"] == "f"}
        assert begins.keys() == ends.keys()
        for flow, begin in begins.items():
            assert (begin["pid"] == ends[flow]["pid"]) == (begin["name"] == "prefetch")
            assert begin["ts"] <= ends[flow]["ts"]
        sends = sum(s.lane == "send" for s in run.timeline)
        fetches = sum(s.action.kind == "FETCH" for s in run.timeline)
        names = [b["name"] for b in begins.values()]
        assert (names.count("message"), names.count("prefetch")) == (sends, fetches)
        assert sum(e["ph"] == "C" for e in events) == 2 * sends


@pytest.mark.parametrize("unit", [1.0, 1e6])
def test_trace_unit(unit):
    events = json.loads(chrome_trace(simulate(gpipe(1, 1)), unit_us=unit))["traceEvents"]
    assert [e["dur"] for e in events if e["ph"] == "X"] == [unit, 2 * unit]
