"""Ranks of an MPI program, through mpi4py."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from ._communicator import Communicator
from ._transport import Transport

__all__ = ["MpiComm"]


class _Request:
    """An MPI request and the buffers that it uses."""

    def __init__(self, request: Any, *buffers: Any) -> None:
        self._request = request
        self._buffers = buffers

    def test(self) -> bool:
        return bool(self._request.Test())


def _starts(sizes: list[int]) -> list[int]:
    return [0, *np.cumsum(sizes, dtype=np.int64)[:-1].tolist()]


class _MpiTransport(Transport):
    def __init__(self, comm: Any) -> None:
        super().__init__()
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm  # a duplicate of our own: our messages never meet the caller's

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
        return None if part == self._mpi.COMM_NULL else _MpiTransport(part)

    def close(self) -> None:
        # Our duplicate stays: freeing it is collective, and a rank may close alone, or while MPI shuts down.
        pass


class MpiComm(Communicator):
    """The ranks of an ``mpi4py.MPI.Comm``, under a duplicate of our own. Collective to make.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Any intracommunicator; it is neither changed nor freed, and MPI is neither initialised nor finalised here.
    checked : bool
        Ranks compare what they mean before each operation moves data; costs a small all-gather each.

    Raises
    ------
    TypeError
        If ``comm`` is no mpi4py communicator.

    Notes
    -----
    MPI cannot tell who is late, nor wake peers: after an error on one rank the others run into their timeout. Let an
    uncaught error end the program (``python -m mpi4py``), which takes all ranks down.
    """

    def __init__(self, comm: Any, *, checked: bool = True) -> None:
        if not (hasattr(comm, "Iallgatherv") and hasattr(comm, "Dup")):
            raise TypeError(f"MpiComm: comm is a {type(comm).__name__}, needs an mpi4py.MPI.Comm")
        super().__init__(_core.comm.transport_comm(_MpiTransport(comm.Dup()), checked))
