"""``sparsespan verify --stages``."""

import json

import pytest

from sparsespan.cli import main
from sparsespan.verification import stages


@pytest.fixture
def verify(worlds, capsys):
    def run(*options, checkpoint=True):
        code = main(["verify", *options, *(("--checkpoint", str(worlds.v32.path)) if checkpoint else ())])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_no_difference(verify):
    code, out, _ = verify("--stages", "one", "cp2", "--prompt", "Sparse attention", "--prompt", "reads few keys")
    assert code == 0 and "2 requests, 30 prefill and 6 decode rows" in out
    assert out.endswith("no difference: all 99 stages are equal bit for bit\n")
    code, out, _ = verify("--stages", "one", "dcp2", checkpoint=False)
    assert code == 0 and "the others within 0.0001 of a row's size, which rounding explains" in out


def test_a_planted_bug(verify):
    code, out, _ = verify("--stages", "one", "cp2", "--plant", "local-positions@2")
    assert code == 1
    assert "first difference: layer 2, k_pe (rope part of the key, turned; pairs interleaved), request 0" in out
    assert "looks like: CP position, certain: a row's place on its rank is taken for its position (zigzag, 2 " in out
    assert "found the position by whose angles each row of b is turned: 60 of 60 rows that differ" in out
    code, out, _ = verify(
        "--stages", "one", "one", "--plant", "index-pairs", "--json", "--model", "glm-5", checkpoint=False
    )
    document = json.loads(out)
    assert code == 1 and document["model_type"] == "glm_moe_dsa" and not document["bits"]
    assert (document["finding"]["bug"], document["finding"]["layer"]) == ("rope pairing", 0)
    assert document["finding"]["beside"] == ["index_q"]


def test_captured_files(verify, tmp_path):
    file = tmp_path / "ours.npz"
    code, _, err = verify("--stages", "one", "tp2", "--capture", str(file), "--decode", "0", "--prompt", "a few keys")
    assert code == 0 and f"wrote {file}" in err
    assert verify("--stages", str(file), "cp2")[0] == 0
    captured = stages.Captured.load(file)
    captured.pieces["lse", 1][0].values[:] *= 1.4426950408889634
    captured.save(file)
    code, out, _ = verify("--stages", "one", str(file))
    assert code == 1 and "looks like: lse base, certain: lse is in base 2" in out


def test_the_table_of_plants(verify, monkeypatch):
    few = {name: stages.PLANTS[name] for name in ("k-pe-half-split", "lse-in-base-2")}
    monkeypatch.setattr(stages, "PLANTS", few)
    code, out, _ = verify("--planted")
    assert code == 0 and out.endswith("2 of 2 planted bugs were named, with their stage and layer\n")
    assert out.startswith("planted") and "1 k_pe 0:1" in out
    code, out, _ = verify("--planted", "--json")
    assert code == 0 and [row["named"] for row in json.loads(out)["planted"]] == [True, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stages", "one"], "--stages has 1 names, needs two: A and B"),
        (
            ["--stages", "one", "xx"],
            "'xx' is no grid, needs one, or tp, cp, dcp, pp with their sizes such as tp2xcp2, transformers, or a file",
        ),
        (["--stages", "one", "tp3"], "tp is 3, which does not divide num_attention_heads = 8"),
        (["--stages", "one", "transformers@fp8"], "transformers runs in f32 or bf16"),
        (["--stages", "one", "none.npz"], "none.npz: is no .npz file of plain arrays"),
        (["--stages", "one", "cp2", "--cp", "2"], "--cp is not for --stages, needs to be left out"),
        (["--stages", "one", "cp2", "--plant", "typo"], "--plant is 'typo', needs one of k-pe-half-split"),
        (["--stages", "one", "cp2", "--plant", "no-diagonal@9"], "layer is '9', needs 0 to 3"),
        (["--stages", "one", "transformers", "--plant", "no-diagonal"], "needs our model on a grid"),
        (["--stages", "one", "cp2", "--planted"], "--stages has 2 names, needs none with --planted"),
        (["--stages", "one", "cp2", "--decode", "-1"], "--decode is -1, needs at least 0"),
        (["--stages", "one", "cp2", "--tolerance", "nan"], "--tolerance is nan, needs 0 or more"),
        (["--stages", "one", "cp2", "--prompt", ""], "a prompt is empty, needs at least one token"),
        (["--stages", "one", "cp2", "--capture", "/nowhere/x.npz"], "needs a file in a directory that exists"),
        (["--stages", "one", "cp2", "--timeout", "0"], "--timeout is 0, needs seconds above 0"),
        (["--plant", "no-diagonal"], "--stages has 0 names, needs two: A and B"),
    ],
)
def test_refusals(verify, options, words):
    code, out, err = verify(*options)
    assert (code, out) == (2, "") and words in err
