"""Hypotheses about turned rows: which pairs were turned, and by the angle of which position."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ...models import rope_table
from ._captured import TURNED, turn_back
from ._case import Case, Verdict
from ._plans import block_of, plans

__all__ = ["rope"]

_HALF = 32


def _pairs(x: np.ndarray, interleaved: bool) -> np.ndarray:
    return np.asarray(x[..., 0::2] + 1j * x[..., 1::2] if interleaved else x[..., :_HALF] + 1j * x[..., _HALF:])


def _unpair(z: np.ndarray, interleaved: bool) -> np.ndarray:
    if interleaved:
        return np.asarray(np.stack([z.real, z.imag], -1).reshape(*z.shape[:-1], 2 * _HALF))
    return np.concatenate([z.real, z.imag], -1)


class _Turned:
    """The rope part of a case's rows, as [n, heads, 64]."""

    def __init__(self, case: Case) -> None:
        self.case = case
        dims = case.facts.dims
        self.interleaved = True if case.stage in ("k_pe", "q_pe", "kv_cache") else dims.index_rope_interleaved
        self.part = slice(512, 576) if case.stage == "kv_cache" else slice(0, 64)
        self.positions = case.rows[:, 1]
        rows = int(case.lengths.sum()) + 8  # as many as any mistaken position
        table = np.asarray(rope_table(dims, rows), np.float64)
        self.turns = table[:rows, :_HALF] + 1j * table[:rows, _HALF : 2 * _HALF]
        plain = dims.theta ** (-np.arange(_HALF) / _HALF)
        self.plain = np.exp(1j * np.arange(rows)[:, None] * plain)
        self.a, self.b = (self._heads(x[..., self.part]) for x in (case.a, case.b))
        self.raw = _pairs(self.a, self.interleaved) / self.turns[self.positions][:, None]

    @staticmethod
    def _heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1, 64)

    def whole(self, part: np.ndarray) -> np.ndarray:
        """The rows of a with another rope part."""
        x = self.case.a.copy()
        x[..., self.part] = part.reshape(x[..., self.part].shape)
        return x

    def turned(self, positions: np.ndarray) -> np.ndarray:
        return self.whole(_unpair(self.raw * self.turns[positions][:, None], self.interleaved))

    def estimated(self) -> np.ndarray:
        """The position by whose angles each row of b was turned: the best of all, by projection."""
        z = _pairs(self.b, self.interleaved)
        by_pair = (np.conj(self.raw) * z).sum(1)
        fit = (by_pair @ np.conj(self.turns).T).real
        # Of positions that fit alike (a row whose pairs hardly turn) the true one.
        own = fit[np.arange(len(fit)), self.positions]
        best = fit.argmax(1)
        return np.where(fit.max(1) <= own * (1 + 1e-9), self.positions, best)


def rope(case: Case) -> Iterator[Verdict | None]:
    """Pairs, sign, frequencies, positions."""
    if case.stage not in ("k_pe", "q_pe", "index_q", "index_k", "kv_cache", "index_cache"):
        return
    if case.first.turned and case.stage in TURNED:
        plain = dataclasses.replace(case.diff, a=turn_back(case.a), b=turn_back(case.b))
        case = Case(plain, case.first, case.second, case.facts)
    t = _Turned(case)
    names = {True: "interleaved (2i, 2i+1)", False: "half-split (i, i+32)"}
    wrong = not t.interleaved
    # What a has turned as it should, turned back and turned as the other pairing.
    raw = _unpair(t.raw, t.interleaved)
    other = _unpair(_pairs(raw, wrong) * t.turns[t.positions][:, None], wrong)
    yield case.judge(
        "rope pairing", f"pairs are {names[wrong]} where the model has {names[t.interleaved]}",
        f"turned a's rows back and again with {names[wrong]} pairs", t.whole(other), 1,
    )  # fmt: skip
    moved = _unpair(_pairs(raw, wrong) * t.turns[t.positions][:, None], t.interleaved)
    yield case.judge(
        "rope pairing", f"pairs are {names[wrong]} where the model has {names[t.interleaved]}, and lie as those do",
        f"turned a's rows back and again with {names[wrong]} pairs, in the other's places", t.whole(moved), 1,
    )  # fmt: skip
    shuffled = _unpair(_pairs(t.a, True), False), _unpair(_pairs(t.a, False), True)
    for part, words in zip(shuffled, ("left in halves (as transformers keeps them)", "interleaved")):
        yield case.judge(
            "rope pairing", f"the right pairs were turned, but lie {words}: dot products hold only with keys and "
            "queries that lie alike", "moved the members of a's pairs", t.whole(part), 1,
        )  # fmt: skip
    back = _unpair(t.raw * np.conj(t.turns[t.positions])[:, None], t.interleaved)
    yield case.judge("rope pairing", "pairs are turned the other way round (sign of sin)", "turned by the negative "
                     "angle", t.whole(back), 1)  # fmt: skip
    yield case.judge(
        "rope frequencies", "angles are those of plain rope: YaRN's scaling is not applied",
        "turned with unscaled frequencies",
        t.whole(_unpair(t.raw * t.plain[t.positions][:, None], t.interleaved)), 2,
    ) if case.facts.dims.yarn_factor != 1 else None  # fmt: skip
    yield from _positions(case, t)


def _positions(case: Case, t: _Turned) -> Iterator[Verdict | None]:
    """By whose angles were the rows of b turned?"""
    used = t.estimated()
    if case.judge("", "", "", t.turned(used)) is None:
        return
    bad, p = case.bad, t.positions
    shift = set((used - p)[bad].tolist())
    test = "found the position by whose angles each row of b is turned"
    if not used[bad].any() and p[bad].any():
        yield case.judge("rope missing", "rows are not turned at all (every angle is that of position 0)", test,
                         t.turned(np.zeros_like(p)), 2)  # fmt: skip
        return
    if len(shift) == 1 and abs(next(iter(shift))) == 1:
        by = shift.pop()
        words = f"positions are one too {'large' if by > 0 else 'small'} (position = length{' - 2' if by < 0 else ''})"
        yield case.judge("length off by one", words, test, t.turned(np.maximum(p + by, 0)), 2)
        return
    yield from mistaken_positions(case, used, t.turned, test)


def mistaken_positions(
    case: Case, used: np.ndarray, predict: Callable[[np.ndarray], np.ndarray], test: str, exact: bool = True
) -> Iterator[Verdict | None]:
    """Name the mistake behind positions that were found, row by row, in b; not exact: several would do for a row."""
    bad, p = case.bad, case.rows[:, 1]
    # Rows of prefill by their place in the flat batch of prompts, as plans number them.
    cu = np.concatenate([[0], np.cumsum(case.prompts)])
    place = np.where(case.decode, -1, cu[case.rows[:, 0]] + p)
    inner = place >= 0

    def ask(words: str, guess: np.ndarray, rank: int) -> Verdict | None:
        if (exact and not (guess[bad & inner] == used[bad & inner]).all()) or not (bad & inner).any():
            return None
        made = np.where(inner, guess, p)
        return case.judge("CP position", words, test, predict(made), rank, inner)

    for name, ranks in plans(case.prompts):
        local = np.zeros(cu[-1], np.int64)
        for rows in ranks:
            local[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        yield ask(f"a row's place on its rank is taken for its position ({name})", local[np.maximum(place, 0)], 1)
    for name, blocks, first in block_of(case.prompts):
        block, start = (x[np.maximum(place, 0)] for x in (blocks, first))
        inside = p - start
        moved = np.full(len(p), -1)
        pairs: set[tuple[int, int]] = set()
        for n in np.flatnonzero(bad & inner):
            same = (case.first.rows[:, 0] == case.rows[n, 0]) & ~case.first.decode
            there = first[cu[case.rows[n, 0]] : cu[case.rows[n, 0] + 1]]
            hit = np.flatnonzero(there == used[n] - inside[n])
            if same.any() and len(hit):
                moved[n] = used[n]
                pairs.add((int(block[n]), int(blocks[cu[case.rows[n, 0]] + hit[0]])))
        if pairs and (moved[bad & inner] >= 0).all() and len({a for a, _ in pairs}) == len(pairs):
            told = ", ".join(f"block {a} has those of block {b}" for a, b in sorted(pairs))
            guess = np.where(moved >= 0, moved, p)
            yield case.judge("CP position", f"positions of a wrong block ({name}): {told}", test,
                             predict(guess), 2, inner)  # fmt: skip
    yield ask("a row's place in the flat batch is taken for its position", np.maximum(place, 0), 2)
    behind = p - case.prompts[case.rows[:, 0]]
    if (bad & case.decode).any() and (used == behind)[bad & case.decode].all() and not (bad & inner).any():
        yield case.judge("CP position", "positions count from the chunk's start: the prefix is not added", test,
                         predict(np.where(case.decode, behind, p)), 2)  # fmt: skip
    others = set(map(tuple, case.rows.tolist()))
    if all((int(r), int(u)) in others for r, u in zip(case.rows[bad, 0], used[bad])):
        yield case.judge("CP position", "rows have the positions of other rows, in no plan's order", test,
                         predict(used), 6, most="likely")  # fmt: skip
