"""The roofline as a picture: what each op reached against the probe's flops and the measured bandwidth."""

from __future__ import annotations

import math

from sparsespan._commands._svg import INK, LINE, MUTED, Canvas

WIDTH, HEIGHT = 1360, 760
LEFT, TOP, RIGHT, BOTTOM = 90, 100, 900, 680
COLOURS = {"generic": "#94a3b8", "avx2": "#0284c7", "avx512": "#4f46e5", "avx512_bf16": "#9333ea", "amx": "#e11d48"}


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [d * 10.0**e for e in decades for d in (1, 2, 5) if low <= d * 10.0**e <= high]


class Axes:
    """Log-log: flops per byte to the right, GFLOP/s up."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_ends, self.y_ends = x, y

    def x(self, value: float) -> float:
        low, high = self.x_ends
        return LEFT + math.log(value / low) / math.log(high / low) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        low, high = self.y_ends
        return BOTTOM - math.log(value / low) / math.log(high / low) * (BOTTOM - TOP)

    def draw(self, canvas: Canvas) -> None:
        for tick in _ticks(*self.x_ends):
            canvas.line(self.x(tick), TOP, self.x(tick), BOTTOM)
            canvas.text(self.x(tick), BOTTOM + 20, f"{tick:g}", size=11, fill=MUTED, anchor="middle")
        for tick in _ticks(*self.y_ends):
            canvas.line(LEFT, self.y(tick), RIGHT, self.y(tick))
            canvas.text(LEFT - 8, self.y(tick) + 4, f"{tick:g}", size=11, fill=MUTED, anchor="end")
        canvas.text((LEFT + RIGHT) / 2, BOTTOM + 44, "flops per byte moved (counted)", size=12, anchor="middle")
        canvas.text(LEFT, TOP - 14, "GFLOP/s (measured)", size=12)


def _points(rows: list[dict]) -> list[dict]:
    """The best of each op, shape and level; ops that count flops and bytes."""
    best: dict[tuple, dict] = {}
    for row in rows:
        if row.get("flops") and row.get("bytes"):
            at = (row["op"], row["shape"], row["isa"])
            if at not in best or row["gflops"] > best[at]["gflops"]:
                best[at] = row
    return list(best.values())


def _roofs(canvas: Canvas, axes: Axes, peaks: dict[str, float], bandwidth: float) -> None:
    (left, _), (bottom, _) = axes.x_ends, axes.y_ends
    start, corner = max(left, bottom / bandwidth), max(peaks.values()) / 1e9 / bandwidth
    ends = axes.x(start), axes.y(start * bandwidth), axes.x(corner), axes.y(corner * bandwidth)
    canvas.line(*ends, stroke=INK, width=2)
    middle = math.sqrt(start * corner)
    words = f"copy {bandwidth:.1f} GB/s"
    canvas.text(axes.x(middle) - 10, axes.y(middle * bandwidth) - 6, words, size=11, weight=600, anchor="end")
    groups: dict[float, list[str]] = {}  # levels with one peak share a line
    for isa, peak in sorted(peaks.items(), key=lambda item: item[1]):
        near = next((p for p in groups if abs(axes.y(p / 1e9) - axes.y(peak / 1e9)) < 13), peak)
        groups.setdefault(near, []).append(isa)
    for peak, isas in groups.items():
        y = axes.y(peak / 1e9)
        canvas.line(axes.x(max(left, peak / 1e9 / bandwidth)), y, RIGHT, y, stroke=COLOURS[isas[-1]], width=2)
        words = f"{', '.join(isas)} probe {peak / 1e9:.0f}"
        canvas.text(RIGHT - 4, y - 6, words, size=11, fill=COLOURS[isas[-1]], anchor="end", weight=600)


class _Places:
    """Where numbers stand without covering one another or a dot."""

    def __init__(self, dots: list[tuple[float, float]]) -> None:
        self.taken = [(x - 4, y + 4, 8.0) for x, y in dots]  # left, base line, width

    def near(self, x: float, y: float, words: str) -> tuple[float, float]:
        width = 6.2 * len(words)
        steps = [step * sign for step in range(0, 60, 5) for sign in (1, -1)]
        tries = [(left, y + 4 + step) for step in steps for left in (x + 6, x - 6 - width, x + 16, x - 16 - width)]
        place = next((at for at in tries if self._free(*at, width)), tries[0])
        self.taken.append((*place, width))
        return place

    def _free(self, left: float, base: float, width: float) -> bool:
        return all(abs(base - b) >= 9 or left >= x + w or x >= left + width for x, b, w in self.taken)


def _group(point: dict) -> tuple[str, str]:
    """Op and model with format; what has no model is a group of its own."""
    words = point["shape"].split()
    model = words[0] in ("V3.2", "GLM-5")
    return point["op"], f"{words[0]} {words[-1]}" if model else point["shape"]


def _dots(canvas: Canvas, axes: Axes, points: list[dict], names: list[tuple[str, str]], best: str) -> None:
    """The best level's dots are large; the fastest of a group has its number."""

    def at(p: dict) -> tuple[float, float]:
        return axes.x(p["flops"] / p["bytes"]), axes.y(p["gflops"])

    for p in sorted(points, key=lambda p: p["isa"] == best):
        (x, y), r = at(p), 4.0 if p["isa"] == best else 2.5
        canvas.rect(x - r, y - r, 2 * r, 2 * r, COLOURS[p["isa"]], r=r, opacity=0.85 if r == 4.0 else 0.6)
    large = sorted((p for p in points if p["isa"] == best), key=lambda p: -p["gflops"])
    places, named = _Places([at(p) for p in large]), set()
    for p in large:
        if _group(p) not in named:
            named.add(_group(p))
            number = str(names.index(_group(p)) + 1)
            x, y = places.near(*at(p), number)
            canvas.text(x, y, number, size=10, fill=INK, weight=600)


def _legend(canvas: Canvas, isas: list[str], best: str) -> None:
    x = LEFT + 160.0
    for isa in isas:
        r = 4.0 if isa == best else 2.5
        canvas.rect(x - r, TOP - 18 - r, 2 * r, 2 * r, COLOURS[isa], r=r)
        canvas.text(x + 8, TOP - 14, isa, size=11, fill=COLOURS[isa], weight=600)
        x += 30 + 7.0 * len(isa)


def draw(rows: list[dict], peaks: dict[str, float], bandwidth: float, cpu: str = "") -> str:
    """`bandwidth` in GB/s, `peaks` in flop/s of all threads, lowest level first."""
    canvas = Canvas(WIDTH, HEIGHT, "Roofline")
    canvas.rect(0, 0, WIDTH, HEIGHT, "#f8fafc")
    canvas.text(LEFT, 40, f"Roofline of the ops{', ' * bool(cpu)}{cpu}", size=18, weight=600)
    note = "a dot per op, shape and level, the best level's large; the fastest shape of each group has its number"
    canvas.text(LEFT, 60, note, size=12, fill=MUTED)
    points, best = _points(rows), list(peaks)[-1]
    intensity = [p["flops"] / p["bytes"] for p in points] + [max(peaks.values()) / 1e9 / bandwidth]
    rates = [p["gflops"] for p in points] + [p / 1e9 for p in peaks.values()]
    axes = Axes((min(intensity) / 1.6, max(intensity) * 1.6), (min(rates) / 1.6, max(rates) * 1.6))
    axes.draw(canvas)
    _legend(canvas, list(peaks), best)
    _roofs(canvas, axes, peaks, bandwidth)
    names = list(dict.fromkeys(_group(p) for p in points))
    _dots(canvas, axes, points, names, best)
    step = min(22.0, (BOTTOM - TOP + 40) / max(1, len(names)))
    for i, (op, shape) in enumerate(names):
        canvas.text(RIGHT + 46, TOP + step * i, str(i + 1), size=min(11, step), anchor="end", weight=600)
        canvas.text(RIGHT + 54, TOP + step * i, op, size=min(11, step))
        canvas.text(RIGHT + 204, TOP + step * i, shape[:44], size=min(10, step), fill=MUTED)
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, stroke=LINE)
    return canvas.render()
