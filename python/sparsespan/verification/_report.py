"""Many cases, one document."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from .._runtime import build_info
from ..comm import Communicator
from ..pipeline import Trace, TraceSpan
from ._case import Case
from ._run import Fault, failure, merged, prepare, rank_main
from ._teams import Team, Threads

__all__ = ["DEFINITIONS", "check", "reasons", "trace", "verify"]

DEFINITIONS = {
    "max_error": "measured: largest difference from one rank, elementwise; null: a place is not finite, or no result",
    "bitwise": "measured: whether every byte is that of one rank",
    "promise": "what the check is held to: bits, or a tolerance (absolute + relative)",
    "counted": "counted: bytes that all ranks of a group received, where they were copied or delivered",
    "formula": "modelled: cp.volume for one layer with these dims, pad rows that travel included",
    "imbalance": "counted: keys of the busiest rank over the mean, minus 1",
    "seconds": "measured: the slowest rank, with its own preparation of rows and comparison",
    "union": "measured: recall of the exact selection, keys attended for each one of it, distance from exact",
}


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _one(case: Case, team: Team, timeout: float, fault: Fault | None, spans: list[dict[str, Any]]) -> dict[str, Any]:
    prepare(case)
    findings = team.run(case.ranks, lambda comm: rank_main(case, comm, fault), timeout)
    for finding in findings:
        spans.extend({**span, "case": case.name, "rank": finding["rank"]} for span in finding.pop("spans"))
    return merged(case, findings)


def verify(
    cases: Iterable[Case],
    team: Team | None = None,
    *,
    timeout: float = 60.0,
    fault: Fault | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run cases and hold each against its contract.

    Parameters
    ----------
    cases : iterable of Case
    team : Team, optional
        Default: ranks are threads of this process. Processes all call this with the same cases.
    timeout : float
        Seconds that an operation waits for its peers.
    fault : Fault, optional
        Something wrong on purpose: a verification must be able to fail.
    tell : callable(result), optional
        Called after each case.

    Returns
    -------
    dict
        Plain JSON data; ``passed`` is true when every case kept its contract and moved the bytes of the closed form.
        ``spans`` are the ranks' operations for :func:`trace`.

    Notes
    -----
    A case that ends in an error fails. Threads then go on with the next case; processes stop, because their group is
    given up.
    """
    team = team or Threads()
    begin = time.perf_counter()
    results: list[dict[str, Any]] = []
    spans: list[dict[str, Any]] = []
    cases = list(cases)
    for case in cases:
        start = time.perf_counter()
        try:
            result = _one(case, team, timeout, fault, spans)
        except Exception as error:
            result = failure(case, error, time.perf_counter() - start)
        results.append(_finite(result))
        if tell is not None:
            tell(results[-1])
        if results[-1]["error"] and team.size is not None:
            break
    info = build_info()
    return {
        "kind": "verify",
        "passed": bool(results) and len(results) == len(cases) and all(r["passed"] for r in results),
        "backend": team.backend,
        "isa": info["isa"],
        "threads": int(info["threads"]),
        "seconds": time.perf_counter() - begin,
        "planned": len(cases),
        "failed": [r["name"] for r in results if not r["passed"]],
        "definitions": DEFINITIONS,
        "cases": results,
        "spans": spans,
    }


def reasons(result: dict[str, Any]) -> list[str]:
    """Why a case did not pass, in words."""
    if result["error"]:
        return [f"{result['error']['type']}: {result['error']['message']}"]
    words = [c["note"] + f" (held to {c['promise']})" for c in result["checks"] if not c["passed"]]
    for row in result["bytes"]:
        if not row["passed"]:
            words.append(
                f"{row['stage']}, {row['primitive']}: {row['counted']} bytes counted, {row['formula']} by the formula; "
                f"busiest rank {row['counted_busiest']}, {row['formula_busiest']} by the formula"
            )
    return words


def check(case: Case, comm: Communicator | None = None, *, timeout: float = 60.0) -> dict[str, Any]:
    """Verify one case, for a test.

    Parameters
    ----------
    case : Case
    comm : Communicator, optional
        This process's place among the case's ranks, each of which calls this. Default: threads of this process.
    timeout : float
        Seconds.

    Returns
    -------
    dict
        The case's result.

    Raises
    ------
    AssertionError
        Naming the checks that failed, the first row that is off and by how much.

    Examples
    --------
    >>> from sparsespan import verification
    >>> case = verification.Case("prefill", verification.batch("mine", lens=[9, 30], prefix=[0, 5]), cp=2)
    >>> result = verification.check(case)
    >>> result["name"], [row["passed"] for row in result["bytes"]]
    ('prefill cp 2 zigzag mine', [True, True, True])
    """
    from ._teams import Processes

    if comm is None:
        team: Team = Threads()
    else:
        team = Processes("caller", comm, lambda code: None, lambda: None)
    result: dict[str, Any] = _finite(_one(case, team, timeout, None, []))
    if not result["passed"]:
        raise AssertionError(f"{case.name}: " + "; ".join(reasons(result)))
    return result


def trace(document: dict[str, Any]) -> Trace:
    """Operations of all ranks as a :class:`sparsespan.pipeline.Trace`; ``to_json()`` is for ui.perfetto.dev.

    Measured: from the call of an operation until its rank saw it done; waiting for peers is in it.
    """
    spans = [
        TraceSpan(s["rank"], "comm", s["op"], s["start"], s["end"], {"case": s["case"], "bytes": s["bytes"]})
        for s in document["spans"]
    ]
    return Trace(spans)
