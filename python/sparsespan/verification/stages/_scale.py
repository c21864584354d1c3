"""Hypotheses about factors: a named constant, a row's own quantisation scale; and rows that stand elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ._case import Case, Verdict
from ._names import STAGES
from ._plans import plans

__all__ = ["factors", "moved_rows"]


def _named(case: Case) -> list[tuple[float, str]]:
    """Factors that b may have more (or, as 1 / factor, less) than a."""
    d = case.facts.dims
    names = [
        (d.sm_scale, "the softmax scale"),
        (d.index_heads**-0.5, f"Hi^-0.5 = {d.index_heads}^-0.5"),
        (d.index_dim**-0.5, f"{d.index_dim}^-0.5"),
        ((d.index_heads * d.index_dim) ** -0.5, f"Hi^-0.5 * {d.index_dim}^-0.5"),
        ((d.nope + d.rope) ** -0.5, f"(nope + rope)^-0.5 = {d.nope + d.rope}^-0.5"),
        (576**-0.5, "576^-0.5"),
        (d.hidden**0.5, "sqrt(hidden)"),
        (case.facts.routed_scaling, "routed_scaling_factor"),
        (2.0, "2"),
    ]
    if d.yarn_factor > 1:
        m = 0.1 * d.mscale_all_dim * math.log(d.yarn_factor) + 1
        names = [(m, "YaRN's mscale"), (m * m, "YaRN's mscale^2"), *names]
    return [(f, name) for f, name in names if abs(math.log(abs(f))) > 1e-3]


def _factor(case: Case, rows: np.ndarray) -> float:
    x, y = case.a[rows].ravel(), case.b[rows].ravel()
    good = np.isfinite(x) & np.isfinite(y)
    norm = float((x[good] ** 2).sum())
    return float((x[good] * y[good]).sum()) / norm if norm else 0.0


def factors(case: Case) -> Iterator[Verdict | None]:
    """One factor for all values; the row's quantisation scale; for lse also an offset."""
    if STAGES[case.stage].ids or case.a.shape != case.b.shape:
        return
    c = _factor(case, case.bad)
    if case.stage == "lse":
        yield from _lse(case, c)
    if abs(c) > 1e-6 and abs(c - 1) > 1e-3:
        yield _one_factor(case, c)
    yield from _own_scale(case)


def _one_factor(case: Case, c: float) -> Verdict | None:
    near = 1e-3 if not case.even else 2e-2
    test = f"b / a is {c:.6g} for every value"
    with np.errstate(invalid="ignore"):
        for f, name in _named(case):
            for power, words in ((1, "once more"), (-1, "not"), (2, "twice more"), (-2, "less, twice")):
                if abs(c / f**power - 1) < near:
                    told = f"{name} is {words} applied" if power in (1, -1) else f"{name} is applied {words}"
                    return case.judge("scale placement", f"{told} (factor {f**power:.6g})", test, case.a * f**power, 2)
        return case.judge("scale placement", f"all values have the factor {c:.6g}, which is no constant of the model",
                          test, case.a * c, 4, most="likely")  # fmt: skip


def _lse(case: Case, c: float) -> Iterator[Verdict | None]:
    for base, words in (
        (1 / math.log(2), "lse is in base 2, needs the natural log"),
        (math.log(2), "lse is natural where base 2 was taken as given: multiplied by ln 2"),
    ):
        yield case.judge("lse base", words, f"b / a is {c:.6g}; compared with a * {base:.6g}", case.a * base, 1)
    if case.bad.any():
        offset = float(np.median((case.b - case.a)[case.bad]))
        for n in (2, 4, 8):
            if abs(offset - math.log(n)) < 1e-3:
                yield case.judge("owner map", f"lse is larger by ln {n}: every key was counted {n} times, by all ranks",
                                 f"b - a is {offset:.6g}", case.a + math.log(n), 2)  # fmt: skip


def _own_scale(case: Case) -> Iterator[Verdict | None]:
    """fp8 scales: of 128 values each."""
    widths = {"kv_cache": 512, "kv_latent": 512, "index_cache": 128, "index_k": 128, "index_q": 128}
    width = widths.get(case.stage)
    if width is None:
        return
    tiles = case.a[..., :width].reshape(*case.a.shape[:-1], -1, 128)
    amax = np.maximum(np.abs(tiles).max(-1, keepdims=True), 1e-4)
    exact = amax / 448
    for scale, kind in ((np.exp2(np.ceil(np.log2(exact))), "power-of-two"), (exact, "amax / 448")):
        for power, words in ((-2, "the fp8 scale divides where it should multiply"), (-1, "the fp8 scale is not "
                             "applied: values are codes"), (1, "the fp8 scale is applied twice")):  # fmt: skip
            predicted = case.a.copy()
            wanted = case.b[..., :width].reshape(tiles.shape)
            # Rounding may have taken the largest value of a tile just below a power of two: then the scale was twice.
            one, two = tiles * scale**power, tiles * (2 * scale) ** power
            nearer = np.abs(two - wanted).max(-1, keepdims=True) < np.abs(one - wanted).max(-1, keepdims=True)
            predicted[..., :width] = np.where(nearer, two, one).reshape(*case.a.shape[:-1], width)
            yield case.judge("scale placement", f"{words} ({kind} scales of 128 values)",
                             f"scaled a's tiles by their own scale ^ {power}", predicted, 1)  # fmt: skip


def moved_rows(case: Case) -> Iterator[Verdict | None]:
    """b's rows are a's rows in another order."""
    if STAGES[case.stage].ids or case.a.shape != case.b.shape or len(case.a) > 2000:
        return
    x, y = (np.nan_to_num(v.reshape(len(v), -1), neginf=-1e3) for v in (case.a, case.b))
    if x.shape[1] < 8:
        return
    whole = ((x**2).sum(1)[None] - 2 * y @ x.T) + (y**2).sum(1)[:, None]
    source = whole.argmin(1)
    if case.judge("", "", "", case.a[source]) is None:
        return
    bad = case.bad
    test = "each row of b that differs is found among a's rows"
    cu = np.concatenate([[0], np.cumsum(case.prompts)])
    place = np.where(case.decode, -1, cu[case.rows[:, 0]] + case.rows[:, 1])
    at = np.full(cu[-1], -1)
    at[place[place >= 0]] = np.flatnonzero(place >= 0)
    for name, ranks in plans(case.prompts):
        stream = np.concatenate(ranks)
        stream = stream[stream >= 0]
        for order, words in ((stream, "rows lie rank after rank and were not put back in order"),
                             (np.argsort(stream), "rows were put in order twice")):  # fmt: skip
            guess = np.where(place >= 0, at[order[np.maximum(place, 0)]], np.arange(len(bad)))
            if (guess[bad] == source[bad]).all() and (guess >= 0).all():
                yield case.judge("CP position", f"{words} ({name})", test, case.a[guess], 1, place >= 0)
    same = case.rows[source, 0] == case.rows[:, 0]
    bug, words = "rows exchanged", "rows are those of other requests"
    if same[bad].all():
        bug, words = "CP position", "rows stand in another order, which is no plan's"
    yield case.judge(bug, words, test, case.a[source], 6, most="likely")
