"""Ours and the peers take turns, so that a drift of the machine hits all alike.

Thread pools (OpenBLAS's, libgomp's) spin for some milliseconds after their last work, and whoever comes next would
share the cores with them: every turn starts with a pause that lets them come to rest, and one untimed call then wakes
the turn's own pool.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from session import SESSION, median, quartiles

from sparsespan import _core, set_max_isa
from sparsespan._runtime import max_isa

__all__ = ["Took", "compare", "interleaved"]

SETTLE_SECONDS = 0.03
COPY = "copy, same footprint"
Call = Callable[[], object]


class Took(float):
    """What a call returns that has timed itself (seconds), leaving out what is not to be compared."""


def _once(run: Call, inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        result = run()
    return float(result) if isinstance(result, Took) else (time.perf_counter() - start) / inner


def interleaved(runs: dict[str, Call], repeats: int = 9, min_seconds: float = 2e-3) -> dict[str, float]:
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


@dataclass
class Sample:
    seconds: float
    rates: list[float]  # per thread, before and after

    def pace(self) -> float:
        """Flop/s of all threads around this sample."""
        return sum(self.rates) / 2


@dataclass
class Run:
    """One side of a comparison: an op of ours at a level, or a peer (level "", bracketed with the best probe)."""

    name: str
    level: str
    call: Call
    seconds: float = 0.0  # of one call, roughly
    inner: int = 1
    stride: int = 1  # it runs in every stride-th turn
    samples: dict[int, Sample] = field(default_factory=dict)

    @property
    def bracket(self) -> str:
        return self.level or SESSION.top()

    def prepare(self, turns: int, budget: float) -> None:
        """Warm up, and let what is slow sit out turns: powers of two, so that all meet in some."""
        if self.level:
            set_max_isa(self.level)
        self.seconds = _once(self.call, 1)
        if self.seconds < 1.0:  # what takes longer is warm by itself
            self.seconds = _once(self.call, 1)
        self.inner = max(1, int(2e-3 / max(self.seconds, 1e-9)))
        while self.stride * 3 < turns and self.seconds * 2 * turns / self.stride > budget:
            self.stride *= 2

    def take(self, turn: int) -> None:
        if self.level:
            set_max_isa(self.level)
        time.sleep(SETTLE_SECONDS if self.seconds < 0.3 else 0.0)
        if self.seconds < 0.1:
            self.call()
        before = SESSION.probe(self.bracket)
        seconds = _once(self.call, self.inner)
        self.samples[turn] = Sample(seconds, before + SESSION.probe(self.bracket))

    def fast(self) -> dict[int, Sample]:
        return {t: s for t, s in self.samples.items() if SESSION.judge(self.bracket, s.rates) == "fast"}

    def typical(self) -> list[Sample]:
        """The fast samples; all of them where too few are fast to say anything."""
        fast = list(self.fast().values())
        return fast if len(fast) >= 3 else list(self.samples.values())


def _copy_of(moved: float) -> Call:
    """A copy that reads half of the bytes and writes half."""
    source = np.ones(max(1, int(moved) // 2), np.uint8)
    to = np.zeros_like(source)
    return lambda: _core.probe_copy(source, to)


def _enough(runs: list[Run]) -> bool:
    return all(len(run.fast()) * run.stride >= 5 for run in runs)


def _measure(runs: list[Run], turns: int) -> None:
    """`turns` turns, and up to three times as many while fewer than five samples of someone are fast."""
    budget = (3.0 if SESSION.quick else 15.0) / len(runs)
    before = max_isa()
    try:
        for run in runs:
            run.prepare(turns, budget)
        end = time.perf_counter() + (1.5 if SESSION.quick else 3.0) * budget * len(runs)
        for turn in range(3 * turns):
            if turn >= turns and (_enough(runs) or time.perf_counter() > end):
                break
            for run in runs:
                if turn % run.stride == 0:
                    run.take(turn)
    finally:
        set_max_isa(before)


def _facts(run: Run, flops: float, moved: float, copy: Run | None) -> dict[str, object]:
    """What one side says of itself: time, rates, fractions of what the machine gave around it."""
    samples = run.typical()
    seconds = median([s.seconds for s in samples])
    facts: dict[str, object] = {"ours_ms": seconds * 1e3, "bracket": f"{len(run.fast())}/{len(run.samples)} fast"}
    if flops:
        facts |= {
            "flops": flops, "gflops": flops / seconds / 1e9,
            "fraction_of_probe": median([flops / s.seconds / s.pace() for s in samples]),
        }  # fmt: skip
    if moved:
        facts |= {"bytes": moved, "gbytes_per_s": moved / seconds / 1e9}
    if copy is not None:
        both = _pairs(run, copy)[0]
        facts["fraction_of_bandwidth"] = median(both)
    return facts


def _pairs(ours: Run, peer: Run) -> tuple[list[float], int]:
    """Ratios peer / ours of the turns where both were fast, and their number; of all common turns where none was."""
    common = [t for t in ours.samples if t in peer.samples]
    good = [t for t in common if t in ours.fast() and t in peer.fast()]
    return [peer.samples[t].seconds / ours.samples[t].seconds for t in good or common], len(good)


def compare(
    op: str, shape: str, ours: Call, peers: dict[str, Call] | None = None, *, own: dict[str, Call] | None = None,
    flops: float = 0.0, moved: float = 0.0, copy: bool = False, turns: int = 0, levels: list[str] | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Rows of one op: a row per level and peer.

    `own` are runs of this project, measured at each level like `ours`; `flops` and `moved` (bytes) are counted from
    the shapes; with `copy`, a copy of as many bytes takes turns too: what it needs is what bandwidth allows.
    """
    if SESSION.only is not None and (op, shape) not in SESSION.only:
        return
    levels = [isa for isa in levels or SESSION.levels() if isa in SESSION.levels()]
    runs = {("ours", isa): Run("ours", isa, ours) for isa in levels}
    runs |= {(name, isa): Run(name, isa, call) for isa in levels for name, call in (own or {}).items()}
    runs |= {(name, ""): Run(name, "", call) for name, call in (peers or {}).items()}
    if copy:
        runs[COPY, ""] = Run(COPY, "", _copy_of(moved))
    _measure(list(runs.values()), turns or (7 if SESSION.quick else 15))
    for isa in levels:
        row = {"op": op, "shape": shape, "isa": isa}
        mine = runs["ours", isa]
        row |= _facts(mine, flops, moved, runs.get((COPY, "")))
        others = [run for (name, level), run in runs.items() if name != "ours" and level in ("", isa)]
        if not others:
            yield row
        for peer in others:
            ratios, fast = _pairs(mine, peer)
            low, high = quartiles(ratios)
            yield row | {
                "peer": peer.name, "peer_ms": median([s.seconds for s in peer.typical()]) * 1e3,
                "ratio": median(ratios), "ratio_q1": low, "ratio_q3": high, "pairs": fast,
            }  # fmt: skip


def measured(calls: dict[str, Call], turns: int) -> dict[str, float]:
    """Median seconds of the fast samples of each, in turns, at the best level."""
    runs = {name: Run(name, SESSION.top(), call) for name, call in calls.items()}
    _measure(list(runs.values()), turns)
    return {name: median([s.seconds for s in run.typical()]) for name, run in runs.items()}
