"""The fault table on threads; Ctrl-C, which only the main thread sees."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sparsespan.comm import CommAborted, CommError, ThreadComm, run_ranks

sys.path.insert(0, str(Path(__file__).parent))
import fault_table
import faults

sys.path.pop(0)
pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("fault", faults.of("threads"), ids=lambda f: f.name)
def test_threads(fault, ranks):
    faults.judge(fault, fault_table.on_threads(fault, ranks), slack=2.0)
    assert run_ranks(ranks, lambda c: int(c.all_reduce(np.ones(1))[0])) == [ranks] * ranks  # the process is usable


def press_ctrl_c():
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()


def test_ctrl_c_while_the_main_thread_is_a_rank():
    comms = ThreadComm(2)
    press_ctrl_c()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        comms[0].barrier(timeout=20)
    assert time.monotonic() - begin < 5
    with pytest.raises(CommAborted, match=r"given up: barrier \(collective 0\) was interrupted"):
        comms[1].barrier()


def test_ctrl_c_while_ranks_run():
    """run_ranks raises it; ranks that wait for each other are told."""
    ends = []

    def rank(comm):
        try:
            comm.barrier(timeout=20) if comm.rank == 0 else time.sleep(1)
        except CommError as error:
            ends.append(str(error))

    press_ctrl_c()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_ranks(2, rank)
    assert time.monotonic() - begin < 5
    assert len(ends) == 1 and "run_ranks was interrupted: KeyboardInterrupt" in ends[0]


def test_a_with_block_gives_the_group_up_when_it_is_left_in_error():
    comms = ThreadComm(2)
    with pytest.raises(KeyError), comms[0]:
        raise KeyError("boom")
    with pytest.raises(CommAborted, match="the group was given up: rank 0 raised KeyError: 'boom'"), comms[1] as comm:
        comm.barrier()
    with ThreadComm(1)[0] as comm:
        comm.barrier()
    with pytest.raises(CommError, match="this rank has closed the group"):
        comm.barrier()


def test_the_table_is_printed(capsys):
    """python tests_py/comm/fault_table.py threads"""
    assert fault_table.main(["threads"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(faults.of("threads"))
    assert "a rank skips, plans name the step" in "".join(lines)
