"""``sparsespan plan cp --svg``: who owns which tokens, what they cost, and what moves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .. import cp
from ._plan_cp_text import size
from ._svg import INK, LINE, MUTED, Canvas, ramp

__all__ = ["draw"]

_TP, _CP, _CP2 = "#94a3b8", "#0d9488", "#5eead4"
_MOST_RANKS = 64  # lanes thinner than that cannot be read
_MOST_RUNS = 400  # pieces of one rank that can still be seen


def _runs(plan: Any, r: int) -> list[tuple[int, int]]:
    rows = np.sort(plan.rank_rows(r))
    rows = rows[rows >= 0]
    if rows.size == 0:
        return []
    cuts = np.flatnonzero(np.diff(rows) != 1)
    starts, stops = rows[np.r_[0, cuts + 1]], rows[np.r_[cuts, rows.size - 1]] + 1
    return list(zip(starts.tolist(), stops.tolist()))


class _Drawing:
    def __init__(self, d: dict[str, Any], ranks: int) -> None:
        self.d, self.n = d, ranks
        self.step = next(s for s in d["steps"] if s["ranks"] == ranks)["models"][d["model"]]
        self.dims = cp.attention_dims(d["model"])
        starts = [0, *itertools.accumulate(d["tokens"])]
        self.plan = cp.split_plan(d["scheme"], starts, d["prefix"], ranks)
        self.total = starts[-1]
        self.runs = [_runs(self.plan, r) for r in range(ranks)]
        self.fine = max(map(len, self.runs), default=0) > _MOST_RUNS  # too fine to draw to scale
        self.lane = max(7.0, min(64.0, 256 / ranks))
        self.top = 96.0
        self.owner_height = 190 + self.lane * ranks
        self.c = Canvas(
            1320, self.top + max(self.owner_height, 440) + 716, f"prefill context parallelism {d['scheme']}"
        )

    def draw(self) -> str:
        d, c = self.d, self.c
        c.rect(0, 0, c.width, c.height, "#f8fafc")
        c.text(40, 52, f"Prefill context parallelism: {d['scheme']} over {self.n} ranks", size=26, weight=700)
        cached = f", {sum(d['prefix']):,} cached" if sum(d["prefix"]) else ""
        requests = f" in {len(d['tokens'])} requests" if len(d["tokens"]) > 1 else ""
        line = (
            f"{d['model']}  ·  {self.total:,} tokens{requests}{cached}  ·  {d['cache']} cache  ·  all figures modelled"
        )
        c.text(40, 76, line, size=14, fill=MUTED)
        height = max(self.owner_height, 440.0)
        self.owners(40, self.top, 800, height)
        self.triangle(860, self.top, 420, height)
        self.flows(40, self.top + height + 20, 1240, 292)
        self.bars(40, self.top + height + 332, 800, 320)
        self.balance(860, self.top + height + 332, 420, 320)
        foot = (
            "Bytes: into the busiest rank, ring algorithms, pad rows included. TP: attention only, with as many ranks."
        )
        c.text(40, c.height - 24, f"{foot} No clock, no network: modelled from closed formulas.", size=12, fill=MUTED)
        return c.render()

    # ---- who owns which tokens -----------------------------------------------------------------------------------

    def owners(self, x: float, y: float, w: float, h: float) -> None:
        c, span = self.c, min(self.total, 4 * self.n) if self.fine else self.total
        zoom = f"rows 0 to {span - 1} of {self.total:,}; the pattern repeats"
        c.panel(x, y, w, h, "Who owns which tokens", zoom if self.fine else "one lane and one colour per rank")
        self.left, self.width, self.span = x + 92, w - 92 - 112, max(span, 1)
        left, top, width = self.left, y + 74, self.width
        for r in range(self.n):
            lane = top + r * self.lane
            thick = self.lane * 0.76
            c.rect(left, lane, width, thick, "#f1f5f9", r=3)
            self.pieces(r, lane, thick)
            if self.lane >= 11 or r % 4 == 0:
                base = lane + thick / 2 + 4
                c.text(left - 12, base, f"rank {r}", size=12, anchor="end")
                c.text(left + width + 12, base, f"{int(self.plan.counts[r]):,} rows", size=12, fill=MUTED)
        bottom = top + self.n * self.lane
        strip = max(bottom + 44, y + h - 68)
        for start in itertools.accumulate(self.d["tokens"][:-1]):
            if start < span and len(self.d["tokens"]) <= 24:
                at = left + width * start / self.span
                c.line(at, top - 4, at, strip + 28, stroke=INK, dash="3 3")
        for k in range(5):
            at = left + width * k / 4
            c.line(at, bottom, at, bottom + 6, stroke=MUTED)
            c.text(at, bottom + 22, f"{span * k // 4:,}", size=12, fill=MUTED, anchor="middle")
        for r in range(self.n):
            self.pieces(r, strip, 28)
        c.text(left - 12, strip + 18, "cache", size=12, anchor="end", weight=600)
        c.text(left + width + 12, strip + 18, "every rank", size=12, fill=MUTED)
        words = "after the all_gather, in the order of the sequence" if self.n > 1 else "one rank: nothing is gathered"
        c.text(left + width / 2, strip + 46, words, size=12, fill=MUTED, anchor="middle")

    def pieces(self, r: int, y: float, thick: float) -> None:
        """The rows of one rank on the token axis."""
        for start, stop in self.runs[r]:
            if start >= self.span:
                break
            a, b = (self.left + self.width * min(at, self.span) / self.span for at in (start, stop))
            self.c.rect(a, y, max(b - a - (1 if self.fine else 0), 0.8), thick, ramp(r, self.n), r=2)

    def triangle(self, x: float, y: float, w: float, h: float) -> None:
        c, plan = self.c, self.plan
        costs = plan.rank_costs("indexer")
        over = 100 * plan.imbalance("indexer")
        words = "area is work; stripes drawn coarser than they are"
        c.panel(
            x, y, w, h, "What the rows cost", words if self.fine else "a row scores every key before it: area is work"
        )
        side = min(w - 84, h - 162)
        left, top = x + (w - side) / 2 + 12, y + 92
        keys = max(int(plan.k_starts[-1]), 1)
        scale_x, scale_y = side / keys, side / max(self.total, 1)
        c.rect(left, top, side, side, "#f8fafc", stroke=LINE)
        for r, s, a, b in self.bands():
            q0, k0, p = int(plan.cu_seqlens[s]), int(plan.k_starts[s]), int(plan.prefix_lens[s])
            reach = [left + (k0 + p + at - q0) * scale_x for at in (a, b)]
            x0, y0, y1 = left + k0 * scale_x, top + a * scale_y, top + b * scale_y
            c.polygon([(x0, y0), (reach[0], y0), (reach[1], y1), (x0, y1)], ramp(r, self.n))
        c.text(left + side / 2, top - 6, "keys", size=12, fill=MUTED, anchor="middle")
        c.text(left - 8, top + side / 2, "rows", size=12, fill=MUTED, anchor="end")
        words = f"busiest rank {over:.2f}% over the mean"
        c.text(x + w / 2, top + side + 22, words, anchor="middle", weight=600)
        most = f"{costs.max():,.0f} of {costs.sum():,.0f} key scores per layer"
        c.text(x + w / 2, top + side + 42, most, fill=MUTED, anchor="middle")

    def bands(self) -> list[tuple[int, int, int, int]]:
        """(rank, request, first row, end) of every band; an interleave too fine to see gets wider stripes."""
        out = []
        for s, (a, b) in enumerate(itertools.pairwise(self.plan.cu_seqlens.tolist())):
            if self.fine:
                stripes = max(self.n, 32 // self.n * self.n)
                cuts = [a + (b - a) * k // stripes for k in range(stripes + 1)]
                out += [(k % self.n, s, cuts[k], cuts[k + 1]) for k in range(stripes)]
                continue
            for r, runs in enumerate(self.runs):
                out += [(r, s, max(a, u), min(b, v)) for u, v in runs if max(a, u) < min(b, v)]
        return out

    # ---- what moves ----------------------------------------------------------------------------------------------

    def flows(self, x: float, y: float, w: float, h: float) -> None:
        self.c.panel(x, y, w, h, "What moves in one layer", "coloured: a collective; everything else stays on its rank")
        m, n = self.dims, self.n
        rows = f"{int(self.plan.counts.max()):,} x {m.hidden:,}"
        latent = f"latent {m.kv_lora + m.rope}" + (f" + index-K {m.index_dim}" if m.index_layers else "")
        moved = {
            side: sum(r["received"] for r in self.step[side]["rows"] if "LM head" not in r["what"])
            for side in ("tp", "cp")
        }
        pick = [("indexer", f"top {m.topk:,} of all keys")] if m.index_layers else []
        again = [("indexer", "repeated on each rank")] if m.index_layers else []
        kind = "sparse attention" if m.index_layers else "dense attention"
        share = f"{m.heads // n} of {m.heads} heads" if m.heads % n == 0 else f"{m.heads} heads / {n}"
        self.flow(x + 24, y + 96, w - 48, f"CP {n}", 2, [
            ("own rows", rows), ("q, kv projections", "RoPE, own positions"),
            ("all_gather", latent, f"{size(moved['cp'])} into a rank"), ("cache", f"all {self.total:,} tokens"),
            *pick, (kind, f"own rows, {m.heads} heads"), ("o_proj", "whole weight")])  # fmt: skip
        self.flow(x + 24, y + 200, w - 48, f"TP {n}", 5 + len(again), [
            ("all rows", f"{self.total:,} x {m.hidden:,}"), ("q, kv projections", share),
            ("cache", f"all {self.total:,} tokens"), *again, (kind, share), ("o_proj", "weight / ranks"),
            ("all_reduce", "o_proj output", f"{size(moved['tp'])} into a rank")])  # fmt: skip

    def flow(self, x: float, y: float, w: float, name: str, special: int, boxes: list[tuple[str, ...]]) -> None:
        c, gap = self.c, 20.0
        each = (w - gap * (len(boxes) - 1)) / len(boxes)
        c.text(x, y - 12, name, size=13, weight=700, fill=_CP if special == 2 else MUTED)
        for i, (head, *lines) in enumerate(boxes):
            left, hot = x + i * (each + gap), i == special
            fill = (_CP if special == 2 else "#475569") if hot else "#f1f5f9"
            c.rect(left, y, each, 66, fill, r=10)
            base = y + (22 if len(lines) > 1 else 28)
            c.text(left + each / 2, base, head, size=13, weight=600, anchor="middle", fill="#ffffff" if hot else INK)
            for k, words in enumerate(lines):
                ink = "#ffffff" if hot else MUTED
                c.text(left + each / 2, base + 18 * (k + 1), words, size=11, anchor="middle", fill=ink)
            if i:
                c.line(left - gap + 3, y + 33, left - 3, y + 33, stroke=MUTED, width=1.5, arrow=True)

    # ---- how much ------------------------------------------------------------------------------------------------

    def bars(self, x: float, y: float, w: float, h: float) -> None:
        c, name = self.c, self.d["model"]
        steps = [s for s in self.d["steps"] if s["ranks"] > 1][:8]
        c.panel(x, y, w, h, "Volume of one step", "all layers, bytes into the busiest rank")
        c.rect(x + w - 250, y + 24, 12, 12, _TP, r=3)
        c.text(x + w - 232, y + 34, "TP all_reduce", size=12, fill=MUTED)
        c.rect(x + w - 130, y + 24, 12, 12, _CP, r=3)
        c.text(x + w - 112, y + 34, "CP all_gather", size=12, fill=MUTED)
        if not steps:
            c.text(x + w / 2, y + h / 2, "one rank: nothing moves", size=14, fill=MUTED, anchor="middle")
            return
        base, room = y + h - 44, h - 150
        most = max(max(s["models"][name][k] for k in ("tp_received", "cp_received")) for s in steps) or 1
        c.line(x + 24, base, x + w - 24, base, stroke=MUTED)
        pitch = (w - 48) / len(steps)
        width = min(56.0, pitch * 0.34)
        for i, s in enumerate(steps):
            middle = x + 24 + pitch * (i + 0.5)
            pairs = (("tp_received", _TP, middle - width - 4), ("cp_received", _CP, middle + 4))
            for key, colour, left in pairs:
                value = s["models"][name][key]
                tall = room * value / most
                c.rect(left, base - tall, width, tall, colour, r=min(4.0, tall / 2))
                c.text(left + width / 2, base - tall - 8, size(value), size=11, anchor="middle")
            c.text(middle, base + 20, f"{s['ranks']} ranks", size=12, anchor="middle",
                   weight=700 if s["ranks"] == self.n else 400)  # fmt: skip

    def balance(self, x: float, y: float, w: float, h: float) -> None:
        c, d = self.c, self.d
        at = d["sizes"].index(self.n)
        note = "indexer, sparse attention" if self.dims.index_layers else "dense attention"
        c.panel(x, y, w, h, f"Load balance at {self.n} ranks", "busiest rank over the mean: " + note)
        most = max(f[key][at] for f in d["balance"].values() for key in f if key != "rows") or 1
        for i, (scheme, figures) in enumerate(d["balance"].items()):
            top = y + 76 + i * 38
            down = 0 if "topk" in figures else 6  # a single bar stands in the middle of the line
            c.text(x + 144, top + 17, scheme, size=12, anchor="end", weight=700 if scheme == d["scheme"] else 400)
            for k, (key, colour) in enumerate((("all_keys", _CP), ("topk", _CP2))):
                if key not in figures:
                    continue
                value = figures[key][at]
                length = max(2.0, (w - 144 - 100) * value / most)
                c.rect(x + 156, top + 3 + down + 12 * k, length, 9, colour, r=2)
                c.text(x + 162 + length, top + 11.5 + down + 12 * k, f"{100 * value:.2f}%", size=10, fill=MUTED)


def draw(document: dict[str, Any], ranks: int | None = None) -> str:
    """The strategy as one SVG document."""
    sizes = document["sizes"]
    if ranks is None:
        ranks = min((n for n in sizes if n <= _MOST_RANKS), key=lambda n: (abs(n - 8), n), default=0)
    if ranks not in sizes:
        raise ValueError(f"--svg-cp is {ranks}, needs one of --cp {','.join(map(str, sizes))}")
    if not 1 <= ranks <= _MOST_RANKS:
        raise ValueError(f"--svg-cp is {ranks}, needs at most {_MOST_RANKS} ranks to be legible")
    return _Drawing(document, ranks).draw()
