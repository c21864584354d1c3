"""Grids by name: ``one``, ``tp2xcp2``, ``cp4:interleave``, ``dcp4:ag_rs:sharded``, ``pp2xcp2``, ``cp4-to-tp2xdcp2``."""

from __future__ import annotations

import dataclasses

from ... import models
from .._grid_names import grid_named

__all__ = ["GRIDS", "Way", "ways"]

# Every scheme on four ranks; of DCP each way to join attention, and each place of index keys that keeps the selection
# exact ("union" does not).
GRIDS = (
    "one", "tp2", "cp2",
    "cp4:zigzag", "cp4:zigzag_padded", "cp4:ceil_chunk", "cp4:interleave", "cp4:contiguous", "cp4:contiguous_flat",
    "cp2:gather_weight", "cp2:broadcast", "cp4:a2a_rs",
    "dcp2", "dcp2:ar:sharded", "dcp4", "dcp4:ag_rs:sharded", "dcp4:ar:sharded_routed", "dcp4:a2a:gathered",
    "tp2xcp2", "pp2", "pp2xcp2", "pp2xdcp2", "tp2xcp2xpp2", "cp2-to-tp2", "cp2-to-tp2xdcp2", "cp4-to-tp2xdcp2",
)  # fmt: skip
_PAGE, _DECODE_PAGE = 16, 8  # requests share no page, and have several


@dataclasses.dataclass(frozen=True)
class Way:
    """A grid that a model is run on, or a pair: prefill on one, decode on the other.

    Attributes
    ----------
    name : str
    prefill : Grid
    decode : Grid or None
        None: the same ranks decode.
    """

    name: str
    prefill: models.Grid
    decode: models.Grid | None = None

    @property
    def pair(self) -> models.PdGrid | None:
        """Both grids as one, where there are two."""
        return None if self.decode is None else models.PdGrid(self.prefill, self.decode)

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return (self.pair or self.prefill).ranks

    @property
    def promised(self) -> tuple[str, ...]:
        """Stages with the bits of one rank: not where ranks add up parts, of attention or of the output projection."""
        decode = self.decode or self.prefill
        found: tuple[str, ...] = ("prefill", "chunked") if self.prefill.dcp == 1 else ()
        adds = decode.o_proj == "a2a_rs" or not self.prefill.dcp == decode.dcp == 1
        return found if adds else (*found, "decode", "forced")


def _grid(text: str, page: int) -> models.Grid:
    try:
        return grid_named(text, page, " (or two of these such as cp4-to-tp2xdcp2)")
    except ValueError as refusal:
        raise ValueError(f"--grids: {refusal}") from None


def _way(name: str) -> Way:
    prefill, to, decode = name.partition("-to-")
    way = Way(name, _grid(prefill, _PAGE), _grid(decode, _DECODE_PAGE) if to else None)
    if way.ranks > 1024:
        raise ValueError(f"--grids: {name} needs {way.ranks} ranks, at most 1024 are given")
    return way


def ways(names: tuple[str, ...] = GRIDS) -> list[Way]:
    """Parse names of grids.

    Raises
    ------
    ValueError
        What is no grid, or cannot be one.

    Examples
    --------
    >>> [(way.name, way.ranks) for way in ways(("one", "tp2xcp2:interleave", "dcp4", "cp4-to-tp2xdcp2"))]
    [('one', 1), ('tp2xcp2:interleave', 4), ('dcp4', 4), ('cp4-to-tp2xdcp2', 6)]
    """
    return [_way(name) for name in names]
