"""Hypotheses about attention: each is computed from a's queries, keys and indices, and held against b."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ._case import Case, Verdict
from ._plans import owner_maps, plans

__all__ = ["attention"]

_ROWS = 48  # rows that differ which are recomputed, and a third as many that do not
_WORK = 4e7  # multiplications of a hypothesis
Row = Callable[[int], dict[str, Any]]


class _Inputs:
    """Queries [n, H, 576], keys [R, 576] of all rows, and the keys of each row as numbers into them."""

    def __init__(self, case: Case, q: np.ndarray, keys: np.ndarray, indices: np.ndarray) -> None:
        self.case, self.q, self.keys = case, q[case.diff.numbers], keys
        self.start = case.first.starts[case.rows[:, 0]]
        self.p = case.rows[:, 1]
        self.positions = [row[row >= 0] for row in indices[case.diff.numbers]]
        self.topk = indices.shape[1]
        self.scale = case.facts.dims.sm_scale

    def attend(
        self, n: int, positions: np.ndarray, scale: float | None = None, zeros: int = 0,
        groups: np.ndarray | None = None, weigh: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """out [H, 512], lse [H] of row n over these positions of its request; ``zeros`` keys of zeros beside them.

        With ``groups`` partial results of each group are merged by ``weigh(lse)``.
        """
        keys = self.keys[self.start[n] + positions]
        if zeros:
            keys = np.concatenate([keys, np.zeros((zeros, keys.shape[1]))])
        logits = self.q[n] @ keys.T * (self.scale if scale is None else scale)
        if groups is None or weigh is None:
            return _softmax(logits, keys[:, :512])
        parts = [_softmax(logits[:, groups == g], keys[groups == g, :512]) for g in np.unique(groups)]
        outs, lses = (np.stack(x) for x in zip(*parts))
        weights = weigh(lses)
        total = weights.sum(0)
        return ((weights / total)[..., None] * outs).sum(0), np.log(total)


def _softmax(logits: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if logits.shape[1] == 0:
        return np.zeros((len(logits), 512)), np.full(len(logits), -np.inf)
    top = logits.max(1, keepdims=True)
    e = np.exp(logits - top)
    total = e.sum(1, keepdims=True)
    return e / total @ values, (top + np.log(total))[:, 0]


def _inputs(case: Case) -> _Inputs | None:
    lat, pe = case.known("q_absorbed"), case.known("q_pe")
    keys = case.known("kv_cache")
    if keys is None:
        latent, k_pe = case.known("kv_latent"), case.known("k_pe")
        keys = None if latent is None or k_pe is None else np.concatenate([latent, k_pe], -1)
    indices = None
    for layer in range(case.layer, -1, -1):  # a shared layer has those of a layer before it
        indices = case.known("indices", layer)
        if indices is not None:
            break
    if lat is None or pe is None or keys is None or indices is None:
        return None
    bad, good = np.flatnonzero(case.bad), np.flatnonzero(~case.bad)
    most = int(min(_ROWS, max(4, _WORK / (lat.shape[1] * indices.shape[1] * 1088))))
    keep = np.zeros(len(case.bad), bool)
    for rows, count in ((bad, most), (good, most // 3)):
        keep[rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))] if len(rows) else []] = 1
    return _Inputs(case.part(keep), np.concatenate([lat, pe], -1), keys, indices)


class _Try:
    """Predicts the case's stage of every row from what a hypothesis says of it."""

    def __init__(self, inputs: _Inputs) -> None:
        self.inputs, self.case = inputs, inputs.case

    def stage(self, found: list[tuple[np.ndarray, np.ndarray]], rows: np.ndarray) -> np.ndarray | None:
        case = self.case
        out, lse = (np.stack(x) for x in zip(*found))
        if case.stage == "lse":
            made: np.ndarray | None = lse
        else:
            made = out if case.stage == "attention" else case.facts.heads(case.layer, out)
            if case.stage == "o_proj" and made is not None:
                made = case.facts.out(case.layer, made)
        if made is None:
            return None
        whole = np.full((len(case.rows), *made.shape[1:]), np.nan)
        whole[rows] = made
        return whole

    def __call__(self, bug: str, words: str, test: str, row: Row, rank: int = 3) -> Verdict | None:
        case, bad = self.case, np.flatnonzero(self.case.bad)
        few = bad[np.unique(np.linspace(0, len(bad) - 1, min(3, len(bad))).astype(int))]
        for rows in (few, np.arange(len(case.rows))):  # three rows first: most hypotheses end there
            predicted = self.stage([self.inputs.attend(int(n), **row(int(n))) for n in rows], rows)
            if predicted is None:
                return None
            there = np.isin(np.arange(len(case.rows)), rows)
            if 2 * (case.matches(predicted) & there & case.bad).sum() < (there & case.bad).sum():
                return None
        test = f"recomputed attention from a's queries and keys, {test}"
        return None if predicted is None else case.judge(bug, words, test, predicted, rank)


def attention(case: Case) -> Iterator[Verdict | None]:
    """Of ``attention``, ``lse``, ``heads`` and ``o_proj``."""
    if case.stage not in ("attention", "lse", "heads", "o_proj"):
        return
    yield from _heads(case)
    inputs = _inputs(case)
    if inputs is None or not inputs.case.bad.any():
        return
    attempt = _Try(inputs)
    # Only where a's own answer can be recomputed does a prediction say anything.
    again = attempt.stage([inputs.attend(n, s) for n, s in enumerate(inputs.positions)], np.arange(len(inputs.p)))
    if again is None or not inputs.case.matches(again, inputs.case.a).all():
        return
    yield from _scales(attempt, inputs)
    yield from _bases(attempt, inputs)
    yield from _sentinels(attempt, inputs)
    yield from _edges(attempt, inputs)
    yield from _orders(attempt, inputs)
    yield from _shared(attempt, inputs)


def _heads(case: Case) -> Iterator[Verdict | None]:
    """Heads of tensor-parallel ranks joined in a wrong order."""
    heads = case.known("heads") if case.stage == "o_proj" else case.a
    if heads is None or (heads.ndim < 3 and case.stage != "lse"):
        return
    rows = heads[case.diff.numbers] if case.stage == "o_proj" else heads
    count = rows.shape[1]
    for n in (2, 4, 8):
        if count % n or count == n == 1:
            continue
        place = np.arange(count).reshape(n, -1)
        for order, words in (
            (place[::-1].ravel(), "ranks' heads are joined last rank first"),
            (place.T.ravel(), "heads are dealt out one by one where ranks have neighbours"),
        ):
            moved = case.facts.out(case.layer, rows[:, order]) if case.stage == "o_proj" else rows[:, order]
            if moved is not None:
                yield case.judge("head order", f"{words} (N = {n})", "put a's heads in that order", moved, 3)


def _scales(attempt: _Try, x: _Inputs) -> Iterator[Verdict | None]:
    d = x.case.facts.dims
    plain = (d.nope + d.rope) ** -0.5
    m2 = x.scale / plain
    options = [
        (1.0, "the softmax scale is not applied"), (x.scale**2, "the softmax scale is applied twice"),
        (576**-0.5, "the softmax scale is 576^-0.5: that of the absorbed width, not of the heads"),
        (d.nope**-0.5, "the softmax scale is nope^-0.5: the rope part is not counted"),
    ]  # fmt: skip
    if abs(m2 - 1) > 1e-6:
        options += [
            (plain, "the softmax scale lacks YaRN's mscale^2"), (plain * math.sqrt(m2), "YaRN's mscale is applied "
            "once, needs its square"), (plain * m2 * m2, "YaRN's mscale^2 is applied twice"),
            (576**-0.5 * m2, "the softmax scale is 576^-0.5 * mscale^2"),
        ]  # fmt: skip
    for scale, words in options:
        if abs(scale / x.scale - 1) > 1e-6:
            yield attempt("scale placement", f"{words} ({scale:.6g}, needs {x.scale:.6g})", f"scale {scale:.6g}",
                          lambda n, s=scale: {"positions": x.positions[n], "scale": s}, 1)  # type: ignore[misc]  # fmt: skip


def _bases(attempt: _Try, x: _Inputs) -> Iterator[Verdict | None]:
    ways: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
        ("lse base", "partial results are merged by 2^lse, their lse is natural", np.exp2),
        ("lse base", "partial results are merged by e^lse, their lse is in base 2", lambda v: np.exp(v / math.log(2))),
        ("lse merge", "partial results are averaged, not weighed by e^lse", np.ones_like),
    ]
    for n in (2, 4, 8):
        for s in (1, 2, 4, 16, 64):
            split = [len(set((p // s % n).tolist())) > 1 for p in x.positions]
            for bug, words, weigh in ways if 2 * np.mean(split) >= 1 else ():
                yield attempt(
                    bug, f"{words} (N = {n}, S = {s})", "merged by ranks",
                    lambda i, n=n, s=s, weigh=weigh: {  # type: ignore[misc]
                        "positions": x.positions[i], "groups": x.positions[i] // s % n, "weigh": weigh,
                    }, 1 if bug == "lse base" else 3,
                )  # fmt: skip


def _sentinels(attempt: _Try, x: _Inputs) -> Iterator[Verdict | None]:
    case = x.case
    length = case.lengths[case.rows[:, 0]]
    last = np.where(case.decode, x.p, case.prompts[case.rows[:, 0]] - 1)
    missing = [x.topk - len(s) for s in x.positions]
    for key, name in (
        (np.zeros_like(last), "key 0"), (x.p, "the row's own key"), (last, "the last key in the cache"),
        (length - 1, "the request's last key"),
    ):  # fmt: skip
        for most, how in ((x.topk, "for every -1"), (1, "once")):
            yield attempt(
                "sentinel", f"-1 is taken for an index: {name} is attended {how}", f"with {name} in rows that have -1",
                lambda n, key=key, most=most: {  # type: ignore[misc]
                    "positions": np.concatenate([x.positions[n], np.full(min(missing[n], most), key[n])]),
                }, 1,
            )  # fmt: skip
    for most, how in ((x.topk, "for every -1"), (1, "once")):
        yield attempt(
            "sentinel", f"-1 is taken for a key of zeros {how}: padding is in the softmax", "with keys of zeros",
            lambda n, most=most: {"positions": x.positions[n], "zeros": min(missing[n], most)}, 1,  # type: ignore[misc]
        )  # fmt: skip


def _edges(attempt: _Try, x: _Inputs) -> Iterator[Verdict | None]:
    case = x.case
    length = case.lengths[case.rows[:, 0]]

    def future(n: int) -> np.ndarray:
        return np.append(x.positions[n], x.p[n] + 1) if x.p[n] + 1 < length[n] else x.positions[n]

    for words, keys in (
        ("a row does not attend to its own key (the diagonal)", lambda n: x.positions[n][x.positions[n] != x.p[n]]),
        ("a row attends to the key behind it", future),
        ("the last of a row's keys is left out: their number is one too small", lambda n: x.positions[n][:-1]),
        ("the first of a row's keys is left out", lambda n: x.positions[n][1:]),
    ):
        yield attempt("length off by one", words, "over these keys", lambda n, keys=keys: {"positions": keys(n)}, 1)  # type: ignore[misc]
    yield attempt("selection", "all visible keys are attended: the choice is not used", "over all visible keys",
                  lambda n: {"positions": np.arange(x.p[n] + 1)}, 3)  # fmt: skip


def _orders(attempt: _Try, x: _Inputs) -> Iterator[Verdict | None]:
    """Another key is read at each position: gathered rows out of order, an owner map that is mistaken."""
    case = x.case
    cu = np.concatenate([[0], np.cumsum(case.prompts)])
    flat_of = np.concatenate([np.arange(n) + s for n, s in zip(case.prompts, case.first.starts)])
    for name, ranks in plans(case.prompts):
        stream = np.concatenate(ranks)
        stream = stream[stream >= 0]
        for order, words in ((stream, "gathered keys lie rank after rank and were not put back in order"),
                             (np.argsort(stream), "gathered keys were put in order twice")):  # fmt: skip

            def read(n: int, order: np.ndarray = order) -> dict[str, Any]:
                request, positions = case.rows[n, 0], x.positions[n]
                inside = positions < case.prompts[request]
                source = flat_of[order[cu[request] + positions[inside]]] - x.start[n]
                return {"positions": np.concatenate([source, positions[~inside]])}

            yield attempt("CP position", f"{words} ({name})", "reading keys in that order", read, 2)
    longest = int(case.lengths.max())
    written = np.where(case.decode, x.p + 1, case.prompts[case.rows[:, 0]])
    for words, moved in owner_maps(longest):

        def through(n: int, moved: np.ndarray = moved) -> dict[str, Any]:
            there = moved[x.positions[n]]
            return {"positions": there[there < written[n]]}

        yield attempt("owner map", words, "reading keys through that map", through, 3)
    for n in (2, 4, 8):
        for s in (1, 2, 4, 16, 64):
            for r in range(n if s < longest else 0):

                def without(i: int, n: int = n, s: int = s, r: int = r) -> dict[str, Any]:
                    return {"positions": x.positions[i][x.positions[i] // s % n != r]}

                def alone(i: int, n: int = n, s: int = s, r: int = r) -> dict[str, Any]:
                    return {"positions": x.positions[i][x.positions[i] // s % n == r]}

                yield attempt("owner map", f"keys of rank {r} are missing (N = {n}, S = {s})", "without them", without)
                yield attempt("owner map", f"only keys of rank {r} take part: ranks are not merged (N = {n}, S = {s})",
                              "with them alone", alone)  # fmt: skip


def _shared(attempt: _Try, x: _Inputs) -> Iterator[Verdict | None]:
    case = x.case
    for layer in range(case.layer, -1, -1):
        other = case.known("indices", layer)
        if other is None:
            continue
        rows = other[case.diff.numbers]
        yield attempt("IndexShare", f"attends to the keys that layer {layer} chose", "over them",
                      lambda n, rows=rows: {"positions": rows[n][rows[n] >= 0]}, 3)  # type: ignore[misc]  # fmt: skip
