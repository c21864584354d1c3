"""From a first difference to what it looks like."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ._attend import attention
from ._captured import Captured
from ._case import Case, Verdict
from ._choice import choice, scores
from ._compare import Difference, Line, compare_stages
from ._facts import Facts
from ._names import STAGES
from ._rope import rope
from ._scale import factors, moved_rows

__all__ = ["Finding", "Report", "compare", "diagnose"]

_HYPOTHESES = (rope, factors, choice, scores, attention, moved_rows)
_SURE = {"certain": 0, "likely": 1, "possible": 2}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first difference and what it looks like.

    Attributes
    ----------
    stage : str
    layer, request, position : int
        Of the first row that differs.
    token : int
        Fed at that position.
    rank : int
        Of b, whose copy of the row that is.
    error : float
        Largest of all rows, relative to the row (for indices: rows, 1).
    rows, compared : int
        Rows that differ; rows that both have.
    where : str
        What the rows that differ have in common.
    beside : list of str
        Other stages of the layer that differ and are not computed from this one.
    suspect : str
        The implementation that the verdicts speak of.
    verdicts : list of Verdict
        Best first; none where no hypothesis explains half of the rows.
    tested : int
        Hypotheses.
    """

    stage: str
    layer: int
    request: int
    position: int
    token: int
    rank: int
    error: float
    rows: int
    compared: int
    where: str
    beside: list[str]
    suspect: str
    verdicts: list[Verdict]
    tested: int

    @property
    def bug(self) -> str:
        """The class of the best verdict, or "unknown"."""
        return self.verdicts[0].bug if self.verdicts else "unknown"


@dataclasses.dataclass(frozen=True)
class Report:
    """Two implementations, compared.

    Attributes
    ----------
    finding : Finding or None
        None where no stage differs beyond rounding.
    lines : list of Line
        Stages that were compared, up to the end of the layer of the finding.
    ties : int
        Rows whose choice (of keys, of experts) differs between values that rounding cannot tell apart.
    left_out : int
        Rows that are not compared because of that, at the end.
    tolerance : float
    """

    a: str
    b: str
    finding: Finding | None
    lines: list[Line]
    ties: int
    left_out: int
    tolerance: float

    @property
    def bits(self) -> bool:
        """Whether every stage is equal bit for bit."""
        return all(line.bits for line in self.lines)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        made = dataclasses.asdict(self)
        if self.finding is not None:
            made["finding"]["bug"] = self.finding.bug
        return made | {"bits": self.bits}


def _verdicts(case: Case) -> tuple[list[Verdict], int]:
    a, b = case.a.shape[1:], case.b.shape[1:]
    if a != b and not STAGES[case.stage].ids:
        told = f"rows of {case.second.name} have shape {list(b)}, those of {case.first.name} {list(a)}"
        count = int(case.bad.sum())
        return [Verdict("shape", told, f"needs {STAGES[case.stage].shape}", count, count, 0, "certain", 1)], 1
    found: dict[tuple[str, str], Verdict] = {}
    tested = 0

    def all_of_them() -> Iterator[Verdict | None]:
        for hypothesis in _HYPOTHESES:
            yield from hypothesis(case)

    for verdict in all_of_them():
        tested += 1
        if verdict is not None:
            found.setdefault((verdict.bug, verdict.words), verdict)
    if not case.even:
        best = sorted(found.values(), key=lambda v: (_SURE[v.sure], v.rank, -v.explained, v.spared))
        return best[:5], tested
    # Coarse rounding lets neighbours of the right answer pass: the nearest is said first, and no two are certain.
    best = sorted(found.values(), key=lambda v: (_SURE[v.sure], v.left))
    if len({v.bug for v in best if v.left < 1.5 * best[0].left}) > 1:
        best = [dataclasses.replace(v, sure="likely") if v.sure == "certain" else v for v in best]
    return best[:5], tested


def diagnose(first: Difference, a: Captured, b: Captured, facts: Facts) -> Finding:
    """Test every hypothesis on a first difference: that b has a bug, and if none holds, that a has."""
    case = Case(first, a, b, facts)
    verdicts, tested = _verdicts(case)
    suspect = b.name
    if not verdicts:
        turned = dataclasses.replace(first, a=first.b, b=first.a)
        verdicts, more = _verdicts(Case(turned, b, a, facts))
        tested += more
        suspect = a.name if verdicts else b.name
    row = int(np.flatnonzero(first.bad)[0])
    request, position = (int(v) for v in a.rows[first.numbers[row]])
    tokens = np.concatenate([a.prompts[request], a.decoded[request]])
    return Finding(
        stage=first.stage, layer=first.layer, request=request, position=position, token=int(tokens[position]),
        rank=int(first.ranks[row]), error=float(first.errors[first.bad].max()), rows=int(first.bad.sum()),
        compared=len(first.bad), where=case.scope(), beside=[], suspect=suspect, verdicts=verdicts, tested=tested,
    )  # fmt: skip


def compare(a: Captured, b: Captured, facts: Facts, tolerance: float | None = None) -> Report:
    """Find the first stage, layer and row in which b differs from a, and what it looks like.

    Parameters
    ----------
    a : Captured
        The one that is trusted.
    b : Captured
        The one that is looked at; over the same tokens.
    facts : Facts
        Of the model.
    tolerance : float, optional
        Largest error of a row that is rounding; default by the coarser precision of the two (``TOLERANCE``).

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        Other tokens, or nothing in common.

    Notes
    -----
    Stages are compared layer by layer in the order of computation, rows as they come: the first stage with a row
    beyond the tolerance is the finding. Keys or experts that are chosen otherwise between values that rounding cannot
    tell apart are no difference; that row, and in later layers the rows behind it in its request, are left out.
    A verdict is a bug computed on a's values that gives b's.
    """
    if a.turned != b.turned:
        a, b = a.turned_back(), b.turned_back()
    first, lines, left = compare_stages(a, b, facts, tolerance)
    finding = None
    if first is not None:
        finding = diagnose(first, a, b, facts)
        finding.beside.extend(n.stage for n in lines if n.bad and n.layer == first.layer and n.stage != first.stage)
    return Report(a.name, b.name, finding, lines, left["ties"], left["rows_left_out"], left["tolerance"])
