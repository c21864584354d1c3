"""From logits to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["sample"]


def sample(
    logits: np.ndarray, temperature: float = 0.0, seed: int = 0, draws: Sequence[tuple[int, int]] | None = None
) -> np.ndarray:
    """Choose a token for each row.

    Parameters
    ----------
    logits : float32 [B, V]
    temperature : float
        0 takes the best (of equal ones the smallest id); above 0 draws from ``softmax(logits / temperature)``.
    seed : int
    draws : sequence of (int, int), optional
        Per row, what names its draw: (request, position). With the seed it decides the random numbers, so that a
        request draws the same tokens in any batch and on any grid.

    Returns
    -------
    int64 [B]

    Raises
    ------
    ValueError
        A negative temperature, NaN among the logits.

    Notes
    -----
    Draws by the Gumbel-max rule: ``argmax(logits / temperature - ln(-ln u))`` with ``u`` uniform.
    """
    if not temperature >= 0 or np.isinf(temperature):
        raise ValueError(f"sample: temperature is {temperature}, needs a finite number >= 0")
    if np.isnan(logits).any():
        raise ValueError(f"sample: row {int(np.argmax(np.isnan(logits).any(axis=1)))} of logits holds NaN")
    if temperature == 0:
        return np.asarray(logits.argmax(axis=1))
    best = logits.max(axis=1, keepdims=True).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # what a tiny temperature puts out of reach is -inf
        noisy = (logits - best) / temperature
    for row, name in enumerate(draws if draws is not None else [(row, 0) for row in range(len(logits))]):
        noisy[row] += np.random.default_rng([seed, *name]).gumbel(size=logits.shape[1])
    return np.asarray(noisy.argmax(axis=1))
