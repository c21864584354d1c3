"""run_ranks: arguments, and Ctrl-C."""

import signal
import subprocess
import sys

import pytest

from sparsespan.comm import CommError, run_ranks

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ValueError, "n is 0, needs 1 to 1024 ranks", {"n": 0}),
        (ValueError, f"n is {10**20}, needs 1 to 1024", {"n": 10**20}),
        (TypeError, "n is '2', needs an integer", {"n": "2"}),
        (TypeError, "n is 1.5, needs an integer", {"n": 1.5}),
        (TypeError, "fn is None, needs a function", {"fn": None}),
        (TypeError, "threads_per_rank is 1.5, needs an integer", {"threads_per_rank": 1.5}),
        (ValueError, "threads_per_rank is 0, needs at least 1", {"threads_per_rank": 0}),
        (TypeError, "timeout is 'x', needs seconds", {"timeout": "x"}),
        (ValueError, "timeout is nan, needs seconds", {"timeout": float("nan")}),
    ],
)
def test_refusals(error, text, arguments):
    with pytest.raises(error, match=text):
        run_ranks(**{"n": 2, "fn": lambda comm: None, **arguments})


def test_a_cause_is_raised_before_what_other_ranks_heard_of_it():
    def rank(comm):
        raise CommError("rank 1 refused") if comm.rank == 0 else IndexError("the cause")

    with pytest.raises(IndexError, match="the cause"):
        run_ranks(2, rank)


# Rank 1 is busy for a while in native code; the interrupt must wait until it has ended, else the interpreter ends
# around a thread that still runs.
INTERRUPTED = """
import sys, time
import numpy as np
from sparsespan import transform
from sparsespan.comm import run_ranks
ended = []
def rank(comm):
    comm.barrier()
    if comm.rank == 0:
        print("ready", flush=True)
    end = time.monotonic() + 1.5
    x = np.ones((2000, 128), np.float32)
    while time.monotonic() < end:
        transform.hadamard_transform(x)
    ended.append(comm.rank)
try:
    run_ranks(2, rank)
except KeyboardInterrupt:
    sys.exit(70 + len(ended))
"""


def test_an_interrupt_waits_for_the_ranks():
    program = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout.readline() == b"ready\n"
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=30)
    assert (program.returncode, errors) == (72, b"")
