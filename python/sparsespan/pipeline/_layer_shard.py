"""Layer-weight sharding with prefetch."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _core, _interop
from ..comm import Communicator, as_comm
from ._shard_series import Shard, agree

__all__ = ["LayerShard"]


class LayerShard:
    """Weights of a stage's layers, each kept by one rank and broadcast to the others shortly before it is used.

    Layer ``l`` is kept by rank ``l mod G`` of the ``G`` ranks of the stage. The other ranks have ``prefetch + 1``
    windows for each series. ``reach(l)`` starts the broadcast of the layer ``prefetch`` steps ahead, ``wait(l)`` gives
    the weights of layer ``l``. Layers go round in a circle: at the end of a pass the first layers of the next one are
    under way.

    Parameters
    ----------
    series : mapping {name: {layer: array}}
        A series is one linear of every layer: one shape and dtype, consecutive layers, the same layers in all series.
        Layers are counted over the whole model. Only the layers that this rank keeps are read, so a mapping may load
        its values when asked, and the others may be None. Broadcasts run in order of the names, whatever the order of
        the mapping.
    comm : Communicator
        The ranks that have these layers: those of one stage, no more and no fewer. Collective to make.
    prefetch : int
        k, from 0 to max(0, n - 2) for n layers. 0 broadcasts a layer when it is reached: right, but nothing is hidden.
    hidden_layers : int, optional
        Layers from this index on (MTP and draft layers) are left out, see :attr:`excluded`.
    fixed_addresses : bool
        Every layer is found at the same address in every pass, as graph replay needs. Costs windows where ``k + 1``
        does not divide ``n``: ``ceil(n / floor(n / (k + 1)))`` instead of ``k + 1``.

    Raises
    ------
    ValueError
        On every rank, if layers are missing in between, shapes or dtypes differ, ranks say different things, the
        keeper of a weight has None, or ``prefetch`` is too large (the message gives the maximum).
    TypeError
        If ``series`` is no such mapping.

    Notes
    -----
    A rank keeps ``(n_owned + k + 1) w`` bytes for each series. The layer to fetch is ``(l - start + k) % n + start``;
    vllm-ascend shipped ``(l + k) % n + start``, which is the same only where n divides start: of layers [31, 61) with
    k = 1, reaching 31 fetched 33. Every rank reaches every layer, also one that has nothing to compute
    (:meth:`idle_pass`). Call :meth:`wait_all` before messages to other stages. A broadcast carries its series and layer
    as ``plan``: ranks at different layers end in :class:`~sparsespan.comm.RankMismatch`. Twin:
    :class:`sparsespan.reference.layer_shard.Windows`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.comm import run_ranks
    >>> from sparsespan.pipeline import LayerShard
    >>> def rank(comm):
    ...     shard = LayerShard({"o_proj": {i: np.full(2, i) for i in range(31, 36)}}, comm, prefetch=1)
    ...     seen = []
    ...     for layer in shard.layers:
    ...         shard.reach(layer)
    ...         seen.append(int(shard.wait(layer)["o_proj"][0]))
    ...     shard.wait_all()
    ...     return seen
    >>> run_ranks(2, rank)
    [[31, 32, 33, 34, 35], [31, 32, 33, 34, 35]]
    """

    def __init__(
        self,
        series: Mapping[str, Mapping[int, Any]],
        comm: Communicator,
        prefetch: int = 1,
        *,
        hidden_layers: int | None = None,
        fixed_addresses: bool = False,
    ) -> None:
        try:
            prefetch = operator.index(prefetch)
        except TypeError:
            raise TypeError(f"LayerShard: prefetch is {prefetch!r}, needs an integer") from None
        comm = self._comm = as_comm(comm)
        self._shards, layers, excluded = agree(series, comm, hidden_layers, prefetch, bool(fixed_addresses))
        self.layers = range(layers[0], layers[-1] + 1)
        self.excluded = excluded
        self.prefetch = prefetch
        order = _core.pipeline.ShardOrder(layers[0], len(layers), comm.size, prefetch, bool(fixed_addresses))
        # One rank keeps everything: there is nothing to wait for.
        self.windows = order.windows if comm.size > 1 else 0
        windows = {s.name: [np.empty(s.shape, s.dtype) for _ in range(order.windows)] for s in self._shards}
        packed = [(s.name, [s.arrays.get(i) for i in layers], windows[s.name]) for s in self._shards]
        self._core = comm._guard(
            lambda: _core.pipeline.LayerShard(
                comm._native, layers[0], len(layers), prefetch, bool(fixed_addresses), packed
            )
        )
        self._windows = {s.name: self._in_family(s, windows[s.name]) for s in self._shards}

    @staticmethod
    def _in_family(shard: Shard, arrays: list[np.ndarray]) -> list[Any]:
        own = next(iter(shard.owned.values()), None)
        convert = _interop._returner(own) if _interop._is_foreign(own) else (lambda array: array)
        return [convert(array) for array in arrays]

    @property
    def ranks(self) -> int:
        """Ranks that share the layers."""
        return self._comm.size

    def owner(self, layer: int) -> int:
        """The rank that keeps a layer: ``layer mod G``."""
        return layer % self._comm.size

    def keeps(self, layer: int) -> bool:
        """Whether this rank is the owner."""
        return self.owner(layer) == self._comm.rank

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer, all series together."""
        return sum(s.dtype.itemsize * int(np.prod(s.shape)) for s in self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes that this rank holds: its own layers and the windows (counted)."""
        own = sum(a.nbytes for s in self._shards for a in s.arrays.values())
        return own + self.layer_bytes * self.windows

    @property
    def expected(self) -> int:
        """The layer that has to be reached next."""
        return int(self._core.expected)

    @property
    def under_way(self) -> int:
        """Broadcasts that this rank has started and not waited for."""
        return int(self._core.under_way)

    def reach(self, layer: int) -> None:
        """Start the broadcasts of the layer ``prefetch`` steps ahead. What :meth:`wait` gave before is given up.

        Raises
        ------
        ValueError
            If it is not the turn of ``layer``; the message names the one expected.
        """
        self._comm._guard(lambda: _interop.call(self._core.reach, layer))

    def wait(self, layer: int, name: str | None = None) -> Any:
        """Wait for the weights of the layer reached last.

        Parameters
        ----------
        layer : int
        name : str, optional
            One series; the others are left under way.

        Returns
        -------
        {name: array}, or array when ``name`` is given
            This rank's own weight, or a window that is valid until the next :meth:`reach`. Do not write to it.

        Raises
        ------
        ValueError
            If ``layer`` is not the one reached last, or there is no such series.
        """
        names = [s.name for s in self._shards]
        if name is not None and name not in names:
            raise ValueError(f"LayerShard.wait: name is {name!r}, needs one of {', '.join(map(repr, names))}")
        number = -1 if name is None else names.index(name)
        window = self._comm._guard(lambda: _interop.call(self._core.wait, layer, number))
        got = {
            s.name: s.owned[layer] if layer in s.owned else self._windows[s.name][window]
            for s in self._shards
            if name in (None, s.name)
        }
        return got if name is None else got[name]

    def poll(self) -> None:
        """Move broadcasts on: between processes nothing moves between calls, neither to readers nor from the owner."""
        self._comm._guard(self._core.poll)

    def wait_all(self) -> None:
        """Wait for every broadcast under way. Call it before messages to other stages."""
        self._comm._guard(self._core.wait_all)

    def reset(self) -> None:
        """Go back to the first layer, after an exception that ended the pass on all ranks. Collective.

        Fetches the first ``prefetch`` layers again. When only this rank fell out of the pass, :meth:`idle_pass` keeps
        it in step instead.
        """
        self._comm._guard(self._core.reset)

    def idle_pass(self) -> None:
        """Take part in the rest of the pass without computing: for a rank that has no tokens, or has failed alone."""
        while True:
            self.reach(self.expected)
            if self.expected == self.layers[0]:
                break
        self.wait_all()

    def __repr__(self) -> str:
        return (
            f"<LayerShard {', '.join(s.name for s in self._shards)}: layers {self.layers[0]} to {self.layers[-1]} over "
            f"{self._comm.size} ranks, prefetch {self.prefetch}, {self.nbytes:,} bytes on rank {self._comm.rank}>"
        )
