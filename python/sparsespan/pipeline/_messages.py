"""Typed messages between stages: each says what it is before it is let in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ..comm import Communicator, Work

__all__ = ["DATA_TAG", "HEADER_TAG", "KINDS", "Envelope", "MessageError", "Outbox", "Parcel", "ring_exchange"]

KINDS = ("hidden_states", "residual", "indices", "tokens")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "int8", "int32", "int64", "uint8")
_MAGIC = 0x53504D53  # "SPMS"
_WORDS = 16
_AXES = 4
HEADER_TAG, DATA_TAG = 0x5350, 0x5351


class MessageError(ValueError):
    """A message at a stage boundary is not the one that the schedule has there."""


class Envelope(NamedTuple):
    """What a message is. ``batch`` is the text of its requests and rows: every stage derives the same."""

    kind: str
    microbatch: int
    source: int
    target: int
    batch: str
    dtype: str
    shape: tuple[int, ...]

    def words(self) -> np.ndarray:
        """The header that travels: 16 int64."""
        if self.dtype not in _DTYPES:
            raise TypeError(f"{self.kind}: dtype is {self.dtype}, needs one of {', '.join(_DTYPES)}")
        if len(self.shape) > _AXES:
            raise ValueError(f"{self.kind}: has {len(self.shape)} axes, needs at most {_AXES}")
        head = [_MAGIC, KINDS.index(self.kind), self.microbatch, self.source, self.target, _digest(self.batch)]
        head += [_DTYPES.index(self.dtype), len(self.shape), *self.shape]
        return np.array([*head, *[0] * (_WORDS - len(head))], np.int64)

    def check(self, words: np.ndarray) -> None:
        """Refuse a header that says something else."""
        where = f"stage {self.target}: message of micro-batch {self.microbatch} from stage {self.source}"
        mine = self.words()
        if words[0] != _MAGIC:
            raise MessageError(f"{where}: is no message of a pipeline, its header begins with {int(words[0]):#x}")
        if words[1] != mine[1]:
            has = KINDS[words[1]] if 0 <= words[1] < len(KINDS) else int(words[1])
            raise MessageError(f"{where}: type is {has!r}, needs {self.kind!r}")
        for name, at in (("micro-batch", 2), ("source stage", 3), ("target stage", 4)):
            if words[at] != mine[at]:
                raise MessageError(f"{where}: {name} is {int(words[at])}, needs {int(mine[at])}")
        if words[5] != mine[5]:
            raise MessageError(
                f"{where}: its batch is another one (identity {int(words[5]):#x}), needs {self.batch!r} "
                f"({int(mine[5]):#x}): the stages do not follow the same lengths"
            )
        if words[6] != mine[6]:
            has = _DTYPES[words[6]] if 0 <= words[6] < len(_DTYPES) else int(words[6])
            raise MessageError(f"{where}: dtype is {has}, needs {self.dtype}")
        shape = words[8 : 8 + min(int(words[7]), _AXES)].tolist()
        if shape != list(self.shape):
            raise MessageError(f"{where}: shape is {shape}, needs {list(self.shape)}")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def dtype_of(name: str) -> np.dtype[Any]:
    """NumPy's dtype of this name, those of ml_dtypes included."""
    return np.dtype(getattr(ml_dtypes, name, name))


class Parcel:
    """A message that comes in: the header first, then, if it is the right one, the data straight into its place."""

    def __init__(self, comm: Communicator, source: int, envelope: Envelope, place: Callable[[], np.ndarray]) -> None:
        self.envelope = envelope
        self.opened = 0.0  # when its header had come and was the right one
        self.ended = 0.0
        self._comm = comm
        self._source = source
        self._place = place
        self._words = np.zeros(_WORDS, np.int64)
        self._header = comm.irecv(self._words, source, HEADER_TAG)
        self._data: Work | None = None
        self._out: np.ndarray | None = None

    def _open(self) -> None:
        self.envelope.check(self._words)
        self.opened = time.monotonic()
        self._out = self._place()
        self._data = self._comm.irecv(self._out, self._source, DATA_TAG)

    @property
    def asked(self) -> bool:
        """The header has come, and the data are awaited."""
        return self._data is not None

    def test(self) -> bool:
        """Move on what can move; True once the data are there."""
        if self._data is None and self._header.test():
            self._open()
        done = self._data is not None and self._data.test()
        if done and not self.ended:
            self.ended = time.monotonic()
        return done

    def wait(self) -> np.ndarray:
        """The data."""
        if self._data is None:
            self._header.wait()
            self._open()
        self._data.wait()  # type: ignore[union-attr]
        self.ended = self.ended or time.monotonic()
        return self._out  # type: ignore[return-value]


class _Posted(NamedTuple):
    begun: float
    works: list[Work]
    done: Callable[[float, float], None]


class Outbox:
    """Messages on their way out. Each is copied into a slot that stays until the receiver has it."""

    def __init__(self, comm: Communicator, *, slots: int = 2, blocking: bool = False) -> None:
        self.comm = comm
        self.blocking = blocking
        self.nbytes = 0
        self._slots = slots
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._posted: dict[str, list[_Posted]] = {}

    def reserve(self, kind: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Allocate the slots of one kind of message, at their full size."""
        self._arrays[kind] = [np.empty(shape, dtype) for _ in range(self._slots)]
        self._posted[kind] = []
        self.nbytes += sum(a.nbytes for a in self._arrays[kind])

    def post(self, to: int, envelope: Envelope, data: Any, done: Callable[[float, float], None]) -> None:
        """Start to send; waits when all slots of the kind are still on their way. ``done(begin, end)`` is told."""
        kind = envelope.kind
        posted = self._posted[kind]
        self.poll()
        if len(posted) == self._slots:
            self._finish(kind)
        slot = self._arrays[kind].pop(0)
        self._arrays[kind].append(slot)
        view = slot.reshape(-1)[: int(np.prod(envelope.shape))].reshape(envelope.shape)
        np.copyto(view, data, casting="no")
        begun = time.monotonic()
        works = [
            self.comm.isend(envelope.words(), to, HEADER_TAG),
            self.comm.isend(view, to, DATA_TAG),
        ]
        posted.append(_Posted(begun, works, done))
        if self.blocking:
            self._finish(kind)

    def _finish(self, kind: str) -> None:
        first = self._posted[kind].pop(0)
        for work in first.works:
            work.wait()
        first.done(first.begun, time.monotonic())

    def poll(self) -> None:
        """Let go of what has come."""
        for posted in self._posted.values():
            while posted and all([work.test() for work in posted[0].works]):
                first = posted.pop(0)
                first.done(first.begun, time.monotonic())

    def linger(self, seconds: float) -> None:
        """See messages off to a receiver that waits: nothing moves between calls, and the next may be far away."""
        end = time.monotonic() + seconds
        while any(self._posted.values()) and time.monotonic() < end:
            self.poll()

    def flush(self) -> None:
        """Wait until everything has come."""
        for kind in self._posted:
            while self._posted[kind]:
                self._finish(kind)


def ring_exchange(comm: Communicator, x: Any, out: Any, *, step: int = 1, tag: int = 0) -> Any:
    """Give ``x`` to the rank ``step`` further on the ring and take ``out`` from the one ``step`` before.

    Works where a send stands still until it is received: ranks are cut into the circles that ``step`` makes, and on
    each circle the even places send first, the odd ones receive first.

    Parameters
    ----------
    comm : Communicator
    x, out : array
        What goes and where what comes is put; of one shape and dtype on all ranks of the circle.
    step, tag : int

    Returns
    -------
    array
        ``out``.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.comm import run_ranks
    >>> from sparsespan.pipeline import ring_exchange
    >>> def rank(comm):
    ...     return int(ring_exchange(comm, np.array([comm.rank]), np.zeros(1, np.int64))[0])
    >>> run_ranks(3, rank)
    [2, 0, 1]
    """
    size, rank = comm.size, comm.rank
    step %= size
    if step == 0:
        np.copyto(np.asarray(out), np.asarray(x))
        return out
    target, source = (rank + step) % size, (rank - step) % size
    circles = int(np.gcd(size, step))
    # Rank r is the i-th of its circle: r = r0 + i * step (mod size).
    length = size // circles
    place = next(i for i in range(length) if (rank % circles + i * step) % size == rank)
    if place % 2 == 0:
        comm.send(x, target, tag)
        comm.recv(out, source, tag)
    else:
        comm.recv(out, source, tag)
        comm.send(x, target, tag)
    return out
