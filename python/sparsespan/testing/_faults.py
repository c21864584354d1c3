"""Failures on purpose."""

from __future__ import annotations

from .. import _core
from ..comm import Communicator

__all__ = ["FaultyComm"]


class FaultyComm(Communicator):
    """A communicator whose rank fails at one operation, to test what happens then.

    Parameters
    ----------
    comm : Communicator
        What it wraps; only this rank's calls pass through.
    fault : {"raise", "skip", "delay", "mismatch", "die", "corrupt"}
        ``raise``: the call raises :class:`~sparsespan.comm.CommError` and the rank takes no part. ``skip``: it returns
        as if done, without taking part; outputs stay as they were. ``delay``: it takes part ``seconds`` later.
        ``mismatch``: it names another plan than the others (on MPI and gloo only checked mode sees that). ``die``: the
        process is killed with SIGKILL, so on threads all ranks are. ``corrupt``: one bit of what it sends is flipped.
    at : int
        Which operation, counted from 0 over all primitives called through this object (blocking, ``i`` forms, split).
    seconds : float
        For ``delay``.

    Raises
    ------
    ValueError
        If ``fault`` has another name, or ``at`` or ``seconds`` is negative.

    Examples
    --------
    >>> from sparsespan.comm import CommError, run_ranks
    >>> from sparsespan.testing import FaultyComm
    >>> def step(comm):
    ...     if comm.rank == 1:
    ...         comm = FaultyComm(comm, "raise", at=1)
    ...     comm.barrier()
    ...     comm.barrier()
    >>> run_ranks(2, step)
    Traceback (most recent call last):
    ...
    sparsespan.comm._errors.CommError: barrier: injected failure at operation 1
    """

    def __init__(self, comm: Communicator, fault: str, at: int = 0, seconds: float = 0.0) -> None:
        super().__init__(_core.comm.faulty_comm(comm._native, fault, at, seconds))
