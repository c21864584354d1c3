"""Interleaved medians: ours and the peers take turns, so that a drift of the machine hits all alike.

Every turn starts with a pause: thread pools (OpenBLAS's, libgomp's) spin for some milliseconds after their last work,
and whoever comes next would share the cores with them. One untimed call then wakes the turn's own pool.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

__all__ = ["interleaved"]

SETTLE_SECONDS = 0.03


def _once(run: Callable[[], object], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        run()
    return (time.perf_counter() - start) / inner


def interleaved(runs: dict[str, Callable[[], object]], repeats: int = 9, min_seconds: float = 2e-3) -> dict[str, float]:
    """Median seconds of each, run in turns `repeats` times after one warm-up; short ones are looped within a turn."""
    inner = {}
    for name, run in runs.items():
        run()
        inner[name] = max(1, int(min_seconds / max(_once(run, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(SETTLE_SECONDS)
            run()
            times[name].append(_once(run, inner[name]))
    return {name: statistics.median(t) for name, t in times.items()}
