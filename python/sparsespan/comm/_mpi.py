"""Ranks of an MPI program, through mpi4py."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ._communicator import Communicator
from ._transport import Transport

__all__ = ["MPI_METHODS", "MpiComm"]

# What is used of an mpi4py communicator.
MPI_METHODS = (
    *("Get_rank", "Get_size", "Dup", "Split"),
    *("Iallgatherv", "Ialltoallv", "Ibcast", "Issend", "Isend", "Irecv", "Iprobe"),
)
_REASON_BYTES = 512


class _Request:
    """An MPI request and the buffers that it uses."""

    def __init__(self, request: Any, *buffers: Any) -> None:
        self._request = request
        self._buffers = buffers

    def test(self) -> bool:
        return bool(self._request.Test())


def _starts(sizes: list[int]) -> list[int]:
    return [0, *np.cumsum(sizes, dtype=np.int64)[:-1].tolist()]


class _Alarm:
    """Who gave the whole up, and why: a short message to every rank, under a communicator that serves only this."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi = mpi
        self._comm = comm
        self._sent: list[Any] = []  # requests and their text, kept until the process ends
        self.found: tuple[int, str] | None = None

    def look(self) -> tuple[int, str] | None:
        status = self._mpi.Status()
        if self.found is None and self._comm.Iprobe(self._mpi.ANY_SOURCE, 0, status):
            text = np.zeros(_REASON_BYTES, np.uint8)
            self._comm.Irecv([text, self._mpi.BYTE], status.Get_source(), 0).Wait()  # it is here already
            self.found = status.Get_source(), text.tobytes().rstrip(b"\0").decode("utf-8", "replace")
        return self.found

    def ring(self, reason: str) -> None:
        if self._sent or self.found is not None:
            return  # they have been told, or a part that this rank belongs to has
        text = np.frombuffer(reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0"), np.uint8)
        for rank in range(self._comm.Get_size()):
            if rank != self._comm.Get_rank():
                self._sent.append((self._comm.Isend([text, self._mpi.BYTE], rank, 0), text))


class _MpiTransport(Transport):
    def __init__(self, comm: Any, members: list[int], alarm: _Alarm) -> None:
        super().__init__()
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm  # a duplicate of our own: our messages never meet the caller's
        self._members = members  # ranks of the whole
        self._alarm = alarm

    def rank(self) -> int:
        return int(self._comm.Get_rank())

    def size(self) -> int:
        return int(self._comm.Get_size())

    def kind(self) -> str:
        return "mpi"

    def all_gather(self, send: Any, recv: Any, sizes: list[int]) -> Any:
        byte = self._mpi.BYTE
        target = [recv, sizes, _starts(sizes), byte]
        return _Request(self._comm.Iallgatherv([send, byte], target), send, recv)

    def all_to_all(self, send: Any, recv: Any, to: list[int], from_: list[int]) -> Any:
        byte = self._mpi.BYTE
        request = self._comm.Ialltoallv([send, to, _starts(to), byte], [recv, from_, _starts(from_), byte])
        return _Request(request, send, recv)

    def broadcast(self, data: Any, root: int) -> Any:
        return _Request(self._comm.Ibcast([data, self._mpi.BYTE], root), data)

    def send(self, data: Any, to: int, tag: int) -> Any:
        return _Request(self._comm.Issend([data, self._mpi.BYTE], to, tag), data)

    def recv(self, data: Any, source: int, tag: int) -> Any:
        return _Request(self._comm.Irecv([data, self._mpi.BYTE], source, tag), data)

    def split(self, color: int, key: int, ranks: list[int]) -> Transport | None:
        part = self._comm.Split(self._mpi.UNDEFINED if color < 0 else color, key)
        if part == self._mpi.COMM_NULL:
            return None
        return _MpiTransport(part, [self._members[r] for r in ranks], self._alarm)

    def abort(self, reason: str) -> None:
        self._alarm.ring(reason)

    def alarm(self, sequence: int) -> tuple[int, str] | None:
        found = self._alarm.look()
        if found is None:
            return None
        rank, reason = found
        return (self._members.index(rank) if rank in self._members else -1), reason

    def close(self) -> None:
        # Our duplicates stay: freeing them is collective, and a rank may close alone, or while MPI shuts down.
        pass


def _transport(comm: Any) -> _MpiTransport:
    from mpi4py import MPI

    if comm == MPI.COMM_NULL:
        raise ValueError("MpiComm: comm is COMM_NULL, needs a communicator that this process belongs to")
    if comm.Is_inter():
        raise ValueError("MpiComm: comm is an intercommunicator, needs an intracommunicator; Merge makes one")
    return _MpiTransport(comm.Dup(), list(range(comm.Get_size())), _Alarm(MPI, comm.Dup()))


class MpiComm(Communicator):
    """The ranks of an ``mpi4py.MPI.Comm``, under duplicates of our own. Collective to make.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Any intracommunicator, or an object with its methods; it is neither changed nor freed, and MPI is neither
        initialised nor finalised here.
    checked : bool
        Ranks compare what they mean before each operation moves data; costs a small all-gather each.

    Raises
    ------
    TypeError
        If ``comm`` lacks methods of an mpi4py communicator.
    ValueError
        If ``comm`` is COMM_NULL or an intercommunicator.

    Notes
    -----
    A rank that gives up sends the others a short message; those that wait end with :class:`CommAborted` within a
    fraction of a second. MPI cannot tell who is late. Let an uncaught error end the program (``python -m mpi4py``),
    which takes all ranks down: after an error on some ranks MPI's own finalisation may wait for the others.
    """

    def __init__(self, comm: Any, *, checked: bool = True) -> None:
        missing = [name for name in MPI_METHODS if not callable(getattr(comm, name, None))]
        if missing:
            raise TypeError(
                f"MpiComm: comm is a {type(comm).__name__}, needs an mpi4py.MPI.Comm; it has no {', '.join(missing)}"
            )
        super().__init__(_core.comm.transport_comm(_transport(comm), checked))
