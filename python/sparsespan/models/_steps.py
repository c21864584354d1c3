"""A prefill cut into passes, each planned before it is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ..cp import CpPlan, split_plan
from ._pool import chunks
from ._ranks import Ranks

__all__ = ["Step", "prefill_steps"]


@dataclasses.dataclass(frozen=True)
class Step:
    """One pass over all layers: some tokens of some requests.

    Attributes
    ----------
    number : int
    batch : str
        The same on all stages: what their messages are held against.
    prompts : list of int
        Which of the prompts take part.
    new : list of int
        Tokens of each.
    tokens : int64 [rows]
        One behind the other.
    plan : CpPlan
        Which rank has which rows.
    rank : int
        This one, in the plan.
    ended : list of int
        Which of ``prompts`` (their places there) end with this pass.
    """

    number: int
    batch: str
    prompts: list[int]
    new: list[int]
    tokens: np.ndarray
    plan: CpPlan
    rank: int
    ended: list[int]

    @property
    def rows(self) -> int:
        """Rows on this rank."""
        return int(self.plan.counts[self.rank])

    def mine(self) -> np.ndarray:
        """Tokens of this rank's rows; those of padding rows are 0."""
        rows = self.plan.rank_rows(self.rank)
        return np.where(rows >= 0, self.tokens[np.maximum(rows, 0)], 0)


def prefill_steps(prompts: Sequence[np.ndarray], held: Sequence[int], chunk: int, ranks: Ranks) -> Iterator[Step]:
    """Passes of at most ``chunk`` rows over prompts of which ``held`` tokens are in the caches; a plan at a time."""
    scheme, size, rank = ("contiguous", 1, 0) if ranks.cp is None else (ranks.scheme, ranks.cp.size, ranks.cp.rank)
    for number, part in enumerate(chunks([len(p) for p in prompts], chunk)):
        new = [last - first for _, first, last in part]
        before = [int(held[b]) + first for b, first, _ in part]
        tokens = np.concatenate([prompts[b][first:last] for b, first, last in part])
        # Schemes that cut each request would give all rows of one token to one rank.
        cut = "contiguous_flat" if ranks.splits_decode and max(new) == 1 else scheme
        plan = split_plan(cut, np.concatenate([[0], np.cumsum(new)]), np.array(before, np.int64), size)
        ended = [n for n, (b, _, last) in enumerate(part) if last == len(prompts[b])]
        yield Step(number, f"prefill {before} + {new}", [b for b, _, _ in part], new, tokens, plan, rank, ended)
