"""Whether the cores are the measured call's alone.

Thread pools spin after their last work: libgomp's for about 8 ms, OpenBLAS's for 2^28 cycles (0.1 s). A probe, or the
next side's call, would share a core with them and take that for a disturbance, so it waits until no thread runs. What
others take from a call while it runs is not guessed from the outside either: the kernel tells how long the process's
threads stood ready and had no core, and what the host kept for itself.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

__all__ = ["Waits", "come_to_rest"]

STEP_SECONDS = 1e-3
PATIENCE_SECONDS = 0.3
BLIND_SECONDS = 0.12  # where the system does not tell which threads run: longer than the pools named above spin
TASKS = Path("/proc/self/task")


def _told(name: str) -> dict[int, str]:
    """A file of each thread of this process; none where there is no such file, or the thread has just ended."""
    told = {}
    try:
        threads = [int(thread) for thread in os.listdir(TASKS)]
    except OSError:
        return {}
    for thread in threads:
        try:
            told[thread] = (TASKS / str(thread) / name).read_text()
        except OSError:
            continue
    return told


def _running() -> int | None:
    """Other threads of this process that run or would like to; None where the system does not tell."""
    told = _told("stat")
    me = threading.get_native_id()
    return sum(text.rpartition(")")[2].split()[0] == "R" for i, text in told.items() if i != me) if told else None


def come_to_rest() -> float:
    """Returns when no other thread of the process has run for two steps, or patience has ended; the seconds it took."""
    start = time.perf_counter()
    if _running() is None:
        time.sleep(BLIND_SECONDS)
        return BLIND_SECONDS
    still = 0
    while still < 2 and time.perf_counter() - start < PATIENCE_SECONDS:
        time.sleep(STEP_SECONDS)
        still = 0 if _running() else still + 1
    return time.perf_counter() - start


def _stolen() -> float:
    """Seconds that the host kept of an average core."""
    try:
        ticks = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    except (OSError, IndexError):
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


class Waits:
    """From its making on: how long the process's threads, `threads` of which work, waited for a core."""

    def __init__(self, threads: int) -> None:
        self.threads, self.start, self.stolen, self.before = threads, time.perf_counter(), _stolen(), self._delays()

    @staticmethod
    def _delays() -> dict[int, int]:
        return {thread: int(text.split()[1]) for thread, text in _told("schedstat").items()}

    def share(self) -> float:
        """The part of the time that others took: 0 for a process alone (and where the system does not tell)."""
        seconds = time.perf_counter() - self.start
        waited = sum(delay - self.before.get(thread, 0) for thread, delay in self._delays().items())
        return (waited / 1e9 / self.threads + _stolen() - self.stolen) / seconds
