"""Seconds, flops and bytes per op, and the table that shows them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Line", "Meter"]

T = TypeVar("T")


@dataclass
class Line:
    """One op of one phase. ``seconds`` is measured; ``flops`` and ``bytes`` are counted from shapes."""

    phase: str
    op: str
    shape: str
    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    error: float | None = None  # largest over the sampled rows
    bound: str = ""  # what the error is held against
    passed: bool | None = None

    def check(self, error: float, bound: str, passed: bool) -> None:
        """Add one comparison with the reference; one failure fails the line."""
        self.error = error if self.error is None else max(self.error, error)
        self.bound = bound
        self.passed = passed and self.passed is not False


@dataclass
class Meter:
    """Lines in the order of their first use."""

    lines: dict[tuple[str, str], Line] = field(default_factory=dict)

    def line(self, phase: str, op: str, shape: str = "") -> Line:
        """The line of this phase and op, made at first use."""
        return self.lines.setdefault((phase, op), Line(phase, op, shape))

    def time(
        self, phase: str, op: str, shape: str, run: Callable[[], T], *, flops: float = 0.0, moved: float = 0.0
    ) -> T:
        """Run and book it."""
        line = self.line(phase, op, shape)
        start = time.perf_counter()
        result = run()
        line.seconds += time.perf_counter() - start
        line.calls += 1
        line.flops += flops
        line.bytes += moved
        return result

    def rows(self) -> list[dict[str, Any]]:
        """Plain data, for --json."""
        return [
            {
                "phase": line.phase,
                "op": line.op,
                "shape": line.shape,
                "calls": line.calls,
                "ms": round(line.seconds * 1e3, 3),
                "gflops": round(line.flops / line.seconds / 1e9, 1) if line.flops and line.seconds else None,
                "gbytes_per_s": round(line.bytes / line.seconds / 1e9, 2) if line.bytes and line.seconds else None,
                "max_error": line.error,
                "bound": line.bound,
                "passed": line.passed,
            }
            for line in self.lines.values()
        ]
