"""A function on every rank."""

from __future__ import annotations

import math
import numbers
import operator
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import _core
from .._runtime import num_threads
from ._communicator import Communicator
from ._errors import CommAborted, CommError
from ._threads import ThreadComm

__all__ = ["run_ranks"]

_MOST = 1024  # ranks of a ThreadComm
_THREADS = 2**31 - 1
_GRACE = 5.0  # seconds beyond a group's timeout for ranks that are not waiting for anybody


class _Run:
    def __init__(self, n: int, fn: Callable[[Communicator], Any], threads: int, timeout: float | None) -> None:
        self.comms = ThreadComm(n)
        self.fn = fn
        self.threads = threads
        self.results: list[Any] = [None] * n
        self.errors: list[BaseException | None] = [None] * n
        for comm in self.comms:
            if timeout is not None:
                comm.timeout = timeout
        # Not Thread.join: in Python up to 3.12 an interrupted join takes the thread for ended (bpo-45274).
        self.ended = [threading.Event() for _ in range(n)]
        self.team = [threading.Thread(target=self._rank, args=(r,), name=f"rank {r}", daemon=True) for r in range(n)]

    def _rank(self, rank: int) -> None:
        comm = self.comms[rank]
        try:
            _core.set_num_threads_here(self.threads)
            self.results[rank] = self.fn(comm)
        except BaseException as error:
            self.errors[rank] = error
            comm.abort(f"rank {rank} raised {type(error).__name__}: {error}")
        finally:
            comm.close()
            self.ended[rank].set()

    def busy(self) -> list[int]:
        """Ranks that have not ended."""
        return [rank for rank, ended in enumerate(self.ended) if not ended.is_set()]

    def go(self) -> None:
        """Start the ranks and wait for them."""
        begun = 0
        try:
            for thread in self.team:
                begun += 1
                thread.start()
            self._wait()
        except BaseException as error:  # Ctrl-C: the waiting ranks are told and leave
            self.comms[0].abort(f"run_ranks was interrupted: {type(error).__name__}")
            until = time.monotonic() + _GRACE
            for ended in self.ended[:begun]:
                ended.wait(max(0.0, until - time.monotonic()))
            raise
        finally:
            for thread, ended in zip(self.team, self.ended):
                if ended.is_set():
                    thread.join()

    def _wait(self) -> None:
        deadline: float | None = None
        while self.busy():
            for ended in self.ended:
                ended.wait(0.02)
            if deadline is None and any(self.errors):
                deadline = time.monotonic() + self.comms[0].timeout + _GRACE
            if deadline is not None and time.monotonic() > deadline:
                return

    def first_error(self) -> BaseException | None:
        """A rank's own error before those that only tell of another rank's; of these the lowest rank's."""
        failed = [e for e in self.errors if e is not None]
        own = [e for e in failed if not isinstance(e, CommAborted)]
        cause = [e for e in own if not isinstance(e, CommError)]
        return next(iter(cause or own or failed), None)


def _count(argument: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"run_ranks: {argument} is {value!r}, needs an integer") from None


def _check(n: Any, fn: Any, threads_per_rank: Any, timeout: Any) -> None:
    if not 1 <= _count("n", n) <= _MOST:
        raise ValueError(f"run_ranks: n is {n}, needs 1 to {_MOST} ranks")
    if not callable(fn):
        raise TypeError(f"run_ranks: fn is {fn!r}, needs a function of the rank's Communicator")
    if threads_per_rank is not None and not 1 <= _count("threads_per_rank", threads_per_rank) <= _THREADS:
        raise ValueError(f"run_ranks: threads_per_rank is {threads_per_rank}, needs at least 1 and at most {_THREADS}")
    if timeout is None:
        return
    if not isinstance(timeout, numbers.Real):
        raise TypeError(f"run_ranks: timeout is {timeout!r}, needs seconds above 0")
    if not 0 < float(timeout) < math.inf:
        raise ValueError(f"run_ranks: timeout is {timeout}, needs seconds above 0")


def run_ranks(
    n: int,
    fn: Callable[[Communicator], Any],
    threads_per_rank: int | None = None,
    *,
    timeout: float | None = None,
) -> list[Any]:
    """Run ``fn(comm)`` on ``n`` ranks, each a thread of this process, and return their results in order of rank.

    Parameters
    ----------
    n : int
        Number of ranks.
    fn : callable
        Called with the rank's :class:`Communicator`.
    threads_per_rank : int, optional
        Threads that ops on a rank use; default shares :func:`sparsespan.num_threads` out, at least one each.
    timeout : float, optional
        Seconds that an operation waits for its peers, on every rank.

    Raises
    ------
    ValueError, TypeError
        For arguments that are none of these.
    Exception
        What the failing rank raised; when several did, that of the lowest rank. The other ranks are told and end with
        :class:`CommAborted`, which is not what is raised here.
    CommError
        If a rank is still busy with something else some time after another has failed.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.comm import run_ranks
    >>> run_ranks(4, lambda comm: int(comm.all_reduce(np.array([comm.rank]))[0]))
    [6, 6, 6, 6]
    """
    _check(n, fn, threads_per_rank, timeout)
    if threads_per_rank is None:
        threads_per_rank = max(1, num_threads() // n)
    run = _Run(n, fn, threads_per_rank, timeout)
    run.go()
    error = run.first_error()
    busy = run.busy()
    if busy:
        raise CommError(f"run_ranks: ranks {busy} are still busy after another rank failed") from error
    if error is not None:
        raise error
    return run.results
