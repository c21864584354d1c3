"""ThreadComm: conformance, faults, refusals, records."""

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from sparsespan import num_threads
from sparsespan.comm import CommAborted, CommError, CommTimeout, RankMismatch, ThreadComm, as_comm, run_ranks
from sparsespan.testing import FaultyComm

sys.path.insert(0, str(Path(__file__).parent))
import conformance

sys.path.pop(0)
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_conforms(ranks, check):
    run_ranks(ranks, check, timeout=20)


def ends(ranks, fn, timeout=0.5):
    """How each rank ended: None or its exception."""
    errors = [None] * ranks

    def rank(comm):
        try:
            fn(comm)
        except Exception as error:
            errors[comm.rank] = error
            raise

    with pytest.raises(Exception) as raised:
        run_ranks(ranks, rank, timeout=timeout)
    return raised.value, errors


def faulty(fault, at=1, seconds=1.5):
    def body(comm):
        bad = FaultyComm(comm, fault, at, seconds) if comm.rank == 1 else comm
        for _ in range(3):
            bad.all_gather(np.ones(100))

    return body


def test_a_rank_that_raises_aborts_the_others():
    def body(comm):
        if comm.rank == 2:
            raise KeyError("boom")
        comm.barrier()

    first, errors = ends(4, body)
    assert isinstance(first, KeyError)
    assert [type(e) for e in errors] == [CommAborted, CommAborted, KeyError, CommAborted]
    assert errors[0].ranks == (2,) and "rank 2 raised KeyError" in str(errors[0])


def test_injected_raise():
    first, errors = ends(3, faulty("raise"))
    assert str(first) == "all_gather: injected failure at operation 1"
    assert isinstance(errors[0], CommAborted) and isinstance(errors[2], CommAborted)


def test_a_skipped_collective_ends_in_words():
    # Ranks 0 and 2 take rank 1's third call for its second; the third never finds it.
    first, errors = ends(3, faulty("skip"))
    assert "rank 1 left the group without taking part" in str(first)
    assert isinstance(first, CommError) and first.ranks == (1,)
    assert errors[1] is None


def test_another_plan_is_told_on_every_rank():
    _, errors = ends(3, faulty("mismatch"))
    assert all(isinstance(e, RankMismatch) and e.field == "plan" and e.ranks == (1,) for e in errors)
    assert errors[0].op == "all_gather" and errors[0].sequence == 1


def test_a_late_rank_is_named():
    begin = time.monotonic()
    _, errors = ends(3, faulty("delay"))
    assert time.monotonic() - begin < 10
    kinds = {type(e) for e in errors}
    assert CommTimeout in kinds and kinds <= {CommTimeout, CommAborted}
    assert next(e for e in errors if isinstance(e, CommTimeout)).ranks == (1,)


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("op", lambda c: c.barrier() if c.rank == 1 else c.all_gather(np.ones(2))),
        ("dtype", lambda c: c.all_gather(np.ones(2, np.int64 if c.rank == 1 else np.float64))),
        ("shape", lambda c: c.all_gather(np.ones(2 + (c.rank == 1)))),
        ("reduction", lambda c: c.all_reduce(np.ones(2), "max" if c.rank == 1 else "sum")),
        ("root", lambda c: c.broadcast(np.ones(2), int(c.rank == 1))),
        ("plan", lambda c: c.all_gather(np.ones(2), plan="b" if c.rank == 1 else "a")),
    ],
)
def test_every_difference_is_named(field, call):
    _, errors = ends(3, call)
    assert all(isinstance(e, RankMismatch) for e in errors)
    assert errors[0].field == field and errors[0].ranks == (1,)
    assert "on rank 1" in str(errors[0]) and "ranks 0 and 2" in str(errors[0])


def test_counts_of_a_pair_are_compared():
    def body(comm):
        to = [1, 1]
        comm.all_to_all(np.ones(2), to, [1, 1] if comm.rank == 0 else [2, 1])

    _, errors = ends(2, body)
    assert all(isinstance(e, RankMismatch) and e.field == "counts" and e.ranks == (0, 1) for e in errors)
    assert "rank 0 sends 8 bytes, rank 1 takes 16 from it" in str(errors[0])


def test_message_of_another_shape():
    def body(comm):
        if comm.rank == 0:
            comm.send(np.ones(3), 1)
        else:
            comm.recv(np.ones(4), 0)

    _, errors = ends(2, body)
    assert all(isinstance(e, RankMismatch) and e.field == "shape" for e in errors)


def test_a_failed_group_stays_failed_and_the_process_goes_on():
    comms = ThreadComm(2)
    with pytest.raises(CommTimeout, match=r"barrier \(collective 0\) timed out after .* s: rank 1 did not come"):
        comms[0].barrier(timeout=0.05)
    for comm in comms:
        with pytest.raises(CommAborted, match="the group was given up: barrier"):
            comm.all_gather(np.ones(1))
    assert run_ranks(2, lambda c: c.all_gather(np.array([c.rank])).tolist()) == [[0, 1], [0, 1]]


def test_abort_wakes_waiters():
    comms = ThreadComm(2)
    threading.Timer(0.1, comms[1].abort, ["enough"]).start()
    with pytest.raises(CommAborted, match="the group was given up: enough"):
        comms[0].barrier(timeout=20)


def test_a_failure_in_a_part_reaches_the_whole():
    def body(comm):
        part = comm.split(comm.rank // 2)
        if comm.rank == 3:
            raise KeyError("boom")
        (part if comm.rank == 2 else comm).barrier(timeout=20)

    _, errors = ends(4, body)
    assert [type(e) for e in errors[:3]] == [CommAborted] * 3


def test_the_record_tells_the_last_operations(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSESPAN_COMM_RECORD", str(tmp_path))
    comms = ThreadComm(2)
    with pytest.raises(CommTimeout) as raised:
        comms[0].all_gather(np.ones((3, 2), np.float32), timeout=0.05)
    record = json.loads(raised.value.record)
    assert (record["rank"], record["size"]) == (0, 2)
    last = record["operations"][-1]
    assert (last["op"], last["shape"], last["dtype"], last["bytes"]) == ("all_gather", [3, 2], "float32", 24)
    assert last["state"].startswith("failed: all_gather (collective 0) timed out")
    (file,) = tmp_path.glob("comm-*-rank0.json")
    assert json.loads(file.read_text()) == record


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (ValueError, "x has 3 rows, needs a multiple of the 2 ranks", lambda c: c.all_to_all(np.ones(3))),
        (ValueError, "x has no axes", lambda c: c.all_gather(np.array(1.0))),
        (ValueError, r"out has shape \[3\], needs \[4\]", lambda c: c.all_gather(np.ones(2), out=np.ones(3))),
        (TypeError, "out is float32, needs float64", lambda c: c.all_gather(np.ones(2), out=np.ones(4, np.float32))),
        (ValueError, "counts has 1 counts, needs one per rank: 2", lambda c: c.all_gather(np.ones(2), [2])),
        (ValueError, "x has 2 rows, needs counts", lambda c: c.all_gather(np.ones(2), [1, 1])),
        (ValueError, "counts has -1 for rank 1", lambda c: c.all_gather(np.ones(2), [2, -1])),
        (ValueError, "recv_counts is None", lambda c: c.all_to_all(np.ones(2), [1, 1])),
        (ValueError, "root is 2, needs a rank of this group, 0 to 1", lambda c: c.broadcast(np.ones(2), 2)),
        (ValueError, "this rank itself", lambda c: c.send(np.ones(2), 0)),
        (ValueError, 'op is "mean", needs "sum" or "max"', lambda c: c.all_reduce(np.ones(2), "mean")),
        (TypeError, "x has dtype uint8", lambda c: c.all_reduce(np.ones(2, np.uint8))),
        (ValueError, "timeout is 0, needs seconds above 0", lambda c: c.barrier(timeout=0)),
        (TypeError, "x is a list", lambda c: c.all_gather([1.0])),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(error, text, call):
    comm = ThreadComm(2)[0]
    with pytest.raises(error, match=text):
        call(comm)
    assert json.loads(comm.record())["operations"] == []


def test_other_refusals():
    with pytest.raises(ValueError, match="n is 0, needs 1 to 1024 ranks"):
        ThreadComm(0)
    with pytest.raises(ValueError, match="threads_per_rank is 0"):
        run_ranks(2, lambda c: None, 0)
    with pytest.raises(TypeError, match=r"as_comm: x is a object, needs a Communicator.*it has no rank, size"):
        as_comm(object())
    with pytest.raises(ValueError, match='fault is "explode", needs "raise"'):
        FaultyComm(ThreadComm(1)[0], "explode")
    with pytest.raises(ValueError, match="at is -1"):
        FaultyComm(ThreadComm(1)[0], "raise", -1)


def test_ranks_share_the_cores_out():
    assert run_ranks(2, lambda c: num_threads(), 3) == [3, 3]
    before = num_threads()
    assert run_ranks(1, lambda c: num_threads()) == [before]
    assert num_threads() == before


class Alone:
    """A duck: a group of one."""

    def rank(self):
        return 0

    def size(self):
        return 1

    def all_gather(self, send, recv, sizes):
        recv[:] = send

    def all_to_all(self, send, recv, to, from_):
        recv[:] = send

    def broadcast(self, data, root):
        pass

    def send(self, data, to, tag):
        raise RuntimeError("nobody there")

    recv = send

    def split(self, color, key, ranks):
        return None if color < 0 else Alone()


def test_a_duck_will_do():
    conformance.run_all(as_comm(Alone()))


def test_what_a_transport_raises_is_a_comm_error():
    class Broken(Alone):
        def all_gather(self, send, recv, sizes):
            raise OSError("cable cut")

    comm = as_comm(Broken())
    with pytest.raises(CommError, match="all_gather: the transport failed: OSError: cable cut") as raised:
        comm.all_gather(np.ones(2))
    assert raised.value.op == "all_gather" and json.loads(raised.value.record)["operations"]
    with pytest.raises(CommAborted, match="cable cut"):
        comm.barrier()
