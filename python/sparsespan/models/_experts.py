"""The way of rows to the ranks that have their experts, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ._ranks import place

__all__ = ["ExpertRanks"]

Expert = Callable[[int, np.ndarray], np.ndarray]


class _Asked(NamedTuple):
    """(row, expert) pairs in some order of ranks, and how many belong to each rank."""

    rows: np.ndarray
    experts: np.ndarray
    counts: np.ndarray


class ExpertRanks:
    """Ranks that share experts: expert e lies on rank ``e % N``.

    Some of the ranks have the same rows ("copies" of each other): those of ``tp``, or all where rows are not split.
    Each copy answers for every c-th of their rows: it asks for the experts, weighs and adds what they say, and the sums
    are gathered at the end. A copy needs no rows from another one, and knows what it will be asked.

    Parameters
    ----------
    group : Communicator or None
        All ranks; None for one rank with all experts.
    tp : Communicator or None
        The ranks beside this one that always have the same rows, neighbours in ``group``.

    Raises
    ------
    ValueError
        If ``group`` is not made of groups like ``tp``.
    """

    def __init__(self, group: Any, tp: Any) -> None:
        self._group: Any = None if group is None or group.size == 1 else group
        self._tp: Any = None if tp is None or tp.size == 1 else tp
        (self.rank, self.size), (rank, size) = place(group), place(tp)
        if self.size % size or self.rank % size != rank:
            raise ValueError(
                f"experts: rank {self.rank} of {self.size} is rank {rank} of {size} in tp, needs groups of tp side by "
                f"side: rank {rank} of the i-th is rank i * {size} + {rank}"
            )

    def mine(self, experts: int) -> range:
        """Of so many experts, those of this rank."""
        return range(self.rank, experts, self.size)

    def apply(self, x: np.ndarray, chosen: np.ndarray, weights: np.ndarray, expert: Expert, split: bool) -> np.ndarray:
        """Sum of weighted experts of each row, in the order of its places, in float32; then in the dtype of ``x``.

        Parameters
        ----------
        x : array [t, hidden]
        chosen : int64 [t, k]
            Experts of each row, ascending.
        weights : float32 [t, k]
        expert : callable(e, rows) -> rows
            For an expert of this rank.
        split : bool
            Whether rows differ outside ``tp``.
        """
        if self._group is None:
            return _alone(x, chosen, weights, expert)
        copies, base = (self.size, 0) if not split else (1, self.rank)
        if split and self._tp is not None:
            copies, base = self._tp.size, self.rank - self._tp.rank
        own = np.arange(self.rank - base, len(x), copies)
        asked, answer_of = self._questions(chosen, own)
        said = self._said(x, chosen, asked, expert, copies, base)
        total = np.zeros((len(own), x.shape[1]), np.float32)
        for i in range(chosen.shape[1]):
            total += said[answer_of[:, i]].astype(np.float32) * weights[own, i, None]
        return self._joined(total.astype(x.dtype), len(x), copies, split)

    def _questions(self, chosen: np.ndarray, own: np.ndarray) -> tuple[_Asked, np.ndarray]:
        """What this rank asks, by the rank that is asked; and which answer is that of each of its rows' places."""
        owner = chosen[own] % self.size
        order = np.argsort(owner, axis=None, kind="stable")
        answer_of = np.empty(owner.size, np.int64)
        answer_of[order] = np.arange(owner.size)
        row, place = np.unravel_index(order, owner.shape)
        counts = np.bincount(owner.reshape(-1), minlength=self.size)
        return _Asked(own[row], chosen[own[row], place], counts), answer_of.reshape(owner.shape)

    def _said(
        self, x: np.ndarray, chosen: np.ndarray, asked: _Asked, expert: Expert, copies: int, base: int
    ) -> np.ndarray:
        """Answers to this rank's questions, in their order; it answers those of the others meanwhile."""
        rows, todo = x, self._of_copies(chosen, copies, base)
        if copies < self.size:
            rows, todo = self._of_all(x, asked, todo, copies, base)
        return self._exchange(_answer(rows, todo, expert), todo.counts, asked.counts)

    def _exchange(self, rows: np.ndarray, to: np.ndarray, back: np.ndarray) -> np.ndarray:
        return np.asarray(self._group.all_to_all(rows, to.tolist(), back.tolist()))

    def _of_copies(self, chosen: np.ndarray, copies: int, base: int) -> _Asked:
        """What copies of this rank ask of it, by copy; they route the same rows to the same experts."""
        row, place = np.nonzero(chosen % self.size == self.rank)
        order = np.argsort(row % copies, kind="stable")
        row, place = row[order], place[order]
        counts = np.zeros(self.size, np.int64)
        counts[base : base + copies] = np.bincount(row % copies, minlength=copies)
        return _Asked(row, chosen[row, place], counts)

    def _of_all(self, x: np.ndarray, asked: _Asked, near: _Asked, copies: int, base: int) -> tuple[np.ndarray, _Asked]:
        """Rows, this rank's and then those that were sent; what all ranks ask of them. A row goes once to a rank."""
        ends = np.concatenate([[0], np.cumsum(asked.counts)])
        sent, pairs = [x[:0]], [np.zeros((0, 2), np.int64)]
        counts = np.zeros((self.size, 2), np.int64)  # rows and pairs to each rank
        for q in range(self.size):
            if base <= q < base + copies:
                continue
            part = slice(ends[q], ends[q + 1])
            rows, inverse = np.unique(asked.rows[part], return_inverse=True)
            counts[q] = len(rows), ends[q + 1] - ends[q]
            sent.append(x[rows])
            pairs.append(np.stack([inverse.reshape(-1), asked.experts[part]], 1))
        theirs = self._group.all_to_all(counts)
        came = self._exchange(np.concatenate(sent), counts[:, 0], theirs[:, 0])
        said = self._exchange(np.concatenate(pairs).astype(np.int32), counts[:, 1], theirs[:, 1])
        first = len(x) + np.cumsum(theirs[:, 0]) - theirs[:, 0]  # where the rows of each rank begin
        far_rows = said[:, 0] + np.repeat(first, theirs[:, 1])
        before = int(theirs[:base, 1].sum())  # copies stand in the middle
        return np.concatenate([x, came]), _Asked(
            np.concatenate([far_rows[:before], near.rows, far_rows[before:]]),
            np.concatenate([said[:before, 1], near.experts, said[before:, 1]]),
            theirs[:, 1] + near.counts,
        )

    def _joined(self, mine: np.ndarray, rows: int, copies: int, split: bool) -> np.ndarray:
        """Every copy's sums, in the order of the rows."""
        if copies == 1:
            return mine
        counts = [len(range(j, rows, copies)) for j in range(copies)]
        parts = (self._tp if split else self._group).all_gather(mine, counts)
        whole = np.empty((rows, mine.shape[1]), mine.dtype)
        for j, part in enumerate(np.split(parts, np.cumsum(counts)[:-1])):
            whole[j::copies] = part
        return whole


def _alone(x: np.ndarray, chosen: np.ndarray, weights: np.ndarray, expert: Expert) -> np.ndarray:
    """The same on a rank with all experts, one after the other: nothing is kept of each but its part of the sum."""
    total = np.zeros(x.shape, np.float32)
    for e in np.unique(chosen):
        row, place = np.nonzero(chosen == e)
        total[row] += expert(int(e), np.ascontiguousarray(x[row])).astype(np.float32) * weights[row, place, None]
    return total.astype(x.dtype)


def _answer(rows: np.ndarray, asked: _Asked, expert: Expert) -> np.ndarray:
    """What the experts say, pair by pair; an expert is called once with all its rows."""
    said = np.empty((len(asked.rows), rows.shape[1]), rows.dtype)
    for e in np.unique(asked.experts):
        pairs = np.flatnonzero(asked.experts == e)
        said[pairs] = expert(int(e), np.ascontiguousarray(rows[asked.rows[pairs]]))
    return said
