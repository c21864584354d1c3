"""A whole attention layer under prefill CP: norm, projections, indexer, selection, attention, output projection."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .. import cp, models
from ..comm import Communicator
from ..testing._model_inputs import BF16
from ._batches import Batch
from ._bytes import Expected
from ._case import Case
from ._checks import Check, Traffic, bits
from ._prefill import figures, priced, split
from ._setup import Model, Setup, kept

__all__ = ["expected", "figures", "oracle", "run"]

HIDDEN, Q_LORA = 512, 256  # smaller than the models': their weights would take gigabytes


class Oracle:
    """The layer on one rank: the cached tokens as a batch of their own, then the step."""

    def __init__(self, model: Model, batch: Batch) -> None:
        topk = model.dims(batch).topk
        dims = models.layer_dims(model.name, hidden=HIDDEN, q_lora=Q_LORA, heads=model.heads, topk=topk)
        self.layer = models.dsa_layer(dims, seed=model.seed)
        table, pages = Setup(model, batch).table(batch.contexts, model.page_size)
        self.before = models.PagedCaches(1, pages, model.page_size, model.layout, model.index_layout, block_table=table)
        rng = np.random.default_rng((model.seed, 5))
        past, self.hidden = (
            rng.standard_normal((n, HIDDEN), np.float32).astype(BF16) for n in (sum(batch.prefix), batch.rows)
        )
        self.layer.prefill(past, cp.split_plan("contiguous", [0, *np.cumsum(batch.prefix)], None, 1), self.before)
        self.after = copy.deepcopy(self.before)
        whole = cp.split_plan("contiguous", batch.cu_seqlens, list(batch.prefix), 1)
        self.out, self.indices = self.layer.prefill(self.hidden, whole, self.after)

    def results(self) -> tuple[np.ndarray, ...]:
        """What all processes must have computed alike."""
        return self.out, self.indices, self.after.kv[0], self.after.index_k[0]


def oracle(model: Model, batch: Batch) -> Oracle:
    """The one-rank answer, computed once for all schemes and grids."""
    return kept(Oracle, model, batch)


def run(
    case: Case, comm: Communicator, traffic: Traffic, wrong_row: bool, world_rank: int
) -> tuple[list[Check], dict[str, Any]]:
    """One rank's part; ``wrong_row`` turns the sign of its first row of the residual stream."""
    want, plan = oracle(case.model, case.batch), split(case)
    rows = plan.rank_rows(comm.rank)
    hidden = cp.split(want.hidden, plan, comm.rank)
    if wrong_row and len(hidden):
        hidden[0] *= np.array(-1, BF16)
    caches = copy.deepcopy(want.before)
    with traffic.stage("keys"):
        out, indices = want.layer.prefill(hidden, plan, caches, comm)
    real = rows >= 0
    return [
        bits("indices", indices[real], want.indices[rows[real]], rows[real]),
        bits("out", out[real], want.out[rows[real]], rows[real]),
        bits("kv cache pages", caches.kv[0], want.after.kv[0]),
        bits("index-K cache pages", caches.index_k[0], want.after.index_k[0]),
    ], {}


def expected(case: Case) -> Expected:
    """Closed form of one layer: its keys travel as the caches store them."""
    form = Expected()
    for row in priced(case, case.model.volume_dims(case.batch), cache=case.model.cache, restore="none").rows:
        form.add("keys", row)
    return form
