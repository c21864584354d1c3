"""Other people's communication libraries, as movers of bytes."""

from __future__ import annotations

from typing import Any

from .. import _core

__all__ = ["Transport"]


class Transport(_core.comm.Transport):
    """What a library must do to carry sparsespan's operations: subclass it and hand it to :func:`as_comm`.

    Buffers are one-dimensional uint8 arrays over the operation's own memory; ``sizes``, ``to`` and ``from_`` are lists
    of bytes per rank. Each transfer only starts, and returns None when it is already done, else an object whose
    ``test()`` is True once it is. The native side calls the methods in the same order on every rank, polls ``test``,
    and keeps the time; what a method raises becomes a :class:`CommError`.
    """

    def rank(self) -> int:
        """The rank of the caller."""
        raise NotImplementedError

    def size(self) -> int:
        """Number of ranks."""
        raise NotImplementedError

    def kind(self) -> str:
        """A short name for messages."""
        return type(self).__name__

    def all_gather(self, send: Any, recv: Any, sizes: list[int]) -> Any:
        """Every rank's ``send`` into ``recv``, one behind the other."""
        raise NotImplementedError

    def all_to_all(self, send: Any, recv: Any, to: list[int], from_: list[int]) -> Any:
        """``send`` holds the pieces for ranks 0, 1, ...; ``recv`` takes the pieces from them."""
        raise NotImplementedError

    def broadcast(self, data: Any, root: int) -> Any:
        """The root's ``data`` into everybody's."""
        raise NotImplementedError

    def send(self, data: Any, to: int, tag: int) -> Any:
        """To another rank; messages of one tag keep their order."""
        raise NotImplementedError

    def recv(self, data: Any, source: int, tag: int) -> Any:
        """From another rank."""
        raise NotImplementedError

    def split(self, color: int, key: int, ranks: list[int]) -> Transport | None:
        """As MPI_Comm_split; ``ranks`` are the part's, in order. None for a negative color. Collective."""
        raise NotImplementedError

    def abort(self, reason: str) -> None:
        """The group is given up on this rank. Tell the peers if the library can; do not end the process."""

    def alarm(self, sequence: int) -> tuple[int, str] | None:
        """Rank and reason if a peer gave the group up (rank -1: one outside this part), else None; never waits.

        Asked some twenty times a second while this rank waits in collective ``sequence`` (-1: for a message).
        """
        return None

    def late(self, sequence: int) -> list[int]:
        """Ranks that are not known to wait in collective ``sequence`` too; asked once, after a timeout."""
        return []

    def close(self) -> None:
        """Free what this object made; never what the caller made."""
