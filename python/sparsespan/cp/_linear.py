"""A row-parallel linear layer's weights: cut over the ranks, gathered whole, or sent by their owner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..comm import Communicator, Work
from ._start import need_comm

__all__ = ["LinearShard", "broadcast_weight", "gather_weight", "igather_weight"]


_BLOCK = 1 << 22  # elements of a weight that are widened at a time: 16 MB


def _multiply(x: Any, params: Mapping[str, Any]) -> Any:
    """x @ weight in float32, in the dtype of x; the weight is widened some columns at a time."""
    weight = params["weight"]
    if not isinstance(x, np.ndarray):
        return x @ weight
    y, rows = np.empty((len(x), weight.shape[1]), x.dtype), x.astype(np.float32, copy=False)
    step = max(1, _BLOCK // max(1, len(weight)))
    for first in range(0, weight.shape[1], step):
        part = slice(first, first + step)
        y[:, part] = rows @ weight[:, part].astype(np.float32, copy=False)
    return y


@dataclasses.dataclass(frozen=True)
class LinearShard:
    """One rank's part of a linear layer whose input columns are cut over N ranks, with all that is quantised with it.

    Rank r holds input columns ``[r C / N, (r + 1) C / N)``. The shard is the only lasting copy; whole weights are made
    for a call and may live in buffers that all layers share.

    Parameters
    ----------
    cut : mapping of arrays
        Parameters whose first axis runs along the input, in order of rank: ``"weight"`` [C / N, hidden] (input-major),
        block scales [C / N / 128, hidden / 128], a smoothing vector [C / N].
    per_rank : mapping of arrays
        Input-side values that each rank has for its own columns, such as the scale and offset of its activation
        quantiser. ``apply`` sees them as one value per column, in front of the parameter's own axes.
    same : mapping of arrays
        Equal on all ranks: scales per output channel. They do not travel.
    bias : array [hidden], optional
        Added once, to the sum over the ranks.
    apply : callable(x, params) -> y, optional
        ``x`` [rows, columns] to ``y`` [rows, hidden] with the parameters of those columns, all kinds in one mapping; it
        must be linear in the columns, without the bias. Default: ``x @ weight`` in float32, in the dtype of ``x``.

    Raises
    ------
    ValueError
        If nothing is cut, or two parameters have one name.
    """

    cut: Mapping[str, Any]
    per_rank: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    same: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    bias: Any = None
    apply: Callable[[Any, Mapping[str, Any]], Any] = _multiply

    def __post_init__(self) -> None:
        names = [*self.cut, *self.per_rank, *self.same]
        if not self.cut:
            raise ValueError("LinearShard: cut is empty, needs at least the weight")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"LinearShard: {', '.join(twice)} stands in two mappings, needs one place per parameter")
        if self.apply is _multiply and set(names) != {"weight"}:
            raise ValueError(
                f"LinearShard: apply is missing for {', '.join(sorted(set(names) - {'weight'}))}, needs a function "
                f"that uses them: a plain product with the weight would ignore its scales"
            )

    def params(self, columns: int) -> dict[str, Any]:
        """What ``apply`` gets for this rank's own columns."""
        own = {name: np.repeat(np.asarray(value)[None], columns, 0) for name, value in self.per_rank.items()}
        return {**self.cut, **own, **self.same}


class GatherWeight:
    """Whole weights on their way; made by :func:`igather_weight`."""

    def __init__(self, shard: LinearShard, works: dict[str, Work]) -> None:
        self._shard = shard
        self._works = works

    def test(self) -> bool:
        """True once they are there; never waits."""
        return all([work.test() for work in self._works.values()])

    def wait(self, columns: int | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Return what ``apply`` gets for all ``columns`` input columns (default: the rows of ``"weight"``)."""
        found = {name: work.wait(timeout) for name, work in self._works.items()}
        if columns is None:
            columns = len(found["weight"] if "weight" in self._shard.cut else found[next(iter(self._shard.cut))])
        for name in self._shard.per_rank:
            found[name] = np.repeat(found[name], columns // len(found[name]), 0)
        return {**found, **self._shard.same}


def igather_weight(
    comm: Communicator, shard: LinearShard, *, out: Mapping[str, Any] | None = None, timeout: float | None = None
) -> GatherWeight:
    """Start :func:`gather_weight`: after the KV gather, to be waited for before the projection."""
    comm = need_comm("gather_weight", comm)
    if not isinstance(shard, LinearShard):
        raise TypeError(
            f"gather_weight: shard is a {type(shard).__name__}, needs a cp.LinearShard: what a function multiplies by "
            f"cannot be gathered"
        )
    pool = out or {}
    works = {name: comm.iall_gather(value, out=pool.get(name), timeout=timeout) for name, value in shard.cut.items()}
    for name, value in shard.per_rank.items():
        works[name] = comm.iall_gather(np.asarray(value)[None], out=pool.get(name), timeout=timeout)
    return GatherWeight(shard, works)


def gather_weight(comm: Communicator, shard: LinearShard, **options: Any) -> dict[str, Any]:
    """Bring the whole weight of a cut linear layer to every rank, and its quantisation parameters with it.

    Parameters
    ----------
    comm : Communicator
    shard : LinearShard
    **options
        ``out``: mapping of buffers [C, ...] to gather into, which layers may share; ``timeout``.

    Returns
    -------
    dict of arrays
        The parameters of all input columns, as ``apply`` takes them: ``cut`` ones joined in order of rank, ``per_rank``
        ones repeated for each rank's columns, ``same`` ones as they are.

    Notes
    -----
    One all-gather for each parameter that is cut or differs by rank: a rank receives ``(N-1)`` shards. Source:
    vllm-ascend's o_proj switch; leaving the input-side parameters behind was a bug there (#10056, #10523).

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> from sparsespan.comm import run_ranks
    >>> shard = lambda r: cp.LinearShard({"weight": np.full((1, 2), r)})
    >>> run_ranks(2, lambda comm: cp.gather_weight(comm, shard(comm.rank))["weight"].tolist())
    [[[0, 0], [1, 1]], [[0, 0], [1, 1]]]
    """
    return igather_weight(comm, shard, **options).wait()


def broadcast_weight(
    comm: Communicator, linear: LinearShard, owner: int, *, timeout: float | None = None
) -> dict[str, Any]:
    """Send a whole linear layer from the rank that keeps it to all others.

    Parameters
    ----------
    comm : Communicator
    linear : LinearShard
        On ``owner`` the whole layer (``cut`` holds all columns); on the others buffers of the same shapes, which are
        written.
    owner : int
    timeout : float, optional
        Seconds.

    Returns
    -------
    dict of arrays
        The parameters of all columns. ``per_rank`` must be empty: nothing is cut.
    """
    comm = need_comm("broadcast_weight", comm)
    if linear.per_rank:
        raise ValueError(
            f"broadcast_weight: linear has per_rank {', '.join(linear.per_rank)}, needs none: the owner has all columns"
        )
    works = {name: comm.ibroadcast(value, owner, timeout=timeout) for name, value in linear.cut.items()}
    return {**{name: work.wait() for name, work in works.items()}, **linear.same}
