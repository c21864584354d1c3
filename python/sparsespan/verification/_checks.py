"""Comparison of a rank's result with that of one rank, and of its bytes with the closed form."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from .._runtime import build_info
from ..comm import Communicator

__all__ = ["LSE", "Check", "Tolerance", "Traffic", "bits", "merge_tolerance", "within"]


_ROUNDED_WEIGHTS = ("avx512_bf16", "amx")  # levels whose attention multiplies bfloat16 by bfloat16, emulated or not
_AT_ONCE = 64  # rows that are compared in float64 at a time: long batches have wide rows


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
    rounded once on its way (2**-9), and a sum in bfloat16 once more. Where weights are rounded to bfloat16 before they
    meet the values, they are so once on each side, against another maximum: 2**-9 each.
    """
    rounded = (payload == "bf16") + build_info()["isa"].startswith(_ROUNDED_WEIGHTS)
    return Tolerance(2**-8 * largest * rounded, 0.0) if rounded else Tolerance(1e-3, 1e-3)


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


def _ill(what: str, got: np.ndarray, want: np.ndarray) -> str:
    """Why the two cannot be compared. NaN: the caches are full of it where nobody wrote, so it has leaked."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{what} is {got.dtype} {list(got.shape)}, one rank has {want.dtype} {list(want.shape)}"
    for name, array in ((what, got), (f"{what} of one rank", want)):
        lost = _by_row(array != array)
        if lost.any():
            return f"{name} has NaN in {int(lost.sum())} rows, first in row {int(np.flatnonzero(lost)[0])}"
    return ""


def _off(got: np.ndarray, want: np.ndarray, tolerance: Tolerance | None) -> tuple[np.ndarray, np.ndarray]:
    """([rows] whether a row is off, [rows] its largest error); only rows with other bits are looked at."""
    off = ~_same_bits(got, want)
    largest = np.zeros(len(off))
    for rows in np.array_split(np.flatnonzero(off), max(1, -(-int(off.sum()) // _AT_ONCE))):
        error = _errors(got[rows], want[rows])
        largest[rows] = error.max(axis=tuple(range(1, error.ndim)), initial=0.0)
        if tolerance is not None:
            size = np.abs(np.where(np.isfinite(want[rows]), want[rows], 0).astype(np.float64))
            off[rows] = _by_row(error > tolerance.absolute + tolerance.relative * size)
    return off, largest


def _check(what: str, got: np.ndarray, want: np.ndarray, rows: np.ndarray | None, tolerance: Tolerance | None) -> Check:
    promise = "bits" if tolerance is None else str(tolerance)
    if note := _ill(what, got, want):
        return Check(what, promise, False, float("inf"), False, note)
    off, largest = _off(got, want, tolerance)
    if off.any():
        at = int(np.flatnonzero(off)[0])
        row = at if rows is None else int(rows[at])
        note = f"{what}: row {row} is off by {largest[at]:.3g} (first of {int(off.sum())} rows)"
    bitwise = bool(_same_bits(got, want).all())
    return Check(what, promise, bitwise, float(largest.max(initial=0.0)), not note, note)


def bits(what: str, got: np.ndarray, want: np.ndarray, rows: np.ndarray | None = None) -> Check:
    """Hold ``got`` against ``want`` bit by bit; ``rows`` names them in the note."""
    return _check(what, got, want, rows, None)


def within(what: str, got: np.ndarray, want: np.ndarray, tolerance: Tolerance, rows: np.ndarray | None = None) -> Check:
    """Hold ``got`` against ``want`` within a tolerance; infinities stand at the same places."""
    return _check(what, got, want, rows, tolerance)


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
