"""Projections of which a rank that shares rows keeps only a part: cut over its peers, or lent from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import cp
from ..pipeline import LayerShard
from ._linear import Linear
from ._ranks import O_PROJ, place

if TYPE_CHECKING:
    from ._weights import LayerWeights

__all__ = ["CutLinear", "Kept", "Lent", "join_columns", "lend"]

Span = tuple[int, int]


class Kept:
    """What a rank keeps of the projections that its peers have too.

    Parameters
    ----------
    comm : Communicator, optional
        The peers: ranks that share rows.
    mode : {"full", "gather_weight", "a2a_rs", "broadcast"}
        As ``o_proj`` of :class:`Ranks`.
    """

    def __init__(self, comm: Any = None, mode: str = "full") -> None:
        if mode not in O_PROJ:
            raise ValueError(f"o_proj is {mode!r}, needs one of {', '.join(map(repr, O_PROJ))}")
        if comm is None and mode != "full":
            raise ValueError(f'o_proj is {mode!r} without ranks that share rows, needs "full"')
        self.comm, self.mode = comm, mode
        self.rank, self.ranks = place(comm)
        self._room: dict[Any, np.ndarray] = {}

    def has(self, layer: int) -> bool:
        """Whether this rank reads the layer's q_b and o_proj."""
        return self.mode != "broadcast" or layer % self.ranks == self.rank

    def cut(self, rows: Span, columns: Span) -> tuple[Span, Span]:
        """The part of these rows and columns of o_proj that is this rank's."""
        if self.mode == "gather_weight":
            rows = self._share("rows", rows)
        elif self.mode == "a2a_rs":
            columns = self._share("columns", columns)
        return rows, columns

    def _share(self, what: str, span: Span) -> Span:
        n = span[1] - span[0]
        if n % self.ranks:
            raise ValueError(f"o_proj: {self.ranks} ranks of cp do not divide {n} {what}, which {self.mode!r} needs")
        return span[0] + self.rank * n // self.ranks, span[0] + (self.rank + 1) * n // self.ranks

    def room(self, name: str, array: np.ndarray) -> np.ndarray:
        """Where all ranks' parts of an array are gathered: one place for all layers."""
        shape = (self.ranks * len(array), *array.shape[1:])
        key = (name, shape, array.dtype)
        if key not in self._room:
            self._room[key] = np.empty(shape, array.dtype)
        return self._room[key]


class CutLinear:
    """o_proj cut over the ranks that share rows; called as :class:`Linear` is, by all of them.

    With "gather_weight" a rank has some rows of the weight, which gather into the whole; where all ranks have the same
    rows of x, they gather what comes out instead. With "a2a_rs" it has some columns.
    """

    def __init__(self, kept: Kept, part: Linear, columns: Span) -> None:
        self.part, self._kept, self._columns = part, kept, columns
        self._plan: cp.CpPlan | None = None
        self._coming: Any = None
        arrays = {"weight": part.weight, "scale": part.weight_scale_inv}
        lead = (None,) if kept.mode == "a2a_rs" else ()  # parts gather along a first axis of their own
        self._cut = {f"{k}s": np.ascontiguousarray(a)[lead] for k, a in arrays.items() if a is not None}
        if lead:  # the columns were copied out of the file's rows: keep the copy alone
            self.part = Linear(
                self._cut["weights"][0], None if part.weight_scale_inv is None else self._cut["scales"][0]
            )

    @property
    def nbytes(self) -> int:
        """Bytes that this rank keeps."""
        return self.part.nbytes

    def forget(self) -> None:
        """A layer begins: what a pass that ended half-way had under way is let come, and not used."""
        coming, self._plan, self._coming = self._coming, None, None
        if coming is not None:
            coming.wait()

    def travel(self, plan: cp.CpPlan) -> None:
        """Say how the ranks share the rows of the next call; where the weight is needed whole, it sets out."""
        self._plan = plan
        if self._kept.mode == "gather_weight" or (plan.real_lens != 1).any():
            room = {name: self._kept.room(name, array) for name, array in self._cut.items()}
            self._coming = cp.igather_weight(self._kept.comm, cp.LinearShard(self._cut, apply=_never), out=room)

    def __call__(self, x: Any, *, out_dtype: str | None = None, threads: int = 0) -> Any:
        comm, plan, coming = self._kept.comm, self._plan, self._coming
        self._plan = self._coming = None
        if coming is not None:
            whole = cp.LinearShard(
                self._cut, apply=lambda x, all_: self._whole(all_)(x, out_dtype=out_dtype, threads=threads)
            )
            return cp.o_proj(comm, x, whole, "gather_weight", plan=plan, gathered=coming)
        if self._kept.mode == "gather_weight":
            return join_columns(comm, self.part(x, out_dtype=out_dtype, threads=threads))
        if plan is None:
            y = comm.all_reduce(self.part(x[:, slice(*self._columns)], out_dtype="float32", threads=threads))
        else:
            part = lambda z: self.part(z, out_dtype="float32", threads=threads)  # noqa: E731
            y = cp.o_proj(comm, x, part, "a2a_rs", plan=plan)
        return y if out_dtype == "float32" else y.astype(x.dtype)

    def _whole(self, gathered: Mapping[str, Any]) -> Linear:
        if self._kept.mode == "a2a_rs":  # [ranks, n, columns] to [n, ranks * columns]
            gathered = {k: np.moveaxis(a, 0, 1).reshape(a.shape[1], -1) for k, a in gathered.items()}
        return Linear(gathered["weights"], gathered.get("scales"))


def _never(*_: Any) -> Any:
    raise RuntimeError("o_proj: the call that gathers does not multiply")


def join_columns(comm: Any, x: Any) -> Any:
    """[t, n] of every rank side by side: [t, N * n]."""
    parts = comm.all_gather(np.ascontiguousarray(x)).reshape(comm.size, *x.shape)
    return np.ascontiguousarray(np.moveaxis(parts, 0, 1)).reshape(len(x), comm.size * x.shape[1])


class Lent:
    """A projection that one rank keeps and the others have while its layer runs; called as :class:`Linear` is."""

    def __init__(self, shard: LayerShard, layer: int, name: str, scaled: bool) -> None:
        self._shard, self._layer, self._name, self._scaled = shard, layer, name, scaled

    def __call__(self, x: Any, *, out_dtype: str | None = None, threads: int = 0) -> Any:
        scale = self._shard.wait(self._layer, f"{self._name}.scale") if self._scaled else None
        y = Linear(self._shard.wait(self._layer, self._name), scale)(x, out_dtype=out_dtype, threads=threads)
        if self._name == "o" and self._layer == self._shard.layers[-1]:
            self._shard.wait_all()  # nothing may be on its way when other groups begin to talk
        return y


def lend(weights: Mapping[int, LayerWeights], kept: Kept) -> LayerShard | None:
    """Let q_b and o_proj of a stage's layers go round, where they are kept so; each layer's are replaced by lent ones.

    Collective over the ranks that share rows.
    """
    if kept.mode != "broadcast":
        return None
    series: dict[str, dict[int, Any]] = {}
    scaled: dict[str, bool] = {}
    for name in ("q_b", "o"):
        own = {i: getattr(w, name) for i, w in weights.items()}
        scales = {i: None if p is None else p.weight_scale_inv for i, p in own.items()}
        series[name] = {i: None if p is None else np.ascontiguousarray(p.weight) for i, p in own.items()}
        # A rank may have no layer at all: what the weights are is for all to say.
        mine = np.array([int(any(s is not None for s in scales.values()))])
        scaled[name] = bool(kept.comm.all_reduce(mine, "max")[0])
        if scaled[name]:
            series[f"{name}.scale"] = {i: None if s is None else np.ascontiguousarray(s) for i, s in scales.items()}
    shard = LayerShard(series, kept.comm, prefetch=min(1, max(0, len(weights) - 2)))
    for i, w in weights.items():
        w.q_b, w.o, w.lender = Lent(shard, i, "q_b", scaled["q_b"]), Lent(shard, i, "o", scaled["o"]), shard
    return shard
