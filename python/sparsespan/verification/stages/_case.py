"""A difference with what is known around it, and the answers that hypotheses give."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ._captured import Captured
from ._compare import Difference, row_errors, sets_differ
from ._facts import Facts
from ._names import STAGES

__all__ = ["CLASSES", "Case", "Verdict"]

CLASSES = (
    "rope pairing", "scale placement", "lse base", "sentinel", "length off by one", "CP position", "owner map",
)  # fmt: skip
# How much worse than its tolerance a value may be that is recomputed from captured values: they are rounded, too.
_SLACK = 5.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One hypothesis that was tested on the data and explains them.

    Attributes
    ----------
    bug : str
        One of ``CLASSES``, or another word where none fits.
    words : str
        What b seems to do.
    tested : str
        What was computed, and on how many rows it holds.
    explained, of : int
        Rows that differ and are as predicted; rows that differ.
    spared : int
        Rows in which the same bug would show and that do not differ: it is somewhere only.
    sure : {"certain", "likely", "possible"}
        Certain: every row that differs is as predicted, within rounding, and no other row should differ. Likely: 90%
        of them, or a scope that is narrower than the hypothesis.
    rank : int
        Smaller is more specific.
    left : float
        What the prediction leaves of the error, in the median row.
    """

    bug: str
    words: str
    tested: str
    explained: int
    of: int
    spared: int
    sure: str
    rank: int = 5
    left: float = 0.0


class Case:
    """What hypotheses see. Rows of arrays are those of ``diff.numbers``, in order."""

    def __init__(self, diff: Difference, a: Captured, b: Captured, facts: Facts) -> None:
        self.diff, self.first, self.second, self.facts = diff, a, b, facts
        self.stage, self.layer = diff.stage, diff.layer
        self.a, self.b, self.bad = diff.a, diff.b, diff.bad
        self.rows = a.rows[diff.numbers]
        self.decode = a.decode[diff.numbers]
        self.even = {a.precision, b.precision} != {"float32"}
        self.lengths = np.diff(a.starts)
        self.prompts = np.array([len(p) for p in a.prompts], np.int64)
        self.notes: dict[str, Any] = {}  # what one hypothesis found for another

    def part(self, keep: np.ndarray) -> Case:
        """The same with some of the rows."""
        d = self.diff
        names = ("numbers", "a", "b", "bad", "errors", "ranks", "forgiven")
        return Case(
            dataclasses.replace(d, **{n: getattr(d, n)[keep] for n in names}), self.first, self.second, self.facts
        )

    def known(self, stage: str, layer: int | None = None) -> np.ndarray | None:
        """All rows of another stage, of a or else of b; they agree, for it comes before."""
        at = self.layer if layer is None else layer
        found = self.first.get(stage, at)
        return self.second.get(stage, at) if found is None else found

    def matches(self, predicted: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
        """Rows in which b (or ``of``) is as predicted."""
        target = self.b if of is None else of
        if STAGES[self.stage].ids:
            return ~sets_differ(predicted, target)
        return np.asarray(
            row_errors(self.stage, predicted, target, self.even) <= min(_SLACK * self.diff.tolerance, 0.3)
        )

    def judge(
        self,
        bug: str,
        words: str,
        test: str,
        predicted: np.ndarray,
        rank: int = 5,
        rows: np.ndarray | None = None,
        most: str = "certain",
    ) -> Verdict | None:
        """A verdict where at least half of the rows that differ are as predicted.

        ``rows`` says for which rows there is a prediction (default all), ``most`` how sure it can be at all.
        """
        if predicted.shape[1:-1] != self.b.shape[1:-1]:
            return None
        tried = np.ones(len(self.bad), bool) if rows is None else rows
        hit = self.matches(predicted) & tried
        rest = np.zeros(len(hit))
        if not STAGES[self.stage].ids:  # a row is explained only where the prediction is far nearer to b than a is
            rest = row_errors(self.stage, predicted, self.b, self.even)
            hit &= rest <= self.diff.errors / 3
        explained, of = int((hit & self.bad).sum()), int(self.bad.sum())
        if 2 * explained < of:
            return None
        # Prefill and decode are other code: where only one has rows that differ, the other says nothing.
        same = np.isin(self.decode, self.decode[self.bad]) & ~self.diff.forgiven
        spared = int((~self.bad & tried & same & ~self.matches(predicted, self.a)).sum())
        sure = "certain" if explained == of and spared == 0 else "likely" if explained >= 0.9 * of else "possible"
        holds = f"{test}: {explained} of {of} rows that differ are as predicted"
        holds += f", {spared} rows more should differ and do not" if spared else ""
        sure = most if sure == "certain" else sure
        left = float(np.median(rest[hit & self.bad])) if explained else 0.0
        return Verdict(bug, words, holds, explained, of, spared, sure, rank, left)

    def scope(self) -> str:
        """Where the rows that differ are, if not everywhere."""
        words, bad = [], self.bad
        for name, mask in (("decode", self.decode), ("prefill", ~self.decode)):
            if mask.any() and not mask.all() and not (bad & ~mask).any():
                words.append(f"{name} rows only")
        wrong = self.diff.bad_ranks
        if len(wrong) < len({p.rank for p in self.second.pieces[self.stage, self.layer] if len(p.rows)}):
            words.append(f"only what rank {', '.join(map(str, sorted(wrong)))} computed")
        requests = sorted(set(self.rows[bad, 0].tolist()))
        if len(requests) < len(set(self.rows[:, 0].tolist())):
            words.append(f"requests {', '.join(map(str, requests))}")
        if (~bad).any():
            low, high = int(self.rows[bad, 1].min()), int(self.rows[~bad, 1].max())
            if low > high:
                words.append(f"positions from {low} on")
            elif self.rows[bad, 1].max() < self.rows[~bad, 1].min():
                words.append(f"positions up to {int(self.rows[bad, 1].max())}")
        return "; ".join(words) or ("all rows" if bad.all() else f"{int(bad.sum())} of {len(bad)} rows")
