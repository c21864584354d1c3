"""Grids by name: ``one``, ``tp2``, ``cp4:interleave``, ``dcp2:ag_rs:sharded``, ``pp2xcp2``; ``@bf16`` behind them."""

from __future__ import annotations

import dataclasses

from ... import models
from .._grid_names import grid_named

__all__ = ["Implementation", "parse_grid"]

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
    also = ", transformers, or a file.npz"
    return Implementation(name, grid_named(body, page_size, also), precision or "f32")
