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


SMALL = ["demo", "--seq", "100", "--chunk", "64", "--decode", "2", "--json"]


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


def test_demo_refuses_nonsense(capsys):
    assert main(["demo", "--chunk", "0"]) == 2
    assert "--chunk is 0, needs at least 1" in capsys.readouterr().err
