"""What a communicator tells about itself: counters per primitive and the time line, parts apart from the whole."""

import time

import numpy as np
import pytest

from sparsespan.comm import CommTimeout, ThreadComm, run_ranks
from sparsespan.testing import FaultyComm

pytestmark = pytest.mark.timeout(60)


def test_the_time_line_holds_every_operation():
    def rank(comm):
        before = time.monotonic()
        slow = FaultyComm(comm, "delay", at=1, seconds=0.1) if comm.rank == 1 else comm
        slow.all_gather(np.zeros((2, 3)))
        slow.barrier()
        slow.broadcast(np.zeros(5), 1)
        return comm.timeline(), before, time.monotonic()

    for r, (spans, before, after) in enumerate(run_ranks(2, rank)):
        assert [(s["op"], s["bytes"], s["peer"], s["failed"]) for s in spans] == [
            ("all_gather", 48, None, False),
            ("barrier", 0, None, False),
            ("broadcast", 40 if r == 0 else 0, 1, False),
        ]
        times = [t for s in spans for t in (s["start"], s["end"])]
        assert times == sorted(times) and before <= times[0] and times[-1] <= after
    waiting = run_ranks(2, rank)[0][0][1]  # rank 0 stands in the barrier while rank 1 is late
    assert waiting["end"] - waiting["start"] >= 0.08


def test_operations_under_way_are_left_out_and_failed_ones_marked():
    comms = ThreadComm(2)
    work = comms[0].iall_gather(np.zeros(2))
    assert comms[0].timeline() == []
    with pytest.raises(CommTimeout):
        work.wait(0.05)
    (span,) = comms[0].timeline()
    assert span["failed"] and span["bytes"] == 0 and span["end"] - span["start"] >= 0.05


def test_parts_count_apart_from_the_whole():
    def rank(comm):
        comm.reset_trace()
        part = comm.split(comm.rank // 2)
        part.all_gather(np.zeros(4))
        comm.all_reduce(np.zeros(8))
        return [{op: (row["calls"], row["bytes"]) for op, row in c.trace().items()} for c in (comm, part)], [
            [s["op"] for s in c.timeline()] for c in (comm, part)
        ]

    for (whole, part), lines in run_ranks(4, rank):
        # split exchanges (color, key, number): 3 words from each of 3 peers. all_reduce: 2 (N - 1) / N of 64 bytes.
        assert whole == {"split": (1, 72), "all_reduce": (1, 96)}
        assert part == {"all_gather": (1, 32)}
        assert lines == [["split", "all_reduce"], ["all_gather"]]


def test_reset_starts_anew():
    comm = ThreadComm(1)[0]
    comm.barrier()
    comm.reset_trace()
    assert comm.trace() == {} and comm.timeline() == []
    comm.all_gather(np.zeros(1))
    assert [s["op"] for s in comm.timeline()] == ["all_gather"]


def test_the_time_line_forgets_its_beginning():
    comm = ThreadComm(1)[0]
    for _ in range(65536 + 10):
        comm.barrier()
    assert len(comm.timeline()) == 65536
