"""What a stage allocates, counted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["IntermediateTensors", "Meter"]


class Meter:
    """Bytes held, and the most that were held at once."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0

    def take(self, nbytes: int) -> None:
        """So many more."""
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def give(self, nbytes: int) -> None:
        """So many fewer."""
        self.now -= nbytes

    @contextmanager
    def holding(self) -> Iterator[list[int]]:
        """A list of bytes taken meanwhile; all are given back at the end."""
        taken: list[int] = []
        try:
            yield taken
        finally:
            self.give(sum(taken))


class IntermediateTensors:
    """Persistent buffers in which a stage receives, allocated once at full size and handed out as views.

    Parameters
    ----------
    rows : int
        Most rows of a batch, over all ranks of the group that shares them.
    tensors : mapping {name: (shape, dtype)}
        Shape of one row.
    tp : int
        Ranks among which the rows are dealt: each keeps ``ceil(n / tp)`` of n.
    slots : int
        How many batches can be held; 2 receive one while the other is computed.

    Notes
    -----
    The semantics of vllm-ascend's ``sync_and_slice_intermediate_tensors``: views have exactly the sliced length, rows
    are never gathered, and a dry run that asks for the same views allocates the same bytes as a real one.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.pipeline import IntermediateTensors
    >>> buffers = IntermediateTensors(16, {"hidden_states": ((4,), "float32")}, tp=4)
    >>> buffers.nbytes
    128
    >>> buffers.sync_and_slice(9, {"hidden_states": np.ones((3, 4), np.float32)})["hidden_states"].shape
    (3, 4)
    """

    def __init__(
        self, rows: int, tensors: Mapping[str, tuple[tuple[int, ...], Any]], *, tp: int = 1, slots: int = 2
    ) -> None:
        for name, value in (("tp", tp), ("slots", slots)):
            if value < 1:
                raise ValueError(f"IntermediateTensors: {name} is {value}, needs at least 1")
        if rows < 0:
            raise ValueError(f"IntermediateTensors: rows is {rows}, needs 0 or more")
        from ._messages import dtype_of

        self.rows = rows
        self.tp = tp
        self.slots = slots
        full = -(-rows // tp)
        self._arrays = {
            name: [np.empty((full, *shape), dtype_of(np.dtype(dtype).name)) for _ in range(slots)]
            for name, (shape, dtype) in tensors.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers (counted)."""
        return sum(a.nbytes for arrays in self._arrays.values() for a in arrays)

    def view(self, rows: int, slot: int = 0) -> dict[str, np.ndarray]:
        """``ceil(rows / tp)`` rows of each buffer, where they always are."""
        if not 0 <= rows <= self.rows:
            raise ValueError(
                f"IntermediateTensors: rows is {rows}, needs 0 to {self.rows}, for which the buffers were allocated"
            )
        return {name: arrays[slot % self.slots][: -(-rows // self.tp)] for name, arrays in self._arrays.items()}

    def sync_and_slice(
        self, rows: int, tensors: Mapping[str, Any] | None = None, *, sync_self: bool = True, slot: int = 0
    ) -> dict[str, np.ndarray]:
        """Copy ``ceil(rows / tp)`` rows of each tensor in, and give views of that length.

        Parameters
        ----------
        rows : int
            n, rows of the batch over the whole group.
        tensors : mapping {name: array}, optional
            At least ``ceil(n / tp)`` rows each. Needed with ``sync_self``.
        sync_self : bool
            False leaves what stands in the buffers.
        slot : int

        Raises
        ------
        ValueError
            If there are more rows than were allocated, a tensor is missing, or it has another shape or dtype.
        """
        views = self.view(rows, slot)
        if not sync_self:
            return views
        for name, view in views.items():
            given = None if tensors is None else tensors.get(name)
            if given is None:
                raise ValueError(f"IntermediateTensors: {name} is not given, needs {list(view.shape)}")
            if given.dtype != view.dtype or given.shape[1:] != view.shape[1:] or len(given) < len(view):
                raise ValueError(
                    f"IntermediateTensors: {name} is {given.dtype} {list(given.shape)}, needs {view.dtype} "
                    f"{list(view.shape)}"
                )
        for name, view in views.items():
            np.copyto(view, tensors[name][: len(view)])  # type: ignore[index]
        return views
