"""Hypotheses about chosen keys: padding, the edge of what is visible, positions, owners."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from ._case import Case, Verdict
from ._names import STAGES
from ._plans import owner_maps, plans
from ._rope import mistaken_positions

__all__ = ["choice", "scores"]

_MOST = 600  # keys of a request up to which every edge is tried for every row


def full_scores(case: Case) -> np.ndarray | None:
    """Scores of all keys that were in the cache when the row was computed, unseen ones too; NaN for others."""
    q, w = case.known("index_q"), case.known("index_weights")
    k = case.known("index_cache")
    k = case.known("index_k") if k is None else k
    if q is None or k is None or w is None:
        return None
    numbers, starts = case.diff.numbers, case.first.starts
    made = np.full((len(numbers), int(case.lengths.max(initial=0))), np.nan)
    for request in set(case.rows[:, 0].tolist()):
        mine = np.flatnonzero(case.rows[:, 0] == request)
        keys = k[starts[request] : starts[request + 1]]
        dots = np.maximum(np.einsum("nhd,kd->nhk", q[numbers[mine]], keys), 0)
        made[mine, : len(keys)] = np.einsum("nhk,nh->nk", dots, w[numbers[mine]])
    written = np.where(case.decode, case.rows[:, 1] + 1, case.prompts[case.rows[:, 0]])
    return np.where(np.arange(made.shape[1]) < written[:, None], made, np.nan)


def best(scores: np.ndarray, ends: np.ndarray, topk: int, starts: int = 0) -> np.ndarray:
    """Positions of each row's best scores in [starts, ends): ascending, then -1."""
    columns = np.arange(scores.shape[1])
    seen = (columns >= starts) & (columns < ends[:, None]) & ~np.isnan(scores)
    order = np.argsort(np.where(seen, -scores, np.inf), axis=1, kind="stable")[:, :topk]
    kept = np.where(np.take_along_axis(seen, order, 1), order, -1)
    made = np.full((len(scores), topk), -1, np.int64)
    made[:, : kept.shape[1]] = -np.sort(-kept, axis=1)
    return made


def choice(case: Case) -> Iterator[Verdict | None]:
    """Of ``indices``."""
    if case.stage != "indices":
        return
    yield from _padding(case)
    found = full_scores(case)
    if found is None:  # a row that sees no more keys than it may choose needs no scores
        found = np.zeros((len(case.rows), int(case.lengths.max(initial=0))))
        case = case.part(case.rows[:, 1] < case.facts.dims.topk - 1)
        found = found[: len(case.rows)]
        if not case.bad.any():
            return
    topk, p = case.facts.dims.topk, case.rows[:, 1]
    yield from _edges(case, found)
    test = "chose a's best keys again with that edge"

    def predict(used: np.ndarray) -> np.ndarray:
        return best(found, used + 1, topk)

    if found.shape[1] <= _MOST:
        used = p.copy()
        for end in range(int(case.lengths.max(initial=0)) + 1):
            hit = case.bad & case.matches(best(found, np.full(len(p), end), topk))
            used[hit] = end - 1
        yield from mistaken_positions(case, used, predict, test, exact=False)
    yield from _owners(case, found)
    for layer in range(case.layer - 1, -1, -1):
        other = case.first.get("indices", layer)
        if other is not None:
            yield case.judge("IndexShare", f"the keys are those that layer {layer} chose", "compared with that "
                             "layer's", other[case.diff.numbers], 2)  # fmt: skip


def _padding(case: Case) -> Iterator[Verdict | None]:
    a, b = case.a, case.b
    topk = max(a.shape[1], b.shape[1])
    wide = np.pad(a, ((0, 0), (0, topk - a.shape[1])), constant_values=-1)
    p, length = case.rows[:, 1], case.lengths[case.rows[:, 0]]
    strange = b[(b < -1) | (b >= length[:, None])]
    if strange.size:
        values, counts = np.unique(strange, return_counts=True)
        value = int(values[counts.argmax()])
        words = f"the padding of a row is {value} where -1 says none"
        yield case.judge("sentinel", words, "replaced a's -1", np.where(wide == -1, value, wide), 1)
    last = np.where(case.decode, p, case.prompts[case.rows[:, 0]] - 1)
    for key, name in (
        (np.zeros_like(p), "key 0"), (p, "the row's last key"), (last, "the last key in the cache"),
        (length - 1, "the request's last key"),
    ):  # fmt: skip
        full = np.where(wide == -1, key[:, None], wide)
        once = wide.copy()
        lacking = (wide == -1).any(1) & ~(wide == key[:, None]).any(1)
        once[lacking, -1] = key[lacking]
        for predicted, how in ((full, "for every -1"), (once, "once")):
            words = f"-1 is taken for an index: {name} stands in rows that see too few keys, {how}"
            yield case.judge("sentinel", words, f"put {name} in a's rows {how}", predicted, 1)


def _edges(case: Case, found: np.ndarray) -> Iterator[Verdict | None]:
    topk, p = case.facts.dims.topk, case.rows[:, 1]
    prompt = np.where(case.decode, p + 1, case.prompts[case.rows[:, 0]])
    for ends, words, bug in (
        (p, "a row does not see its own key (the diagonal): its length is one too small", "length off by one"),
        (p + 2, "a row sees the key behind it: its length is one too large", "length off by one"),
        (p - 1, "a row misses its own key and the one before: its length is two too small", "length off by one"),
        (prompt, "rows see all keys of the prompt: there is no causal edge", "causality"),
    ):
        yield case.judge(bug, words, "chose a's best keys again with that edge", best(found, ends, topk), 1)
    yield case.judge("length off by one", "a row does not see the first key", "chose again from key 1 on",
                     best(found, p + 1, topk, 1), 1)  # fmt: skip
    for k in (topk - 1, topk + 1):
        yield case.judge("length off by one", f"{k} keys are chosen, the model has index_topk = {topk}",
                         f"chose a's best {k}", best(found, p + 1, k), 2)  # fmt: skip
    yield case.judge("score order", "the smallest scores are chosen", "chose a's worst keys",
                     best(-found, p + 1, topk), 3)  # fmt: skip


def _owners(case: Case, found: np.ndarray) -> Iterator[Verdict | None]:
    topk, p = case.facts.dims.topk, case.rows[:, 1]
    longest = int(case.lengths.max(initial=0))
    for words, moved in owner_maps(longest):
        yield case.judge("owner map", words, "sent a's indices through that map",
                         np.where(case.a >= 0, moved[np.maximum(case.a, 0)], -1), 3)  # fmt: skip
    for n in (2, 4, 8):
        for s in (1, 2, 4, 16, 64):
            owner = np.arange(found.shape[1]) // s % n
            for r in range(n if s < longest else 0):
                mine = best(np.where(owner == r, found, np.nan), p + 1, topk)
                yield case.judge("owner map", f"only keys of rank {r} are chosen from: ranks' choices are not merged "
                                 f"(N = {n}, S = {s})", "chose among that rank's keys", mine, 3)  # fmt: skip


def scores(case: Case) -> Iterator[Verdict | None]:
    """Of ``index_scores``: which keys have one, whose they are."""
    if case.stage != "index_scores" or STAGES[case.stage].ids or case.a.shape != case.b.shape:
        return
    p = case.rows[:, 1]
    found = full_scores(case)
    if found is None:
        found = case.a
    seen = np.isfinite(case.b)
    used = seen.sum(1) - 1
    columns = np.arange(case.b.shape[1])

    def predict(edge: np.ndarray) -> np.ndarray:
        shown = (columns <= edge[:, None]) & ~np.isnan(found)
        return np.where(shown, np.where(np.isfinite(case.a), case.a, found), -np.inf)

    if (used != p)[case.bad].all():
        shift = set((used - p)[case.bad].tolist())
        if shift <= {-1, 1} and len(shift) == 1:
            by = shift.pop()
            words = "sees the key behind it" if by > 0 else "does not see its own key (the diagonal)"
            yield case.judge("length off by one", f"a row {words}", "counted scores that are not -inf",
                             predict(p + by), 1)  # fmt: skip
        else:
            yield from mistaken_positions(case, used, predict, "counted scores that are not -inf")
    for words, moved in owner_maps(case.b.shape[1]):
        inside = moved < case.b.shape[1]
        predicted = np.where(inside, case.a[:, np.where(inside, moved, 0)], -np.inf)
        yield case.judge("owner map", words, "sent a's columns through that map", predicted, 3)
    for name, ranks in plans(case.lengths[:1]) if len(case.lengths) == 1 else ():
        stream = np.concatenate(ranks)
        stream = stream[stream >= 0]
        yield case.judge("CP position", f"keys lie rank after rank ({name})", "put a's columns in that order",
                         case.a[:, stream], 2)  # fmt: skip
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = case.b / case.a
    for axis, words in (
        (0, "each key has a factor of its own, as when its fp8 scale is not applied"),
        (1, "each row has a factor of its own, as when its queries' fp8 scale is not applied"),
    ):
        usable = np.isfinite(ratio) & np.isfinite(case.a) & (case.a != 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a key or row without a usable score
            line = np.nan_to_num(np.nanmedian(np.where(usable, ratio, np.nan), axis=axis, keepdims=True), nan=1.0)
        if (np.abs(line - 1) > 1e-3).any():
            yield case.judge("scale placement", words, "divided b by a", case.a * line, 4)
