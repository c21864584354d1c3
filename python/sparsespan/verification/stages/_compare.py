"""Two captured runs, stage by stage: the first row that differs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...models import route
from ._captured import Captured
from ._facts import Facts
from ._names import ORDER, STAGES, behind

__all__ = ["TOLERANCE", "Difference", "Line", "compare_stages", "row_errors", "sets_differ"]

# Error of a row that rounding may explain. float32: largest distance by largest value; sums in another order, through
# 6 layers, measured up to 2e-5. Coarser: Euclidean distance by length, in which roundings add up evenly; measured
# against float32 over 6 layers up to 0.06 (bfloat16) and 0.14 (float8 caches).
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15, "float8": 0.3}


@dataclasses.dataclass(frozen=True)
class Line:
    """One stage of one layer."""

    stage: str
    layer: int
    rows: int
    error: float
    bits: bool
    bad: int


@dataclasses.dataclass
class Difference:
    """The first stage in which rows differ.

    Attributes
    ----------
    numbers : int64 [n]
        Rows that both have and that are compared: numbers into ``Captured.rows``.
    a, b : arrays [n, ...]
        Of several copies in b the one that is furthest off.
    bad : bool [n]
    errors : float64 [n]
    ranks : int64 [n]
        The rank of b's copy.
    bad_ranks : frozenset of int
        Ranks of which some copy differs.
    forgiven : bool [n]
        Rows that differ by a near tie.
    """

    stage: str
    layer: int
    numbers: np.ndarray
    a: np.ndarray
    b: np.ndarray
    bad: np.ndarray
    errors: np.ndarray
    ranks: np.ndarray
    tolerance: float
    bad_ranks: frozenset[int] = frozenset()
    forgiven: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))


def _size(x: np.ndarray, even: bool) -> np.ndarray:
    length: np.ndarray = np.sqrt((x * x).sum(1)) if even else np.abs(x).max(1, initial=0)
    return length


def row_errors(stage: str, a: np.ndarray, b: np.ndarray, even: bool = False) -> np.ndarray:
    """Of each row: the largest distance by the largest value, or (even) the Euclidean ones."""
    n = len(a)
    if a.shape[1:] != b.shape[1:]:
        return np.full(n, np.inf)
    if n == 0:
        return np.zeros(0)
    x, y = a.reshape(n, -1), b.reshape(n, -1)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = _size(np.where(same, 0.0, x - y), even)
    size = _size(np.where(np.isfinite(x), x, 0), even)
    # Sums over heads that cancel have no size of their own to go by.
    usual = float(np.median(size)) * (1.0 if stage == "index_scores" else 1e-2)
    least = (np.sqrt(x.shape[1]) if even else 1.0) if stage == "lse" else usual
    error = apart / np.maximum(np.maximum(size, least), 1e-30)
    return np.where(np.isnan(error), np.inf, error)


def sets_differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rows whose sorted entries differ once -1 is left out; a repeated entry counts."""
    width = max(a.shape[1], b.shape[1])
    padded = [np.pad(np.sort(x, 1)[:, ::-1], ((0, 0), (0, width - x.shape[1])), constant_values=-1) for x in (a, b)]
    return np.asarray((padded[0] != padded[1]).any(1))


class _Walk:
    def __init__(self, a: Captured, b: Captured, tolerance: float, facts: Facts | None) -> None:
        self.a, self.b, self.tolerance, self.facts = a, b, tolerance, facts
        self.even = {a.precision, b.precision} != {"float32"}
        self.out = np.zeros(len(a.rows), bool)  # rows that go their own way behind a near tie
        self.later = np.full(len(a.prompts), np.iinfo(np.int64).max)  # and from which position on, in layers behind
        self.ties = 0

    def pick(self, stage: str, layer: int) -> Difference:
        """Rows of both; of b's copies the one that is furthest off."""
        whole = self.a.get(stage, layer)
        pieces = self.b.pieces[stage, layer]
        have = np.zeros(len(self.a.rows), bool)
        for piece in self.a.pieces[stage, layer]:
            have[piece.rows] = True
        ids = STAGES[stage].ids
        shape = pieces[0].values.shape[1:]
        width = max(p.values.shape[-1] for p in pieces)
        worst = np.full(len(have), -1.0)
        chosen = np.full((len(have), *shape[:-1], width), -1 if ids else np.nan, pieces[0].values.dtype)
        ranks = np.zeros(len(have), np.int64)
        limit = 0 if ids else self.tolerance
        wrong: set[int] = set()
        for piece in pieces:
            mine = have[piece.rows]
            rows, values = piece.rows[mine], piece.values[mine]
            base = whole[rows]  # type: ignore[index]
            error = sets_differ(base, values).astype(float) if ids else row_errors(stage, base, values, self.even)
            if (error > limit)[~self.out[rows]].any():
                wrong.add(piece.rank)
            more = error > worst[rows]
            worst[rows[more]], ranks[rows[more]] = error[more], piece.rank
            chosen[rows[more], ..., : values.shape[-1]] = values[more]
        numbers = np.flatnonzero((worst >= 0) & ~self.out)
        return Difference(
            stage, layer, numbers, whole[numbers], chosen[numbers],  # type: ignore[index]
            worst[numbers] > limit, worst[numbers], ranks[numbers], self.tolerance, frozenset(wrong),
            np.zeros(len(numbers), bool),
        )  # fmt: skip

    def forgive(self, found: Difference) -> None:
        """Choices between values that rounding cannot tell apart are no difference; what follows from them is not
        compared."""
        if not STAGES[found.stage].ids or not found.bad.any():
            return
        near = self._near_ties(found) if found.stage == "indices" else self._own_choice(found)
        self.ties += int((found.bad & near).sum())
        rows = found.numbers[found.bad & near]
        found.forgiven = found.bad & near
        found.bad &= ~near
        self.out[rows] = True
        for request, position in self.a.rows[rows]:
            self.later[request] = min(self.later[request], position)

    def next_layer(self) -> None:
        self.out |= self.a.rows[:, 1] >= self.later[self.a.rows[:, 0]]

    def _near_ties(self, found: Difference) -> np.ndarray:
        """Rows in which every key that only one has scores like the last one chosen."""
        near = np.zeros(len(found.numbers), bool)
        scores = self.a.get("index_scores", found.layer)
        if scores is None:
            return near
        for n in np.flatnonzero(found.bad):
            row = scores[found.numbers[n]]
            a, b = (x[x != -1] for x in (found.a[n], found.b[n]))
            if len(a) != len(b) or len(set(b)) != len(b) or len(b) == 0 or b.min() < 0 or b.max() >= len(row):
                continue
            edge, seen = row[a].min(), row[np.isfinite(row)]
            reach = self.tolerance * np.abs(seen).max()
            near[n] = bool((np.abs(row[np.setxor1d(a, b)] - edge) <= reach).all())
        return near

    def _own_choice(self, found: Difference) -> np.ndarray:
        """Rows whose experts are those of b's own router logits, which agree with a's."""
        near = np.zeros(len(found.numbers), bool)
        logits, facts = self.b.get("router_logits", found.layer), self.facts
        if logits is None or facts is None or facts.model is None or not hasattr(facts.mlp(found.layer), "bias"):
            return near
        c = facts.model.config
        chosen, _ = route(
            logits[found.numbers].astype(np.float32), facts.mlp(found.layer).bias, groups=c.n_group,
            keep_groups=c.topk_group, experts=c.num_experts_per_tok, normalise=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
        )  # fmt: skip
        return found.bad & ~sets_differ(chosen, found.b)


def compare_stages(
    a: Captured, b: Captured, facts: Facts | None = None, tolerance: float | None = None
) -> tuple[Difference | None, list[Line], dict[str, Any]]:
    """The first difference, a line for each stage that is compared, and what was left out.

    Behind the first difference only stages of its layer are compared that are not computed from it.
    """
    if [p.tolist() for p in a.prompts] != [p.tolist() for p in b.prompts] or [d.tolist() for d in a.decoded] != [
        d.tolist() for d in b.decoded
    ]:
        raise ValueError(f"compare: {a.name} and {b.name} ran over other tokens, needs the same")
    common = sorted(set(a.pieces) & set(b.pieces), key=lambda key: (key[1], ORDER[key[0]]))
    if not common:
        raise ValueError(f"compare: {a.name} and {b.name} have no stage of a layer in common")
    if tolerance is None:
        tolerance = max(TOLERANCE[a.precision], TOLERANCE[b.precision])
    walk = _Walk(a, b, tolerance, facts)
    lines: list[Line] = []
    first: Difference | None = None
    follow: set[str] = set()
    layer = common[0][1]
    for stage, at in common:
        if at != layer:
            if first is not None:
                break
            walk.next_layer()
            layer = at
        if first is not None and stage in follow:
            continue
        found = walk.pick(stage, layer)
        walk.forgive(found)
        bits = bool((found.errors == 0).all()) and found.a.shape == found.b.shape
        lines.append(
            Line(stage, layer, len(found.numbers), float(found.errors.max(initial=0)), bits, int(found.bad.sum()))
        )
        if first is None and found.bad.any():
            first, follow = found, behind(stage)
    left = {"ties": walk.ties, "rows_left_out": int(walk.out.sum()), "tolerance": tolerance}
    return first, lines, left
