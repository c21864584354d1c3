"""Where a rank's time goes, measured at the calls that do the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._relay import Relay

__all__ = ["PARTS", "Stopwatch", "layer_done", "stage_span", "timed"]

PARTS = ("indexer", "select", "attention", "linear")
_here = threading.local()


class Stopwatch:
    """Seconds of the parts of a model that this thread runs inside ``with stopwatch:``.

    Parameters
    ----------
    comms : sequence of Communicator
        Time that they spend in calls is theirs, and not that of the part that calls.
    spans : bool
        Whether to keep every span, for a trace.
    on_layer : callable, optional
        Called in a prefill, when a layer is done, with (tokens of passes that are done, of all passes, layers of this
        pass that are done, of this rank).

    Attributes
    ----------
    seconds : dict of {str: float}
        By part. "indexer" makes the indexer's keys and queries, "select" scores and chooses keys, "attention" is the
        sparse attention, "linear" every product with a weight outside these.
    spans : list of (str, float, float)
        (part, start, end) in seconds of :func:`time.monotonic`, with what was waited inside.
    passes : list of (str, float, float)
        The same for each pass of a pipeline stage.
    """

    def __init__(
        self, comms: Sequence[Any] = (), spans: bool = False,
        on_layer: Callable[[int, int, int, int], None] | None = None,
    ) -> None:  # fmt: skip
        self.on_layer = on_layer
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.spans: list[tuple[str, float, float]] = []
        self.passes: list[tuple[str, float, float]] = []
        self._comms, self.keeps, self._busy = comms, spans, False

    def __enter__(self) -> Stopwatch:
        _here.watch = self
        return self

    def __exit__(self, *_: object) -> None:
        _here.watch = None

    def comm_seconds(self) -> float:
        """Seconds inside calls of the communicators."""
        return sum(float(op["seconds"]) for comm in self._comms for op in comm.trace().values())

    def run(self, part: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """``work(*args, **options)``, booked to a part; a part inside a part belongs to the outer one."""
        if self._busy:
            return work(*args, **options)
        self._busy = True
        start, waited = time.monotonic(), self.comm_seconds()
        try:
            return work(*args, **options)
        finally:
            end, self._busy = time.monotonic(), False
            self.seconds[part] += max(0.0, end - start - (self.comm_seconds() - waited))
            if self.keeps:
                self.spans.append((part, start, end))


@contextmanager
def stage_span(relay: Relay, what: str) -> Iterator[None]:
    """Keep when a stage computes a pass, where this thread has a stopwatch and the model has stages."""
    watch = getattr(_here, "watch", None)
    start = time.monotonic()
    yield
    if watch is not None and watch.keeps and relay.stages > 1:
        watch.passes.append((f"stage {relay.stage} {what}", start, time.monotonic()))


def layer_done(tokens: int, of_tokens: int, layers: int, of_layers: int) -> None:
    """Tell how far a prefill is, where this thread has a stopwatch that wants to know."""
    watch = getattr(_here, "watch", None)
    if watch is not None and watch.on_layer is not None:
        watch.on_layer(tokens, of_tokens, layers, of_layers)


def timed(part: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """``work(*args, **options)``, booked to a part where this thread has a stopwatch."""
    watch = getattr(_here, "watch", None)
    return work(*args, **options) if watch is None else watch.run(part, work, *args, **options)
