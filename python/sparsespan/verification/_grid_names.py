"""Grids by name: ``one``, ``tp2xcp2``, ``cp4:interleave``, ``dcp4:ag_rs:sharded``, ``pp2xcp2``."""

from __future__ import annotations

import re
from typing import Any

from .. import models
from ._case import COMBINES, INDEX_KS, O_PROJS, SCHEMES

__all__ = ["grid_named"]

_AXES = ("tp", "cp", "dcp", "pp")
_OPTIONS = {"scheme": SCHEMES[:-1], "combine": COMBINES, "index_k": INDEX_KS, "o_proj": O_PROJS}


def _option(word: str) -> tuple[str, str]:
    for field, known in _OPTIONS.items():
        if word in known:
            return field, word
    words = "; ".join(f"{field}: {', '.join(known)}" for field, known in _OPTIONS.items())
    raise ValueError(f"{word!r} is none of {words}")


def grid_named(text: str, page_size: int, also: str = "") -> models.Grid:
    """Read a name; ``also`` says what else the caller would have taken.

    Raises
    ------
    ValueError
        A word that is neither an axis with its size nor a choice of these; sizes that make no grid.
    """
    head, *options = text.split(":")
    fields: dict[str, Any] = {}
    for part in () if head == "one" else head.split("x"):
        axis = re.fullmatch(r"([a-z]+)([0-9]{1,4})", part)
        if axis is None or axis[1] not in _AXES or axis[1] in fields:
            raise ValueError(
                f"{text!r} is no grid, needs one, or {', '.join(_AXES)} with their sizes such as tp2xcp2{also}"
            )
        fields[axis[1]] = int(axis[2])
    return models.Grid(**{"tp": fields.get("dcp", 1), "page_size": page_size} | fields | dict(map(_option, options)))
