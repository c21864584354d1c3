"""Traces: they come back as they went, and a broken one is refused in words."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from sparsespan.cli import main
from sparsespan.pipeline import (
    Arrow,
    Costs,
    Sample,
    Trace,
    TraceSpan,
    add_send_recv,
    chrome_trace,
    chunked_prefill,
    dualpipe_v,
    simulate,
    to_svg,
)


def measured():
    spans = [
        TraceSpan(0, "compute", "0P0@0:0+64", 10.0, 10.5, {"kind": "P", "stage": 0, "microbatch": 0}),
        TraceSpan(0, "compute", "attention", 10.1, 10.2),
        TraceSpan(0, "comm", "0SEND_F0", 10.5, 10.75),
        TraceSpan(0, "comm", "0SEND_F1", 10.6, 10.9),
        TraceSpan(1, "comm", "1RECV_F0", 10.0, 10.75),
        TraceSpan(1, "prefetch", "o_proj 1", 10.0, 10.25),
        TraceSpan(1, "compute", "1P0@0:0+64", 10.25, 11.25, {"kind": "P", "stage": 1, "microbatch": 0}),
    ]
    samples = [Sample(0, "bytes in flight", 10.5, 64.0), Sample(0, "bytes in flight", 10.75, 0.0)]
    return Trace(spans, [Arrow("message", 2, 4), Arrow("prefetch", 5, 6)], samples)


def test_a_trace_comes_back():
    trace = measured()
    back = Trace.from_json(trace.to_json())
    assert back.figures == "measured"
    assert [(s.rank, s.lane, s.name, s.args) for s in back.spans] == [
        (s.rank, s.lane, s.name, s.args) for s in trace.spans
    ]
    assert [(s.start, s.end) for s in back.spans] == [
        pytest.approx((s.start - 10, s.end - 10), abs=1e-9) for s in trace.spans
    ]
    assert back.arrows == trace.arrows
    assert [(s.rank, s.name, s.value) for s in back.samples] == [(s.rank, s.name, s.value) for s in trace.samples]


def test_what_overlaps_gets_a_track_and_what_nests_does_not():
    assert measured().tracks() == [0, 0, 0, 1, 0, 0, 0]


def test_sums():
    trace = measured()
    assert trace.makespan == 1.25 and trace.overlap() == pytest.approx(0.25)
    lines = {(s.rank, s.lane): (s.spans, pytest.approx(s.busy), pytest.approx(s.bubble)) for s in trace.summary()}
    assert lines == {
        (0, "compute"): (2, 0.5, 0.75),
        (0, "comm"): (2, 0.4, 0.85),
        (1, "compute"): (1, 1.0, 0.25),
        (1, "comm"): (1, 0.75, 0.5),
        (1, "prefetch"): (1, 0.25, 1.0),
    }
    assert Trace().summary() == [] and Trace().makespan == 0.0 and Trace.from_json(Trace().to_json()).spans == []


def test_a_simulation_sums_up_to_itself():
    for schedule in (dualpipe_v(4, 10), chunked_prefill(4, [64, 32, 16])):
        run = simulate(add_send_recv(schedule), Costs(overlap=3, message_bytes=8, bandwidth=32, latency=0.25))
        trace = Trace.from_json(chrome_trace(run, unit_us=1e6))
        assert trace.figures == "modelled" and trace.makespan == pytest.approx(run.makespan)
        busy = [s.busy for s in trace.summary() if s.lane == "compute"]
        assert busy == pytest.approx(run.busy)
        assert {s.name for s in trace.samples} == {"bytes in flight"}
        last = {s.rank: s.value for s in trace.samples}
        assert set(last.values()) == {0.0}  # all have come


def broken(edit):
    document = json.loads(measured().to_json())
    edit({e["name"] + e["ph"]: e for e in document["traceEvents"]}, document["traceEvents"])
    return json.dumps(document)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda e, all: e["attentionX"].update(dur=9e5), "'attention' (100000 to 1e+06 us) begins inside '0P0@0:0+64'"),
        (lambda e, all: e["attentionX"].update(dur=-1), "lasts -1 us"),
        (lambda e, all: e["attentionX"].update(ts="now"), "has ts 'now', needs a number"),
        (lambda e, all: e["attentionX"].update(tid=700), "has tid 700, needs 0 to 299"),
        (lambda e, all: all.remove(e["messagef"]), "arrow 0 of 'message' has no target"),
        (lambda e, all: all.remove(e["messages"]), "arrow 0 of 'message' has no source"),
        (lambda e, all: all.append(dict(e["messages"])), "arrow 0 of 'message' has two sources"),
        (lambda e, all: e["messagef"].update(ts=1), "arrow 0 of 'message' points back"),
        (lambda e, all: e["messagef"].update(ts=8e5), "arrow 0 at 800000 us on rank 1 has no span"),
        (lambda e, all: e["messagef"].update(pid=None), "has pid None, needs a number"),
        (lambda e, all: e["bytes in flightC"]["args"].update(value=-3), "counter 'bytes in flight' is -3"),
        (lambda e, all: all.append(3), "a list of events"),
    ],
)
def test_a_broken_trace_is_refused(edit, words, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"^trace: ") as error:
        Trace.from_json(broken(edit))
    assert words in str(error.value)
    file = tmp_path / "trace.json"
    file.write_text(broken(edit))
    assert main(["trace", str(file)]) == 1
    assert words in capsys.readouterr().err


def test_no_json_is_refused_with_its_place(tmp_path, capsys):
    file = tmp_path / "trace.json"
    file.write_text('{"traceEvents": [,]}')
    assert main(["trace", str(file)]) == 1
    assert "trace: line 1, column 18" in capsys.readouterr().err
    assert main(["trace", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    file, svg = tmp_path / "trace.json", tmp_path / "trace.svg"
    file.write_text(measured().to_json())
    assert main(["trace", str(file), "--svg", str(svg)]) == 0
    out = capsys.readouterr().out
    assert "7 spans nest, 2 arrows have both ends; seconds measured" in out
    assert "makespan 1.25, two or more ranks compute at once for 0.25" in out
    assert len([e for e in ElementTree.fromstring(svg.read_text()).iter() if e.tag.endswith("rect")]) == 7
    assert main(["trace", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlap"] == pytest.approx(0.25)


def test_svg_of_a_trace_labels_its_chunks():
    texts = [e.text for e in ElementTree.fromstring(to_svg(measured())).iter() if e.tag.endswith("text")]
    assert texts.count("P0") == 2 and texts[-1] == "measured: makespan 1.25, largest bubble 0.75"


def test_what_lies_inside_is_drawn_on_top():
    rects = [e for e in ElementTree.fromstring(to_svg(measured())).iter() if e.tag.endswith("rect")]
    assert measured().depths() == [0, 1, 0, 0, 0, 0, 0]
    names = [e[0].text.partition(":")[0] for e in rects]
    assert names[-1] == "attention" and float(rects[-1].get("height")) < float(rects[0].get("height"))
