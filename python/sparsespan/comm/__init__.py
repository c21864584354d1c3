"""Ranks: one set of collectives on threads, MPI and torch.distributed, that ends right, in words, or in time.

Every rank calls the same operations in the same order. An operation is done, or raises :class:`CommError` (one of its
kin says why), or :class:`CommTimeout`; it never hangs. After an error the group is given up: every later call on it
raises :class:`CommAborted` with the reason.
"""

from __future__ import annotations

from ._as_comm import as_comm
from ._communicator import Communicator
from ._errors import ChecksumMismatch, CommAborted, CommError, CommTimeout, RankMismatch
from ._mpi import MpiComm
from ._ranks import run_ranks
from ._threads import ThreadComm
from ._torch import TorchComm
from ._transport import Transport
from ._work import Work

__all__ = [
    "ChecksumMismatch",
    "CommAborted",
    "CommError",
    "CommTimeout",
    "Communicator",
    "MpiComm",
    "RankMismatch",
    "ThreadComm",
    "TorchComm",
    "Transport",
    "Work",
    "as_comm",
    "run_ranks",
]
