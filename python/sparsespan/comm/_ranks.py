"""A function on every rank."""

from __future__ import annotations

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
        self.team = [threading.Thread(target=self._rank, args=(r,), name=f"rank {r}", daemon=True) for r in range(n)]

    def _rank(self, rank: int) -> None:
        comm = self.comms[rank]
        _core.set_num_threads_here(self.threads)
        try:
            self.results[rank] = self.fn(comm)
        except BaseException as error:
            self.errors[rank] = error
            comm.abort(f"rank {rank} raised {type(error).__name__}: {error}")
        finally:
            comm.close()

    def join(self) -> None:
        deadline: float | None = None
        try:
            while any(thread.is_alive() for thread in self.team):
                for thread in self.team:
                    thread.join(0.02 if deadline is not None or thread.is_alive() else None)
                if deadline is None and any(self.errors):
                    deadline = time.monotonic() + self.comms[0].timeout + _GRACE
                if deadline is not None and time.monotonic() > deadline:
                    return
        except BaseException as error:  # Ctrl-C: the waiting ranks are told and leave
            self.comms[0].abort(f"run_ranks was interrupted: {type(error).__name__}")
            for thread in self.team:
                thread.join(_GRACE)
            raise

    def first_error(self) -> BaseException | None:
        """A rank's own error before those that only tell of another rank's; of these the lowest rank's."""
        failed = [e for e in self.errors if e is not None]
        own = [e for e in failed if not isinstance(e, CommAborted)]
        return next(iter(own or failed), None)


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
    if threads_per_rank is None:
        threads_per_rank = max(1, num_threads() // max(1, n))
    if threads_per_rank < 1:
        raise ValueError(f"run_ranks: threads_per_rank is {threads_per_rank}, needs at least 1")
    run = _Run(n, fn, threads_per_rank, timeout)
    for thread in run.team:
        thread.start()
    run.join()
    error = run.first_error()
    busy = [r for r, thread in enumerate(run.team) if thread.is_alive()]
    if busy:
        raise CommError(f"run_ranks: ranks {busy} are still busy after another rank failed") from error
    if error is not None:
        raise error
    return run.results
