import json

import pytest

from sparsespan.cli import main
from sparsespan.pipeline import Schedule, dualpipe_v


def test_dualpipe_v(tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "svg", "trace")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    assert main(["schedule", "dualpipe_v", "--ranks", "4", "--microbatches", "10", "--overlap", "3", *options]) == 0
    assert "makespan 66, bubble [6.0, 6.0, 6.0, 6.0], peak activations [9, 9, 9, 9]" in capsys.readouterr().out
    assert Schedule.from_csv(files["csv"].read_text()) == dualpipe_v(4, 10)
    assert files["svg"].read_text().startswith("<svg")
    assert json.loads(files["trace"].read_text())["traceEvents"]
    # The file it wrote can be read again.
    assert main(["schedule", str(files["csv"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modelled"]["makespan"] == 66


@pytest.mark.parametrize(
    "kind", ["gpipe", "one_f_one_b", "interleaved", "zero_bubble", "zero_bubble_v", "chunked_prefill", "decode_loop"]
)
def test_kinds(kind, capsys):
    assert main(["schedule", kind, "--messages", "--latency", "0.5"]) == 0
    assert "valid" in capsys.readouterr().out


def test_what_is_wrong_fails(tmp_path, capsys):
    bad = tmp_path / "bad.csv"
    bad.write_text("0B0,0F0\n")
    assert main(["schedule", str(bad)]) == 1
    assert ">0B0<" in capsys.readouterr().err
    assert main(["schedule", "nothing"]) == 1
    assert "needs a CSV file or one of" in capsys.readouterr().err
    assert main(["schedule", "dualpipe_v", "--microbatches", "2"]) == 1
