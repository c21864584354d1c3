"""``sparsespan run --pp``: the tokens of one rank on threads and processes, what each stage tells, engines' numbers."""

import json
import sys
from pathlib import Path

import pytest
from run_cases import (
    MPIRUN,
    NEW,
    PROMPT,
    backends,
    expect_ctrl_c_to_end,
    four_processes,
    needs_mpi,
    processes,
    unsanitized,
)

from sparsespan import models
from sparsespan.cli import main
from sparsespan.pipeline import Trace

GRIDS = {
    "pp2": (2, ["--pp", "2"]),
    "pp3": (3, ["--pp", "3", "--chunk", "16"]),
    "pp2 x cp2": (4, ["--pp", "2", "--cp", "2", "--chunk", "25"]),
    "pp2 x tp2": (4, ["--pp", "2", "--tp", "2", "--pp-layers", "1,2"]),
    "pp2 x dcp2": (4, ["--pp", "2", "--dcp", "2"]),
    "vllm": (4, ["--flavor", "vllm", "--pp", "2", "--tp", "2"]),
    "sglang": (4, ["--flavor", "sglang", "--pp", "2", "--tp", "2", "--cp", "2"]),
}


@pytest.mark.parametrize("name", ["v32", "glm"])
@pytest.mark.parametrize("grid", GRIDS)
def test_stages_say_what_one_rank_says(run, run_tokens, name, grid):
    ranks, options = GRIDS[grid]
    code, out, err = run(name, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["tokens"] == run_tokens[name]
    assert [r["rank"] for r in report["ranks"]] == list(range(ranks))
    stages = report["grid"]["pp"]
    for rank in report["ranks"]:
        stage, line = rank["place"]["stage"], rank["comm"]["pp"]
        assert stage == rank["rank"] * stages // ranks
        assert ("send" in line, "recv" in line) == (stage < stages - 1, stage > 0)
        # A token of one request for each step goes back to every stage but the one that sampled it.
        assert line["broadcast"]["bytes"] == (8 * NEW if stage < stages - 1 else 0)
    layers = {r["place"]["stage"]: r["layers"] for r in report["ranks"]}
    assert [layer for s in range(stages) for layer in layers[s]] == [0, 1, 2]


def test_caches_hold_the_stages_own_layers(run):
    """glm: layer 1 has no index keys."""
    whole = json.loads(run("glm", "--json")[1])["ranks"][0]
    parts = json.loads(run("glm", "--pp", "3", "--json")[1])["ranks"]
    assert sum(r["kv_bytes"] for r in parts) == whole["kv_bytes"]
    assert parts[1]["kv_bytes_per_token"] == 576 * 4 < parts[0]["kv_bytes_per_token"] == (576 + 128) * 4


@pytest.mark.parametrize("name", ["v32", "glm"])
def test_a_prompt_shorter_than_the_ranks(run_paths, capsys, name):
    """Shards without a row travel all the same."""
    said = []
    for options in ([], ["--cp", "4", "--pp", "2", "--pp-layers", "1,2"]):
        assert (
            main(["run", run_paths[name], "--prompt", "a", "--max-new-tokens", "3", "--ignore-eos", "--json", *options])
            == 0
        )
        said.append(json.loads(capsys.readouterr().out)["tokens"])
    assert said[0] == said[1]


def test_sixteen_ranks_with_sglangs_numbers(run, run_tokens):
    """tp 8 is a whole stage, and cp 8 all of it; the cut divides an IndexShare group."""
    code, out, err = run("glm", "--flavor", "sglang", "--tp", "8", "--cp", "8", "--pp", "2", "--pp-layers", "1,2",
                         "--json")  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["tokens"] == run_tokens["glm"]
    assert report["grid"]["words"] == "CP8 zigzag x PP2" and report["grid"]["flavor"] == "sglang"
    assert len(report["ranks"]) == 16
    steps, header = NEW - 1, 2 * 128
    row = 64 * 4 + 16 * 4  # hidden and indices
    came = [r["comm"]["pp"]["recv"]["bytes"] for r in report["ranks"][8:]]
    # Of the prompt each rank has its own rows, of a decode step all (one).
    assert sum(came) == (len(PROMPT) + 8 * steps) * row + 8 * (1 + steps) * header


def test_the_table_and_the_trace_have_stages(run, tmp_path):
    file = tmp_path / "trace.json"
    code, out, _ = run("v32", "--pp", "2", "--chunk", "20", "--trace", str(file))
    assert code == 0
    lines = out.split("\n\n", 1)[1].splitlines()
    assert "PP2 (threads): 66 prompt tokens" in lines[0]
    assert lines[1].split()[:5] == ["rank", "stage", "layers", "cp", "tp"]
    assert [line.split()[:5] for line in lines[2:4]] == [["0", "0", "0-1", "0", "0"], ["1", "1", "2-2", "0", "0"]]
    assert any(line.split()[1:3] == ["pp", "recv"] for line in lines if line.strip())
    trace = Trace.from_json(file.read_text())
    for rank in range(2):
        mine = [s.name for s in trace.spans if s.rank == rank and s.name.startswith("stage")]
        assert mine == [f"stage {rank} prefill {i}" for i in range(4)] + [f"stage {rank} decode"] * (NEW - 1)
    assert {"send pp", "recv pp", "broadcast pp"} <= {s.name for s in trace.spans if s.lane == "comm"}


REFUSALS = {
    "zero": (["--pp", "0"], "grid: pp is 0, needs at least 1"),
    "layers": (["--pp", "4"], "pp is 4, the model has 3 layers; needs a layer for each stage: pp 1 to 3, nearest PP3"),
    "split": (
        ["--pp", "2", "--pp-layers", "1,1"],
        "stage_layers is [1, 1], needs 2 numbers from 1 on that add up to 3",
    ),
    "words": (["--pp", "2", "--pp-layers", "1;2"], "--pp-layers is '1;2', needs whole numbers with commas between"),
    "sglang": (["--flavor", "sglang", "--tp", "8", "--cp", "3"], "needs one that divides it: 1, 2, 4, 8; nearest is"),
    "tp": (["--pp", "2", "--tp", "3"], "needs one of 1, 2, 4, 8: nearest is TP2 x PP2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(run, case):
    options, words = REFUSALS[case]
    code, out, err = run("v32", *options)
    assert (code, out) == (2, "")
    assert err.startswith("sparsespan run: ") and words in err


def test_an_error_on_the_last_stage_ends_with_1(run, monkeypatch):
    def failing(*_, **__):
        raise ValueError("a planted error")

    monkeypatch.setattr(models.Model, "logits", failing)
    code, _, err = run("v32", "--pp", "2", "--cp", "2")
    assert code == 1 and "sparsespan run: a planted error" in err


@pytest.mark.peer
@pytest.mark.timeout(120)
@unsanitized
@backends
def test_four_processes(run_paths, run_tokens, backend):
    done = four_processes(backend, run_paths["glm"], "--cp", "2", "--pp", "2", "--pp-layers", "1,2", "--chunk", "25")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tokens"] == run_tokens["glm"]
    assert [(r["place"]["stage"], r["place"]["cp"]) for r in report["ranks"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@needs_mpi
@pytest.mark.peer
@pytest.mark.timeout(120)
@unsanitized
def test_a_failing_process_ends_the_others(run_paths):
    worker = Path(__file__).parent / "stages_worker.py"
    done = processes([str(MPIRUN), "-n", "4", sys.executable, str(worker), run_paths["glm"]])
    said = sorted(line.split(maxsplit=3) for line in done.stdout.splitlines())
    assert [line[0] for line in said] == list("0123"), done.stderr
    assert said[2][1] == "ZeroDivisionError"
    for rank, kind, seconds, words in said:
        assert "a planted error" in words and float(seconds) < 60
        assert rank == "2" or kind == "CommAborted"


def test_ctrl_c_reaches_the_stages(run_paths):
    expect_ctrl_c_to_end(run_paths["v32"], "--pp", "2", "--cp", "2")
