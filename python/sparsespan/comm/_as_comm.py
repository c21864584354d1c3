"""Whatever stands for a group of ranks."""

from __future__ import annotations

import sys
from typing import Any

from .. import _core
from ._communicator import Communicator
from ._mpi import MpiComm
from ._torch import TorchComm
from ._transport import Transport

__all__ = ["as_comm"]

_HOOKS = ("rank", "size", "all_gather", "all_to_all", "broadcast", "send", "recv")


class _Duck(Transport):
    """An object with a Transport's methods that is not derived from it."""

    def __init__(self, duck: Any) -> None:
        super().__init__()
        self._duck = duck

    def rank(self) -> int:
        return int(self._duck.rank())

    def size(self) -> int:
        return int(self._duck.size())

    def kind(self) -> str:
        return type(self._duck).__name__

    def all_gather(self, send: Any, recv: Any, sizes: list[int]) -> Any:
        return self._duck.all_gather(send, recv, sizes)

    def all_to_all(self, send: Any, recv: Any, to: list[int], from_: list[int]) -> Any:
        return self._duck.all_to_all(send, recv, to, from_)

    def broadcast(self, data: Any, root: int) -> Any:
        return self._duck.broadcast(data, root)

    def send(self, data: Any, to: int, tag: int) -> Any:
        return self._duck.send(data, to, tag)

    def recv(self, data: Any, source: int, tag: int) -> Any:
        return self._duck.recv(data, source, tag)

    def split(self, color: int, key: int, ranks: list[int]) -> Transport | None:
        part = self._duck.split(color, key, ranks)
        return None if part is None else _Duck(part)

    def abort(self, reason: str) -> None:
        if hasattr(self._duck, "abort"):
            self._duck.abort(reason)

    def close(self) -> None:
        if hasattr(self._duck, "close"):
            self._duck.close()


def as_comm(x: Any, *, checked: bool = True) -> Communicator:
    """Make a :class:`Communicator` of what the caller has.

    Parameters
    ----------
    x : Communicator, mpi4py.MPI.Comm, torch.distributed.ProcessGroup, Transport or object
        A communicator of ours comes back as it is. Any other object needs the methods of :class:`Transport`.
    checked : bool
        For groups of processes: ranks compare what they mean before each operation moves data.

    Raises
    ------
    TypeError
        If ``x`` is none of these; the message names the methods that are missing.

    Examples
    --------
    >>> from sparsespan.comm import ThreadComm, as_comm
    >>> comm = ThreadComm(1)[0]
    >>> as_comm(comm) is comm
    True
    """
    if isinstance(x, Communicator):
        return x
    if isinstance(x, Transport):
        return Communicator(_core.comm.transport_comm(x, checked))
    if "mpi4py.MPI" in sys.modules and isinstance(x, sys.modules["mpi4py.MPI"].Comm):
        return MpiComm(x, checked=checked)
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and isinstance(x, dist.ProcessGroup):
        return TorchComm(x, checked=checked)
    missing = [name for name in _HOOKS if not callable(getattr(x, name, None))]
    if missing:
        raise TypeError(
            f"as_comm: x is a {type(x).__name__}, needs a Communicator, an mpi4py Comm, a torch ProcessGroup, or an "
            f"object with the methods of comm.Transport; it has no {', '.join(missing)}"
        )
    return Communicator(_core.comm.transport_comm(_Duck(x), checked))
