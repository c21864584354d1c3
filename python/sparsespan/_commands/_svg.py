"""A few SVG elements, written by hand: one string per element, no library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

__all__ = ["INK", "LINE", "MUTED", "Canvas", "ramp"]

INK, MUTED, LINE = "#0f172a", "#64748b", "#e2e8f0"
_STOPS = ("#0d9488", "#0284c7", "#4f46e5", "#a21caf", "#e11d48", "#f59e0b")


def ramp(i: int, n: int) -> str:
    """Colour i of n: neighbours are alike, far ranks are not, so that a mirrored layout is seen as mirrored."""
    place = 0.0 if n == 1 else i / (n - 1) * (len(_STOPS) - 1)
    k = min(int(place), len(_STOPS) - 2)
    low, high = (tuple(int(s[j : j + 2], 16) for j in (1, 3, 5)) for s in _STOPS[k : k + 2])
    return "#" + "".join(f"{round(a + (b - a) * (place - k)):02x}" for a, b in zip(low, high))


def _number(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")


class Canvas:
    """Collects elements; coordinates in pixels from the top left."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height = width, height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_number(width)} {_number(height)}" '
            f'width="{_number(width)}" height="{_number(height)}" role="img" '
            f"font-family=\"Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\">",
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0.5 L7.5 4 L0 7.5 Z" fill="{MUTED}"/></marker></defs>',
        ]

    def rect(self, x: float, y: float, w: float, h: float, fill: str, *, r: float = 0, stroke: str = "none",
             opacity: float = 1) -> None:  # fmt: skip
        """Filled rectangle; r rounds the corners."""
        self.parts.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(max(w, 0))}" height="{_number(max(h, 0))}" '
            f'rx="{_number(r)}" fill="{fill}" stroke="{stroke}"' + (f' opacity="{opacity}"/>' if opacity < 1 else "/>")
        )

    def text(self, x: float, y: float, words: str, *, size: float = 12, fill: str = INK, anchor: str = "start",
             weight: int = 400) -> None:  # fmt: skip
        """One line of text; y is its base line."""
        self.parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}" fill="{fill}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, *, stroke: str = LINE, width: float = 1,
             dash: str = "", arrow: bool = False) -> None:  # fmt: skip
        """Straight line, dashed or with a tip if wanted."""
        more = (f' stroke-dasharray="{dash}"' if dash else "") + (' marker-end="url(#tip)"' if arrow else "")
        self.parts.append(
            f'<line x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}" stroke="{stroke}" '
            f'stroke-width="{_number(width)}"{more}/>'
        )

    def polygon(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """Filled polygon."""
        path = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
        self.parts.append(f'<polygon points="{path}" fill="{fill}"/>')

    def panel(self, x: float, y: float, w: float, h: float, title: str, note: str = "") -> None:
        """White card with a heading and a muted note under it."""
        self.rect(x, y, w, h, "#ffffff", r=12, stroke=LINE)
        self.text(x + 24, y + 34, title, size=16, weight=600)
        if note:
            self.text(x + 24, y + 54, note, size=12, fill=MUTED)

    def render(self) -> str:
        """The document."""
        return "\n".join([*self.parts, "</svg>", ""])
