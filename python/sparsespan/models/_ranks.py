"""The ranks that a model runs on."""

from __future__ import annotations

import dataclasses
from typing import Any

from ._dcp import Dcp

__all__ = ["Ranks", "place"]


def place(comm: Any) -> tuple[int, int]:
    """Rank and number of ranks; no communicator is one rank."""
    return (0, 1) if comm is None else (comm.rank, comm.size)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The groups that a rank works in; all ranks of a group make the same calls of their models.

    Attributes
    ----------
    cp : Communicator, optional
        Ranks that share the rows of a prefill; in decode each computes all rows.
    scheme : str
        How they split rows, as in :func:`sparsespan.cp.split_plan`.
    tp : Communicator, optional
        Ranks that share heads and feed-forward width.
    how : {"gather", "reduce"}
        How these join what they have: "gather" keeps the bits of one rank.
    dcp : Dcp, optional
        How the ranks of ``tp`` share the KV cache; not together with ``cp``.
    experts : Communicator, optional
        Ranks that share the routed experts, default those of ``tp``. Else all ranks of ``cp`` and ``tp``: rank
        ``i * tp.size + j`` has part i of the rows and part j of the heads.
    """

    cp: Any = None
    scheme: str = "zigzag"
    tp: Any = None
    how: str = "gather"
    dcp: Dcp | None = None
    experts: Any = None

    def __post_init__(self) -> None:
        if self.how not in ("gather", "reduce"):
            raise ValueError(f'Ranks: how is {self.how!r}, needs "gather" or "reduce"')
        if self.dcp is not None and self.cp is not None:
            raise ValueError("Ranks: dcp and cp are both given, needs one: rows are shared, or the KV cache is")
        if self.dcp is not None and self.tp is None:
            raise ValueError("Ranks: dcp is given without tp, the ranks that share the cache")
        if self.experts is not None:
            self._require_all(self.experts)

    def _require_all(self, experts: Any) -> None:
        (row, rows), (head, heads) = place(self.cp), place(self.tp)
        if (experts.rank, experts.size) != (row * heads + head, rows * heads):
            raise ValueError(
                f"Ranks: experts is rank {experts.rank} of {experts.size}, needs rank {row * heads + head} of "
                f"{rows * heads}: cp rank {row} of {rows}, tp rank {head} of {heads}"
            )
