"""Prefill: what one rank computes by plain ops, what N ranks compute together, and what must agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import cp, indexer, quant
from ..attention import sparse_mla
from ..comm import Communicator
from ..testing._model_inputs import BF16
from ._batches import Batch
from ._bytes import Expected
from ._case import Case, own_heads
from ._checks import Check, Traffic, bits
from ._setup import Caches, Model, Setup, kept, turn

__all__ = ["expected", "figures", "oracle", "priced", "run", "split"]


class Oracle:
    """The whole batch on one rank: caches written row by row, packed selection, sparse attention."""

    def __init__(self, model: Model, batch: Batch) -> None:
        setup = self.setup = Setup(model, batch)
        contexts, page = batch.contexts, model.page_size
        self.table, pages = setup.table(contexts, page)
        self.before = setup.caches(pages)
        self._write(self.before, setup.rotated(setup.past, setup.past_positions), past=True)
        self.after = Caches(self.before.kv.copy(), self.before.index.copy())
        rows = setup.rotated(setup.new, setup.positions)
        self._write(self.after, rows, past=False)
        cu = np.array([0, *np.cumsum(contexts)], np.int64)
        keys, scale = quant.gather_indexer_k(self.after.index, self.table, cu, page, model.index_layout)
        ks = cu[setup.requests]
        ke = ks + setup.positions + 1
        packed = indexer.select(rows.q_index, keys, rows.weights, ks, ke, k_scale=scale, topk=setup.dims.topk)
        self.indices = np.where(packed >= 0, packed - ks[:, None], -1).astype(np.int32)
        slots = indexer.to_slots(packed, setup.requests, self.table, page, ks=ks)
        self.out, self.lse, _ = sparse_mla(
            rows.q, self.after.kv, slots, setup.dims.sm_scale, layout=model.layout, page_size=page
        )
        self.hidden = setup.hidden.astype(BF16)

    def _write(self, caches: Caches, rows: Any, past: bool) -> None:
        setup = self.setup
        request = setup.past_requests if past else setup.requests
        position = setup.past_positions if past else setup.positions
        page = setup.model.page_size
        setup.write(caches, rows, self.table[request, position // page].astype(np.int64) * page + position % page)

    def results(self) -> tuple[np.ndarray, ...]:
        """What all processes must have computed alike."""
        return self.indices, self.out, self.lse, self.after.kv, self.after.index


def oracle(model: Model, batch: Batch) -> Oracle:
    """The one-rank answer, computed once for all schemes and grids."""
    return kept(Oracle, model, batch)


def split(case: Case) -> cp.CpPlan:
    """The plan that the case's ranks follow."""
    b = case.batch
    return cp.split_plan(case.scheme, b.cu_seqlens, list(b.prefix), case.cp, row_kind=b.row_kind)


def run(
    case: Case, comm: Communicator, traffic: Traffic, wrong_row: bool, world_rank: int
) -> tuple[list[Check], dict[str, Any]]:
    """One rank's part; ``wrong_row`` turns the sign of the first latent row that it writes."""
    want = oracle(case.model, case.batch)
    setup, model, plan = want.setup, case.model, split(case)
    rows = plan.rank_rows(comm.rank)
    local = setup.rotated(turn(setup.new, rows), np.where(rows >= 0, plan.positions(comm.rank), 0))
    written = plan.kv_write_mask(comm.rank)  # of a replicated decode row rank 0's copy counts
    if wrong_row and written.any():
        local.c_kv[np.argmax(written)] *= np.array(-1, BF16)
    mine = Caches(want.before.kv.copy(), want.before.index.copy())
    caches = cp.LayerCache(mine.kv, mine.index, model.layout, model.index_layout, model.page_size)
    heads = own_heads(case, world_rank)
    queries = (np.ascontiguousarray(local.q[:, heads]), local.q_index, local.weights)
    with traffic.stage("keys"):
        got = cp.prefill_attention(
            comm, plan, caches, local.c_kv, local.k_pe, local.k_index, queries,
            sm_scale=setup.dims.sm_scale, block_table=want.table, topk=setup.dims.topk,
        )  # fmt: skip
    hidden = cp.split(want.hidden, plan, comm.rank)
    with traffic.stage("all rows"):
        everything = cp.gather_rows(comm, hidden, plan, "all")
    with traffic.stage("last rows"):
        last = cp.gather_rows(comm, hidden, plan, "last")
    real, some = rows >= 0, np.array(case.batch.lens) > 0
    wanted_last = np.zeros((len(some), want.hidden.shape[1]), BF16)
    wanted_last[some] = want.hidden[np.array(case.batch.cu_seqlens[1:])[some] - 1]
    return [
        bits("indices", got.indices[real], want.indices[rows[real]], rows[real]),
        bits("out", got.out[real], want.out[rows[real], heads], rows[real]),
        bits("lse", got.lse[real], want.lse[rows[real], heads], rows[real]),
        _caches(mine, want.after),
        bits("gathered rows", everything, want.hidden),
        bits("last rows", last, wanted_last),
    ], {}


def _caches(got: Caches, want: Caches) -> Check:
    pairs = [(g.view(np.uint8), w.view(np.uint8)) for g, w in ((got.kv, want.kv), (got.index, want.index))]
    wrong = sum(int((g != w).any(axis=(1, 2)).sum()) for g, w in pairs)
    note = f"caches: {wrong} pages differ from those that one rank writes" if wrong else ""
    return Check("caches", "bits", wrong == 0, float("inf") if wrong else 0.0, wrong == 0, note)


def priced(case: Case, dims: cp.AttentionDims, **options: Any) -> cp.Volume:
    """The closed form by scheme and lengths alone; replicated decode rows are only known to a plan."""
    if any(case.batch.decode):
        return cp.volume(split(case), model=dims, **options)
    return cp.volume(case.scheme, model=dims, tokens=list(case.batch.lens), ranks=case.cp, **options)


def expected(case: Case) -> Expected:
    """Closed form of one layer: fused key gather; all rows and last rows for what comes behind."""
    dims = case.model.volume_dims(case.batch)
    form = Expected()
    for restore, stage in (("none", "keys"), ("all", "all rows"), ("last", "last rows")):
        for row in priced(case, dims, cache=case.model.cache, restore=restore).rows:
            if stage == "keys" or row.what.endswith("for the LM head"):
                form.add(stage, row)
    return form


def figures(case: Case) -> dict[str, Any]:
    """Imbalance of the plan: busiest rank over mean, minus 1 (counted keys)."""
    plan = split(case)
    topk = case.model.dims(case.batch).topk
    return {"indexer": plan.imbalance("indexer"), "attention": plan.imbalance("attention", topk)}
