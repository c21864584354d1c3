"""Ranks of a torch.distributed process group (gloo)."""

from __future__ import annotations

import sys
import threading
from typing import Any

from .. import _core
from ._communicator import Communicator
from ._transport import Transport

__all__ = ["TorchComm"]


class _Works:
    """Collectives of one group; wait() after completion raises how they failed."""

    def __init__(self, works: list[Any], *buffers: Any) -> None:
        self._works = works
        self._buffers = buffers

    def test(self) -> bool:
        while self._works:
            if not self._works[0].is_completed():
                return False
            self._works.pop(0).wait()
        return True


class _Waiter:
    """A gloo message never says that it is completed before somebody waits for it: a thread does."""

    def __init__(self, work: Any, buffer: Any) -> None:
        self._work = work
        self._buffer = buffer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self._work.wait()
        except BaseException as error:
            self._error = error

    def test(self) -> bool:
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True


class _TorchTransport(Transport):
    def __init__(self, group: Any) -> None:
        super().__init__()
        import torch
        import torch.distributed as dist

        self._torch = torch
        self._dist = dist
        self._group = group

    def rank(self) -> int:
        return int(self._group.rank())

    def size(self) -> int:
        return int(self._group.size())

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
            gather = getattr(self._dist, "all_gather_single", None) or self._dist.all_gather_into_tensor  # old name
            return _Works([gather(out, tensor, group=self._group, async_op=True)], send, recv)
        # gloo gathers equal sizes only: each rank broadcasts its own.
        pieces = self._tensors(recv, sizes)
        pieces[self.rank()].copy_(self._torch.from_numpy(send))
        works = [self._broadcast(piece, r) for r, piece in enumerate(pieces) if sizes[r] > 0]
        return _Works(works, recv)

    def _broadcast(self, tensor: Any, root: int) -> Any:
        return self._dist.broadcast(tensor, group_src=root, group=self._group, async_op=True)

    def all_to_all(self, send: Any, recv: Any, to: list[int], from_: list[int]) -> Any:
        # Everybody takes part, also who has nothing: gloo's ranks must all call.
        work = self._dist.all_to_all_single(
            self._torch.from_numpy(recv), self._torch.from_numpy(send), from_, to, group=self._group, async_op=True
        )
        return _Works([work], send, recv)

    def broadcast(self, data: Any, root: int) -> Any:
        return None if data.size == 0 else _Works([self._broadcast(self._torch.from_numpy(data), root)], data)

    def send(self, data: Any, to: int, tag: int) -> Any:
        tensor = self._torch.from_numpy(data)
        return _Waiter(self._dist.isend(tensor, group_dst=to, tag=tag, group=self._group), data)

    def recv(self, data: Any, source: int, tag: int) -> Any:
        tensor = self._torch.from_numpy(data)
        return _Waiter(self._dist.irecv(tensor, group_src=source, tag=tag, group=self._group), data)

    def split(self, color: int, key: int, ranks: list[int]) -> Transport | None:
        # new_group is called by every rank for every part, in the same order: gather who is in which.
        parts: list[Any] = [None] * self.size()
        self._dist.all_gather_object(parts, ranks if color >= 0 else [], group=self._group)
        mine = None
        for part in sorted({tuple(p) for p in parts if p}):
            members = [self._dist.get_global_rank(self._group, r) for r in part]
            group = self._dist.new_group(members, backend="gloo", use_local_synchronization=False, sort_ranks=False)
            mine = group if self.rank() in part else mine
        return None if mine is None else _TorchTransport(mine)


class TorchComm(Communicator):
    """The ranks of a ``torch.distributed`` process group that can move host memory (gloo).

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        Default is the default group. It is used as it is: nothing is initialised or destroyed here.
    checked : bool
        Ranks compare what they mean before each operation moves data; costs a small all-gather each.

    Raises
    ------
    TypeError
        If ``group`` is no process group.
    RuntimeError
        If torch.distributed is not initialised and no group is given.

    Notes
    -----
    Messages and collectives of the caller on the same group must not interleave with ours; give us a group of our own
    (``new_group``) when that is not certain. ``split`` needs every rank of the default group, as ``new_group`` does.
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
        super().__init__(_core.comm.transport_comm(_TorchTransport(group), checked))
