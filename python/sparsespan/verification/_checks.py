"""Comparison of a rank's result with that of one rank, and of its bytes with the closed form."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..comm import Communicator

__all__ = ["LSE", "Check", "Tolerance", "Traffic", "bits", "merge_tolerance", "within"]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """An element passes if it is off by at most ``absolute + relative * |reference|``."""

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{self.absolute:.3g}" + (f" + {self.relative:.3g} rel" if self.relative else "")


LSE = Tolerance(1e-6, 2.01 / 65536)  # FlashMLA's


def merge_tolerance(payload: str, largest: float) -> Tolerance:
    """How far merged partial attention may be off; ``largest`` is the largest attended value.

    float32: vLLM's bound (test_merge_attn_states.py). bfloat16: weighted partials sum to at most ``largest``; each is
    rounded once on its way (2**-9), and a sum in bfloat16 once more.
    """
    return Tolerance(1e-3, 1e-3) if payload == "fp32" else Tolerance(2**-8 * largest, 0.0)


@dataclasses.dataclass
class Check:
    """One comparison on one rank. ``promise`` is "bits" or the tolerance in words."""

    what: str
    promise: str
    bitwise: bool
    max_error: float
    passed: bool
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return dataclasses.asdict(self)


def _by_row(mask: np.ndarray) -> np.ndarray:
    """[rows] whether any of a row's places is set."""
    return np.asarray(mask.any(axis=tuple(range(1, mask.ndim))))


def _same_bits(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """[rows] bool."""
    a, b = (np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}") for x in (got, want))
    return ~_by_row(a != b)


def _errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want|, where both are the same infinity 0, where one alone is not finite inf."""
    x, y = np.asarray(got).astype(np.float64), np.asarray(want).astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(x - y)
    error[x == y] = 0.0
    return np.where(np.isnan(error), np.inf, error)


def _compare(what: str, got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    if got.shape != want.shape or got.dtype != want.dtype:
        note = f"{what} is {got.dtype} {list(got.shape)}, one rank has {want.dtype} {list(want.shape)}"
        return np.zeros(0, bool), np.zeros(0), note
    return _same_bits(got, want), _errors(got, want), ""


def _first(what: str, bad: np.ndarray, rows: np.ndarray | None, error: np.ndarray) -> str:
    at = int(np.flatnonzero(bad)[0])
    row = at if rows is None else int(rows[at])
    largest = float(error[at].max()) if error[at].size else 0.0
    return f"{what}: row {row} is off by {largest:.3g} (first of {int(bad.sum())} rows)"


def bits(what: str, got: np.ndarray, want: np.ndarray, rows: np.ndarray | None = None) -> Check:
    """Hold ``got`` against ``want`` bit by bit; ``rows`` names them in the note."""
    same, error, note = _compare(what, got, want)
    passed = not note and bool(same.all())
    if not passed and not note:
        note = _first(what, ~same, rows, error)
    return Check(what, "bits", passed, float(error.max(initial=0.0)), passed, note)


def within(what: str, got: np.ndarray, want: np.ndarray, tolerance: Tolerance, rows: np.ndarray | None = None) -> Check:
    """Hold ``got`` against ``want`` within a tolerance; infinities stand at the same places."""
    same, error, note = _compare(what, got, want)
    bitwise = not note and bool(same.all())
    if not note:
        size = np.abs(np.where(np.isfinite(want), want, 0).astype(np.float64))
        bad = _by_row(error > tolerance.absolute + tolerance.relative * size)
        note = _first(what, bad, rows, error) if bad.any() else ""
    return Check(what, str(tolerance), bitwise, float(error.max(initial=0.0)), not note, note)


class Traffic:
    """Bytes that a communicator counts, by stage and primitive."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.stages: dict[str, dict[str, dict[str, int]]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is counted in the body belongs to this stage."""
        before = self._comm.trace()
        yield
        after = self._comm.trace()
        moved = self.stages.setdefault(name, {})
        for op, now in after.items():
            calls, received = (int(now[key]) - int(before.get(op, {}).get(key, 0)) for key in ("calls", "bytes"))
            if op != "checks" and calls:
                total = moved.setdefault(op, {"calls": 0, "bytes": 0})
                total["calls"] += calls
                total["bytes"] += received
