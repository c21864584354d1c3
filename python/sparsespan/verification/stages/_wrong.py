"""Operations done wrong on purpose, as engines have done them: what a plant puts in the model's place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from ... import cp
from ...models import _attending, _caches, _dcp, _indexing, _layer, _taps

__all__ = ["Seen", "divided_latent", "instead", "merged", "now"]

_MODULES = {"attending": _attending, "caches": _caches, "dcp": _dcp, "indexing": _indexing, "layer": _layer}


class _Instead:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Now:
    """Which layer runs which rows, on the thread that asks."""

    def __init__(self) -> None:
        tap = getattr(_taps._here, "tap", None)
        place: Any = (-1, np.zeros(0), np.zeros(0)) if tap is None else tap._place
        self.layer, self.positions, self.requests = place

    @property
    def decode(self) -> bool:
        """Whether no request has more than one row, and none begins here."""
        real = np.asarray(self.requests)[np.asarray(self.requests) >= 0]
        return len(set(real.tolist())) == len(real) and int(np.min(self.positions, initial=1)) > 0


def now() -> Now:
    """The present place."""
    return Now()


@contextlib.contextmanager
def instead(place: str, function: str, wrong: Callable[..., Any], layer: int) -> Iterator[None]:
    """Call ``wrong(right, *args, **options)`` where the model calls ``place.function`` in this layer (-1: in all)."""
    module_name, attribute = place.split(".")
    owner = _MODULES[module_name]
    module = getattr(owner, attribute)
    right = getattr(module, function) if function else module

    def chosen(*args: Any, **options: Any) -> Any:
        if layer not in (-1, now().layer):
            return right(*args, **options)
        return wrong(right, *args, **options)

    replaced = _Instead(module, **{function: chosen}) if function else chosen
    with mock.patch.object(owner, attribute, replaced):
        yield


def merged(weigh: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
    """DCP decode whose partial results are merged by other weights than e^lse."""

    def wrong(
        right: Any, comm: Any, q: Any, kv_cache: Any, indices: Any, layout: Any, block_table: Any, sm_scale: float,
        **options: Any,
    ) -> Any:  # fmt: skip
        parts = tuple(_all_heads(comm, part) for part in q)
        keep = {name: options[name] for name in ("row_to_request", "context_lens", "kv_layout")}
        out, lse = cp.dcp_partial(parts, kv_cache, indices, layout, comm.rank, block_table, sm_scale, **keep)
        outs, lses = (comm.all_gather(np.ascontiguousarray(x)).reshape(comm.size, *x.shape) for x in (out, lse))
        with np.errstate(over="ignore"):
            weights = np.where(np.isneginf(lses), 0.0, weigh(np.float64(lses)))
        total = np.maximum(weights.sum(0), 1e-300)
        heads = slice(comm.rank * q[0].shape[1], (comm.rank + 1) * q[0].shape[1])
        whole = ((weights / total)[..., None] * outs).sum(0)
        return whole[:, heads].astype(q[0].dtype), np.log(total)[:, heads].astype(np.float32)

    return wrong


def _all_heads(comm: Any, x: np.ndarray) -> np.ndarray:
    parts = comm.all_gather(np.ascontiguousarray(x)).reshape(comm.size, *x.shape)
    return np.ascontiguousarray(np.moveaxis(parts, 0, 1)).reshape(len(x), -1, x.shape[2])


def divided_latent(right: Any, latent: Any, k_pe: Any, *args: Any, **options: Any) -> Any:
    """Stored so that reading gives code / scale where code * scale is meant."""
    tiles = np.asarray(latent, np.float32).reshape(len(latent), -1, 128)
    amax = np.maximum(np.abs(tiles).max(-1, keepdims=True), 1e-4)
    scale = np.exp2(np.ceil(np.log2(amax / 448)))
    wrong = (tiles / scale**2).reshape(latent.shape).astype(latent.dtype)
    return right(wrong, k_pe, *args, **options)


class Seen:
    """A plan whose rows see other numbers of keys."""

    def __init__(self, plan: Any, change: Callable[[Any, int, np.ndarray], np.ndarray]) -> None:
        self._plan, self._change = plan, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def context_lens(self, rank: int) -> np.ndarray:
        right = np.asarray(self._plan.context_lens(rank))
        lengths = (self._plan.prefix_lens + self._plan.real_lens)[np.maximum(self._plan.row_to_request(rank), 0)]
        wrong = np.clip(self._change(self._plan, rank, right), 0, lengths)
        return np.where(self._plan.row_to_request(rank) >= 0, wrong, right).astype(right.dtype)
