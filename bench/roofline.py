"""The roofline as a picture: what each op reached against the probe's flops and the measured bandwidth."""

from __future__ import annotations

import math

from sparsespan._commands._svg import INK, LINE, MUTED, Canvas

WIDTH, HEIGHT = 1360, 760
LEFT, TOP, RIGHT, BOTTOM = 90, 100, 900, 680
COLOURS = {"generic": "#94a3b8", "avx2": "#0284c7", "avx512": "#4f46e5", "avx512_bf16": "#9333ea", "amx": "#e11d48"}


class Axes:
    """Log-log: flops per byte to the right, GFLOP/s up."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_low, self.x_high = math.floor(math.log10(x[0])), math.ceil(math.log10(x[1]))
        self.y_low, self.y_high = math.floor(math.log10(y[0])), math.ceil(math.log10(y[1]))

    def x(self, value: float) -> float:
        return LEFT + (math.log10(value) - self.x_low) / (self.x_high - self.x_low) * (RIGHT - LEFT)

    def y(self, value: float) -> float:
        return BOTTOM - (math.log10(value) - self.y_low) / (self.y_high - self.y_low) * (BOTTOM - TOP)

    def draw(self, canvas: Canvas) -> None:
        for e in range(self.x_low, self.x_high + 1):
            canvas.line(self.x(10.0**e), TOP, self.x(10.0**e), BOTTOM)
            canvas.text(self.x(10.0**e), BOTTOM + 20, f"{10.0**e:g}", size=11, fill=MUTED, anchor="middle")
        for e in range(self.y_low, self.y_high + 1):
            canvas.line(LEFT, self.y(10.0**e), RIGHT, self.y(10.0**e))
            canvas.text(LEFT - 8, self.y(10.0**e) + 4, f"{10.0**e:g}", size=11, fill=MUTED, anchor="end")
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
    corner = max(peaks.values()) / 1e9 / bandwidth
    low = 10.0**axes.x_low
    floor = 10.0**axes.y_low
    start = max(low, floor / bandwidth)
    canvas.line(
        axes.x(start), axes.y(start * bandwidth), axes.x(corner), axes.y(corner * bandwidth), stroke=INK, width=2
    )
    canvas.text(axes.x(start) + 14, axes.y(start * bandwidth) - 10, f"copy {bandwidth:.1f} GB/s", size=11, weight=600)
    labels: list[float] = []
    for isa, peak in peaks.items():
        y = axes.y(peak / 1e9)
        canvas.line(axes.x(max(low, peak / 1e9 / bandwidth)), y, RIGHT, y, stroke=COLOURS[isa], width=2)
        place = y - 7.0
        while any(abs(place - other) < 13 for other in labels):  # two levels with one peak
            place -= 13
        labels.append(place)
        words = f"{isa} probe {peak / 1e9:.0f}"
        canvas.text(RIGHT - 4, place, words, size=11, fill=COLOURS[isa], anchor="end", weight=600)


def draw(rows: list[dict], peaks: dict[str, float], bandwidth: float) -> str:
    """`bandwidth` in GB/s, `peaks` in flop/s of all threads."""
    canvas = Canvas(WIDTH, HEIGHT, "Roofline")
    canvas.rect(0, 0, WIDTH, HEIGHT, "#f8fafc")
    canvas.text(LEFT, 40, "Roofline of the ops", size=18, weight=600)
    canvas.text(LEFT, 60, "one dot per op, shape and level; numbers name the shape on the right", size=12, fill=MUTED)
    points = _points(rows)
    intensity = [p["flops"] / p["bytes"] for p in points] + [max(peaks.values()) / 1e9 / bandwidth]
    rates = [p["gflops"] for p in points] + [p / 1e9 for p in peaks.values()]
    axes = Axes((min(intensity) / 1.2, max(intensity) * 1.2), (min(rates) / 1.2, max(rates) * 1.2))
    axes.draw(canvas)
    _roofs(canvas, axes, peaks, bandwidth)
    names = list(dict.fromkeys((p["op"], p["shape"]) for p in points))
    for p in points:
        x, y = axes.x(p["flops"] / p["bytes"]), axes.y(p["gflops"])
        canvas.rect(x - 4, y - 4, 8, 8, COLOURS[p["isa"]], r=4)
        canvas.text(x + 6, y + 4, str(names.index((p["op"], p["shape"])) + 1), size=10, fill=INK)
    step = min(15.0, (BOTTOM - TOP + 40) / max(1, len(names)))
    for i, (op, shape) in enumerate(names):
        canvas.text(RIGHT + 30, TOP + step * i, f"{i + 1}  {op}", size=min(9.5, step))
        canvas.text(RIGHT + 200, TOP + step * i, shape[:44], size=min(8.5, step), fill=MUTED)
    canvas.line(LEFT, BOTTOM, RIGHT, BOTTOM, stroke=LINE)
    return canvas.render()
