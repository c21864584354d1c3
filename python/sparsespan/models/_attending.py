"""Which keys a row sees without a choice, and attention of rows that chose and rows that did not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import attention, indexer
from ._caches import PagedCaches
from ._stopwatch import timed

__all__ = ["attend", "chosen", "undecided"]


def undecided(positions: Any, request: Any, dense_until: int) -> np.ndarray | None:
    """Rows whose keys must be chosen: those that see more than ``dense_until``. None for all, without a look."""
    return np.flatnonzero((request >= 0) & (positions >= dense_until)) if dense_until else None


def chosen(choose: Callable[[], Any], rows: np.ndarray | None, positions: Any, request: Any, topk: int) -> Any:
    """Indices of all rows: ``choose`` gives those of ``rows`` (None: of all), the others take all they see."""
    if rows is None:
        return timed("select", choose)
    columns = np.arange(topk, dtype=np.int32)
    sees = np.where(request >= 0, positions, -1)[:, None]  # padding rows take nothing
    indices = np.where(columns <= sees, columns, np.int32(-1))
    if len(rows):
        indices[rows] = timed("select", choose)
    return indices


def attend(
    q: tuple[Any, Any], indices: Any, positions: Any, request: Any, dense_until: int, caches: PagedCaches, layer: int,
    sm_scale: float, threads: int,
) -> tuple[Any, Any]:  # fmt: skip
    """Attention over the paged cache, dense for rows that see at most ``dense_until`` keys: (latent, lse)."""
    args = (caches, layer, sm_scale, threads)
    dense = (request >= 0) & (positions < dense_until)
    if not dense.any():
        return _sparse(q, indices, request, *args)
    if dense.all():
        return _dense(q, positions, request, *args)
    out = np.empty(q[0].shape, q[0].dtype), np.empty(q[0].shape[:2], np.float32)
    rest, near, far = ~dense, _of(q, dense), _of(q, ~dense)
    for whole, part in zip(out, _dense(near, positions[dense], request[dense], *args)):
        whole[dense] = part
    for whole, part in zip(out, _sparse(far, indices[rest], request[rest], *args)):
        whole[rest] = part
    return out


def _of(q: tuple[Any, Any], rows: np.ndarray) -> tuple[Any, Any]:
    return np.ascontiguousarray(q[0][rows]), np.ascontiguousarray(q[1][rows])


def _sparse(
    q: tuple[Any, Any], indices: Any, request: Any, caches: PagedCaches, layer: int, sm_scale: float, threads: int
) -> tuple[Any, Any]:
    slots = indexer.to_slots(indices, request, caches.block_table, caches.page_size, threads=threads)
    latent, lse, _ = timed(
        "attention", attention.sparse_mla,
        q, caches.kv[layer], slots, sm_scale, layout=caches.kv_layout, page_size=caches.page_size, threads=threads,
    )  # fmt: skip
    return latent, lse


def _dense(
    q: tuple[Any, Any], positions: Any, request: Any, caches: PagedCaches, layer: int, sm_scale: float, threads: int
) -> tuple[Any, Any]:
    """Neighbouring positions of one request are a request of their own to the op: it has no other order of rows."""
    begins = np.ones(len(positions), bool)
    begins[1:] = (request[1:] != request[:-1]) | (positions[1:] != positions[:-1] + 1)
    run = np.cumsum(begins) - 1
    lens = positions[np.append(np.flatnonzero(begins)[1:], len(positions)) - 1] + 1
    pages = -(-int(lens.max()) // caches.page_size)
    table = np.ascontiguousarray(caches.block_table[request[begins], :pages])
    latent, lse = timed(
        "attention", attention.dense_mla,
        q, caches.kv[layer], run, lens, table, caches.page_size, sm_scale, caches.kv_layout, threads=threads,
    )  # fmt: skip
    return latent, lse
