"""The operations between ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from .. import _core
from .._interop import call
from ._errors import CommError
from ._work import Work

__all__ = ["Communicator"]

Result = TypeVar("Result")


def _save_record(error: CommError, rank: int) -> None:
    """Write the ring of last operations to the folder that SPARSESPAN_COMM_RECORD names, one file per rank."""
    folder = os.environ.get("SPARSESPAN_COMM_RECORD", "")
    if not folder or not error.record:
        return
    try:
        with open(os.path.join(folder, f"comm-{os.getpid()}-rank{rank}.json"), "w", encoding="utf-8") as file:
            file.write(error.record)
    except OSError as problem:
        error.args = (f"{error.args[0]} (its record could not be written: {problem})", *error.args[1:])


class Communicator:
    """A group of ranks. Made by :class:`ThreadComm`, :class:`MpiComm`, :class:`TorchComm` or :func:`as_comm`.

    Arrays are C-contiguous, NumPy or DLPack; results come in the caller's family. Collectives cut and join along the
    first axis, whose entries are called rows. Every operation takes ``timeout`` (seconds, default :attr:`timeout`) and
    ``plan``, the fingerprint of the plan that the caller follows: ranks that follow different plans are told so before
    data moves. Each has a form with ``i`` in front that returns a :class:`Work` at once. ``with comm:`` closes the
    group at its end, and gives it up when an exception leaves the block, so that the others need not run out of time.

    Notes
    -----
    Sums and maxima run in order of the ranks, bfloat16 in float32 with one rounding, so their bits are the same on
    every rank, in every run and on every transport. The thread that started a group's first operation runs all of them.
    """

    def __init__(self, native: _core.comm.Communicator) -> None:
        self._native = native

    def __repr__(self) -> str:
        return f"<{type(self).__name__} rank {self.rank} of {self.size}, {self._native.kind}>"

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        if error is not None:
            self.abort(f"rank {self.rank} raised {type(error).__name__}: {error}")
        self.close()

    def _guard(self, step: Callable[[], Result]) -> Result:
        try:
            return step()
        except CommError as error:
            _save_record(error, self.rank)
            raise

    def _start(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Work:
        native: list[Any] = []

        def result_only(*a: Any, **k: Any) -> Any:
            work, result = function(*a, **k)
            native.append(work)
            return result

        result = self._guard(lambda: call(result_only, *args, **kwargs))
        return Work(self, native[0], result)

    @property
    def rank(self) -> int:
        """The rank of the caller, 0 to ``size - 1``."""
        return self._native.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._native.size

    @property
    def timeout(self) -> float:
        """Seconds that an operation waits for its peers when it does not say; 300 at first."""
        return float(self._native.timeout)

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._native.timeout = seconds

    def iall_gather(
        self,
        x: Any,
        counts: Sequence[int] | None = None,
        *,
        out: Any = None,
        timeout: float | None = None,
        plan: str = "",
    ) -> Work:
        """Start :meth:`all_gather`."""
        return self._start(self._native.all_gather, x, counts and list(counts), out, timeout, plan)

    def all_gather(self, x: Any, counts: Sequence[int] | None = None, **options: Any) -> Any:
        """Join the ranks' rows in order of rank: ``[n, ...]`` to ``[N * n, ...]``.

        Parameters
        ----------
        x : array [n, ...]
            This rank's rows.
        counts : sequence of int, optional
            Rows of each rank, when they differ; ``out`` then has ``sum(counts)`` rows.
        **options
            ``out``, ``timeout``, ``plan``.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.comm import run_ranks
        >>> run_ranks(2, lambda comm: comm.all_gather(np.array([comm.rank * 10])).tolist())
        [[0, 10], [0, 10]]
        """
        return self.iall_gather(x, counts, **options).wait()

    def iall_to_all(
        self,
        x: Any,
        send_counts: Sequence[int] | None = None,
        recv_counts: Sequence[int] | None = None,
        *,
        out: Any = None,
        timeout: float | None = None,
        plan: str = "",
    ) -> Work:
        """Start :meth:`all_to_all`."""
        to, back = send_counts and list(send_counts), recv_counts and list(recv_counts)
        return self._start(self._native.all_to_all, x, to, back, out, timeout, plan)

    def all_to_all(
        self, x: Any, send_counts: Sequence[int] | None = None, recv_counts: Sequence[int] | None = None, **options: Any
    ) -> Any:
        """Exchange blocks: block q of rank r becomes block r of rank q.

        Without counts the N blocks have equal rows; else ``send_counts[q]`` rows go to rank q and ``recv_counts[q]``
        come from it.
        """
        return self.iall_to_all(x, send_counts, recv_counts, **options).wait()

    def ireduce_scatter(
        self, x: Any, op: str = "sum", *, out: Any = None, timeout: float | None = None, plan: str = ""
    ) -> Work:
        """Start :meth:`reduce_scatter`."""
        return self._start(self._native.reduce_scatter, x, op, out, timeout, plan)

    def reduce_scatter(self, x: Any, op: str = "sum", **options: Any) -> Any:
        """Sum (or ``op="max"``) over ranks, of which this rank keeps block ``rank``: ``[N * n, ...]`` to ``[n, ...]``.

        float32, float64, bfloat16, int32 and int64.
        """
        return self.ireduce_scatter(x, op, **options).wait()

    def iall_reduce(
        self, x: Any, op: str = "sum", *, out: Any = None, timeout: float | None = None, plan: str = ""
    ) -> Work:
        """Start :meth:`all_reduce`."""
        return self._start(self._native.all_reduce, x, op, out, timeout, plan)

    def all_reduce(self, x: Any, op: str = "sum", **options: Any) -> Any:
        """Sum (or ``op="max"``) over ranks, whole on every rank. ``out`` may be ``x`` itself."""
        return self.iall_reduce(x, op, **options).wait()

    def ibroadcast(self, x: Any, root: int = 0, *, timeout: float | None = None, plan: str = "") -> Work:
        """Start :meth:`broadcast`."""
        return self._start(self._native.broadcast, x, root, timeout, plan)

    def broadcast(self, x: Any, root: int = 0, **options: Any) -> Any:
        """Copy the root's ``x`` into everybody's ``x``, which has the same shape and dtype; returns it."""
        return self.ibroadcast(x, root, **options).wait()

    def isend(self, x: Any, to: int, tag: int = 0, *, timeout: float | None = None, plan: str = "") -> Work:
        """Start :meth:`send`."""
        return self._start(self._native.send, x, to, tag, timeout, plan)

    def send(self, x: Any, to: int, tag: int = 0, **options: Any) -> None:
        """Give ``x`` to another rank, which calls :meth:`recv` with an array of the same shape and dtype."""
        self.isend(x, to, tag, **options).wait()

    def irecv(self, out: Any, source: int, tag: int = 0, *, timeout: float | None = None, plan: str = "") -> Work:
        """Start :meth:`recv`."""
        return self._start(self._native.recv, out, source, tag, timeout, plan)

    def recv(self, out: Any, source: int, tag: int = 0, **options: Any) -> Any:
        """Fill ``out`` with what rank ``source`` sends; returns it. Messages of one tag keep their order."""
        return self.irecv(out, source, tag, **options).wait()

    def ibarrier(self, *, timeout: float | None = None) -> Work:
        """Start :meth:`barrier`."""
        return self._start(self._native.barrier, timeout, "")

    def barrier(self, *, timeout: float | None = None) -> None:
        """Return once every rank has come."""
        self.ibarrier(timeout=timeout).wait()

    def split(self, color: int, key: int = 0, *, timeout: float | None = None) -> Communicator | None:
        """Form one group per ``color``, ordered by ``(key, rank)``; a negative color joins none and gets None.

        Collective. On threads the parts share one fate: a failure in one gives up all.
        """
        part = self._guard(lambda: self._native.split(color, key, timeout))
        return None if part is None else Communicator(part)

    def abort(self, reason: str) -> None:
        """Give the group up: every call on it raises :class:`CommAborted` with this reason.

        On threads, peers that wait are woken at once; on MPI and gloo they learn it within a fraction of a second of
        waiting. Another transport may not reach them; they then run into their timeout.
        """
        self._native.abort(reason)

    def close(self) -> None:
        """Take no further part; peers that wait for this rank are told. Frees nothing that the caller made."""
        self._native.close()

    def trace(self) -> dict[str, dict[str, Any]]:
        """What this rank did so far, per primitive.

        Returns
        -------
        dict
            ``{primitive: {"calls": n, "bytes": n, "seconds": s}}``. Bytes are counted: those that this rank received
            from other ranks, where they are copied; its own share does not count. Seconds are measured: time inside
            calls, so a transfer that overlaps with computation costs only what its waiting took. ``"checks"`` holds the
            fingerprints of checked mode.
        """
        return dict(self._native.trace())

    def timeline(self) -> list[dict[str, Any]]:
        """When this rank's operations ran: what a trace viewer needs, a process for each rank and a lane for comm.

        Returns
        -------
        list of dict
            ``{"op": str, "start": s, "end": s, "bytes": n, "peer": rank or None, "failed": bool}``, in the order in
            which they began; those under way are left out, and of more than 65536 the oldest. Measured: ``start`` is
            when the call began, ``end`` when this rank saw it done, in seconds of :func:`time.monotonic`, which ranks
            on one machine share. Operations that overlap have spans that overlap. ``bytes`` as in :meth:`trace`;
            ``peer`` is the root, destination or source. A group that was split off keeps its own.

        Examples
        --------
        >>> import numpy as np
        >>> from sparsespan.comm import run_ranks
        >>> def rank(comm):
        ...     comm.all_gather(np.zeros(4))
        ...     return comm.timeline()
        >>> [(span["op"], span["bytes"]) for span in run_ranks(2, rank)[0]]
        [('all_gather', 32)]
        """
        return list(self._native.timeline())

    def reset_trace(self) -> None:
        """Start counting, and the time line, anew."""
        self._native.reset_trace()

    def record(self) -> str:
        """The last 64 operations of this rank as JSON, oldest first: number, op, shape, peer, times, state.

        Errors carry it as ``error.record``; with SPARSESPAN_COMM_RECORD set to a folder it is also written there.
        """
        return str(self._native.record())
