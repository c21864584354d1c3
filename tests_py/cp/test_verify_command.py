"""``sparsespan verify`` on threads: exit codes, JSON, refusals in words, and that it can fail."""

import json

import pytest

from sparsespan import pipeline
from sparsespan.cli import main
from sparsespan.testing import each_isa

pytestmark = pytest.mark.timeout(60)
SMALL = ["verify", "--lens", "9,30", "--prefix", "0,20", "--heads", "8", "--timeout", "10"]


def run(capsys, *arguments):
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_the_default_runs_prefill_and_decode_on_four_ranks(capsys):
    code, report, progress = run(capsys, "verify")
    assert code == 0 and report["passed"] and report["failed"] == []
    assert report["kind"] == "verify" and report["backend"] == "threads"
    parts = {(case["part"], case["batch"]["name"]) for case in report["cases"]}
    assert parts >= {("prefill", name) for name in ("single", "ragged", "prefix", "mixed")}
    assert ("decode", "ragged") in parts
    for case in report["cases"]:
        assert case["grid"]["ranks"] == 4 and case["error"] is None
        assert case["name"] in progress
        out = [check for check in case["checks"] if check["what"].startswith("out")]
        assert out[0]["promise"] == "bits" and out[0]["bitwise"] and out[0]["ranks"] == 4
        assert case["bytes"] and all(row["counted"] == row["formula"] > 0 for row in case["bytes"])
        assert all(row["terms"] for row in case["bytes"])
        assert set(case["imbalance"]) == {"indexer", "attention"}


def test_text_is_a_line_for_each_case(capsys):
    assert main([*SMALL, "--cp", "2"]) == 0
    text = capsys.readouterr().out
    assert "ok    prefill cp 2 zigzag lens" in text
    assert "keys: all_gather" in text and "every case kept its contract" in text
    assert "prefill: 1 cases, 1 ok; bits promised 1 times, kept 1; 3 of 3 byte counts are the formula's" in text


def test_every_split_keeps_one_rank_s_bits(capsys):
    code, report, _ = run(capsys, *SMALL, "--cp", "3", "--scheme", "all")
    assert code == 0 and len(report["cases"]) == 7
    assert {case["scheme"]: case["batch"]["lens"] for case in report["cases"]}["thd_even"] == [12, 30]


@pytest.mark.parametrize("layout", ["fp8_656", "bf16_576"])
def test_layouts_count_their_own_bytes(capsys, layout):
    code, report, _ = run(capsys, *SMALL, "--cp", "2", "--layout", layout)
    assert code == 0
    keys = [row for row in report["cases"][0]["bytes"] if row["stage"] == "keys"]
    # zigzag over 2 ranks: 5 + 16 rows on the busiest, which each rank sends once
    assert keys[0]["counted"] == 2 * 20 * {"fp8_656": 788, "bf16_576": 1408}[layout]


def test_another_model(capsys):
    code, report, _ = run(capsys, *SMALL, "--cp", "2", "--model", "glm-5", "--layer", "--o-proj", "a2a_rs")
    assert code == 0 and len(report["cases"]) == 3


def test_a_grid_of_both_runs_every_group(capsys):
    code, report, _ = run(capsys, *SMALL, "--cp", "2", "--dcp", "2", "--next-n", "2")
    assert code == 0
    assert [(case["part"], case["grid"]) for case in report["cases"]] == [
        (part, {"ranks": 4, "cp": 2, "dcp": 2, "tp": 2}) for part in ("prefill", "decode")
    ]
    assert all(check["ranks"] == 4 for case in report["cases"] for check in case["checks"])


def test_dcp_inside_a_larger_tp_group(capsys):
    code, report, _ = run(capsys, *SMALL, "--dcp", "2", "--tp", "4", "--combine", "all", "--payload", "fp32,bf16")
    assert code == 0 and len(report["cases"]) == 6
    promises = {(c["combine"], c["payload"]): c["checks"][1]["promise"] for c in report["cases"]}
    assert [key for key, promise in promises.items() if promise == "bits"] == [("a2a", "fp32")]


def test_every_design_of_the_indexer(capsys):
    code, report, words = run(capsys, *SMALL, "--dcp", "2", "--index-k", "all", "--next-n", "1,3")
    assert code == 0 and len(report["cases"]) == 5 * 2
    for case in report["cases"]:
        first = case["checks"][0]
        if case["index_k"] == "union":
            assert first["what"] == "own picks" and case["union"]["recall"] == 1.0 and case["union"]["attended"] >= 1
            assert all(check["promise"] != "bits" for check in case["checks"][1:])
        else:
            assert first["what"] == "indices" and case["union"] is None
            assert case["checks"][1]["promise"] == "bits" and case["checks"][1]["bitwise"]
        moved = sum(row["counted"] for row in case["bytes"] if row["stage"] == "selection")
        assert (moved > 0) == (case["index_k"] not in ("replicated", "union"))
    assert "union: recall 1.000" in words


def test_layers_and_the_output_projection(capsys):
    code, report, _ = run(capsys, *SMALL, "--cp", "2", "--layer", "--o-proj", "all")
    assert code == 0
    assert [case["part"] for case in report["cases"]] == ["prefill", "layer"] + ["o_proj"] * 4
    out = {case.get("o_proj"): case["checks"][0]["promise"] for case in report["cases"] if case["part"] == "o_proj"}
    assert [mode for mode, promise in out.items() if promise != "bits"] == ["a2a_rs"]


@pytest.mark.parametrize("lens", ["3,0", "0"])
def test_a_rank_without_rows_takes_part(capsys, lens):
    short = ["verify", "--heads", "8", "--lens", lens, "--scheme", "all", "--cp", "4", "--layer", "--o-proj", "all"]
    code, report, _ = run(capsys, *short)
    assert code == 0 and len(report["cases"]) == 2 * 7 + 4


@pytest.mark.parametrize("grid", [("--cp", "2"), ("--dcp", "2")])
@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("flip", "is off by"),
        ("count", "bytes counted"),
        ("corrupt", "held to bits"),
        ("plan", "RankMismatch"),
        ("raise", "injected failure"),
    ],
)
def test_what_is_wrong_is_found(capsys, grid, fault, word):
    code, report, words = run(capsys, *SMALL, *grid, "--inject", fault)
    assert code == 1 and not report["passed"] and len(report["failed"]) == 1
    assert word in words


@pytest.mark.parametrize("fault", ["skip", "delay"])
def test_a_rank_that_stays_away_ends_in_time(capsys, fault):
    code, report, _ = run(capsys, *SMALL, "--cp", "2", "--timeout", "1", "--inject", fault)
    assert code == 1
    assert report["cases"][0]["error"]["type"] in {"CommTimeout", "RankMismatch", "CommError", "ValueError"}
    assert report["seconds"] < 10


def test_every_level_keeps_its_contract(capsys):
    """Levels that round the weights of attention to bfloat16 promise bits on lanes and less elsewhere."""
    for isa in each_isa():
        code, report, _ = run(capsys, *SMALL, "--cp", "2", "--dcp", "2", "--combine", "all")
        assert code == 0 and report["isa"].startswith(isa)


def test_a_fault_leaves_the_next_run_alone(capsys):
    assert main([*SMALL, "--cp", "2", "--inject", "flip"]) == 1
    assert main([*SMALL, "--cp", "2"]) == 0
    capsys.readouterr()


def test_the_time_line_can_be_read_back(capsys, tmp_path):
    file = tmp_path / "line.json"
    assert main([*SMALL, "--cp", "2", "--timeline", str(file)]) == 0
    capsys.readouterr()
    spans = pipeline.Trace.from_json(file.read_text()).spans
    assert [(s.lane, s.name) for s in spans if s.rank == 0] == [("comm", "all_gather")] * 3
    assert {s.rank for s in spans} == {0, 1}
    assert {s.args["case"] for s in spans} == {"prefill cp 2 zigzag lens"} and sum(s.args["bytes"] for s in spans) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cp", "2", "--ranks", "3"], "--ranks is 3"),
        (["--tp", "2"], "--tp needs --cp or --dcp"),
        (["--cp", "2", "--timeout", "0"], "--timeout is 0"),
        (["--dcp", "3", "--heads", "8"], "heads is 8"),
        (["--dcp", "2", "--interleave", "3"], "interleave"),
        (["--cp", "0"], "cp"),
        (["--cp", "2", "--prefix", "1,2,3", "--lens", "4"], "prefix has 3 numbers"),
        (["--cp", "2", "--lens", "-4"], "lens has -4"),
        (["--dcp", "2", "--next-n", "0"], "next_n is 0"),
        (["--cp", "2", "--topk", "0"], "topk is 0"),
        (["--backend", "gloo"], "torchrun"),
    ],
)
def test_refusals_name_the_argument(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("RANK", raising=False)
    if "gloo" in arguments:
        pytest.importorskip("torch")
    assert main(["verify", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--scheme", "spiral"], ["--index-k", "none"], ["--cp", "two"]])
def test_unknown_names_are_refused_by_the_parser(capsys, arguments):
    with pytest.raises(SystemExit) as refusal:
        main(["verify", *arguments])
    assert refusal.value.code == 2
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cp", "2000"), "needs 2000 ranks, threads give at most 1024"),
        (("--cp", "2", "--lens", "99999999"), "needs at most 1048576"),
        (("--dcp", "2", "--next-n", "99999999"), "next_n is 99999999, needs at most 1048576"),
        (("--cp", "2", "--page-size", "9999999"), "page_size is 9999999, needs at most 65536"),
        (("--cp", "2", "--heads", "99998"), "heads is 99998, needs at most 1024"),
        (("--cp", "2", "--topk", "999999"), "topk is 999999, needs at most 131072"),
        (("--cp", "2", "--timeout", "nan"), "--timeout is nan, needs seconds above 0"),
        (("--cp", "2", "--timeout", "inf"), "--timeout is inf, needs seconds above 0"),
        (("--cp", "2", "--inject", "raise", "--inject-at", "-1"), "at is -1, needs the number of an operation"),
        (("--cp", "2", "--timeline", "/no/such/place.json"), "needs a file in a directory that exists"),
        (("--cp", "2", "--timeline", "/"), "needs a file in a directory that exists"),
    ],
)
def test_what_cannot_end_well_is_refused_first(capsys, arguments, words):
    assert main(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""


@pytest.mark.parametrize("option", ["--cp", "--dcp", "--lens", "--tp", "--heads", "--page-size"])
def test_numbers_out_of_range_are_refused_in_words(capsys, option):
    with pytest.raises(SystemExit) as refused:
        main(["verify", option, "99999999999999999999"])
    assert refused.value.code == 2
    assert f"argument {option}: 99999999999999999999 is out of range" in capsys.readouterr().err


def test_a_timeline_that_cannot_be_written_is_told(capsys):
    assert main([*SMALL, "--cp", "2", "--timeline", "/dev/full"]) == 1
    captured = capsys.readouterr()
    assert "--timeline /dev/full cannot be written: No space left on device" in captured.err
    assert "every case kept its contract" in captured.out


def test_a_fault_that_never_comes_fails(capsys):
    assert main([*SMALL, "--cp", "2", "--inject", "raise", "--inject-at", "99"]) == 1
    assert "the fault's never came" in capsys.readouterr().out
