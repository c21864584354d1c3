"""Ranks that are threads of this process."""

from __future__ import annotations

from collections.abc import Iterator

from .. import _core
from ._communicator import Communicator

__all__ = ["ThreadComm"]


class ThreadComm:
    """``n`` ranks in one process: ``ThreadComm(n)[r]`` is the communicator that thread r uses.

    A rank reads straight out of its peers' arrays; nothing is staged. Ranks always compare what they mean (operation,
    dtype, shape, plan) before data moves. A rank that fails gives the group up, and does not return before the last
    peer has stopped reading its arrays. :func:`run_ranks` does the threads as well.

    Parameters
    ----------
    n : int
        Number of ranks, at least 1.

    Raises
    ------
    ValueError
        If ``n`` is less than 1 or more than 1024.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.comm import ThreadComm
    >>> comm = ThreadComm(1)[0]
    >>> comm.all_reduce(np.array([2.5])).tolist()
    [2.5]
    """

    def __init__(self, n: int) -> None:
        self._ranks = [Communicator(native) for native in _core.comm.thread_comms(n)]

    def __len__(self) -> int:
        return len(self._ranks)

    def __getitem__(self, rank: int) -> Communicator:
        return self._ranks[rank]

    def __iter__(self) -> Iterator[Communicator]:
        return iter(self._ranks)
