"""The output projection of token-sharded attention (DSA-CP): whole, gathered, exchanged or broadcast weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import cp, models
from ..comm import Communicator
from ..testing._model_inputs import BF16
from ._batches import Batch
from ._bytes import Expected
from ._case import Case
from ._checks import Check, Tolerance, Traffic, bits, within
from ._prefill import figures, split
from ._setup import Model, kept

__all__ = ["expected", "figures", "oracle", "run"]

HIDDEN = 512  # of the residual stream; smaller than the models'


class Oracle:
    """``x @ w`` row by row in blocks of its own, so that a row's bits depend on that row alone."""

    def __init__(self, model: Model, batch: Batch) -> None:
        dims = cp.attention_dims(model.name)
        columns = model.heads * dims.v_head
        rng = np.random.default_rng((model.seed, 6))
        self.x = rng.standard_normal((batch.rows, columns), np.float32).astype(BF16)
        self.w = (rng.standard_normal((columns, HIDDEN), np.float32) * np.float32(columns**-0.5)).astype(BF16)
        self.out = models.linear(self.x, np.ascontiguousarray(self.w.T))

    def partial_size(self, ranks: int) -> float:
        """The largest sum over ranks of a partial product's size."""
        parts = np.split(np.arange(len(self.w)), ranks)
        x, w = self.x.astype(np.float32), self.w.astype(np.float32)
        return float(np.sum([np.abs(x[:, p] @ w[p]) for p in parts], axis=0).max(initial=0.0))

    def results(self) -> tuple[np.ndarray, ...]:
        """What all processes must have computed alike."""
        return (self.out,)


def oracle(model: Model, batch: Batch) -> Oracle:
    """The one-rank answer, computed once for all modes and grids."""
    return kept(Oracle, model, batch)


def _apply(x: Any, params: Any) -> Any:
    return models.linear(x, np.ascontiguousarray(params["weight"].T))


def run(
    case: Case, comm: Communicator, traffic: Traffic, wrong_row: bool, world_rank: int
) -> tuple[list[Check], dict[str, Any]]:
    """One rank's part; ``wrong_row`` turns the sign of its first row."""
    want, plan, mode = oracle(case.model, case.batch), split(case), case.o_proj
    rows = plan.rank_rows(comm.rank)
    x = cp.split(want.x, plan, comm.rank)
    if wrong_row and len(x):
        x[0] *= np.array(-1, BF16)
    own = len(want.w) // comm.size
    mine = want.w if mode in ("full", "broadcast") else want.w[comm.rank * own : (comm.rank + 1) * own]
    if mode == "broadcast" and comm.rank:
        mine = np.zeros_like(mine)
    with traffic.stage("projection"):
        y = cp.o_proj(comm, x, cp.LinearShard({"weight": mine}, apply=_apply), mode, plan=plan)
    real = rows >= 0
    got, exact, names = y[real], want.out[rows[real]], rows[real]
    if mode != "a2a_rs":
        return [bits("out", got, exact, names)], {}
    # Every partial product is rounded to bfloat16 once, and their sum once: 2**-9 each.
    bound = 2**-9 * (want.partial_size(comm.size) + float(np.abs(want.out.astype(np.float32)).max(initial=0.0)))
    return [within("out", got, exact, Tolerance(2 * bound, 0.0), names)], {}


def expected(case: Case) -> Expected:
    """Closed form of one layer, without the key gather and the LM head."""
    form = Expected()
    dims = dataclasses.replace(case.model.volume_dims(case.batch), hidden=HIDDEN)
    rows: tuple[cp.VolumeRow, ...] = ()
    if case.o_proj == "broadcast":
        rows = cp.volume("layer_shard", model=dims, tokens=0, ranks=case.cp).rows
    elif case.o_proj != "full":
        rows = cp.volume(
            "dsa_cp_prefill", model=dims, tokens=list(case.batch.lens), ranks=case.cp, o_proj=case.o_proj,
            restore="none",
        ).rows  # fmt: skip
    for row in rows:
        if row.what.startswith(("o_proj", "attention output")):
            form.add("projection", row)
    return form
