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


def test_a_file_has_the_ranks_that_were_asked_for(tmp_path, capsys):
    file = tmp_path / "two.csv"
    file.write_text("0F0,0F1\n1F0,1F1\n")
    assert main(["schedule", str(file)]) == main(["schedule", str(file), "--ranks", "2"]) == 0
    assert main(["schedule", str(file), "--ranks", "3"]) == 1
    assert "needs 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpipe", "--F", "-1"], "a cost is -1"),
        (["gpipe", "--latency", "-1"], "latency is -1"),
        (["gpipe", "--F", "1e308", "--B", "1e308"], "costs add up to inf"),
        (["gpipe", "--ranks", "0"], "ranks is 0"),
        (["chunked_prefill", "--chunks", "8,0"], "0 tokens at 1"),
        (["chunked_prefill", "--chunks", "8,a"], "--chunks is '8,a', needs numbers of tokens with commas between"),
        (["gpipe", "--svg", "no/such/folder.svg"], "no/such/folder.svg"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, words, capsys):
    assert main(["schedule", *arguments]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_text_that_does_not_parse_is_found_by_line_and_column(tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("0F0,0F1\n1F0,1Z1\n")
    assert main(["schedule", str(tmp_path / "bad.csv")]) == 1
    assert "line 2, column 6: unknown kind 'Z' in '1Z1'" in capsys.readouterr().err


def test_a_trace_that_cannot_be_drawn_is_said(tmp_path, capsys):
    file = str(tmp_path / "t.json")
    assert main(["schedule", "gpipe", "--trace", file]) == 0
    assert main(["trace", file, "--svg", "no/such/folder.svg"]) == 1
    assert "no/such/folder.svg" in capsys.readouterr().err


def test_waves(capsys):
    """The table of the reported case: 1.312 ms, 2.211 ms with a receive beside it, 1.312 ms again on 77 SMs."""
    assert main(["waves"]) == 0
    said = capsys.readouterr().out.split("\n")
    assert said[0] == "512 tiles, 78 SMs of which 1 held; modelled, alone on the machine: 573 units"
    assert [line.split()[-4:] for line in said[2:5]] == [
        ["78", "7", "966", "1.686"], ["77", "7", "574", "1.002"], ["77", "7", "574", "1.002"],
    ]  # fmt: skip
    assert main(["waves", "--tiles", "512", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["modelled"]
    assert [round(row["slowdown"], 3) for row in rows] == [1.714, 1.0, 1.0]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("tiles", -1, "tiles is -1"), ("cp", 0, "--cp is 0"), ("rank", 8, "--rank is 8, needs 0 to 7"),
        ("prefix", -1, "--prefix is -1"), ("chunk", -1, "--chunk is -1"), ("reserved", 78, "one SM must be left"),
        ("rows-per-tile", 0, "rows_per_tile is 0"),
    ],
)  # fmt: skip
def test_waves_refusals(option, value, words, capsys):
    assert main(["waves", f"--{option}", str(value)]) == 1
    assert words in capsys.readouterr().err
