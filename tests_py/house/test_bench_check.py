"""`--check` from end to end, on a family whose ops say themselves how long they took."""

import argparse
import json
import sys
import types

import pytest


@pytest.fixture
def check(bench, monkeypatch, tmp_path, capsys):
    """Runs the bench on one op; `ours` seconds against a peer of one; returns exit code and output."""
    run, session, timing, baseline = (bench(name) for name in ("run", "session", "timing", "baseline"))
    monkeypatch.setattr(run, "families", lambda only: ["planted"])
    monkeypatch.setattr(baseline, "path_of", lambda folder, quick: tmp_path / f"quick_{quick}.json")
    monkeypatch.setattr(timing, "come_to_rest", lambda: 0.0)
    monkeypatch.setattr(session.Session, "bandwidth", lambda self: {"copy": 1.0, "read": 1.0})

    def once(ours, *options, pace=lambda: 1.0, peers=("peer",), quick=True):
        def rows(quick):
            yield from timing.compare(
                "planted", "small", lambda: timing.Took(ours), {name: lambda: timing.Took(0.01) for name in peers}
            )

        monkeypatch.setitem(sys.modules, "bench_planted", types.SimpleNamespace(rows=rows))
        session.SESSION.__dict__.update(session.Session().__dict__)
        monkeypatch.setattr(
            session.Session, "calibrate", lambda self: self.best.update(dict.fromkeys(session.ORDER, 1.0))
        )
        monkeypatch.setattr(session.Session, "probe", lambda self, isa: [pace()] * 2)
        flags = {name: name in options for name in ("json", "check", "write_baseline")}
        code = run.run(argparse.Namespace(quick=quick, only="", svg=None, **flags))
        return code, capsys.readouterr().out

    return once


def test_an_op_that_became_slower_fails_the_check(check):
    assert check(0.002, "write_baseline")[0] == 0
    code, out = check(0.002, "check")
    assert code == 0 and "0 fell, 0 skipped" in out
    code, out = check(0.0022, "check")
    assert code == 0, out  # within fifteen percent
    code, out = check(0.004, "check")  # as if it ran twice
    assert (
        code == 1 and "fell, measured once more" in out and "FELL planted | small | " in out and "5.00 -> 2.50" in out
    )


def test_a_busy_machine_is_not_blamed_on_the_op(check):
    check(0.002, "write_baseline")
    code, out = check(0.004, "check", pace=lambda: 0.5)
    assert code == 0 and "0 fast pairs, needs 5" in out and "0 ratios judged" in out


def test_an_absent_peer_or_baseline_is_skipped_in_words(check):
    code, out = check(0.002, "check")
    assert code == 0 and "skipped, there is no baseline" in out
    check(0.002, "write_baseline", peers=("peer", "other"))
    code, out = check(0.002, "check")
    assert code == 0 and "| other: not measured here (the peer or the level is absent)" in out
    assert "skipped, there is no baseline" in check(0.002, "check", quick=False)[1]  # each kind of run has its own


def test_an_absent_level_is_skipped_in_words(check, bench, monkeypatch):
    check(0.002, "write_baseline")
    session = bench("session")
    if len(session.SESSION.levels()) == 1:
        pytest.skip("this machine has one level")
    levels = session.SESSION.levels()[:-1]
    monkeypatch.setattr(session.Session, "levels", lambda self: levels)
    code, out = check(0.002, "check")
    assert code == 0 and "not measured here (the peer or the level is absent)" in out


def test_the_document_holds_goals_and_rows(check):
    code, out = check(0.002, "json")
    document = json.loads(out)
    assert code == 0 and document["rows"][0]["op"] == "planted" and document["machine"]["cpu"]
    assert all(goal["verdict"] for goal in document["goals"])


def test_a_family_that_fails_does_not_stop_the_others(bench, monkeypatch, capsys):
    run, session = bench("run"), bench("session")

    def broken(quick):
        yield {"op": "first", "shape": "row"}
        raise ValueError("no compiler")

    monkeypatch.setitem(sys.modules, "bench_broken", types.SimpleNamespace(rows=broken))
    monkeypatch.setitem(
        sys.modules, "bench_well", types.SimpleNamespace(rows=lambda quick: [{"op": "x", "shape": "y"}])
    )
    rows = list(run.measure(["broken", "well"], True, sys.stdout))
    assert [row["family"] for row in rows] == ["broken", "well"]
    assert session.SESSION.failed == ["broken"] and session.SESSION.notes == [
        "broken: ended with ValueError: no compiler"
    ]
    assert "-- well: " in capsys.readouterr().out
