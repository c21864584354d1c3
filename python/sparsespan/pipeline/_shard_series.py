"""What the ranks of a layer shard tell one another before the first broadcast."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .. import _interop
from ..comm import Communicator

__all__ = ["Shard", "agree"]


class Shard(NamedTuple):
    """One series on this rank, checked."""

    name: str
    owned: dict[int, Any]  # as the caller gave them
    arrays: dict[int, np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _Offer(NamedTuple):
    layers: list[int]
    excluded: list[int]
    weights: dict[str, dict[int, Any]]
    arrays: dict[str, dict[int, np.ndarray]]


def _layers(series: Any, hidden_layers: int | None) -> tuple[list[int], list[int]]:
    """(layers, excluded) that all series share."""
    if not isinstance(series, Mapping) or not series:
        raise TypeError("LayerShard: series needs a mapping {name: {layer: weight}} with at least one name")
    found: dict[str, list[int]] = {}
    for name, weights in series.items():
        if not isinstance(name, str) or not isinstance(weights, Mapping):
            raise TypeError(
                f"LayerShard: series has {name!r}: {type(weights).__name__}, needs {{name: {{layer: ...}}}}"
            )
        try:
            found[name] = sorted(operator.index(layer) for layer in weights)
        except TypeError:
            raise TypeError(f"LayerShard: series {name!r} has layers that are no integers") from None
    limit = np.inf if hidden_layers is None else hidden_layers
    first = min(found)
    kept = [layer for layer in found[first] if layer < limit]
    for name, layers in found.items():
        mine = [layer for layer in layers if layer < limit]
        if not mine:
            raise ValueError(f"LayerShard: series {name!r} has no layers, needs at least one")
        for a, b in itertools.pairwise(mine):
            if b != a + 1:
                raise ValueError(f"LayerShard: series {name!r} has layers {a} and {b} but not {a + 1}, needs them all")
        if mine != kept:
            raise ValueError(
                f"LayerShard: series {name!r} has layers {mine[0]} to {mine[-1]} and {first!r} has {kept[0]} to "
                f"{kept[-1]}, needs the same; make a LayerShard for each"
            )
    return kept, sorted({layer for layers in found.values() for layer in layers if layer >= limit})


def _array(name: str, layer: int, weight: Any) -> np.ndarray:
    what = f"series {name!r}, layer {layer}"
    if weight is None:
        raise ValueError(f"LayerShard: {what}: is None on the rank that keeps it (layer mod ranks), needs its weight")
    if _interop._is_foreign(weight):
        weight = _interop._to_numpy("LayerShard", what, weight)
    if not isinstance(weight, np.ndarray):
        raise TypeError(f"LayerShard: {what}: is a {type(weight).__name__}, needs an array")
    if not weight.flags.c_contiguous:
        raise ValueError(f"LayerShard: {what}: is not contiguous, needs memory in C order; copy it first")
    return weight


def _offer(series: Any, comm: Communicator, hidden_layers: int | None) -> _Offer:
    layers, excluded = _layers(series, hidden_layers)
    mine = [layer for layer in layers if layer % comm.size == comm.rank]
    weights = {name: {layer: series[name][layer] for layer in mine} for name in sorted(series)}
    arrays = {name: {i: _array(name, i, weight) for i, weight in own.items()} for name, own in weights.items()}
    return _Offer(layers, excluded, weights, arrays)


def _gather(comm: Communicator, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Everybody's words; sizes first, for words have many."""
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    sizes = comm.all_gather(np.array([text.size]), plan="layer_shard sizes").tolist()
    joined = comm.all_gather(text, sizes, plan="layer_shard words").tobytes()
    cuts = np.cumsum([0, *sizes])
    return [json.loads(joined[a:b]) for a, b in itertools.pairwise(cuts)]


def _compare(told: list[dict[str, Any]]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each series. All ranks judge the same words, so all refuse in the same ones."""
    for rank, words in enumerate(told):
        if "error" in words:
            raise ValueError(f"LayerShard: rank {rank} refused: {words['error']}")
    for rank, words in enumerate(told):
        for field in ("series", "layers", "prefetch", "fixed_addresses"):
            if words[field] != told[0][field]:
                raise ValueError(
                    f"LayerShard: {field} is {words[field]} on rank {rank} and {told[0][field]} on rank 0, needs the "
                    "same on all ranks"
                )
    common: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in told[0]["series"]:
        # In order of the layers: the same first odd one is named whoever keeps it.
        every = sorted((int(i), (tuple(s), d)) for words in told for i, (s, d) in words["weights"][name].items())
        common[name] = every[0][1]
        for layer, kind in every:
            if kind != common[name]:
                raise ValueError(
                    f"LayerShard: series {name!r} has {kind[1]} {list(kind[0])} at layer {layer} and "
                    f"{common[name][1]} {list(common[name][0])} at layer {every[0][0]}, needs one shape and dtype"
                )
    return common


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def agree(
    series: Any, comm: Communicator, hidden_layers: int | None, prefetch: int, fixed: bool
) -> tuple[list[Shard], list[int], list[int]]:
    """(series in order of their names, layers, excluded layers). Collective."""
    try:
        offer = _offer(series, comm, hidden_layers)
    except (TypeError, ValueError) as refusal:
        _gather(comm, {"error": str(refusal).removeprefix("LayerShard: ")})
        raise
    said = {
        "series": list(offer.arrays),
        "layers": [offer.layers[0], offer.layers[-1]],
        "prefetch": prefetch,
        "fixed_addresses": fixed,
        "weights": {
            name: {i: [list(a.shape), a.dtype.name] for i, a in own.items()} for name, own in offer.arrays.items()
        },
    }
    common = _compare(_gather(comm, said))
    shards = [
        Shard(name, offer.weights[name], own, common[name][0], _dtype(common[name][1]))
        for name, own in offer.arrays.items()
    ]
    return shards, offer.layers, offer.excluded
