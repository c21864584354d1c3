"""One thing to verify: a part of the model's step, a grid of ranks, a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import cp
from ..cp import RankGrid
from ._batches import Batch
from ._setup import Model

__all__ = ["COMBINES", "INDEX_KS", "O_PROJS", "PARTS", "SCHEMES", "Case", "own_heads"]

SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even")
COMBINES = ("a2a", "ag_rs", "ar")
INDEX_KS = ("replicated", "sharded", "sharded_routed", "union", "gathered")
O_PROJS = ("full", "gather_weight", "a2a_rs", "broadcast")
PARTS = ("prefill", "decode", "o_proj", "layer")
_LANES = (1, 2, 4, 8)


def _one_of(argument: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise ValueError(f"verification: {argument} is {value!r}, needs one of {', '.join(map(repr, names))}")


@dataclasses.dataclass(frozen=True)
class Case:
    """A prefill step over ``cp`` ranks, or a decode step over ``dcp`` ranks of a ``tp`` group; or a part around them.

    Parameters
    ----------
    part : {"prefill", "decode", "o_proj", "layer"}
        The DSA operators of prefill and of decode; the output projection of a token-sharded step (``contiguous_flat``);
        a whole attention layer with seeded weights in prefill.
    batch : Batch
        See :func:`batch`.
    cp, dcp, tp : int
        The grid of :func:`sparsespan.cp.rank_grid`; ``tp`` None is ``dcp``. Every group of the grid runs.
    scheme : str
        Prefill: a scheme of :func:`sparsespan.cp.split_plan`. ``thd_even`` lengthens the requests to what it needs.
    interleave, combine, index_k, payload, replicate_q
        Decode: as in :func:`sparsespan.cp.dcp_layout` and :func:`sparsespan.cp.volume`.
    o_proj : {"full", "gather_weight", "a2a_rs", "broadcast"}
        How the projection's weight is kept.
    model : Model

    Raises
    ------
    ValueError
        Naming the argument, what it has and what it needs.
    """

    part: str
    batch: Batch
    cp: int = 1
    dcp: int = 1
    tp: int | None = None
    scheme: str = "zigzag"
    interleave: int = 1
    combine: str = "a2a"
    index_k: str = "replicated"
    payload: str = "fp32"
    replicate_q: bool = False
    o_proj: str = "full"
    model: Model = dataclasses.field(default_factory=Model)

    def __post_init__(self) -> None:
        _one_of("part", self.part, PARTS)
        _one_of("scheme", self.scheme, SCHEMES)
        _one_of("combine", self.combine, COMBINES)
        _one_of("index_k", self.index_k, INDEX_KS)
        _one_of("o_proj", self.o_proj, O_PROJS)
        _one_of("payload", self.payload, ("fp32", "bf16"))
        grid = self.grid  # refuses sizes that are no grid
        if self.model.heads % grid.attn_tp:
            raise ValueError(
                f"verification: heads is {self.model.heads}, needs a multiple of tp = {grid.attn_tp}, which shares them"
            )
        if self.part == "decode":
            cp.dcp_layout(self.interleave, self.dcp, self.model.page_size)
            if not all(self.batch.decode):
                raise ValueError(f"verification: batch {self.batch.name!r} has prefill rows, needs a decode batch")
        if self.part == "o_proj":  # its tokens are cut flat, decode rows like any
            object.__setattr__(self, "scheme", "contiguous_flat")
            plain = dataclasses.replace(self.batch, decode=(False,) * len(self.batch.lens))
            object.__setattr__(self, "batch", plain)
        if self.part != "decode" and self.scheme == "thd_even":
            object.__setattr__(self, "batch", self.batch.even(2 * self.cp))

    @property
    def grid(self) -> RankGrid:
        """The ranks."""
        return cp.rank_grid(tp=self.tp, cp=self.cp, dcp=self.dcp)

    @property
    def ranks(self) -> int:
        """How many ranks the grid has."""
        return self.grid.world_size

    @property
    def group(self) -> str:
        """Kind of the grid's groups that this part's collectives run in."""
        return "dcp" if self.part == "decode" else "cp"

    @property
    def lanes(self) -> bool:
        """Whether the bits of one rank are promised for decode (contract 4)."""
        return self.combine == "a2a" and self.payload == "fp32" and self.dcp in _LANES and self.index_k != "union"

    @property
    def name(self) -> str:
        """What the report calls it; the same words select it again."""
        size = self.dcp if self.part == "decode" else self.cp
        sizes = f"{self.group} {size}"
        if self.grid.world_size != size:
            sizes = f"cp {self.cp} x tp {self.grid.attn_tp}, dcp {self.dcp}"
        if self.part != "decode":
            way = self.o_proj if self.part == "o_proj" else self.scheme
            return f"{self.part} {sizes} {way} {self.batch.name}"
        extra = "" if self.payload == "fp32" else f" {self.payload}"
        extra += " replicated-q" if self.replicate_q else ""
        rows = max(self.batch.lens, default=0)
        extra += f" next-n {rows}" if rows > 1 else ""
        return f"decode {sizes} S={self.interleave} {self.combine} {self.index_k} {self.batch.name}{extra}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        grid = {"ranks": self.ranks, "cp": self.cp, "dcp": self.dcp, "tp": self.grid.attn_tp}
        own: dict[str, Any] = {"scheme": self.scheme}
        if self.part == "decode":
            keys = ("interleave", "combine", "index_k", "payload", "replicate_q")
            own = {key: getattr(self, key) for key in keys}
        elif self.part == "o_proj":
            own["o_proj"] = self.o_proj
        return {
            "name": self.name,
            "part": self.part,
            "grid": grid,
            **own,
            "batch": {**dataclasses.asdict(self.batch), "rows": self.batch.rows},
            "topk": self.model.dims(self.batch).topk,
        }


def own_heads(case: Case, rank: int) -> slice:
    """Heads of a rank: those of its place in the tp group, of which a dcp group is a run."""
    each = case.model.heads // case.grid.attn_tp
    first = case.grid.rank_in("tp", rank) * each
    return slice(first, first + each)
