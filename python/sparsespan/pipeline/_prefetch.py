"""Whether a weight broadcast hides behind compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import _core

__all__ = ["PrefetchTimes", "simulate_prefetch"]


@dataclass(frozen=True)
class PrefetchTimes:
    """The outcome of :func:`simulate_prefetch`: one pass of the steady state, in seconds, modelled."""

    broadcast: float
    """One broadcast, its launch included."""
    compute: float
    """Sum of the layers."""
    makespan: float
    """The pass, waiting included."""
    stall: np.ndarray
    """[n] how long each layer waits for its weight."""
    issued: np.ndarray
    """[n] start of each layer's broadcast; negative where it began in the pass before."""
    ready: np.ndarray
    """[n] its end."""
    start: np.ndarray
    """[n] start of each layer's compute."""

    @property
    def hidden(self) -> bool:
        """No layer waits."""
        return float(self.stall.max()) <= 1e-9 * max(self.broadcast, self.makespan)


def simulate_prefetch(
    layer_seconds: float | Sequence[float],
    weight_bytes: float,
    prefetch: int,
    *,
    layers: int | None = None,
    bandwidth: float = 0.0,
    latency: float = 0.0,
    lanes: int = 1,
) -> PrefetchTimes:
    """Say whether the broadcasts of a :class:`LayerShard` hide behind its layers.

    Parameters
    ----------
    layer_seconds : float, or [n] float
        Compute of a layer; one number stands for ``layers`` equal ones.
    weight_bytes : float
        Of one layer, all series together.
    prefetch : int
        k.
    layers : int, optional
        n, with a single number.
    bandwidth : float
        Bytes per second that a broadcast delivers to a rank; 0 is infinite.
    latency : float
        Seconds to launch one.
    lanes : int
        Broadcasts that can run at once at full speed. With 1 they queue.

    Returns
    -------
    PrefetchTimes

    Raises
    ------
    ValueError
        For negative times, ``prefetch`` above ``max(0, n - 2)``, or ``layers`` beside a sequence.

    Notes
    -----
    With d = weight_bytes / bandwidth + latency and equal layers of t seconds, nothing waits if ``k t >= d`` and
    ``lanes t >= d``: looking further ahead does not help a link that is slower than the layers. Twin:
    :func:`sparsespan.reference.layer_shard.simulate_prefetch`.

    Examples
    --------
    155 MB of INT8 weights at 340 GB/s hide behind a prefill layer of 2.9 ms, not behind a decode layer of 0.2 ms.

    >>> from sparsespan.pipeline import simulate_prefetch
    >>> prefill = simulate_prefetch(2.9e-3, 155.2e6, 1, layers=61, bandwidth=340e9)
    >>> decode = simulate_prefetch(0.2e-3, 155.2e6, 1, layers=61, bandwidth=340e9)
    >>> prefill.hidden, decode.hidden, round(decode.makespan / decode.compute, 2)
    (True, False, 2.28)
    """
    if np.ndim(layer_seconds) == 0:
        if layers is None or layers < 1:
            raise ValueError(f"simulate_prefetch: layers is {layers}, needs at least 1 beside a single layer_seconds")
        seconds = [float(layer_seconds)] * layers  # type: ignore[arg-type]
    elif layers is not None:
        raise ValueError("simulate_prefetch: layers is given, needs None beside a sequence of layer_seconds")
    else:
        seconds = [float(s) for s in layer_seconds]  # type: ignore[union-attr]
    t = _core.pipeline.simulate_prefetch(
        seconds, float(weight_bytes), prefetch, float(bandwidth), float(latency), lanes
    )
    rows = {name: np.asarray(t[name]) for name in ("stall", "issued", "ready", "start")}
    return PrefetchTimes(t["broadcast"][0], float(np.sum(seconds)), t["makespan"][0], **rows)
