import json

import numpy as np
import pytest

import sparsespan
from sparsespan.cli import main


def test_doctor_tells_machine_and_build(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["build"] == sparsespan.build_info()
    assert report["packages"]["numpy"] != "absent"
    assert main(["doctor"]) == 0
    assert report["machine"]["cpu"] in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as refusal:
        main(["fly"])
    assert refusal.value.code == 2
    assert "fly" in capsys.readouterr().err


SMALL = ["demo", "--part", "layer", "--seq", "100", "--chunk", "64", "--decode", "2", "--json"]


@pytest.mark.parametrize("model", ["v3.2", "glm-5"])
def test_demo_checks_what_it_runs(capsys, model):
    assert main([*SMALL, "--model", model]) == 0
    report = json.loads(capsys.readouterr().out)
    verdicts = {(op["phase"], op["op"]): op["passed"] for op in report["ops"] if op["passed"] is not None}
    assert verdicts == {
        ("prefill", "select"): True,
        ("prefill", "sparse_mla"): True,
        ("decode", "paged_select"): True,
        ("decode", "sparse_mla"): True,
    }
    assert report["passed"] and report["seq"] == 100


def test_demo_fails_when_a_check_fails(capsys, monkeypatch):
    from sparsespan._commands import _demo_steps

    def off_by_a_scale(*args, **kwargs):
        out, lse, largest = sparse_mla(*args, **kwargs)
        return out * np.array(1.5, out.dtype), lse, largest

    sparse_mla = _demo_steps.attention.sparse_mla
    monkeypatch.setattr(_demo_steps.attention, "sparse_mla", off_by_a_scale)
    assert main(SMALL) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"] is False
    assert "off by" in captured.err


MODELS = ["demo", "--part", "models", "--tokens", "60", "--new", "4"]


@pytest.fixture
def one_thread():
    sparsespan.set_num_threads(1)
    yield
    sparsespan.set_num_threads(0)


def test_demo_runs_models_on_two_grids(capsys, one_thread):
    assert main([*MODELS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["model_type"] for one in report["models"]] == ["deepseek_v32", "glm_moe_dsa"] and report["passed"]
    for one in report["models"]:
        assert one["prompt_tokens"] == 60 > one["index_topk"] and one["grids"] == "CP4 x PP2 -> DCP4"
        alone, grids = one["one_rank"], one["two_grids"]
        assert grids["tokens"] == [alone["tokens"]] * 4 and len(alone["tokens"]) == 4
        assert grids["hand_over_bytes"] == grids["planned_bytes"] > 0
        assert len(one["checks"]) == 5 and all(check["passed"] for check in one["checks"])
    assert [one["bytes_per_token"] for one in report["kv"]] == [48_068, 54_728]
    # What is printed is what was found.
    from sparsespan._commands._demo_models_text import facts, tables

    text = tables(report["models"][0])
    assert "CP4 x PP2 -> DCP4" in text and "same bits  pass" in text and "FAIL" not in text
    assert f"{report['models'][0]['two_grids']['hand_over_bytes']:,}" in text
    assert max(map(len, text.splitlines())) <= 120 and "54,728 bytes: GLM-5.2" in facts(report["kv"])


def test_demo_fails_when_a_grid_says_something_else(capsys, monkeypatch, tmp_path, one_thread):
    from sparsespan._commands import _demo_models

    def spoiled(here, model, pool, *rest, **options):
        came = hand_over(here, model, pool, *rest, **options)
        if not here.prefills and here.ranks.tp.rank == 1:
            pool.caches.kv[1][...] *= np.float32(1.01)
        return came

    hand_over = _demo_models.models.PdRanks.hand_over
    monkeypatch.setattr(_demo_models.models.PdRanks, "hand_over", spoiled)
    monkeypatch.setattr(_demo_models, "FAMILIES", {"deepseek_v32": {"num_hidden_layers": 2}})
    text = tmp_path / "text.txt"
    text.write_text("Which keys does this row attend to? " * 2, encoding="utf-8")
    assert main([*MODELS, "--text", str(text)]) == 1
    said = capsys.readouterr()
    assert "FAIL" in said.out and "A CHECK FAILED" in said.out and "text.txt" in said.err
    assert "the same, from one shared cache" in next(x for x in said.out.splitlines() if x.endswith("same bits  FAIL"))


def test_demo_ends_with_130_when_interrupted(capsys, monkeypatch, one_thread):
    from sparsespan._commands import _demo_models

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_demo_models.models.PdRanks, "hand_over", interrupted)
    assert main(MODELS) == 130
    assert capsys.readouterr().err.endswith("\nsparsespan demo: interrupted\n")


def test_demo_reads_the_readme_of_an_installed_package(monkeypatch):
    from sparsespan._commands import _demo_models

    found = _demo_models.text_of(None)
    monkeypatch.setattr(_demo_models, "__file__", "/nowhere/a/b/c/demo.py")
    name, text = _demo_models.text_of(None)
    assert name == found[0] == "README.md"
    assert text.startswith("# sparsespan") and found[1].startswith("# sparsespan")


def test_demo_refuses_nonsense(capsys, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("short", encoding="utf-8")
    assert main(["demo", "--text", str(short)]) == 2
    assert "short.txt has 5 tokens, needs 2560: --tokens asks for so many" in capsys.readouterr().err
    assert main(["demo", "--text", str(tmp_path / "none")]) == 2 and "none" in capsys.readouterr().err
    assert main(["demo", "--new", "0"]) == 2
    assert "--new is 0, needs at least 1" in capsys.readouterr().err
    assert main(["demo", "--chunk", "0"]) == 2
    assert "--chunk is 0, needs at least 1" in capsys.readouterr().err
