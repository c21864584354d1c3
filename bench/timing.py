"""Ours and the peers take turns, so that a drift of the machine hits all alike.

Every sample stands in a bracket of two probes and begins with the process at rest (see quiet.py). Ours and the probe
run on one pool, which an untimed call wakes: rest, call, probe, timed, probe. A peer may have a pool of its own that
spins on after its last work: a probe right behind it would be judged by the peer's own threads, and the probe's pool
would spin into the peer's call. So its bracket is wider: rest, probe, rest, call, timed, rest, probe.

Two probes of 0.2 ms say little of what happens between them: others may have taken 5 % of that time as well. Where a
call lasts, a probe that one interrupt hit is made again (three times at most).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from goals import ENOUGH
from quiet import Waits, come_to_rest
from session import SESSION, copy_arrays, median, quartiles

from sparsespan import _core, num_threads, set_max_isa
from sparsespan._runtime import max_isa

__all__ = ["Took", "compare", "interleaved"]

REST_SECONDS = 0.01  # of libgomp's pool
LONG_SECONDS = 0.05
MOST_OTHERS = 0.05
BRACKET_SECONDS = 0.2e-3
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
            come_to_rest()
            run()
            times[name].append(_once(run, inner[name]))
    return {name: statistics.median(t) for name, t in times.items()}


@dataclass
class Sample:
    seconds: float
    rates: list[float]  # per thread, before and after
    others: float = 0.0  # what others took of the time

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
    rest: float = REST_SECONDS  # until its pool sleeps
    inner: int = 1
    stride: int = 1  # it runs in every stride-th turn
    samples: dict[int, Sample] = field(default_factory=dict)

    @property
    def bracket(self) -> str:
        return self.level or SESSION.top()

    @property
    def long(self) -> bool:
        """Not known to be short."""
        return not 0 < self.seconds * self.inner < LONG_SECONDS

    def prepare(self) -> None:
        """Warm up and learn how long a call takes; what takes a second is warm by itself: that call is its turn 0."""
        self.stride, self.inner = 1, 1
        first = self._bracketed()
        if self.seconds >= 1.0:
            self.samples[0] = first
            return
        self.seconds = _once(self.call, 1)
        self.inner = max(1, int(2e-3 / max(self.seconds, 1e-9)))
        self.rest = come_to_rest()

    def cost(self) -> float:
        """Seconds of a turn: the pauses, the untimed call, the calls that count."""
        pauses = self.rest + (0.0 if self.level else 2 * REST_SECONDS)
        return pauses + self.seconds * (self.inner + (self.seconds < 0.1)) + 2 * BRACKET_SECONDS

    def take(self, turn: int) -> None:
        self.samples[turn] = self._bracketed(warm=self.seconds < 0.1)

    def _bracketed(self, warm: bool = False) -> Sample:
        if self.level:
            set_max_isa(self.level)
        before: list[float] = []
        come_to_rest()
        if not self.level:
            before = self._pace()
            come_to_rest()
        if warm:
            self.call()
        before = before or self._pace()
        waits = Waits(num_threads())
        sample = Sample(_once(self.call, self.inner), before)
        sample.others = waits.share()
        self.seconds = self.seconds or sample.seconds
        if not self.level:
            come_to_rest()
        sample.rates = before + self._pace()
        return sample

    def _pace(self) -> list[float]:
        return SESSION.probe_again(self.bracket, 3 if self.long else 1)

    def fast(self) -> dict[int, Sample]:
        return {
            t: s
            for t, s in self.samples.items()
            if SESSION.judge(self.bracket, s.rates) == "fast" and s.others <= MOST_OTHERS
        }

    def typical(self) -> list[Sample]:
        """The fast samples; all of them where too few are fast to say anything."""
        fast = list(self.fast().values())
        return fast if len(fast) >= 3 else list(self.samples.values())


def _copy_of(moved: float) -> Call:
    """A copy that reads half of the bytes and writes half."""
    source, to = copy_arrays(max(1, int(moved) // 2))
    return lambda: _core.probe_copy(source, to)


def _enough(runs: list[Run], turns: int) -> bool:
    """Five fast samples of each, fewer of who sits turns out; but three where goals look, however long that takes."""

    def wanted(run: Run) -> float:
        return max(min(turns, 5) / run.stride, min(turns, ENOUGH) if run.level in ("", SESSION.top()) else 0)

    return all(len(run.fast()) >= wanted(run) for run in runs)


def _plan(runs: list[Run], turns: int, seconds: float) -> int:
    """Turns that fit into `seconds`. Until seven do, what takes longest sits turns out, by powers of two, so that all
    meet in some; levels below the best one first, as if they took three times as long."""

    def weight(run: Run) -> float:
        return run.cost() / run.stride * (1 if run.level in ("", SESSION.top()) else 3)

    def turn() -> float:
        return sum(run.cost() / run.stride for run in runs)

    slow = list(runs)
    while slow and min(turns, 7) * turn() > seconds:
        slowest = max(slow, key=weight)
        slowest.stride *= 2
        slow = [run for run in slow if run.stride < 8]
    return max(1, min(turns, int(seconds / turn())))


def _alive(runs: list[Run], where: str, step: Callable[[Run], None]) -> None:
    """The step for every run. A peer that cannot do it is out, in words; of ours an error is an error."""
    for run in list(runs):
        try:
            step(run)
        except Exception as failure:  # a foreign library may raise whatever it likes
            if run.level:
                raise
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            SESSION.note(f"{run.name}: skipped for {where}, it failed with {reason}")
            runs.remove(run)
            run.samples.clear()


def _measure(runs: list[Run], turns: int, where: str = "", seconds: float = 0.0) -> None:
    """As many of `turns` turns as fit into the time; up to three times as many, in at most half as much time again,
    while fewer than five samples of someone are fast."""
    seconds = seconds or SESSION.seconds()
    begin, before = time.perf_counter(), max_isa()

    def step(turn: int) -> Callable[[Run], None]:
        return lambda run: run.take(turn) if turn % run.stride == 0 and turn not in run.samples else None

    try:
        _alive(runs, where, Run.prepare)
        planned = _plan(runs, turns, seconds)
        for turn in range(3 * turns):
            spent = time.perf_counter() - begin
            if turn and spent > seconds and (_enough(runs, turns) or spent > 1.5 * seconds):
                break
            if turn >= planned and _enough(runs, turns):
                break
            _alive(runs, where, step(turn))
    finally:
        set_max_isa(before)


def _facts(run: Run, flops: float, moved: float, copy: Run | None) -> dict[str, object]:
    """What one side says of itself: time, rates, fractions of what the machine gave around it."""
    samples, fast = run.typical(), len(run.fast())
    seconds = median([s.seconds for s in samples])
    facts: dict[str, object] = {"ours_ms": seconds * 1e3, "fast": fast, "bracket": f"{fast}/{len(run.samples)} fast"}
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


def _cut(run: Run, wanted: int, seconds: float) -> dict[str, str]:
    """Says it when the time did not suffice for at least a third of the turns."""
    if 3 * len(run.samples) >= wanted:
        return {}
    return {"words": f"cut to {len(run.samples)} of {wanted} turns: {run.cost():.2g} s each, {seconds:.0f} s for all"}


def compare(
    op: str, shape: str, ours: Call, peers: dict[str, Call] | None = None, *, own: dict[str, Call] | None = None,
    flops: float = 0.0, moved: float = 0.0, copy: bool = False, turns: int = 0, seconds: float = 0.0,
    levels: list[str] | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Rows of one op: a row per level and peer.

    `own` are runs of this project, measured at each level like `ours`; `flops` and `moved` (bytes) are counted from
    the shapes; with `copy`, a copy of as many bytes takes turns too: what it needs is what bandwidth allows. `seconds`
    is the time for all of it (the session's budget by default); what it cut is said in the row.
    """
    if SESSION.only is not None and (op, shape) not in SESSION.only:
        return
    levels = [isa for isa in levels or SESSION.levels() if isa in SESSION.levels()]
    turns, seconds = turns or (7 if SESSION.quick else 15), seconds or SESSION.seconds()
    runs = {("ours", isa): Run("ours", isa, ours) for isa in levels}
    runs |= {(name, isa): Run(name, isa, call) for isa in levels for name, call in (own or {}).items()}
    runs |= {(name, ""): Run(name, "", call) for name, call in (peers or {}).items()}
    if copy:
        runs[COPY, ""] = Run(COPY, "", _copy_of(moved))
    _measure(list(runs.values()), turns, f"{op} {shape}", seconds)
    runs = {at: run for at, run in runs.items() if run.samples}  # without the peers that failed
    for isa in levels:
        mine = runs["ours", isa]
        row = {"op": op, "shape": shape, "isa": isa} | _facts(mine, flops, moved, runs.get((COPY, "")))
        row |= _cut(mine, turns, seconds)
        others = [run for (name, level), run in runs.items() if name != "ours" and level in ("", isa)]
        if not others:
            yield row
        for peer in others:
            yield row | _against(mine, peer)


def _against(mine: Run, peer: Run) -> dict[str, object]:
    ratios, fast = _pairs(mine, peer)
    low, high = quartiles(ratios)
    return {
        "peer": peer.name, "peer_ms": median([s.seconds for s in peer.typical()]) * 1e3,
        "ratio": median(ratios), "ratio_q1": low, "ratio_q3": high, "pairs": fast,
    }  # fmt: skip


def measured(calls: dict[str, Call], turns: int, seconds: float = 0.0) -> dict[str, tuple[float, int]]:
    """Median seconds of the fast samples of each, and their number; in turns, at the best level."""
    runs = {name: Run(name, SESSION.top(), call) for name, call in calls.items()}
    _measure(list(runs.values()), turns, "growth", seconds)
    return {name: (median([s.seconds for s in run.typical()]), len(run.fast())) for name, run in runs.items()}
