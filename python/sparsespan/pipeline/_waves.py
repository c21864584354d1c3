"""What a held SM costs a persistent kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import _core
from .._runtime import num_threads

__all__ = ["SmWaves", "logit_tiles", "sm_waves", "threads_for_compute"]

_MOST_TILES = 1 << 26


@dataclass(frozen=True)
class SmWaves:
    """The outcome of :func:`sm_waves`; times are in the unit of the tiles."""

    waves: int
    """Tiles of the block that has most."""
    alone: float
    """Time on the free machine, one block for each SM."""
    time: float
    """Time with the reservation."""
    slowdown: float
    """time / alone; 1.0 for no work."""
    best_grid: int
    """The grid that ends soonest under the reservation, the largest of them."""
    best_time: float


def sm_waves(
    tiles: int | Sequence[float],
    sms: int,
    reserved: int = 0,
    *,
    grid: int | None = None,
    reserved_until: float = math.inf,
) -> SmWaves:
    """Time of a persistent kernel with a static schedule while another kernel holds SMs.

    Parameters
    ----------
    tiles : int or sequence of float
        Cost of each tile; a number n stands for n equal tiles of cost 1.
    sms : int
        SMs of the machine.
    reserved : int
        SMs held by the other kernel from the start (a NCCL receive holds one).
    grid : int, optional
        Blocks launched; one for each SM when not given.
    reserved_until : float
        When the other kernel leaves; never when not given.

    Returns
    -------
    SmWaves

    Raises
    ------
    ValueError
        If no SM is left, or a cost is negative.

    Notes
    -----
    Block s of a grid G runs tiles s, s + G, ..., one block to an SM, and blocks start in order as SMs come free. With
    equal tiles, f = tiles // sms and one SM held, the slowdown is 2 f / (f + 1), or 2 when sms divides tiles: the block
    without an SM starts when the first other one has ended. (The schedule of DeepGEMM's SM90 fp8_mqa_logits.)

    Examples
    --------
    >>> from sparsespan.pipeline import sm_waves
    >>> w = sm_waves(512, sms=78, reserved=1)
    >>> round(w.slowdown, 3), w.best_grid
    (1.714, 77)
    """
    if isinstance(tiles, (int, np.integer)) and tiles < 0:
        raise ValueError(f"sm_waves: tiles is {tiles}, needs 0 or more")
    if isinstance(tiles, (int, np.integer)) and tiles > _MOST_TILES:
        raise ValueError(f"sm_waves: tiles is {tiles}, needs at most {_MOST_TILES}: each is simulated")
    costs = [1.0] * tiles if isinstance(tiles, (int, np.integer)) else [float(t) for t in tiles]
    result = _core.pipeline.sm_waves(costs, sms, reserved, -1 if grid is None else grid, reserved_until)
    alone = result["alone"]
    return SmWaves(slowdown=result["time"] / alone if alone > 0 else 1.0, **result)


def logit_tiles(
    ke: Sequence[int], ks: Sequence[int] | None = None, *, rows_per_tile: int = 2, keys_per_unit: int = 256
) -> np.ndarray:
    """Costs of the tiles of an indexer-logits kernel, in units of ``keys_per_unit`` keys.

    Parameters
    ----------
    ke, ks : [T] int
        Packed window of every query row; ``ks`` is 0 when not given.
    rows_per_tile : int
        Query rows in a tile: 128 // heads in DeepGEMM, 2 at 64 heads.
    keys_per_unit : int
        Keys in a block.

    Returns
    -------
    int64 [ceil(T / rows_per_tile)]
        From the smallest ``ks`` of the tile to its largest ``ke``, in whole units.
    """
    if rows_per_tile < 1 or keys_per_unit < 1:
        raise ValueError(
            f"logit_tiles: rows_per_tile is {rows_per_tile} and keys_per_unit {keys_per_unit}, both need at least 1"
        )
    ends = np.asarray(ke, np.int64)
    starts = np.zeros_like(ends) if ks is None else np.asarray(ks, np.int64)
    if ends.shape != starts.shape or ends.ndim != 1:
        raise ValueError(f"logit_tiles: ke has shape {ends.shape} and ks {starts.shape}, both need [T]")
    if ends.size == 0:
        return np.zeros(0, np.int64)
    cuts = np.arange(0, ends.size, rows_per_tile)
    keys = np.maximum.reduceat(ends, cuts) - np.minimum.reduceat(starts, cuts)
    units: np.ndarray = np.maximum(0, -(-keys // keys_per_unit))
    return units


def threads_for_compute(reserve: int = 1, *, threads: int = 0) -> int:
    """Threads that compute may use while ``reserve`` others receive: the counterpart of a smaller grid on a CPU.

    Parameters
    ----------
    reserve : int
        Threads that stay busy elsewhere, such as one that polls a transport.
    threads : int
        Of this rank; 0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    int
        ``max(1, threads - reserve)``: pass it as ``threads=`` to ops, or to a library whose loops are static.

    Raises
    ------
    ValueError
        If either is negative.

    Notes
    -----
    A static loop gives every thread its share beforehand, so the thread that shares a core with a receiver holds up all
    others at the end of the loop, just as the block without an SM does in :func:`sm_waves`. Ops of this package deal
    their tasks out as they go and lose less; loops of BLAS and OpenMP libraries are mostly static.

    Examples
    --------
    >>> from sparsespan.pipeline import threads_for_compute
    >>> threads_for_compute(reserve=1, threads=8), threads_for_compute(reserve=2, threads=2)
    (7, 1)
    """
    if reserve < 0 or threads < 0:
        raise ValueError(f"threads_for_compute: reserve is {reserve} and threads {threads}, both need 0 or more")
    return max(1, (threads or num_threads()) - reserve)
