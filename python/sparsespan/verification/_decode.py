"""Decode: what one rank computes by plain ops on one cache, what the ranks of a sharded cache compute together."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .. import cp, indexer
from ..attention import sparse_mla
from ..comm import Communicator
from ..testing._model_inputs import BF16
from . import _union
from ._batches import Batch
from ._bytes import Expected
from ._case import Case, own_heads
from ._checks import LSE, Check, Traffic, bits, merge_tolerance, within
from ._setup import Caches, Model, Setup, kept

__all__ = ["expected", "figures", "oracle", "run"]

Pair = tuple[np.ndarray, np.ndarray]


class Oracle:
    """One rank with the whole cache: paged selection, sparse attention."""

    def __init__(self, model: Model, batch: Batch) -> None:
        setup = self.setup = Setup(model, batch)
        self.contexts = np.array(batch.contexts, np.int64)
        self.seen = setup.positions + 1  # keys of each row
        self.past = setup.rotated(setup.past, setup.past_positions)
        self.rows = setup.rotated(setup.new, setup.positions)
        self.table, pages = setup.table(batch.contexts, model.page_size)
        self.caches = setup.caches(pages)
        for rows, request, position in self.tokens():
            setup.write(self.caches, rows, self._slots(request, position))
        self.indices = indexer.paged_select(
            self.rows.q_index, self.caches.index, self.rows.weights, self.seen, self.table[setup.requests],
            model.page_size, topk=setup.dims.topk, layout=model.index_layout,
        )  # fmt: skip
        self.plain = self.attend(self.indices)
        values = [np.abs(rows.c_kv.astype(np.float32)).max(initial=0.0) for rows, _, _ in self.tokens()]
        self.largest = float(max(values))

    def tokens(self) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """(rows, request, position) of the cached tokens and of the new ones."""
        s = self.setup
        return [(self.past, s.past_requests, s.past_positions), (self.rows, s.requests, s.positions)]

    def _slots(self, request: np.ndarray, position: np.ndarray) -> np.ndarray:
        page = self.setup.model.page_size
        return self.table[request, position // page].astype(np.int64) * page + position % page

    def attend(self, indices: np.ndarray, interleave: int | None = None) -> Pair:
        """(out, lse) in float32 over logical positions; with an interleave in the order of lanes."""
        setup = self.setup
        lanes = None if interleave is None else np.maximum(indices, 0) // interleave % 8
        slots = indexer.to_slots(indices, setup.requests, self.table, setup.model.page_size)
        out, lse, _ = sparse_mla(
            self.rows.q, self.caches.kv, slots, setup.dims.sm_scale, layout=setup.model.layout,
            page_size=setup.model.page_size, lane_of=lanes, out_dtype="float32",
        )  # fmt: skip
        return out, lse

    @functools.cache  # noqa: B019 - an oracle is kept by a cache of its own, and small
    def in_lanes(self, interleave: int) -> Pair:
        """:meth:`attend` to the exact selection in the order of lanes: the bits of 1, 2, 4 and 8 ranks."""
        return self.attend(self.indices, interleave)

    def results(self) -> tuple[np.ndarray, ...]:
        """What all processes must have computed alike."""
        return self.indices, *self.plain, self.caches.kv, self.caches.index


def oracle(model: Model, batch: Batch) -> Oracle:
    """The one-rank answer, computed once for all designs and grids."""
    return kept(Oracle, model, batch)


class Shard:
    """One rank's caches, written by the writers of owned rows."""

    def __init__(self, case: Case, rank: int) -> None:
        want = oracle(case.model, case.batch)
        setup, model = want.setup, case.model
        self.layout = cp.dcp_layout(case.interleave, case.dcp, model.page_size)
        self.table, pages = setup.table(case.batch.contexts, self.layout.virtual_page_size)
        self.whole_index = case.index_k == "replicated"
        self.caches: Caches = setup.caches(pages, pages * case.dcp if self.whole_index else pages)
        for rows, request, position in want.tokens():
            cp.dcp_write_kv(
                rows.c_kv, rows.k_pe, self.caches.kv, position, self.table, self.layout, rank,
                row_to_request=request, kv_layout=model.layout,
            )  # fmt: skip
            cp.dcp_write_index(
                rows.k_index, self.caches.index, position, self.table, self.layout, rank,
                replicated=self.whole_index, row_to_request=request, index_layout=model.index_layout,
            )  # fmt: skip


def _select(case: Case, comm: Communicator, shard: Shard) -> np.ndarray:
    want = oracle(case.model, case.batch)
    rows = want.rows.q_index
    q = rows.reshape(len(want.contexts), -1, *rows.shape[1:]) if len(rows) else rows
    return cp.dcp_select(
        comm, q, shard.caches.index, want.rows.weights, want.contexts, shard.table, shard.layout,
        want.setup.dims.topk, index_k=case.index_k, index_layout=case.model.index_layout,
    )  # fmt: skip


def run(
    case: Case, comm: Communicator, traffic: Traffic, wrong_row: bool, world_rank: int
) -> tuple[list[Check], dict[str, Any]]:
    """One rank's part; ``wrong_row`` turns the sign of its first query row."""
    want = oracle(case.model, case.batch)
    setup, model = want.setup, case.model
    shard, heads = Shard(case, comm.rank), own_heads(case, world_rank)
    each = heads.stop - heads.start
    group = slice(heads.start - comm.rank * each, heads.start + (comm.size - comm.rank) * each)
    q = want.rows.q[:, group if case.replicate_q else heads].copy()  # all ranks of a process share the oracle
    if wrong_row and len(q):
        q[0] *= np.array(-1, BF16)
    with traffic.stage("selection"):
        indices = _select(case, comm, shard)
    with traffic.stage("attention"):
        out, lse = cp.dcp_decode(
            comm, q, shard.caches.kv, indices, shard.layout, shard.table, setup.dims.sm_scale,
            row_to_request=setup.requests, context_lens=want.seen, kv_layout=model.layout, combine=case.combine,
            payload=case.payload, replicate_q=case.replicate_q, out_dtype="float32",
        )  # fmt: skip
    if case.index_k == "union":
        return _union.checks(case, want, comm.rank, heads, indices, (out, lse))
    checks = [bits("indices", indices, want.indices)]
    if case.lanes:
        laned = want.in_lanes(case.interleave)
        checks += [bits("out", out, laned[0][:, heads]), bits("lse", lse, laned[1][:, heads])]
    names = ("out in order of keys", "lse in order of keys") if case.lanes else ("out", "lse")
    checks.append(within(names[0], out, want.plain[0][:, heads], merge_tolerance(case.payload, want.largest)))
    checks.append(within(names[1], lse, want.plain[1][:, heads], LSE))
    return checks, {}


def expected(case: Case) -> Expected:
    """Closed form of one layer; the exchange of the indexer apart from that of attention."""
    form = Expected()
    volume = cp.volume(
        "dcp", model=case.model.volume_dims(case.batch), tokens=list(case.batch.lens), ranks=case.dcp,
        tp=case.grid.attn_tp, cache=case.model.cache, combine=case.combine, index_k=case.index_k, payload=case.payload,
        replicate_q=case.replicate_q, context=case.batch.contexts, page_size=case.model.page_size,
        interleave=case.interleave,
    )  # fmt: skip
    for row in volume.rows:
        form.add("selection" if row.what.startswith(("top-k", "index-K")) else "attention", row)
    return form


def figures(case: Case) -> dict[str, Any]:
    """Imbalance: keys of the busiest rank over the mean, minus 1, of the cache and of the exact selection."""
    want = oracle(case.model, case.batch)
    layout = cp.dcp_layout(case.interleave, case.dcp, case.model.page_size)
    held = layout.local_len(want.contexts).sum(axis=0)
    chosen = np.bincount(layout.owner(want.indices[want.indices >= 0]), minlength=case.dcp)
    return {name: float(n.max() / n.mean() - 1) if n.any() else 0.0 for name, n in
            (("indexer", held), ("attention", chosen))}  # fmt: skip
