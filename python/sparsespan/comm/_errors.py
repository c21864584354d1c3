"""How an operation between ranks ends when it does not end well."""

from __future__ import annotations

__all__ = ["ChecksumMismatch", "CommAborted", "CommError", "CommTimeout", "RankMismatch"]


class CommError(RuntimeError):
    """An operation between ranks failed.

    Attributes
    ----------
    op : str
        The primitive, ``"all_gather"`` for one; empty when none was under way.
    sequence : int
        Its number among the collectives of this communicator; -1 when there is none.
    ranks : tuple of int
        The ranks that the error names: late, differing or failed. Empty when the transport cannot tell.
    field : str
        What differs between the ranks (:class:`RankMismatch`): ``"op"``, ``"dtype"``, ``"shape"``, ``"counts"``, ...
    record : str
        The last 64 operations of this rank as JSON (see :meth:`Communicator.record`).
    """

    op: str = ""
    sequence: int = -1
    ranks: tuple[int, ...] = ()
    field: str = ""
    record: str = ""


class CommTimeout(CommError, TimeoutError):  # noqa: N818 - names that the field would expect
    """A peer did not come in time. The group is given up."""


class RankMismatch(CommError):  # noqa: N818 - names that the field would expect
    """The ranks do not mean the same operation; no data was moved."""


class CommAborted(CommError):  # noqa: N818 - names that the field would expect
    """Another rank failed, or somebody gave the group up."""


class ChecksumMismatch(CommError):  # noqa: N818 - names that the field would expect
    """What arrived is not what was sent; nothing of it was stored."""
