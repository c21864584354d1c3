"""The language model's head, whole or with the vocabulary spread over ranks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ._linear import Linear
from ._ranks import place

__all__ = ["Head"]


class Head:
    """Logits of rows that all ranks have; each multiplies by its own part of the vocabulary, and all get the whole.

    Parameters
    ----------
    weight : array [vocab, hidden]
        Of which this rank's rows are read: ``[r vocab // N, (r + 1) vocab // N)``.
    comm : Communicator, optional
        The ranks that share it.
    """

    def __init__(self, weight: Any, comm: Any = None) -> None:
        rank, ranks = place(comm)
        ends = [r * len(weight) // ranks for r in range(ranks + 1)]
        self._comm, self._counts = comm, [b - a for a, b in itertools.pairwise(ends)]
        self.part = Linear(weight[ends[rank] : ends[rank + 1]])

    def __call__(self, x: Any, threads: int = 0) -> Any:
        """Rows [n, hidden] to float32 [n, vocab]. Collective."""
        logits = self.part(x, out_dtype="float32", threads=threads)
        if len(self._counts) == 1:
            return logits
        return np.ascontiguousarray(self._comm.all_gather(np.ascontiguousarray(logits.T), self._counts).T)
