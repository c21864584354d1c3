"""``sparsespan run``: the same tokens on every grid, what each rank tells, what is refused."""

import json
import shutil

import pytest
from run_cases import CLI, MPIRUN, PROMPT, WANTED, expect_ctrl_c_to_end, needs_mpi, processes, unsanitized

from sparsespan import models
from sparsespan._commands import _run_rank
from sparsespan.cli import main
from sparsespan.pipeline import Trace

GRIDS = {
    "one": (1, []),
    "tp2": (2, ["--tp", "2"]),
    "cp2": (2, ["--cp", "2", "--scheme", "contiguous"]),
    "cp4 zigzag": (4, ["--cp", "4"]),
    "cp2 x tp2": (4, ["--cp", "2", "--tp", "2"]),
    "cp2 x tp2, o_proj cut": (4, ["--cp", "2", "--tp", "2", "--o-proj", "gather_weight", "--dense-until", "16"]),
    "cp2, heads exchanged": (2, ["--cp", "2", "--scheme", "contiguous_flat", "--o-proj", "a2a_rs"]),
    "cp2, o_proj lent": (2, ["--cp", "2", "--o-proj", "broadcast"]),
    "dcp2": (2, ["--dcp", "2"]),
    "dcp2 sharded": (2, ["--dcp", "2", "--combine", "ag_rs", "--index-k", "sharded", "--chunk", "25"]),
}


@pytest.mark.parametrize("name", ["v32", "glm"])
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_says_what_one_rank_says(run, run_tokens, name, grid):
    ranks, options = GRIDS[grid]
    code, out, _ = run(name, *options, "--json")
    report = json.loads(out)
    assert code == 0 and report["tokens"] == run_tokens[name]
    assert [r["rank"] for r in report["ranks"]] == list(range(ranks))
    for rank in report["ranks"]:
        received = sum(op["bytes"] for group in rank["comm"].values() for op in group.values())
        assert (received > 0) == (ranks > 1)
        assert rank["kv_bytes"] > 0 and rank["peak_memory_bytes"] > 0
        # Parts are measured one beside the other: together they are the whole.
        whole = rank["prefill_seconds"] + rank["decode_seconds"]
        assert sum(rank["seconds"].values()) == pytest.approx(whole, rel=0.05)
        assert all(rank["seconds"][part] > 0 for part in ("indexer", "select", "attention", "linear"))


@pytest.mark.parametrize("name", ["v32", "glm"])
def test_a_prompt_shorter_than_the_ranks(run, name):
    """Ranks without a row take part all the same."""
    said = [run(name, "--cp", cp, "--json", prompt=("--prompt", "a")) for cp in "14"]
    assert [code for code, _, _ in said] == [0, 0], said
    assert len({tuple(json.loads(out)["tokens"]) for _, out, _ in said}) == 1


def test_dcp_ranks_hold_their_part(run):
    held = {n: json.loads(run("v32", "--dcp", n, "--pool", "512", "--index-k", "sharded", "--json")[1]) for n in "124"}
    one = held["1"]["ranks"][0]["kv_bytes"]
    assert [held[n]["ranks"][0]["kv_bytes"] * int(n) for n in "24"] == [one, one]


def test_text_then_tables(run, run_tokens, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8")
    code, out, _ = run("v32", "--cp", "2", prompt=("--prompt-file", str(file)))
    assert code == 0
    said, tables = out.split("\n\n", 1)
    assert len(said) >= 1 and "deepseek_v32 on CP2 zigzag (threads): 66 prompt tokens" in tables
    assert "indexer s  select s  attention s  linear s  comm s  rest s" in tables
    assert "all_gather" in tables and "seconds measured" in tables
    code, out, err = run("v32", "--json")
    assert json.loads(out)["tokens"] == run_tokens["v32"] and err.strip()


def test_a_trace_has_the_parts_and_the_collectives(run, tmp_path):
    file = tmp_path / "trace.json"
    assert run("v32", "--tp", "2", "--trace", str(file))[0] == 0
    trace = Trace.from_json(file.read_text())
    assert {s.name for s in trace.spans if s.lane == "compute"} == {"indexer", "select", "attention", "linear"}
    assert {s.name for s in trace.spans if s.lane == "comm"} == {"all_gather tp", "all_to_all tp"}
    assert trace.ranks == 2


def test_seeds_draw(run):
    draws = [json.loads(run("v32", "--temperature", "1", "--seed", s, "--json")[1])["tokens"] for s in "112"]
    assert draws[0] == draws[1] != draws[2]


REFUSALS = {
    "tp": (["--tp", "3"], "tp is 3, which does not divide num_attention_heads = 8, hidden_size = 64, "),
    "nearest": (["--tp", "3"], "needs one of 1, 2, 4, 8"),
    "cp dcp": (["--cp", "2", "--dcp", "2"], "cp is 2 and dcp 2, needs one of them to be 1"),
    "dcp tp": (["--dcp", "2", "--tp", "4"], "dcp is 2 and tp 4, needs dcp = 4 (or 1)"),
    "zero": (["--cp", "0"], "cp is 0, needs at least 1"),
    "tokens": (["--max-new-tokens", "0"], "--max-new-tokens is 0, needs at least 1"),
    "threads": (["--cp", "5000"], "the grid has 5000 ranks, threads give at most 1024"),
    "temperature": (["--temperature", "nan"], "--temperature is nan, needs at least 0"),
    "o_proj": (["--o-proj", "a2a_rs"], "o_proj is 'a2a_rs' and cp 1, needs ranks that share it"),
    "dense": (["--dense-until", "17"], "--dense-until is 17, needs at most index_topk = 16"),
    "dense too": (["--dense-until", "-1"], "--dense-until is -1, needs at least 0"),
    "timeout": (["--timeout", "0"], "--timeout is 0, needs more than 0 seconds"),
    "pool": (["--pool", "64"], "128 in pages of 64, the pool has 64; needs a larger pool"),
    "room": (["--max-new-tokens", "999999"], "needs at most max_position_embeddings = 163840: ask for 163775"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(run, case):
    options, words = REFUSALS[case]
    code, out, err = run("v32", *options)
    assert (code, out) == (2, "")
    assert err.startswith("sparsespan run: ") and words in err


def test_prompts_are_refused(run, tmp_path):
    assert "the prompt is empty, needs at least one token" in run("v32", prompt=("--prompt", ""))[2]
    assert (
        f"--prompt-file {tmp_path} cannot be read: Is a directory"
        in run("v32", prompt=("--prompt-file", str(tmp_path)))[2]
    )
    assert "nothing.txt" in run("v32", prompt=("--prompt-file", str(tmp_path / "nothing.txt")))[2]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    code, _, err = run("v32", prompt=("--prompt-file", str(tmp_path / "latin.txt")))
    assert code == 2 and "is no UTF-8 text" in err


def _changed(source, target, **fields):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    return str(target)


def test_checkpoints_are_refused(run_paths, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(run_paths["v32"], bare)
    (bare / "tokenizer.json").unlink()
    hollow = tmp_path / "hollow"
    shutil.copytree(run_paths["v32"], hollow)
    (hollow / "model.safetensors").unlink()
    for path, words in (
        (str(tmp_path / "nowhere"), "is no folder, needs the one with config.json"),
        (str(bare), "has no tokenizer.json, needs it to read the prompt"),
        (str(hollow), "has neither model.safetensors nor model.safetensors.index.json"),
        (
            _changed(run_paths["v32"], tmp_path / "llama", model_type="llama"),
            "model_type is 'llama', needs one of deepseek",
        ),
        (
            _changed(run_paths["v32"], tmp_path / "short", max_position_embeddings=8),
            f"the prompt has {len(PROMPT)} tokens and 2 are wanted, needs at most max_position_embeddings = 8: "
            "shorten the prompt to 7",
        ),
    ):
        assert main(["run", path, "--prompt", PROMPT, "--max-new-tokens", "2"]) == 2
        assert words in capsys.readouterr().err


def test_a_trace_that_cannot_be_written_is_refused_first(run, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere" / "trace.json"):
        code, out, err = run("v32", "--trace", str(path))
        assert (code, out) == (2, "") and f"--trace is {str(path)!r}, needs a file in a directory that exists" in err


def test_other_checkpoints_have_other_fingerprints(run_paths):
    marks = [
        _run_rank.fingerprint(models.Checkpoint(run_paths[n]), s) for n, s in (("v32", 1), ("v32", 2), ("other", 1))
    ]
    assert len({*marks}) == 3
    assert marks[0] == _run_rank.fingerprint(models.Checkpoint(run_paths["v32"]), 1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_interrupt_ends_with_130(run, monkeypatch, ranks):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.Model, "generate", interrupted)
    code, _, err = run("v32", "--tp", str(ranks))
    assert code == 130 and "interrupted" in err


def test_ctrl_c_reaches_ranks_that_wait_for_nobody(run_paths):
    """In decode CP ranks exchange nothing."""
    expect_ctrl_c_to_end(run_paths["v32"], "--cp", "2")


def test_a_failing_rank_ends_with_1(run, monkeypatch):
    def full(*_, **__):
        raise models.PoolFull("0 of 1 are free")

    monkeypatch.setattr(models.Model, "generate", full)
    code, _, err = run("v32", "--cp", "2")
    assert code == 1 and "sparsespan run: 0 of 1 are free" in err


def _mpi(run_paths, second, *options):
    """Two processes, of which the second may have another checkpoint."""
    rest = ["--prompt", PROMPT, *WANTED, "--backend", "mpi", "--json", *options]
    one = [*CLI, run_paths["v32"], *rest]
    return processes([str(MPIRUN), "-n", "1", *one, ":", "-n", "1", *CLI, run_paths[second], *rest], 60)


@pytest.mark.peer
@unsanitized
@needs_mpi
def test_two_processes(run_paths, run_tokens):
    done = _mpi(run_paths, "v32", "--cp", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == run_tokens["v32"]
    for mode in ("gather_weight", "a2a_rs", "broadcast"):
        kept = _mpi(run_paths, "v32", "--cp", "2", "--o-proj", mode, "--dense-until", "9")
        assert kept.returncode == 0, kept.stderr
        assert json.loads(kept.stdout)["tokens"] == run_tokens["v32"]
    other = _mpi(run_paths, "other", "--cp", "2")
    assert other.returncode == 2 and other.stdout == ""
    assert "rank 1 has another checkpoint, prompt or options than rank 0" in other.stderr
