"""The ranks that a model runs on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..pipeline import split_layers
from ._dcp import Dcp

__all__ = ["O_PROJ", "Ranks", "place", "split_stages"]

O_PROJ = ("full", "gather_weight", "a2a_rs", "broadcast")


def place(comm: Any) -> tuple[int, int]:
    """Rank and number of ranks; no communicator is one rank."""
    return (0, 1) if comm is None else (comm.rank, comm.size)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The groups that a rank works in; all ranks of a group make the same calls of their models.

    Attributes
    ----------
    cp : Communicator, optional
        Ranks that share the rows of a prefill; in decode each computes all rows.
    scheme : str
        How they split rows, as in :func:`sparsespan.cp.split_plan`.
    tp : Communicator, optional
        Ranks that share heads and feed-forward width.
    how : {"gather", "reduce"}
        How these join what they have: "gather" keeps the bits of one rank.
    dcp : Dcp, optional
        How the ranks of ``tp`` share the KV cache; not together with ``cp``.
    experts : Communicator, optional
        Ranks that share the routed experts and the head's vocabulary, default those of ``tp``. Else all ranks of ``cp``
        and ``tp``: rank ``i * tp.size + j`` has part i of the rows and part j of the heads.
    pp : Communicator, optional
        The ranks that stand where this one does on the stages of a pipeline: rank s of it is on stage s. Used for
        messages between stages and for nothing else.
    stage_layers : sequence of int, optional
        Layers of each stage; default is the even split of :func:`sparsespan.pipeline.split_layers`.
    o_proj : {"full", "gather_weight", "a2a_rs", "broadcast"}
        How the ranks of ``cp`` keep o_proj, with the words of :func:`sparsespan.cp.o_proj`. "full": each the whole.
        "gather_weight": each 1/N of its rows, gathered for a prefill; in decode, where all have the same rows, what
        comes out is gathered instead. "a2a_rs": each 1/N of its columns (heads), gathered for a pass in which a request
        has several tokens; where each has one, the ranks share the rows, exchange heads, multiply by their own part and
        add: equal to one rank but for rounding. "broadcast": layer l's o_proj and q_b lie on rank ``l % N``, which
        sends them while the layer before runs. All but "a2a_rs" keep the bits of one rank.
    """

    cp: Any = None
    scheme: str = "zigzag"
    tp: Any = None
    how: str = "gather"
    dcp: Dcp | None = None
    experts: Any = None
    pp: Any = None
    stage_layers: Sequence[int] | None = None
    o_proj: str = "full"

    def __post_init__(self) -> None:
        if self.how not in ("gather", "reduce"):
            raise ValueError(f'Ranks: how is {self.how!r}, needs "gather" or "reduce"')
        if self.dcp is not None and self.cp is not None:
            raise ValueError("Ranks: dcp and cp are both given, needs one: rows are shared, or the KV cache is")
        if self.dcp is not None and self.tp is None:
            raise ValueError("Ranks: dcp is given without tp, the ranks that share the cache")
        if self.stage_layers is not None and self.pp is None:
            raise ValueError("Ranks: stage_layers is given without pp, the stages that have them")
        if self.o_proj not in O_PROJ:
            raise ValueError(f"Ranks: o_proj is {self.o_proj!r}, needs one of {', '.join(map(repr, O_PROJ))}")
        if self.o_proj != "full" and self.cp is None:
            raise ValueError(f'Ranks: o_proj is {self.o_proj!r} without cp, the ranks that share it; needs "full"')
        if self.experts is not None:
            self._require_all(self.experts)

    def _require_all(self, experts: Any) -> None:
        (row, rows), (head, heads) = place(self.cp), place(self.tp)
        if (experts.rank, experts.size) != (row * heads + head, rows * heads):
            raise ValueError(
                f"Ranks: experts is rank {experts.rank} of {experts.size}, needs rank {row * heads + head} of "
                f"{rows * heads}: cp rank {row} of {rows}, tp rank {head} of {heads}"
            )

    @property
    def splits_decode(self) -> bool:
        """Whether the ranks of ``cp`` share the rows of a decode step too."""
        return self.o_proj == "a2a_rs"

    def layers_of(self, layers: int) -> range:
        """The layers of this rank's stage, of so many in all."""
        if self.pp is None:
            return range(layers)
        sizes = split_stages(layers, self.pp.size, self.stage_layers)
        first = sum(sizes[: self.pp.rank])
        return range(first, first + sizes[self.pp.rank])


def split_stages(layers: int, pp: int, sizes: Sequence[int] | None = None) -> list[int]:
    """Layers of each stage.

    Raises
    ------
    ValueError
        More stages than layers, sizes that are not those of so many stages and layers.
    """
    if pp > layers:
        raise ValueError(f"pp is {pp}, the model has {layers} layers; needs a layer for each stage: pp 1 to {layers}, "
                         f"nearest PP{layers}")  # fmt: skip
    even = split_layers(layers, pp)
    if sizes is None:
        return even
    if len(sizes) != pp or sum(sizes) != layers or min(sizes) < 1:
        raise ValueError(
            f"stage_layers is {list(sizes)}, needs {pp} numbers from 1 on that add up to {layers} layers, as {even}"
        )
    return [int(n) for n in sizes]
