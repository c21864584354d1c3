"""What holds for the whole run: the machine, the options, and how fast each thread is at its best.

A timing means little by itself: on a shared or throttled machine a core may run at 0.4 of its pace for seconds. So a
probe that lives in registers runs on every thread right before and right after, and the timing is classed by it:
fast (every thread within 15 % of the best that this run has seen), slow (no thread is), mixed.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsespan import _core, build_info, num_threads
from sparsespan._runtime import available_isas, max_isa

FAST = 0.85
PAGE = 4096  # bytes
LATE_SECONDS = 1e-3  # for a bracket of 0.15 ms
ORDER = ("generic", "avx2", "avx512", "avx512_bf16", "amx")


def cpu_name() -> str:
    """Name, family and model: what a virtual machine calls its CPU is often the same over generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or "unknown CPU"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", "unknown CPU")
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name


@dataclass
class Session:
    quick: bool = False
    only: set[tuple[str, str]] | None = None  # (op, shape) to measure; None: all
    best: dict[str, float] = field(default_factory=dict)  # flop/s of one thread
    iterations: dict[str, int] = field(default_factory=dict)  # of the probe, for about 0.15 ms
    notes: list[str] = field(default_factory=list)  # what was skipped, in words
    failed: list[str] = field(default_factory=list)  # families that ended with an error

    def note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)

    def levels(self) -> list[str]:
        """The levels to measure, lowest first; a quick run leaves the portable one out where there is another."""
        cap = ORDER.index(max_isa())
        levels = [isa for isa in available_isas() if ORDER.index(isa) <= cap]
        return levels[1:] if self.quick and len(levels) > 1 else levels

    def seconds(self) -> float:
        """The time for one comparison, all levels and peers together."""
        return 3.0 if self.quick else 4.0

    def top(self) -> str:
        return self.levels()[-1]

    def calibrate(self, seconds: float = 0.2) -> None:
        """The best pace of one thread at each level, before anything is judged by it."""
        for isa in self.levels():
            self.iterations[isa] = 1 << 12
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                self.probe(isa)
            # 24 to 384 flops an iteration: the rate says how many fit into the bracket's time.
            start = time.perf_counter()
            _core.probe_per_thread(isa, 1 << 16, 1)
            self.iterations[isa] = max(256, int((1 << 16) * 0.15e-3 / (time.perf_counter() - start)))

    def probe(self, isa: str) -> list[float]:
        """Flop/s of every thread now."""
        start = time.perf_counter()
        rates = _core.probe_per_thread(isa, self.iterations.get(isa, 1 << 12), num_threads())
        late = time.perf_counter() - start > LATE_SECONDS
        self.best[isa] = max(self.best.get(isa, 0.0), *rates)
        # Once they run, threads run at full pace; but one that had to wait for its core made the others wait too.
        return [FAST / 2 * rate for rate in rates] if late else rates

    def probe_again(self, isa: str, tries: int) -> list[float]:
        """The first of up to `tries` probes that is fast, else the best of them."""
        best: list[float] = []
        for _ in range(tries):
            best = max(best, self.probe(isa), key=lambda rates: min(rates, default=0.0))
            if self.judge(isa, best) == "fast":
                break
        return best

    def bandwidth(self, megabytes: int = 256) -> dict[str, float]:
        """GB/s of a copy (both ways counted) and of a read, far outside the caches: the best of a few."""
        source, to = copy_arrays(megabytes << 20)
        found = {"copy": 0.0, "read": 0.0}
        for _ in range(3 if self.quick else 8):
            for name, call, moved in (
                ("copy", lambda: _core.probe_copy(source, to), 2 * source.nbytes),
                ("read", lambda: _core.probe_read(source), source.nbytes),
            ):
                start = time.perf_counter()
                call()
                found[name] = max(found[name], moved / (time.perf_counter() - start) / 1e9)
        return found

    def peak(self, isa: str) -> float:
        """All threads at their best."""
        return self.best[isa] * num_threads()

    def judge(self, isa: str, rates: list[float]) -> str:
        near = [rate >= FAST * self.best[isa] for rate in rates]
        return "fast" if all(near) else "mixed" if any(near) else "slow"


SESSION = Session()


def copy_arrays(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of a copy, half a page apart: where both begin at the same place of a page, loads wait for
    stores with the same low address bits, and a copy takes up to twice its time."""

    def at(offset: int) -> np.ndarray:
        room = np.ones(size + 2 * PAGE, np.uint8)
        begin = (offset - room.ctypes.data) % PAGE
        return room[begin : begin + size]

    return at(0), at(PAGE // 2)


def machine() -> dict[str, object]:
    """The class of machine that ratios hold for."""
    return {"cpu": cpu_name(), "threads": num_threads(), "levels": available_isas()}


def levels_not_run() -> list[str]:
    """One line for each level that exists but was not measured, with the reason."""
    refused = dict(part.strip().split(": ", 1) for part in build_info()["isa_refused"].split(";") if ": " in part)
    cap = ORDER.index(max_isa())
    lines = []
    for isa in ORDER:
        if isa in refused:
            lines.append(f"{isa} was not run: {refused[isa]}")
        elif ORDER.index(isa) > cap:
            lines.append(f"{isa} was not run: capped at {max_isa()}")
        elif isa not in SESSION.levels():
            lines.append(f"{isa} was not run: --quick leaves it out")
    return lines


def median(values: list[float]) -> float:
    return statistics.median(values)


def quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    q = statistics.quantiles(values, n=4, method="inclusive")
    return q[0], q[2]
