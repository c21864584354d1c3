"""The bench's own judgement: which timings count, which ratios fell, what is skipped and said."""

import argparse
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "bench"
if not FOLDER.is_dir():
    pytest.skip("not a checkout", allow_module_level=True)


MACHINE = {"cpu": "some CPU", "threads": 2, "levels": ["generic", "avx512"]}


def _row(ratio, *, pairs=7, peer="numpy", spread=0.02):
    return {
        "op": "topk", "shape": "small", "isa": "avx512", "peer": peer, "pairs": pairs, "ratio": ratio,
        "ratio_q1": ratio * (1 - spread), "ratio_q3": ratio * (1 + spread),
    }  # fmt: skip


def test_a_fall_is_seen_beyond_fifteen_percent_and_the_spread(bench, tmp_path):
    baseline = bench("baseline")
    path = tmp_path / "baseline.json"
    assert baseline.write(path, MACHINE, [_row(10.0), _row(3.0, peer="noisy", pairs=4)]) == 1
    kept = baseline.load(path)
    assert baseline.compare(kept, [_row(10.0)]) == ([], [])
    assert baseline.compare(kept, [_row(8.4)]) == ([], [])  # within the spread of both
    assert baseline.compare(kept, [_row(7.9)]) == (["topk | small | avx512 | numpy"], [])
    assert baseline.compare(kept, [_row(7.9, spread=0.2)]) == ([], [])  # too wide to tell
    assert baseline.compare(kept, [_row(20.0)]) == ([], [])


def test_what_cannot_be_judged_is_skipped_in_words(bench, tmp_path):
    baseline = bench("baseline")
    path = tmp_path / "baseline.json"
    baseline.write(path, MACHINE, [_row(10.0)])
    kept = baseline.load(path)
    fell, skipped = baseline.compare(kept, [_row(1.0, pairs=4)])
    assert fell == [] and "4 fast pairs, needs 5" in skipped[0]
    fell, skipped = baseline.compare(kept, [])
    assert fell == [] and "the peer or the level is absent" in skipped[0]
    assert baseline.other_machine(kept, MACHINE) == ""
    assert "threads 2 there and 4 here" in baseline.other_machine(kept, MACHINE | {"threads": 4})
    assert baseline.load(tmp_path / "none.json") is None
    plain = {"op": "comm.barrier", "shape": "2 ranks", "peer": "std::barrier", "ratio": 0.1}  # no level, no pairs
    assert baseline.compare(kept, [_row(10.0), plain]) == ([], [])


def test_a_timing_counts_by_the_probe_around_it(bench):
    session, timing = bench("session"), bench("timing")
    session.SESSION.best = {"generic": 100.0}
    judge = session.SESSION.judge
    assert judge("generic", [99.0, 86.0, 100.0, 90.0]) == "fast"
    assert judge("generic", [99.0, 40.0, 100.0, 90.0]) == "mixed"
    assert judge("generic", [40.0, 40.0, 84.0, 50.0]) == "slow"
    ours, peer = (timing.Run(name, "generic", lambda: None) for name in ("ours", "peer"))
    for turn, (a, b, rate) in enumerate([(1.0, 2.0, 100.0), (1.0, 9.0, 50.0), (2.0, 6.0, 90.0)]):
        ours.samples[turn] = timing.Sample(a, [100.0, 100.0])
        peer.samples[turn] = timing.Sample(b, [100.0, rate])
    assert timing._pairs(ours, peer) == ([2.0, 3.0], 2)  # the slow pair is left out


def test_a_cpu_is_named_with_its_generation(bench, monkeypatch):
    session = bench("session")
    text = "processor : 0\ncpu family : 25\nmodel : 17\nmodel name : Some CPU\n\nprocessor : 1\nmodel : 9\n"
    monkeypatch.setattr(session.Path, "read_text", lambda path: text)
    assert session.cpu_name() == "Some CPU (family 25, model 17)"
    monkeypatch.setattr(session.Path, "read_text", lambda path: "processor : 0\nmodel name : ARM\n")
    assert session.cpu_name() == "ARM"


def test_the_clock_of_a_call_that_times_itself(bench):
    timing = bench("timing")
    assert timing._once(lambda: timing.Took(0.25), 1) == 0.25
    assert timing._once(lambda: None, 3) < 0.1


def test_the_copy_that_bandwidth_is_measured_by_copies():
    import numpy as np

    from sparsespan import _core

    source = np.arange(1 << 20, dtype=np.uint8)
    to = np.zeros_like(source)
    _core.probe_copy(source, to, 2)
    assert (source == to).all()
    assert _core.probe_read(source, 2) == int(source.view(np.uint64).sum(dtype=np.uint64))
    assert len(_core.probe_per_thread("generic", 1 << 10, 2)) == 2
    with pytest.raises(ValueError, match=r"probe: to has 3 elements .* needs 1048576 bytes"):
        _core.probe_copy(source, np.zeros(3, np.uint8))


def test_a_copys_arrays_lie_half_a_page_apart(bench):
    import session

    for size in (1, 4096, 100_000):
        source, to = session.copy_arrays(size)
        assert source.nbytes == to.nbytes == size
        assert (to.ctypes.data - source.ctypes.data) % 4096 == 2048


def test_the_roofline_is_a_picture(bench):
    row = {"op": "select", "shape": "T=1", "isa": "avx512", "flops": 1e9, "bytes": 1e7, "gflops": 50.0}
    draw = bench("roofline").draw
    picture = draw([row, {"op": "topk", "shape": "no flops"}], {"avx512": 2e11}, 20.0)
    texts = [e.text for e in ElementTree.fromstring(picture).iter() if e.tag.endswith("text")]
    assert "avx512 probe 200" in texts and "select" in texts and texts.count("1") == 2  # at the dot and in the list
    other = row | {"isa": "avx2", "gflops": 20.0}
    texts = [
        e.text
        for e in ElementTree.fromstring(draw([row, other], {"avx2": 1.99e11, "avx512": 2e11}, 20.0, "some CPU")).iter()
        if e.tag.endswith("text")
    ]
    assert "avx2, avx512 probe 199" in texts and "Roofline of the ops, some CPU" in texts  # two levels with one peak


def test_numbers_in_the_roofline_stand_apart(bench):
    places = bench("roofline")._Places([(100.0, 100.0 + i) for i in range(5)])
    boxes = [places.near(100.0, 100.0 + i, "12") for i in range(12)]
    for i, (x, y) in enumerate(boxes):
        assert all(abs(y - b) >= 9 or abs(x - a) >= 12 for a, b in boxes[:i])


def test_the_command_prints_one_document_and_frees_the_peer():
    command = [sys.executable, "-m", "sparsespan.cli", "bench", "--quick", "--only", "topk", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=os.environ | {"OPENBLAS_CORETYPE": "Prescott"}
    )
    assert done.returncode == 0, done.stderr
    assert "OPENBLAS_CORETYPE unset for the NumPy peer" in done.stderr
    document = json.loads(done.stdout)
    assert {row["op"] for row in document["rows"]} == {"topk"}
    assert document["machine"]["cpu"] and all(rate > 0 for rate in document["probe_flops"].values())


def refusal(*options):
    command = [sys.executable, "-m", "sparsespan.cli", "bench", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr


def test_an_unknown_family_is_refused():
    assert "--only has weather, needs some of attention, " in refusal("--only", "weather")
    assert "--only has an empty name, an empty name, needs some of attention, " in refusal("--only", ",")


def test_a_baseline_is_of_everything():
    assert "--write-baseline needs all families, without --only" in refusal("--only", "topk", "--write-baseline")


def test_what_would_spoil_the_end_is_refused_before_the_run(bench, monkeypatch, tmp_path):
    for path in (tmp_path, tmp_path / "none" / "roof.svg"):
        words = refusal("--quick", "--only", "topk", "--svg", str(path))
        assert f"bench: --svg cannot write {path}, needs a file in a folder that may be written" in words
    run = bench("run")
    (tmp_path / "baseline.json").write_text("{")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    options = argparse.Namespace(quick=False, only="", svg=None, check=True, write_baseline=False)
    with pytest.raises(SystemExit, match=r"bench: --check cannot read .*baseline\.json: "):
        run.refuse_early(options)
