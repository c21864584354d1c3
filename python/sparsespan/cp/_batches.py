"""Rows of a plan in the fixed shapes that decode kernels and captured graphs take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ._plan import CpPlan

__all__ = ["next_n_rows", "static_batch"]

_Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def next_n_rows(plan: CpPlan, r: int, next_n: int) -> _Table:
    """(requests [D], local rows [D, next_n], inclusive lengths [D, next_n]) of the decode requests on rank ``r``."""
    requests = plan.decode_requests
    longest = int(plan.real_lens[requests].max(initial=0))
    if next_n < max(longest, 1):
        raise ValueError(
            f"next_n_rows: next_n is {next_n}, needs at least {max(longest, 1)}, the longest decode request"
        )
    request = plan.row_to_request(r)
    local = np.flatnonzero(np.isin(request, requests))
    entry = np.searchsorted(requests, request[local])
    column = plan.rank_rows(r)[local] - plan.cu_seqlens[request[local]]
    rows = np.full((len(requests), next_n), -1, np.int64)
    lens = np.zeros((len(requests), next_n), np.int64)
    rows[entry, column] = local
    lens[entry, column] = plan.context_lens(r)[local]
    return requests.copy(), rows, lens


def _grown(name: str, array: np.ndarray, size: int, fill: int) -> np.ndarray:
    """``array`` with its last axis filled up to ``size``."""
    if array.shape[-1] > size:
        raise ValueError(f"static_batch: {name} is {size}, needs at least {array.shape[-1]}")
    width = [(0, 0)] * (array.ndim - 1) + [(0, size - array.shape[-1])]
    return np.pad(array, width, constant_values=fill)


def static_batch(plan: CpPlan, r: int, rows: int, requests: int | None, global_slots: Any) -> dict[str, Any]:
    """Fields of a StaticBatch."""
    if rows < plan.counts[r]:
        raise ValueError(f"static_batch: rows is {rows}, needs at least {plan.counts[r]}, the local rows of rank {r}")
    q, kv = plan.actual_seq_q(r), plan.actual_seq_kv(r)
    # Interleave has one entry per row, the others one per request.
    name, size = ("rows", rows) if plan.scheme == "interleave" else ("requests", requests)
    size = q.shape[-1] if size is None else size
    ks, ke = plan.ks_ke(r, length=rows)
    return {
        "rows": plan.rank_rows(r, length=rows),
        "positions": plan.positions(r, length=rows),
        "row_to_request": plan.row_to_request(r, length=rows),
        "ks": ks,
        "ke": ke,
        "context_lens": plan.context_lens(r, length=rows),
        # A padding entry adds no query: cumulative lengths stay at the last value.
        "actual_seq_q": np.maximum.accumulate(_grown(name, q, size, 0), axis=-1),
        "actual_seq_kv": _grown(name, kv, size, 0),
        "slot_mapping": None if global_slots is None else plan.slot_mapping(global_slots, r, length=rows),
    }
