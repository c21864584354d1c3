"""Whatever stands for a group of ranks."""

from __future__ import annotations

import sys
from typing import Any

from .. import _core
from ._communicator import Communicator
from ._mpi import MpiComm
from ._threads import ThreadComm
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

    def alarm(self, sequence: int) -> tuple[int, str] | None:
        return self._duck.alarm(sequence) if hasattr(self._duck, "alarm") else None

    def late(self, sequence: int) -> list[int]:
        return list(self._duck.late(sequence)) if hasattr(self._duck, "late") else []

    def close(self) -> None:
        if hasattr(self._duck, "close"):
            self._duck.close()


def _torch_group(x: Any) -> Any:
    """The process group of x, None if it is nothing of torch's; torch is not imported for that."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available():
        return None
    if isinstance(x, dist.ProcessGroup):
        return x
    mesh = sys.modules.get("torch.distributed.device_mesh")
    if mesh is None or not isinstance(x, mesh.DeviceMesh):
        return None
    if x.ndim != 1:
        names = ", ".join(repr(n) for n in x.mesh_dim_names or ()) or "mesh_dim_names were not given"
        raise ValueError(f"as_comm: x is a DeviceMesh of {x.ndim} dimensions ({names}), needs one: x[name]")
    return x.get_group()


def as_comm(x: Any, *, checked: bool = True) -> Communicator:
    """Make a :class:`Communicator` of what the caller has.

    Parameters
    ----------
    x : Communicator, ThreadComm, mpi4py.MPI.Comm, torch ProcessGroup or DeviceMesh, Transport or object
        A communicator of ours comes back as it is, and so does the only rank of a ThreadComm of one. A DeviceMesh has
        one dimension. Another object needs the methods of an mpi4py communicator (it is one if it has ``Get_rank`` and
        ``Get_size``), or those of :class:`Transport`.
    checked : bool
        For groups of processes: ranks compare what they mean before each operation moves data.

    Raises
    ------
    TypeError
        If ``x`` is none of these; the message names the methods that are missing.
    ValueError
        If a mesh has several dimensions, or a ThreadComm several ranks: say which.

    Examples
    --------
    >>> from sparsespan.comm import ThreadComm, as_comm
    >>> comm = ThreadComm(1)[0]
    >>> as_comm(comm) is comm
    True
    """
    if isinstance(x, Communicator):
        return x
    if isinstance(x, ThreadComm):
        if len(x) > 1:
            raise ValueError(f"as_comm: x is all {len(x)} ranks of a ThreadComm, needs one of them: x[rank]")
        return x[0]
    if isinstance(x, Transport):
        return Communicator(_core.comm.transport_comm(x, checked))
    group = _torch_group(x)
    if group is not None:
        return TorchComm(group, checked=checked)
    if callable(getattr(x, "Get_rank", None)) and callable(getattr(x, "Get_size", None)):
        return MpiComm(x, checked=checked)
    missing = [name for name in _HOOKS if not callable(getattr(x, name, None))]
    if missing:
        raise TypeError(
            f"as_comm: x is a {type(x).__name__}, needs a Communicator, an mpi4py Comm, a torch ProcessGroup or "
            f"DeviceMesh, or an object with the methods of comm.Transport; it has no {', '.join(missing)}"
        )
    return Communicator(_core.comm.transport_comm(_Duck(x), checked))
