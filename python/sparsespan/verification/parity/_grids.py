"""Grids by name: ``one``, ``tp2xcp2``, ``cp4:interleave``, ``dcp4:ag_rs:sharded``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ... import models
from .._case import COMBINES, INDEX_KS, SCHEMES

__all__ = ["GRIDS", "Way", "ways"]

# Every scheme on four ranks; of DCP each way to join attention, and each place of index keys that keeps the selection
# exact ("union" does not).
GRIDS = (
    "one", "tp2", "cp2",
    "cp4:zigzag", "cp4:zigzag_padded", "cp4:ceil_chunk", "cp4:interleave", "cp4:contiguous", "cp4:contiguous_flat",
    "dcp2", "dcp2:ar:sharded", "dcp4", "dcp4:ag_rs:sharded", "dcp4:ar:sharded_routed", "dcp4:a2a:gathered",
    "tp2xcp2",
)  # fmt: skip
_AXES = ("tp", "cp", "dcp")


@dataclasses.dataclass(frozen=True)
class Way:
    """A grid that a model is run on.

    Attributes
    ----------
    name : str
    grid : Grid
    """

    name: str
    grid: models.Grid

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.grid.ranks

    @property
    def bits(self) -> bool:
        """Whether the bits of one rank are promised: not where partial attention is merged over a shared cache."""
        return self.grid.dcp == 1


def _option(word: str) -> tuple[str, str]:
    for field, known in (("scheme", SCHEMES[:-1]), ("combine", COMBINES), ("index_k", INDEX_KS)):
        if word in known:
            return field, word
    raise ValueError(
        f"--grids: {word!r} is no scheme ({', '.join(SCHEMES[:-1])}), way to combine ({', '.join(COMBINES)}) or place "
        f"of index keys ({', '.join(INDEX_KS)})"
    )


def _grid(text: str) -> models.Grid:
    head, *options = text.split(":")
    fields: dict[str, Any] = {}
    for part in () if head == "one" else head.split("x"):
        axis = re.fullmatch(r"([a-z]+)([0-9]{1,4})", part)
        if axis is None or axis[1] not in _AXES or axis[1] in fields:
            raise ValueError(
                f"--grids: {text!r} is no grid, needs one, or {', '.join(_AXES)} with their sizes such as tp2xcp2"
            )
        fields[axis[1]] = int(axis[2])
    return models.Grid(**{"tp": fields.get("dcp", 1)} | fields | dict(map(_option, options)))


def ways(names: tuple[str, ...] = GRIDS) -> list[Way]:
    """Parse names of grids.

    Raises
    ------
    ValueError
        What is no grid, or cannot be one.

    Examples
    --------
    >>> [(way.name, way.ranks) for way in ways(("one", "tp2xcp2:interleave", "dcp4"))]
    [('one', 1), ('tp2xcp2:interleave', 4), ('dcp4', 4)]
    """
    return [Way(name, _grid(name)) for name in names]
