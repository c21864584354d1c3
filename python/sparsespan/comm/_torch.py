"""Ranks of a torch.distributed process group, over gloo."""

from __future__ import annotations

import ctypes
import sys
from datetime import timedelta
from typing import Any

from .. import _core
from ._communicator import Communicator
from ._torch_parts import Alarm, Collectives, Message
from ._transport import Transport

__all__ = ["TorchComm"]

_MEET = timedelta(seconds=300)  # to connect
_NEVER = timedelta(days=30)  # the native side keeps the time

_made: dict[str, int] = {}  # groups that were made of a group, by its name: the same number on every rank


class _TorchTransport(Transport):
    """A gloo group of our own: our messages never meet the caller's, and what fails is not the caller's group."""

    def __init__(self, store: Any, name: str, members: list[int], alarm: Alarm, rank: int) -> None:
        super().__init__()
        import torch
        import torch.distributed

        dist: Any = torch.distributed  # its stubs know little of gloo
        self._torch = torch
        self._store = store  # of the whole
        self._name = name
        self._members = members  # ranks of the whole
        self._alarm = alarm
        self._splits = 0
        self._pinned = False
        place = dist.PrefixStore(name, store)
        self._group: Any = dist.ProcessGroupGloo(place, rank, len(members), _MEET)
        self._group.set_timeout(_NEVER)
        self._rank = rank

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return len(self._members)

    def kind(self) -> str:
        return "torch"

    def _tensors(self, buffer: Any, sizes: list[int]) -> list[Any]:
        whole: Any = self._torch.from_numpy(buffer)
        return list(whole.split(sizes))

    def all_gather(self, send: Any, recv: Any, sizes: list[int]) -> Any:
        if sum(sizes) == 0:
            return None
        if len(set(sizes)) == 1:
            tensor, out = self._torch.from_numpy(send), self._torch.from_numpy(recv)
            return Collectives([self._group._allgather_base(out, tensor)], send, recv)
        # gloo gathers equal sizes only: each rank broadcasts its own.
        pieces = self._tensors(recv, sizes)
        pieces[self._rank].copy_(self._torch.from_numpy(send))
        works = [self._group.broadcast(piece, r) for r, piece in enumerate(pieces) if sizes[r] > 0]
        return Collectives(works, recv)

    def all_to_all(self, send: Any, recv: Any, to: list[int], from_: list[int]) -> Any:
        # Everybody takes part, also who has nothing: gloo's ranks must all call.
        out, tensor = self._torch.from_numpy(recv), self._torch.from_numpy(send)
        return Collectives([self._group.alltoall_base(out, tensor, from_, to)], send, recv)

    def broadcast(self, data: Any, root: int) -> Any:
        if data.size == 0:
            return None
        return Collectives([self._group.broadcast(self._torch.from_numpy(data), root)], data)

    def send(self, data: Any, to: int, tag: int) -> Any:
        return Message(self._group.send([self._torch.from_numpy(data)], to, tag), data)

    def recv(self, data: Any, source: int, tag: int) -> Any:
        return Message(self._group.recv([self._torch.from_numpy(data)], source, tag), data)

    def split(self, color: int, key: int, ranks: list[int]) -> Transport | None:
        self._splits += 1
        if color < 0:
            return None
        members = [self._members[r] for r in ranks]
        name = f"{self._name}/{self._splits}.{color}"
        return _TorchTransport(self._store, name, members, self._alarm, ranks.index(self._rank))

    def _pin(self) -> None:
        # A transfer that never ends would hold up whoever frees the group: it stays until the process ends.
        if not self._pinned:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
        self._pinned = True

    def abort(self, reason: str) -> None:
        self._pin()
        self._alarm.ring(reason)

    def _place(self, rank: int) -> str:
        return f"{self._name}/at/{rank}"

    def alarm(self, sequence: int) -> tuple[int, str] | None:
        found = self._alarm.look(self._place(self._rank), sequence)
        if found is None:
            return None
        self._pin()
        rank, reason = found
        return (self._members.index(rank) if rank in self._members else -1), reason

    def late(self, sequence: int) -> list[int]:
        places = self._alarm.places([self._place(r) for r in range(self.size())])
        if places is None:
            return []
        return [r for r, place in enumerate(places) if place < sequence and r != self._rank]


def _store_of(group: Any) -> Any:
    if hasattr(group, "get_group_store"):
        return group.get_group_store()
    from torch.distributed.distributed_c10d import _get_process_group_store

    return _get_process_group_store(group)


def _transport(group: Any) -> _TorchTransport:
    import torch.distributed

    dist: Any = torch.distributed
    name = str(group.group_name)
    _made[name] = _made.get(name, 0) + 1
    store = dist.PrefixStore(f"sparsespan/{_made[name]}", _store_of(group))
    rank = int(group.rank())
    return _TorchTransport(store, "all", list(range(group.size())), Alarm(store, rank), rank)


class TorchComm(Communicator):
    """The ranks of a ``torch.distributed`` process group, under a gloo group of our own. Collective to make.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        Default is the default group. Only its ranks and its store are used, so any backend will do, and neither its
        messages nor its collectives meet ours. Nothing of the caller's is initialised or destroyed here.
    checked : bool
        Ranks compare what they mean before each operation moves data; costs a small all-gather each.

    Raises
    ------
    TypeError
        If ``group`` is no process group.
    RuntimeError
        If torch.distributed is not initialised and no group is given, or was built without gloo.

    Notes
    -----
    Through the group's store, a rank that gives up tells the others, which end with :class:`CommAborted` within a
    fraction of a second of waiting; after a timeout in checked mode the store tells who did not come. A rank that dies
    is noticed by its connections. Where the store is out of reach the timeout remains.
    """

    def __init__(self, group: Any = None, *, checked: bool = True) -> None:
        if "torch" not in sys.modules and group is None:
            raise RuntimeError("TorchComm: torch.distributed is not initialised; call init_process_group first")
        import torch.distributed as dist

        if group is None:
            if not dist.is_initialized():
                raise RuntimeError("TorchComm: torch.distributed is not initialised; call init_process_group first")
            group = dist.group.WORLD
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"TorchComm: group is a {type(group).__name__}, needs a torch.distributed.ProcessGroup")
        if not dist.is_gloo_available():
            raise RuntimeError("TorchComm: this torch has no gloo, which moves host memory")
        super().__init__(_core.comm.transport_comm(_transport(group), checked))
