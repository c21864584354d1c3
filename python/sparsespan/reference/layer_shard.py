"""Twins of the layer shard: the rules as definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Windows", "fixed_window_count", "shipped_target", "simulate_prefetch", "target"]


def target(layer: int, start: int, n: int, k: int) -> int:
    """The layer k steps ahead of ``layer`` on the circle start, ..., start + n - 1."""
    return (layer - start + k) % n + start


def shipped_target(layer: int, start: int, n: int, k: int) -> int:
    """What vllm-ascend computed up to its removal (parent of commit 896012151d): right only where n divides start."""
    return (layer + k) % n + start


class Windows:
    """Which layer each of the k + 1 windows holds, by the rule of vllm-ascend's layer_shard_linear."""

    def __init__(self, start: int, n: int, k: int) -> None:
        self.start, self.n, self.k = start, n, k
        self.held: list[int | None] = [*range(start, start + k), None]
        self.offset = k

    def reach(self, layer: int) -> tuple[int, int]:
        """(layer to fetch, its window)."""
        window, fetched = self.offset, target(layer, self.start, self.n, self.k)
        self.held[window] = fetched
        self.offset = (self.offset + 1) % (self.k + 1)
        return fetched, window


def fixed_window_count(n: int, k: int) -> int:
    """Fewest windows with which every layer keeps its own.

    A layer needs its window from its fetch to its use, k + 1 steps of the circle of n. Layers that share one lie at
    least k + 1 apart, so at most floor(n / (k + 1)) share it.
    """
    return -(-n // (n // (k + 1)))


def simulate_prefetch(
    seconds: Sequence[float], broadcast: float, k: int, *, lanes: int = 1, passes: int = 100
) -> tuple[float, np.ndarray]:
    """(length, waits) of the last of several passes over the layers; all broadcasts of all passes in one list."""
    n = len(seconds)
    ready = [0.0] * k  # by position, counted over all passes
    free = [0.0] * lanes
    begin = now = 0.0
    waits = np.zeros(n)
    for position in range(n * passes):
        if position % n == 0:
            begin = now
        lane = int(np.argmin(free))
        free[lane] = max(free[lane], now) + broadcast
        ready.append(free[lane])
        waits[position % n] = max(0.0, ready[position] - now)
        now += waits[position % n] + seconds[position % n]
    return now - begin, waits
