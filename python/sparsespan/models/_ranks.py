"""The ranks that a model runs on."""

from __future__ import annotations

import dataclasses
from typing import Any

from ._dcp import Dcp

__all__ = ["Ranks"]


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
        Ranks that share heads, feed-forward width and experts.
    how : {"gather", "reduce"}
        How these join what they have: "gather" keeps the bits of one rank.
    dcp : Dcp, optional
        How the ranks of ``tp`` share the KV cache; not together with ``cp``.
    """

    cp: Any = None
    scheme: str = "zigzag"
    tp: Any = None
    how: str = "gather"
    dcp: Dcp | None = None

    def __post_init__(self) -> None:
        if self.how not in ("gather", "reduce"):
            raise ValueError(f'Ranks: how is {self.how!r}, needs "gather" or "reduce"')
        if self.dcp is not None and self.cp is not None:
            raise ValueError("Ranks: dcp and cp are both given, needs one: rows are shared, or the KV cache is")
        if self.dcp is not None and self.tp is None:
            raise ValueError("Ranks: dcp is given without tp, the ranks that share the cache")
