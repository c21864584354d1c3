"""The goals: which row counts, what is said where nothing does."""

import pytest


def _row(op, shape, isa, **more):
    return {"op": op, "shape": shape, "isa": isa, "fast": 9, "fraction_of_probe": 0.6, "ours_ms": 1.0, **more}


def _ratio(op, shape, isa, peer, ratio, pairs=7):
    return _row(op, shape, isa, peer=peer, ratio=ratio, pairs=pairs)


def _of(found, name, must):
    (goal,) = [g for g in found if g["goal"] == name and g["must"].startswith(must)]
    return goal


L3 = "sparse_mla prefill, 128 heads, KV in L3"


def test_ratios_are_judged_at_the_best_level_and_by_the_worst_shape(bench):
    torch = "torch bf16 composed"
    rows = [
        _ratio("mqa_logits", f"V3.2 T=16 S={s} fp8", isa, torch, ratio)
        for s, isa, ratio in ((8192, "avx512", 2.4), (131072, "avx512", 2.1), (8192, "avx2", 0.9))
    ]
    rows.append(_ratio("mqa_logits", "GLM-5 T=16 S=8192 fp8", "avx512", torch, 0.1))
    found = bench("goals").judge(rows, ["generic", "avx2", "avx512"])
    goal = _of(found, "logits prefill, 64 heads x 128", ">= 2 x torch composed")
    assert (goal["verdict"], goal["came"], goal["level"]) == ("holds", "2.10", "avx512") and "131072" in goal["shape"]
    rows.append(_ratio("mqa_logits", "V3.2 T=16 S=32768 bf16", "avx512", torch, 1.9))
    found = bench("goals").judge(rows, ["generic", "avx2", "avx512"])
    assert _of(found, "logits prefill, 64 heads x 128", ">= 2")["verdict"] == "misses"


def test_fractions_of_amx_are_not_claimed_without_it(bench):
    rows = [
        _row("sparse_mla", "V3.2 T=16 S=8192 bf16", isa, fraction_of_probe=f)
        for isa, f in (("avx2", 0.7), ("amx", 0.2))
    ]
    goal = _of(bench("goals").judge(rows, ["avx2"]), L3, ">= 0.3 of the AMX probe")
    assert (goal["verdict"], goal["came"], goal["level"]) == (
        "not measured here (no AMX)", "0.70 of its own probe", "avx2",
    )  # fmt: skip
    goal = _of(bench("goals").judge(rows, ["avx2", "amx"]), L3, ">= 0.3 of the AMX probe")
    assert (goal["verdict"], goal["came"], goal["level"]) == ("misses", "0.20", "amx")


def test_a_level_of_its_own_is_judged_by_its_own_probe(bench):
    rows = [_row("mqa_logits", "V3.2 T=16 S=8192 fp8", isa) for isa in ("avx2", "avx512")]
    found = bench("goals").judge(rows, ["avx2", "avx512"])
    assert _of(found, "avx512: logits", ">= 0.7")["verdict"] == "misses"
    assert bench("goals").judge(rows[:1], ["avx2"])  # the machine has no avx512: nothing stands in for it
    assert _of(bench("goals").judge(rows[:1], ["avx2"]), "avx512: logits", ">= 0.7")["verdict"].startswith(
        "not measured"
    )


def test_a_time_that_may_be_larger_is_the_inverse_of_the_ratio(bench):
    rows = [_ratio("select", "V3.2 T=16 S=32768 fp8", "avx2", "own logits alone", 1 / 1.1)]
    rows += [_ratio("select", "V3.2 T=16 S=8192 fp8", "avx2", "own logits alone", 1 / 1.4)]
    found = bench("goals").judge(rows, ["avx2"])
    goal = _of(found, "select prefill over logits alone, S >= 32K", "<= 1.15 x the time")
    assert (goal["verdict"], goal["came"]) == ("holds", "1.10")
    assert _of(found, "select prefill over logits alone, S = 8K", "<= 1.35")["verdict"] == "misses"


def test_few_fast_samples_leave_it_undecided(bench):
    rows = [_ratio("merge_states", "[4, 64]", "avx2", "copy, same footprint", 0.3, pairs=2)]
    goals = bench("goals")
    found = goals.judge(rows, ["avx2"])
    assert _of(found, "merge", ">= 0.8")["verdict"] == "undecided: 2 fast, needs 3"
    rows += [_ratio("merge_states", "[4, 128]", "avx2", "copy, same footprint", 0.9, pairs=3)]
    assert _of(goals.judge(rows, ["avx2"]), "merge", ">= 0.8")["verdict"] == "holds"


def test_classes_of_time_are_informative(bench):
    rows = [_row("topk", "131072 -> 2048, normal", isa, ours_ms=0.07) for isa in ("avx2", "amx")]
    judge = bench("goals").judge
    assert _of(judge(rows, ["avx2", "amx"]), "top-2048 of 131072", "<= 0.15 ms")["verdict"] == "informative"
    assert _of(judge(rows, ["avx2"]), "top-2048 of 131072", "<= 0.15 ms")["verdict"] == "not measured here (no AMX)"


def test_growth_and_memory_speak_for_themselves_and_the_table_counts(bench):
    rows = [
        {
            "op": "select growth",
            "shape": "time",
            "isa": "avx2",
            "holds": False,
            "needs": "2.0 +- 0.15",
            "came": "2.300",
        },
        {
            "op": "attention ops",
            "shape": "peak memory",
            "isa": "avx2",
            "holds": True,
            "needs": "< 3 GB",
            "came": "0.24 GB",
        },
        {"op": "comm.barrier", "shape": "2 ranks"},
    ]
    goals = bench("goals")
    found = goals.judge(rows, ["avx2"])
    assert _of(found, "select growth: time", "2.0")["verdict"] == "misses"
    *table, counts, rest = goals.lines(found, "some CPU, 2 threads")
    assert "on some CPU, 2 threads" in table[0] and len(table) == 4
    assert counts == "1 holds, 1 misses, 0 undecided, 0 not measured here (no AMX)"
    assert rest.startswith(f"{len(goals.GOALS)} not measured in this run")


def test_the_table_for_the_notes(bench, tmp_path):
    goals = bench("goals")
    machine = {"cpu": "some CPU", "threads": 2, "isa": "avx2"}
    rows = [_ratio("merge_states", "[4, 64]", "avx2", "copy, same footprint", 0.9)]
    table = goals.markdown({"machine": machine, "goals": goals.judge(rows, ["avx2"])}, "./dev bench").splitlines()
    assert len(table) == 3
    assert table[2] == "| merge | >= 0.8 of a copy | 0.90 | holds | avx2 | some CPU, 2 threads, avx2 | `./dev bench` |"
    notes = tmp_path / "NOTES.md"
    notes.write_text("a\n<!-- goals -->\nold\n<!-- end of goals -->\nb\n")
    for _ in range(2):
        goals.write_notes("\n".join(table), notes)
    assert notes.read_text().split("\n\n")[1].splitlines() == table
    assert notes.read_text().startswith("a\n<!--") and notes.read_text().endswith("-->\nb\n")
    notes.write_text("nothing")
    with pytest.raises(SystemExit, match="has no marks"):
        goals.write_notes("", notes)
    kept = bench("run").FOLDER.joinpath("NOTES.md").read_text()
    assert "<!-- goals -->\n" in kept and "<!-- end of goals -->" in kept


def test_every_goal_names_rows_that_the_benches_make(bench):
    """Renamed ops, shapes or peers would silently leave a goal unmeasured."""
    goals = bench("goals")
    texts = {path.name: path.read_text() for path in bench("run").FOLDER.glob("bench_*.py")}
    everything = "\n".join([*texts.values(), bench("run").FOLDER.joinpath("timing.py").read_text()])
    for goal in goals.GOALS:
        op = goal.op.removesuffix(".*")
        assert f'"{op}' in everything, goal
        assert not goal.peer or f'"{goal.peer}"' in everything or goal.peer.startswith("transformers "), goal


@pytest.mark.parametrize("quick", [True, False])
def test_slow_runs_sit_out_turns_and_the_time_is_kept(bench, quick):
    timing, session = bench("timing"), bench("session")
    session.SESSION.quick = quick
    top = session.SESSION.top()
    runs = [timing.Run(f"r{i}", level, lambda: None, seconds=s) for i, (level, s) in enumerate(
        [("generic", 0.9), (top, 0.05), ("", 0.1), ("", 0.001)]
    )]  # fmt: skip
    turns = timing._plan(runs, 15, 3.0)
    assert runs[0].stride == 8 and runs[1].stride == runs[3].stride == 1
    assert 3 <= turns <= 15 and sum(r.cost() / r.stride for r in runs) * turns <= 3.0
    assert timing._plan([timing.Run("slow", top, lambda: None, seconds=40.0)], 3, 3.0) == 1


def test_what_the_time_cut_is_said(bench):
    timing, session = bench("timing"), bench("session")
    session.SESSION.quick = True
    calls = [0]

    def second():
        calls[0] += 1
        return timing.Took(1.5)  # it says that it takes long: one call is its turn 0

    (row,) = timing.compare("op", "shape", second, turns=4, seconds=1e-9, levels=[session.SESSION.top()])
    assert calls == [1] and row["words"] == "cut to 1 of 4 turns: 1.5 s each, 0 s for all"
