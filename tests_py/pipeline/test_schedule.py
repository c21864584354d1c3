import csv
import io

import pytest

from sparsespan.pipeline import Action, Schedule, ScheduleError, add_send_recv, dualpipe_v, gpipe


def test_action():
    a = Action("1P5@0:4096+2048")
    assert (a.kind, a.stage, a.microbatch, a.request, a.start, a.length) == ("P", 1, 5, 0, 4096, 2048)
    assert str(a) == "1P5@0:4096+2048" and repr(a) == "Action('1P5@0:4096+2048')"
    assert a == Action(str(a)) and hash(a) == hash(Action(str(a))) and a != Action("1F5")
    pair = Action("(0F7;7B3)OVERLAP_F_B")
    assert [str(p) for p in pair.parts] == ["0F7", "7B3"]


def test_lists_and_csv_round_trip():
    s = add_send_recv(dualpipe_v(2, 5))
    assert Schedule(s.ranks) == s
    assert Schedule.from_csv(s.to_csv()) == s
    assert Schedule([[str(a) for a in row] for row in s.ranks]) == s
    assert s != gpipe(2, 5)


def test_python_csv_reads_and_writes_it():
    s = Schedule([["0F0", None, "0B0"], [], [None]])
    rows = list(csv.reader(io.StringIO(s.to_csv())))
    assert rows == [["0F0", "", "0B0"], [], [""]]
    out = io.StringIO()
    csv.writer(out).writerows(rows)  # \r\n line ends
    assert Schedule.from_csv(out.getvalue()) == s


def test_declared_counts():
    s = Schedule([["0F0"]], stages=2, microbatches=3, mode="train")
    assert (s.stages, s.microbatches, s.mode) == (2, 3, "train")
    assert Schedule([["0F0"]]).mode == "forward" and Schedule([["0S0"]]).mode == "serve"


def test_words_and_repr():
    s = gpipe(2, 1)
    assert "0F0 0B0" in str(s)
    assert repr(s) == "<Schedule: train, 2 ranks, 2 stages, 1 micro-batches, 4 actions>"
    assert len(s) == 2


def test_refusals():
    with pytest.raises(ScheduleError, match=r"line 2, column 5: unknown kind 'G' in '1G0'"):
        Schedule.from_csv("0F0\n,  1G0\n")
    with pytest.raises(ValueError, match=r"no stage number"):
        Action("F0")
    with pytest.raises(TypeError, match=r"ranks holds a int at \[0, 1\]|ranks holds a int at \[0\]\[1\]"):
        Schedule([["0F0", 7]])
    with pytest.raises(ValueError, match=r"mode is 'x', needs 'train', 'forward' or 'serve'"):
        Schedule([["0F0"]], mode="x")
