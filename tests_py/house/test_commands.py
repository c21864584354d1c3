import json

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
