"""Twins of :mod:`sparsespan.pipeline`: the same rules written as definitions, not as engines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["chunk_sizes", "fit_chunk_cost", "flow_makespan", "simulate", "sm_waves"]

Key = tuple[str, int, int]


def simulate(
    schedule: Any, cost: Callable[[Any], float], *, latency: float = 0.0
) -> tuple[float, list[float], list[int]]:
    """Makespan, busy time and peak activations by rank of a compute-only schedule of F, B, I, W and OVERLAP_F_B.

    ``end(x) = max(end(what stands before x on its rank), end(y) + [latency if y is on another rank]) + cost(x)`` over
    all y that x needs: F(s, m) needs F(s - 1, m); B and I(s, m) need F(s, m) and B or I(s + 1, m); W(s, m) needs
    I(s, m).
    """
    lists = [[a for a in row if a is not None] for row in schedule.ranks]
    where: dict[Key, tuple[int, int]] = {}
    for rank, row in enumerate(lists):
        for step, action in enumerate(row):
            for leaf in action.parts or [action]:
                where["B" if leaf.kind == "I" else leaf.kind, leaf.stage, leaf.microbatch] = (rank, step)
    memo: dict[tuple[int, int], float] = {}

    def needs(leaf: Any) -> list[Key]:
        stage, m = leaf.stage, leaf.microbatch
        if leaf.kind == "F":
            return [("F", stage - 1, m)] if stage > 0 else []
        if leaf.kind == "W":
            return [("B", stage, m)]
        return [("F", stage, m)] + ([("B", stage + 1, m)] if stage + 1 < schedule.stages else [])

    def end(at: tuple[int, int]) -> float:
        if at not in memo:
            rank, step = at
            start = end((rank, step - 1)) if step > 0 else 0.0
            for leaf in lists[rank][step].parts or [lists[rank][step]]:
                for key in needs(leaf):
                    other = where[key]
                    start = max(start, end(other) + (latency if other[0] != rank else 0.0))
            memo[at] = start + cost(lists[rank][step])
        return memo[at]

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 4 * sum(map(len, lists)) + 1000))
    try:
        makespan = max((end((rank, len(row) - 1)) for rank, row in enumerate(lists) if row), default=0.0)
    finally:
        sys.setrecursionlimit(limit)
    busy = [sum(map(cost, row)) for row in lists]
    return makespan, busy, [_peak(row) for row in lists]


def _peak(row: list[Any]) -> int:
    held: set[tuple[int, int]] = set()
    peak = 0
    for action in row:
        leaves = action.parts or [action]
        held |= {(a.stage, a.microbatch) for a in leaves if a.kind == "F"}
        peak = max(peak, len(held))
        held -= {(a.stage, a.microbatch) for a in leaves if a.kind in "BW"}
    return peak


def flow_makespan(chunks: Sequence[float], weights: Sequence[float]) -> float:
    """The longest monotone path: a chunk waits for the chunk before it and for the stage before it."""
    table = np.zeros((len(weights) + 1, len(chunks) + 1))
    for s, weight in enumerate(weights, 1):
        for i, chunk in enumerate(chunks, 1):
            table[s, i] = max(table[s - 1, i], table[s, i - 1]) + chunk * weight
    return float(table[-1, -1])


def chunk_sizes(
    total: int, first: int, a: float, b: float, smooth: float = 0.75, align: int = 64, *, floor: int | None = None
) -> list[int]:
    """Equal-cost chunks from ``numpy.roots``, smoothed, floored, aligned down."""
    sizes: list[int] = []
    while sum(sizes) < total:
        done = sum(sizes)
        # The next chunk costs as much as the first: (a/2)(x^2 + 2 done x) + b x = (a/2) first^2 + b first.
        roots = np.roots([a / 2, a * done + b, -(a / 2 * first**2 + b * first)])
        size = first + smooth * (float(roots[roots > 0][0]) - first)
        size = max(size, first // 4 if floor is None else floor)
        sizes.append(min(total - done, max(align, int(size) // align * align)))
    return sizes


def fit_chunk_cost(
    lengths: Sequence[float], prefixes: Sequence[float], seconds: Sequence[float]
) -> tuple[float, float, float]:
    """``numpy.linalg.lstsq`` on the columns C H + C^2 / 2, C and 1."""
    c, h = np.asarray(lengths, np.float64), np.asarray(prefixes, np.float64)
    columns = np.stack([c * h + c * c / 2, c, np.ones_like(c)], 1)
    scale = np.linalg.norm(columns, axis=0)
    a, b, rest = np.linalg.lstsq(columns / scale, np.asarray(seconds, np.float64), rcond=None)[0] / scale
    return float(a), float(b), float(rest)


def sm_waves(
    tiles: Sequence[float], sms: int, reserved: int = 0, grid: int | None = None, until: float = np.inf
) -> float:
    """The time of the last block when each block takes the SM that is free first."""
    blocks = grid or sms
    free = np.array([0.0] * (sms - reserved) + [until] * reserved)
    last = 0.0
    for block in range(min(blocks, len(tiles))):
        sm = int(np.argmin(free))
        free[sm] += sum(tiles[block::blocks])
        last = max(last, float(free[sm]))
    return last
