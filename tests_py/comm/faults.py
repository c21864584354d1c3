"""What is done to a group, and how it must end: one table for threads, MPI and gloo.

Each fault is one function that every rank runs; rank 1 is the culprit. How a rank ended is a small dict that a process
can print: the fault's own word, the ranks that the error names, seconds, and what became of a cache that is written
only after an operation has returned.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsespan.comm import CommAborted, CommError, CommTimeout, RankMismatch
from sparsespan.testing import FaultyComm

TIMEOUT = 1.0  # of every operation, seconds
CULPRIT = 1
DONE, ABORTED, LATE, ERROR, MISMATCH = "done", "CommAborted", "CommTimeout", "CommError", "RankMismatch"


def steps(comm, cache, plan=""):
    """An operator's way: gather, wait, and only then write the cache."""
    got = np.zeros_like(cache)
    for i in range(3):
        comm.all_gather(np.full(len(cache) // comm.size, comm.rank + 1.0), out=got, plan=plan.format(step=i))
        cache[:] = got


def injected(fault, plan="", seconds=0.0):
    def act(comm, cache):
        bad = FaultyComm(comm, fault, 1, seconds) if comm.rank == CULPRIT else comm
        steps(bad, cache, plan)

    return act


def disagree(usual, other):
    def act(comm, cache):
        cache[:] = (other if comm.rank == CULPRIT else usual)(comm)[: len(cache)]

    return act


def raises(comm, cache):
    if comm.rank == CULPRIT:
        raise KeyError("boom")
    steps(comm, cache)


def leaves(comm, cache):
    if comm.rank != CULPRIT:
        steps(comm, cache)


def unanswered(comm, cache):
    if comm.rank == CULPRIT:
        comm.send(cache, 0, tag=3)
    elif comm.rank == 0:
        time.sleep(TIMEOUT / 2)
        comm.recv(cache, 1, tag=4)


def interrupted(comm, cache):
    if comm.rank == CULPRIT:
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        comm.timeout = 30
    else:
        time.sleep(0.5)  # the culprit waits alone until it is interrupted
    steps(comm, cache)


def killed(comm, cache):
    comm.barrier(timeout=30)
    if comm.rank == CULPRIT:
        os.kill(os.getpid(), signal.SIGKILL)
    steps(comm, cache)


def cable_cut(comm, cache):
    comm.barrier(timeout=30)
    if comm.rank == CULPRIT:
        subprocess.run(["ip", "link", "set", os.environ["GLOO_SOCKET_IFNAME"], "down"], check=True)
    steps(comm, cache)


ones = np.ones(64)


@dataclass(frozen=True)
class Fault:
    name: str
    injected: str  # for people
    act: Callable[[Any, np.ndarray], None]
    culprit: tuple[str, ...]  # how the culprit may end
    others: tuple[str, ...]
    field: str = ""  # that a RankMismatch names
    backends: tuple[str, ...] = ("threads", "gloo", "mpi")
    extra: float = 0.0  # seconds that the fault itself takes


ALL_TOLD = dict(culprit=(MISMATCH, ABORTED), others=(MISMATCH, ABORTED))
FAULTS = [
    Fault("raises", "a rank raises between two operations", raises, ("KeyError",), (ABORTED,)),
    Fault("fails", "a rank fails inside an operation", injected("raise"), (ERROR,), (ABORTED,)),
    Fault("skips", "a rank skips a collective, all are alike", injected("skip"), (DONE,), (ERROR, LATE, ABORTED)),
    Fault("skips_plan", "a rank skips, plans name the step", injected("skip", "step {step}"), **ALL_TOLD, field="plan"),
    Fault("leaves", "a rank leaves the group", leaves, (DONE,), (ERROR, LATE, ABORTED)),
    Fault(
        "op", "ranks disagree: op", disagree(lambda c: c.all_gather(ones), lambda c: c.all_reduce(ones)), **ALL_TOLD,
        field="op",
    ),
    Fault(
        "shape", "ranks disagree: shape",
        disagree(lambda c: c.all_gather(ones), lambda c: c.all_gather(ones[:32])), **ALL_TOLD, field="shape",
    ),
    Fault(
        "dtype", "ranks disagree: dtype",
        disagree(lambda c: c.all_gather(ones), lambda c: c.all_gather(ones.astype(np.int64))), **ALL_TOLD,
        field="dtype",
    ),
    Fault("plan", "ranks disagree: plan", injected("mismatch"), **ALL_TOLD, field="plan"),
    Fault(
        "slow", "a rank is slow past the timeout", injected("delay", seconds=1.8 * TIMEOUT), (ABORTED, LATE),
        (LATE, ABORTED), extra=0.8 * TIMEOUT,
    ),
    Fault("unanswered", "a message that nobody takes", unanswered, (LATE, ABORTED), (LATE, ABORTED, DONE), extra=0.5),
    Fault(
        "interrupted", "Ctrl-C while a rank waits", interrupted, ("KeyboardInterrupt",), (ABORTED,), extra=0.5,
    ),
    Fault("killed", "kill -9", killed, (), (ERROR, LATE, ABORTED), backends=("killed",)),
    Fault("cable_cut", "the cable is cut", cable_cut, (LATE, ABORTED), (LATE, ABORTED), backends=("namespaces",)),
]  # fmt: skip
BY_NAME = {fault.name: fault for fault in FAULTS}
KINDS = (CommTimeout, RankMismatch, CommAborted, CommError)


def of(backend):
    return [fault for fault in FAULTS if backend in fault.backends]


def suffer(fault, comm):
    """Run one fault on this rank: how it ended, as a dict for JSON."""
    comm.timeout = TIMEOUT
    cache = np.zeros(16 * comm.size)
    full = np.repeat(np.arange(comm.size) + 1.0, 16)
    word, error, begin = DONE, None, time.monotonic()
    try:
        with comm:
            fault.act(comm, cache)
    except (Exception, KeyboardInterrupt) as e:
        word, error = type(e).__name__, e
    seconds = time.monotonic() - begin
    whole = not cache.any() or (cache == full).all() or (cache == 1).all()
    try:
        comm.barrier(timeout=0.5)
        poisoned = False
    except CommError:
        poisoned = True
    return {
        "fault": fault.name,
        "rank": comm.rank,
        "word": word,
        "text": str(error or ""),
        "field": getattr(error, "field", ""),
        "named": list(getattr(error, "ranks", ())),
        "seconds": round(seconds, 2),
        "cache": "whole" if whole else "torn",
        "poisoned": poisoned,
    }


def judge(fault, ends, slack):
    """Every rank ended as the table says, in time, and left nothing half-written; AssertionError otherwise."""
    for end in ends:
        allowed = fault.culprit if end["rank"] == CULPRIT else fault.others
        assert end["word"] in allowed, end
        assert end["seconds"] < TIMEOUT + fault.extra + slack, end
        assert end["cache"] == "whole", end
        assert end["poisoned"], end
        if end["word"] == MISMATCH:
            assert end["field"] == fault.field and end["named"] == [CULPRIT], end
    if fault.field:
        assert any(end["word"] == MISMATCH for end in ends), ends
