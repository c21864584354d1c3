"""A look at a model's intermediate values, for who debugs: nothing is changed by looking."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Tap", "at", "seen"]

_here = threading.local()
See = Callable[[int, Any, Any, dict[str, Any]], None]


class Tap:
    """Hand the values of the layers that this thread runs inside ``with tap:`` to a function.

    Parameters
    ----------
    see : callable
        Called with (layer, positions [n], requests [n], {name: rows}). The rows are the model's own and may be written
        to later: copy them. A request is a row of the pass's block table, -1 a padding row. Values of only some of the
        rows are not shown.
    """

    def __init__(self, see: See) -> None:
        self._see = see
        self._place: tuple[int, Any, Any] = (-1, (), ())

    def __enter__(self) -> Tap:
        _here.tap = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.tap = None

    def _at(self, *place: Any) -> None:
        self._place = place

    def _seen(self, values: dict[str, Any]) -> None:
        # Where rows that see few keys skip the indexer, its values are of some of the rows only.
        self._see(*self._place, {n: v for n, v in values.items() if len(v) == len(self._place[1])})


def at(layer: int, positions: Any, requests: Any, **values: Any) -> None:
    """Say which layer runs which rows from here on, and what it was given."""
    tap = getattr(_here, "tap", None)
    if tap is not None:
        tap._at(layer, positions, requests)
        tap._seen(values)


def seen(**values: Any) -> None:
    """Show values of the present layer's rows, where somebody looks; None is not shown."""
    tap = getattr(_here, "tap", None)
    if tap is not None:
        tap._seen({name: value for name, value in values.items() if value is not None})
