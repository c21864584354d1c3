"""The batches that a verification runs: new rows, cached prefix and kind of every request."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate

from .. import cp

__all__ = ["BATCHES", "Batch", "batch"]

BATCHES = ("single", "ragged", "prefix", "mixed")
_TOKENS = 2**20  # of a batch; more would fill the memory instead of ending


@dataclasses.dataclass(frozen=True)
class Batch:
    """New rows ``lens[s]`` behind ``prefix[s]`` cached keys; ``decode[s]``: rows that stand on every prefill rank."""

    name: str
    lens: tuple[int, ...]
    prefix: tuple[int, ...]
    decode: tuple[bool, ...]

    @property
    def cu_seqlens(self) -> list[int]:
        """[B + 1] first row of each request."""
        return [0, *accumulate(self.lens)]

    @property
    def rows(self) -> int:
        """T."""
        return sum(self.lens)

    @property
    def contexts(self) -> list[int]:
        """[B] keys of each request, the new rows included."""
        return [p + n for p, n in zip(self.prefix, self.lens)]

    @property
    def row_kind(self) -> list[int]:
        """[T] for :func:`sparsespan.cp.split_plan`."""
        return [cp.DECODE if d else cp.PREFILL for d, n in zip(self.decode, self.lens) for _ in range(n)]

    def even(self, multiple: int) -> Batch:
        """Prefill requests made longer, up to the next multiple: the one scheme that needs it is ``thd_even``."""
        lens = tuple(n if d else -(-n // multiple) * multiple for n, d in zip(self.lens, self.decode))
        return dataclasses.replace(self, lens=lens)


def batch(
    name: str = "ragged", lens: Sequence[int] = (), prefix: Sequence[int] = (0,), next_n: int = 1, part: str = "prefill"
) -> Batch:
    """Name a batch, or describe one.

    Parameters
    ----------
    name : {"single", "ragged", "prefix", "mixed"}
        Ready-made; or any name when ``lens`` is given. Lengths of 0 and 1, cached prefixes that end inside a page, and
        decode rows in front of prefill rows ("mixed") are all there.
    lens, prefix : sequence of int
        Prefill: new rows and cached keys of each request (one prefix serves all). Decode: ``lens`` are the keys of
        each request, the ``next_n`` new rows included.
    next_n : int
        Rows of a decode request.
    part : {"prefill", "decode"}

    Raises
    ------
    ValueError
        Naming the argument, what it has and what it needs.

    Examples
    --------
    >>> from sparsespan.verification import batch
    >>> batch("mixed", next_n=2)
    Batch(name='mixed', lens=(2, 2, 61, 90), prefix=(150, 33, 20, 0), decode=(True, True, False, False))
    >>> batch("mine", lens=[7, 300], part="decode").prefix
    (6, 299)
    """
    if next_n < 1:
        raise ValueError(f"verification.batch: next_n is {next_n}, needs at least 1")
    if next_n > _TOKENS:
        raise ValueError(f"verification.batch: next_n is {next_n}, needs at most {_TOKENS}")
    if lens:
        return _described(name, tuple(lens), tuple(prefix), next_n, part)
    decode = _decode_batches(next_n)
    ready = _prefill_batches(next_n) if part == "prefill" else decode
    if name not in ready:
        raise ValueError(
            f"verification.batch: name is {name!r}, needs one of {', '.join(map(repr, ready))} for {part}, or lens"
        )
    return ready[name]


def _described(name: str, lens: tuple[int, ...], prefix: tuple[int, ...], next_n: int, part: str) -> Batch:
    for argument, numbers in (("lens", lens), ("prefix", prefix)):
        for place, number in enumerate(numbers):
            if number < 0:
                raise ValueError(f"verification.batch: {argument} has {number} at [{place}], needs 0 or more")
    tokens = sum(lens) + sum(prefix) * (len(lens) if len(prefix) == 1 else 1)
    if max(tokens, next_n * len(lens)) > _TOKENS:
        raise ValueError(
            f"verification.batch: lens and prefix have {tokens} tokens, next_n is {next_n}, needs at most {_TOKENS} "
            "in all"
        )
    if part == "decode":
        for place, number in enumerate(lens):
            if number < next_n:
                raise ValueError(
                    f"verification.batch: lens has {number} at [{place}], needs at least next_n = {next_n} keys"
                )
        return Batch(name, (next_n,) * len(lens), tuple(n - next_n for n in lens), (True,) * len(lens))
    prefix = prefix * len(lens) if len(prefix) == 1 else prefix
    if len(prefix) != len(lens):
        raise ValueError(
            f"verification.batch: prefix has {len(prefix)} numbers, needs one, or one for each of {len(lens)} requests"
        )
    return Batch(name, lens, prefix, (False,) * len(lens))


def _prefill_batches(next_n: int) -> dict[str, Batch]:
    def plain(name: str, lens: tuple[int, ...], prefix: tuple[int, ...]) -> Batch:
        return Batch(name, lens, prefix, (False,) * len(lens))

    return {
        "single": plain("single", (181,), (0,)),
        "ragged": plain("ragged", (97, 0, 7, 1, 50), (0, 0, 0, 0, 0)),
        "prefix": plain("prefix", (40, 17, 61), (70, 129, 3)),
        "mixed": Batch("mixed", (next_n, next_n, 61, 90), (150, 33, 20, 0), (True, True, False, False)),
    }


def _decode_batches(next_n: int) -> dict[str, Batch]:
    def plain(name: str, contexts: tuple[int, ...]) -> Batch:
        return Batch(
            name, (next_n,) * len(contexts), tuple(max(0, n - next_n) for n in contexts), (True,) * len(contexts)
        )  # fmt: skip

    # 3 and 40 keys leave ranks without a token at interleave 16 and 64.
    return {"single": plain("single", (331,)), "ragged": plain("ragged", (331, 3, 200, 40, 97))}
