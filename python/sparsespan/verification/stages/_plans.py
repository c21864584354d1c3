"""Orders in which context-parallel ranks keep rows, and owner maps: what positions may be mistaken for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ... import cp

__all__ = ["block_of", "owner_maps", "plans"]

_SIZES = (2, 4, 3, 8)
_SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")


def plans(prompts: np.ndarray) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(name, flat rows of each rank in local order) of splits of a prefill of these lengths."""
    cu = np.concatenate([[0], np.cumsum(prompts)])
    for size in _SIZES:
        for scheme in _SCHEMES:
            try:
                plan = cp.split_plan(scheme, cu, None, size)
            except ValueError:
                continue
            yield f"{scheme}, {size} ranks", [np.asarray(plan.rank_rows(r)) for r in range(size)]


def block_of(prompts: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, block of each flat row, first position of each row's block) of the balanced zigzag."""
    for size in _SIZES:
        blocks, starts = [], []
        for length in prompts:
            n = 2 * size
            sizes = np.array([length // n + (b < length % n) for b in range(n)])
            first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            blocks.append(np.repeat(np.arange(n), sizes))
            starts.append(np.repeat(first, sizes))
        yield f"zigzag, {size} ranks", np.concatenate(blocks), np.concatenate(starts)


def owner_maps(longest: int, wide: bool = True) -> Iterator[tuple[str, np.ndarray]]:
    """(what is mistaken, map of positions): entry p is the position that is read, or said, instead of p.

    ``wide`` has interleaves up to 64.
    """
    p = np.arange(longest)
    interleaves = (1, 2, 4, 16, 64) if wide else (1, 4)
    for n in (2, 4, 8):
        for s in interleaves:
            if s * n > 2 * longest:
                continue
            owner, local = p // s % n, p // (n * s) * s + p % s
            yield f"local index kept, N = {n}, S = {s}", local
            yield (
                f"owner and local index swapped (owner * tokens of a rank + local), N = {n}, S = {s}",
                (owner * -(-longest // n) + local),
            )
            for t in interleaves:
                if t != s and t * n <= 2 * longest:
                    yield (
                        f"written with interleave {s}, read with {t}, N = {n}",
                        (local // t * (n * t) + owner * t + local % t),
                    )
            for m in (2, 4, 8):
                if m != n:
                    yield f"split over {n} ranks, joined as {m}, S = {s}", local // s * (m * s) + owner * s + local % s
