"""``sparsespan run --decode-...``: one grid prefills, another decodes; the tokens of one rank, and what moved."""

import json

import pytest
from run_cases import PROMPT, backends, expect_ctrl_c_to_end, four_processes, unsanitized

from sparsespan import models
from sparsespan.pipeline import Trace

# (prefill ranks, decode ranks, options, bytes: copies of the latent cache and of the index keys that arrive)
GRIDS = {
    "cp4 x pp2 -> dcp4": (8, 4, ["--cp", "4", "--pp", "2", "--decode-dcp", "4"], 1, 4),
    "cp2 -> tp2": (2, 2, ["--cp", "2", "--decode-tp", "2", "--chunk", "25"], 2, 2),
    "dcp2 -> pp2": (2, 2, ["--dcp", "2", "--decode-pp", "2"], 1, 1),
    "sglang": (4, 2, ["--flavor", "sglang", "--tp", "4", "--cp", "2", "--decode-tp", "2", "--decode-dcp", "2",
                      "--index-k", "sharded"], 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ["v32", "glm"])
@pytest.mark.parametrize("grid", GRIDS)
def test_two_grids_say_what_one_rank_says(run, run_tokens, name, grid):
    senders, takers, options, latent, keys = GRIDS[grid]
    code, out, err = run(name, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["tokens"] == run_tokens[name]
    assert [r["place"]["side"] for r in report["ranks"]] == ["prefill"] * senders + ["decode"] * takers
    moved, index_layers = report["hand_over"], 2 if name == "glm" else 3
    assert moved["bytes"] == moved["planned_bytes"] == len(PROMPT) * 4 * (3 * 576 * latent + index_layers * 128 * keys)
    assert sum(r["hand_over"]["received"] for r in report["ranks"]) == moved["bytes"]
    for rank in report["ranks"]:
        decodes = rank["place"]["side"] == "decode"
        assert (rank["decode_seconds"] > 0, rank["prefill_seconds"] == 0) == (decodes, decodes)
        phases = (rank[f"{phase}_seconds"] for phase in ("prefill", "wait", "hand_over", "decode"))
        assert sum(rank["seconds"].values()) == pytest.approx(sum(phases), rel=0.05)
        assert all(rank["seconds"][part] > 0 for part in ("indexer", "select", "attention", "linear"))
    decode = report["grid"]["decode"]
    assert decode["tp"] * decode["pp"] == takers and decode["cp"] == 1


def test_caches_are_of_the_size_that_each_side_needs(run):
    ranks = json.loads(run("v32", "--decode-tp", "1", "--max-new-tokens", "100", "--json")[1])["ranks"]
    page = 64 * 3 * (576 + 128) * 4
    assert [r["kv_bytes"] for r in ranks] == [2 * page, 3 * page]  # 66 tokens; 66 + 99


def test_text_tables_and_trace(run, run_tokens, tmp_path):
    file = tmp_path / "trace.json"
    code, out, _ = run("v32", "--cp", "2", "--decode-dcp", "2", "--trace", str(file))
    assert code == 0
    said, lines = out.split("\n\n", 1)[0], out.split("\n\n", 1)[1].splitlines()
    assert said
    assert "CP2 zigzag -> TP2 x DCP2 a2a, index-K replicated (threads): 66 prompt tokens" in lines[0]
    assert lines[1].split()[:4] == ["rank", "side", "stage", "layers"]
    assert [line.split()[1] for line in lines[2:6]] == ["prefill"] * 2 + ["decode"] * 2
    # 66 tokens, 3 layers: the latent rows once, all index keys on both decode ranks.
    assert lines[6].startswith(f"handed over: {66 * 3 * (576 + 2 * 128) * 4:,} bytes of caches, those of the plan, in ")
    names = {s.name for s in Trace.from_json(file.read_text()).spans if s.lane == "comm"}
    assert {"send hand-over", "recv hand-over"} <= names


REFUSALS = {
    "dcp": (["--decode-tp", "4", "--decode-dcp", "2"], "decode grid: dcp is 2 and tp 4, needs dcp = 4 (or 1)"),
    "zero": (["--decode-pp", "0"], "decode grid: pp is 0, needs at least 1"),
    "layers": (["--decode-pp", "4"], "pp is 4, the model has 3 layers"),
    "pool": (["--decode-tp", "2", "--pool", "64"], "the prompt has 66 tokens and 5 are wanted: 128 in pages of 64"),
    "prefill pool": (["--decode-dcp", "2", "--pool", "64"], "prefill ranks: the prompt has 66 tokens"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(run, case):
    options, words = REFUSALS[case]
    code, out, err = run("v32", *options)
    assert (code, out) == (2, "")
    assert err.startswith("sparsespan run: ") and words in err


@pytest.mark.parametrize("method", ["prefill", "hand_over"])
def test_an_error_on_one_side_ends_both(run, monkeypatch, method):
    def failing(*_, **__):
        raise ValueError("a planted error")

    monkeypatch.setattr(models.Model if method == "prefill" else models.PdRanks, method, failing)
    code, _, err = run("v32", "--cp", "2", "--decode-dcp", "2")
    assert code == 1 and "sparsespan run: a planted error" in err


def test_ctrl_c_ends_both_sides(run_paths):
    expect_ctrl_c_to_end(run_paths["v32"], "--decode-tp", "1")


@pytest.mark.peer
@pytest.mark.timeout(120)
@unsanitized
@backends
def test_four_processes(run_paths, run_tokens, backend):
    done = four_processes(backend, run_paths["glm"], "--cp", "2", "--decode-dcp", "2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tokens"] == run_tokens["glm"]
    assert report["hand_over"]["bytes"] == len(PROMPT) * 4 * (3 * 576 + 2 * 2 * 128)
    assert [r["place"]["side"] for r in report["ranks"]] == ["prefill"] * 2 + ["decode"] * 2
