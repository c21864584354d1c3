"""One case on one rank, and the ranks' findings made into one result."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..comm import Communicator
from ..testing import FaultyComm
from . import _decode, _layer, _prefill, _projection
from ._bytes import compare_bytes
from ._case import Case
from ._checks import Traffic

__all__ = ["FAULTS", "Fault", "failure", "merged", "prepare", "rank_main"]

_COMM = {"raise": "raise", "skip": "skip", "delay": "delay", "plan": "mismatch", "die": "die", "corrupt": "corrupt"}
FAULTS = ("flip", "count", *_COMM)


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something wrong on purpose, on the last rank: what a verification must find.

    ``flip``: one row has the wrong sign. ``count``: one byte more is counted than moved. ``raise``, ``skip``,
    ``delay``, ``plan`` (it names another plan), ``corrupt``, ``die``: see :class:`sparsespan.testing.FaultyComm`, at
    operation ``at``.
    """

    kind: str
    at: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise ValueError(f"verification: fault is {self.kind!r}, needs one of {', '.join(map(repr, FAULTS))}")
        if self.at < 0:
            raise ValueError(f"verification: at is {self.at}, needs the number of an operation, from 0")

    def wrap(self, comm: Communicator) -> Communicator:
        """The communicator that the faulty rank works with."""
        if self.kind not in _COMM or comm.rank != comm.size - 1:
            return comm
        return FaultyComm(comm, _COMM[self.kind], self.at, self.seconds)


def _part(case: Case) -> ModuleType:
    return {"prefill": _prefill, "decode": _decode, "o_proj": _projection, "layer": _layer}[case.part]


def prepare(case: Case) -> None:
    """Compute the one-rank answer before ranks start, so that threads share it."""
    _part(case).oracle(case.model, case.batch)


def _digest(arrays: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def rank_main(case: Case, comm: Communicator, fault: Fault | None = None) -> dict[str, Any]:
    """Run this rank's part; plain JSON data. ``comm`` has the grid's ranks."""
    if comm.size != case.ranks:
        raise ValueError(f"verification: comm has {comm.size} ranks, {case.name!r} needs {case.ranks}")
    world = comm
    if fault is not None:
        comm = fault.wrap(comm)
    last = fault is not None and world.rank == world.size - 1
    groups = case.grid.groups(case.group)
    number = next(i for i, ranks in enumerate(groups) if world.rank in ranks)
    start = time.monotonic()
    group = comm if len(groups) == 1 else comm.split(number)
    if group is None:
        raise RuntimeError("verification: the communicator's split gave no group")
    traffic = Traffic(group)
    begin = time.perf_counter()
    checks, extra = _part(case).run(case, group, traffic, bool(last and fault and fault.kind == "flip"), world.rank)
    seconds = time.perf_counter() - begin
    if last and fault is not None and fault.kind == "count":
        next(moved for stage in traffic.stages.values() for moved in stage.values())["bytes"] += 1
    made = sum(span["start"] >= start for span in comm.timeline())
    return {
        "rank": world.rank,
        "missed": made if last and fault is not None and fault.kind in _COMM and made <= fault.at else None,
        "group": number,
        "checks": [check.to_dict() for check in checks],
        "traffic": traffic.stages,
        "seconds": seconds,
        "digest": _digest(_part(case).oracle(case.model, case.batch).results()),
        "extra": extra,
        "spans": [span for span in group.timeline() if span["start"] >= start],
    }


def _merge_checks(findings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for finding in findings:
        for check in finding["checks"]:
            row = merged.setdefault(check["what"], {**check, "ranks": 0})
            row["ranks"] += 1
            row["bitwise"] = row["bitwise"] and check["bitwise"]
            row["max_error"] = max(row["max_error"], check["max_error"])
            if row["passed"] and not check["passed"]:
                row["passed"], row["note"] = False, f"rank {finding['rank']}: {check['note']}"
    return list(merged.values())


def _failed(what: str, note: str) -> dict[str, Any]:
    return {
        "what": what, "promise": "bits", "bitwise": False, "max_error": float("inf"), "passed": False, "note": note,
        "ranks": 1,
    }  # fmt: skip


def merged(case: Case, findings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The case's result from all ranks' findings."""
    checks = _merge_checks(findings)
    digests = {finding["digest"] for finding in findings}
    if len(digests) > 1:
        note = "the processes do not compute the same one-rank answer: is it one ISA and one version everywhere?"
        checks.append({**_failed("one-rank answer", note), "ranks": len(findings)})
    checks += [
        _failed("fault", f"rank {finding['rank']} made {finding['missed']} operations: the fault's never came")
        for finding in findings
        if finding["missed"] is not None
    ]
    expected = _part(case).expected(case)
    moved = []
    for number in sorted({finding["group"] for finding in findings}):
        members = [finding["traffic"] for finding in findings if finding["group"] == number]
        moved.append(compare_bytes(expected, members))
    # Groups do the same work; the first that is off is shown, else the first.
    bytes_ = next((rows for rows in moved if not all(row["passed"] for row in rows)), moved[0])
    return {
        **case.to_dict(),
        "checks": checks,
        "bytes": bytes_,
        "imbalance": _part(case).figures(case),
        "union": findings[0]["extra"].get("union"),
        "seconds": max(finding["seconds"] for finding in findings),
        "error": None,
        "passed": all(c["passed"] for c in checks) and all(row["passed"] for rows in moved for row in rows),
    }


def failure(case: Case, error: BaseException, seconds: float) -> dict[str, Any]:
    """The result of a case that ended in an error."""
    return {
        **case.to_dict(),
        "checks": [],
        "bytes": [],
        "imbalance": _part(case).figures(case),
        "union": None,
        "seconds": seconds,
        "error": {"type": type(error).__name__, "message": str(error)},
        "passed": False,
    }
