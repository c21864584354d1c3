"""Grids by name: ``one``, ``tp2``, ``cp4:interleave``, ``dcp2:ag_rs:sharded``, ``pp2xcp2``; ``@bf16`` behind them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from ... import models
from .._case import COMBINES, INDEX_KS, SCHEMES

__all__ = ["Implementation", "parse_grid"]

_CHOICES = (("scheme", SCHEMES[:-1]), ("combine", COMBINES), ("index_k", INDEX_KS))
# Activations, and layouts of the caches.
PRECISIONS: dict[str, tuple[str | None, str | None, str | None]] = {
    "f32": ("float32", "f32_576", "index_f32"),
    "bf16": ("bfloat16", "bf16_576", "index_bf16"),
    "fp8": ("bfloat16", "fp8_656", "index_132"),
}
NAMES = {"f32": "float32", "bf16": "bfloat16", "fp8": "float8"}


@dataclasses.dataclass(frozen=True)
class Implementation:
    """Our model on a grid."""

    name: str
    grid: models.Grid
    precision: str = "f32"


def parse_grid(name: str, page_size: int = 4) -> Implementation:
    """Read a name.

    Raises
    ------
    ValueError
        A word that is neither a group with its size nor a choice of these.
    """
    body, _, precision = name.partition("@")
    if (precision or "f32") not in PRECISIONS:
        raise ValueError(f"{name!r}: {precision!r} is no precision, needs one of {', '.join(PRECISIONS)}")
    first, *words = body.split(":")
    fields: dict[str, Any] = {}
    for part in re.split(r"(?<=[0-9])x", first) if first != "one" else ():
        match = re.fullmatch(r"(tp|cp|dcp|pp)(\d{1,4})", part)
        if match is None or match[1] in fields:
            raise ValueError(
                f"{name!r}: {part!r} is no grid, needs one, transformers, a file.npz, or groups such as tp2, cp4, "
                "dcp2, pp2, pp2xcp2"
            )
        fields[match[1]] = int(match[2])
    for word in words:
        for field, known in _CHOICES:
            if word in known:
                fields[field] = word
                break
        else:
            raise ValueError(f"{name!r}: {word!r} is none of {', '.join(w for _, known in _CHOICES for w in known)}")
    fields.setdefault("tp", fields.get("dcp", 1))
    return Implementation(name, models.Grid(**fields, page_size=page_size), precision or "f32")
