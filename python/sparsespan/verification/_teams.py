"""Who runs the ranks: threads of this process, an MPI program, a torch.distributed program."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .._runtime import num_threads, set_num_threads
from ..comm import Communicator, MpiComm, TorchComm, run_ranks
from ..comm._share import share

__all__ = ["BACKENDS", "Processes", "Team", "Threads", "open_team"]

BACKENDS = ("threads", "mpi", "gloo")
_GRACE = 5.0  # seconds that a failed process waits for rank 0 to print and end the program
Main = Callable[[Communicator], dict[str, Any]]


class Team:
    """``run`` gives every rank's findings; ``leader`` is true in the one process that prints."""

    backend = "threads"
    leader = True
    size: int | None = None  # None: any number of ranks

    def run(self, ranks: int, main: Main, timeout: float) -> list[dict[str, Any]]:
        """Call ``main(comm)`` on every rank."""
        raise NotImplementedError

    def share(self, findings: dict[str, Any]) -> list[dict[str, Any]]:
        """What every process of the program has found; collective."""
        return [findings]

    def close(self) -> None:
        """End in good order."""

    def give_up(self, code: int) -> None:
        """End after an error, in which ranks no longer agree."""


class Threads(Team):
    """Any number of ranks in this process."""

    def run(self, ranks: int, main: Main, timeout: float) -> list[dict[str, Any]]:
        return run_ranks(ranks, main, timeout=timeout)


class Processes(Team):
    """The ranks of a program that is running already."""

    def __init__(self, backend: str, comm: Communicator, end: Callable[[int], None], close: Callable[[], None]) -> None:
        self.backend = backend
        self.comm = comm
        self.size = comm.size
        self.leader = comm.rank == 0
        self._end = end
        self._close = close

    def run(self, ranks: int, main: Main, timeout: float) -> list[dict[str, Any]]:
        self.comm.timeout = timeout
        return self.share(main(self.comm))

    def share(self, findings: dict[str, Any]) -> list[dict[str, Any]]:
        return share(self.comm, findings)

    def close(self) -> None:
        self._close()

    def give_up(self, code: int) -> None:
        # Rank 0 prints what it knows and ends the program. The others give it time to do so, then end it themselves.
        sys.stdout.flush()
        sys.stderr.flush()
        if not self.leader:
            time.sleep(self.comm.timeout + _GRACE)
        self._end(code)


def _share_cores(local_ranks: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        set_num_threads(max(1, num_threads() // max(1, local_ranks)))


def _mpi() -> Team:
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ValueError(f"--backend mpi needs mpi4py and an MPI: pip install sparsespan[mpi] ({error})") from None
    world = MPI.COMM_WORLD
    _share_cores(world.Split_type(MPI.COMM_TYPE_SHARED).Get_size())
    return Processes("mpi", MpiComm(world), lambda code: world.Abort(code), lambda: None)


def _gloo() -> Team:
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise ValueError(f"--backend gloo needs torch: pip install torch ({error})") from None
    missing = [n for n in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing and not dist.is_initialized():
        raise ValueError(
            f"--backend gloo: {', '.join(missing)} is not set, needs a launcher: "
            "torchrun --nproc-per-node 4 -m sparsespan.cli COMMAND --backend gloo"
        )
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo")
    _share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())))
    return Processes("gloo", TorchComm(), os._exit, lambda: dist.destroy_process_group() if ours else None)


def open_team(backend: str) -> Team:
    """Join the program's ranks, or make threads.

    Raises
    ------
    ValueError
        If the backend's library is not installed, or nobody launched the ranks.
    """
    if backend == "threads":
        return Threads()
    if backend not in BACKENDS:
        raise ValueError(f"verification: backend is {backend!r}, needs one of {', '.join(map(repr, BACKENDS))}")
    return _mpi() if backend == "mpi" else _gloo()
