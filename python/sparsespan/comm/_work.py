"""An operation under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _core

if TYPE_CHECKING:
    from ._communicator import Communicator

__all__ = ["Work"]


class Work:
    """An operation under way. It keeps its arrays alive; it belongs to the thread that started it.

    Nothing moves between calls (as in MPI without a progress thread): peers wait for this rank's next ``test``,
    ``wait`` or operation.
    """

    def __init__(self, comm: Communicator, native: _core.comm.Work, result: Any) -> None:
        self._comm = comm
        self._native = native
        self._result = result

    def test(self) -> bool:
        """True once the operation is done. Never waits; raises how it failed."""
        return self._comm._guard(self._native.test)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until it is done and return its result.

        Parameters
        ----------
        timeout : float, optional
            Seconds from now; default is the operation's own.

        Raises
        ------
        CommTimeout
            When the time runs out. This is final: the group is given up. Use :meth:`test` to look.
        CommError
            When the operation failed.
        """
        self._comm._guard(lambda: self._native.wait(timeout))
        return self._result
