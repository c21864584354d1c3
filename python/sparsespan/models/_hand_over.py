"""Requests carried from the caches of one grid to those of another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import cp
from ..comm._share import share
from ..quant import kv_layout
from ._config import ModelConfig
from ._grid import Grid
from ._pool import KvPool, PoolFull

__all__ = ["HandOver", "hand_over"]

_TAG = 7001  # of the messages with logits


@dataclasses.dataclass(frozen=True)
class HandOver:
    """What a rank has after :meth:`PdRanks.hand_over`.

    Attributes
    ----------
    requests : tuple of int
        The requests in this rank's pool: new ones on a decode rank, those that were given on a prefill rank.
    logits : float32 array [B, vocab] or None
        Behind each request's last token, where the prefill side handed them in.
    plan : TransferPlan
        Who sent what to whom; ``plan.total_bytes`` is what the caches' rows took.
    report : TransferReport
        What this rank moved, counted.
    seconds : float
        What it took once all ranks had come to it, measured.
    """

    requests: tuple[int, ...]
    logits: Any
    plan: cp.TransferPlan
    report: cp.TransferReport
    seconds: float


def side(grid: Grid, decode: bool, stages: tuple[int, ...]) -> cp.KvSide:
    """Where a grid keeps its caches."""
    split = "full" if decode or grid.dcp == 1 else "interleave"
    whole = grid.dcp > 1 and grid.index_k == "replicated"
    return cp.KvSide(
        tp=grid.tp, cp=grid.cp, pp=len(stages), dcp=grid.dcp, kv=split, page_size=grid.page_size,
        index_k="replicated" if whole else "sharded", stages=stages,
    )  # fmt: skip


def _caches(grid: Grid, pool: KvPool, requests: Sequence[int]) -> cp.TransferCaches:
    """Caches of one rank, and each request's pages in them."""
    tables = [pool.table([request])[0] for request in requests]
    pages = [table[table >= 0] for table in tables]
    index_pages = None
    if grid.dcp > 1 and grid.index_k == "replicated":
        layout = cp.dcp_layout(1, grid.dcp, grid.page_size)
        index_pages = [layout.replicated_table(ids[None])[0] for ids in pages]
    return cp.TransferCaches(pool.caches.kv, pages, pool.caches.index_k, index_pages)


def _facts(config: ModelConfig, pool: KvPool, requests: Sequence[int], logits: Any, prefills: bool) -> dict[str, Any]:
    """What the other ranks need to know of this one; a refusal in words instead."""
    caches = pool.caches
    try:
        lengths = pool.lengths(requests).tolist()
        if not prefills and (len(requests) or logits is not None):
            raise ValueError("has requests or logits on a decode rank, needs none: they come from the prefill ranks")
        if logits is not None and np.shape(logits) != (len(lengths), config.vocab_size):
            raise ValueError(f"logits has shape {np.shape(logits)}, needs {(len(lengths), config.vocab_size)}")
    except ValueError as refusal:
        return {"refused": str(refusal)}
    return {
        "same": {
            "num_hidden_layers": config.num_hidden_layers, "indexer_types": config.indexer_types,
            "kv_layout": caches.kv_layout, "index_layout": caches.index_layout,
        },
        "layers": [caches.layers[0], len(caches.layers)], "page_size": caches.page_size, "lengths": lengths,
        "logits": logits is not None, "page_tokens": pool.page_tokens, "free": pool.free_pages,
    }  # fmt: skip


def _stages(name: str, grid: Grid, told: Sequence[dict[str, Any]], layers: int) -> tuple[int, ...]:
    """Layers of each stage of one side; its ranks have them between them."""
    each = grid.tp * grid.cp  # ranks of a stage
    found = [[tuple(one["layers"]) for one in told[at : at + each]] for at in range(0, len(told), each)]
    at = 0
    for stage in found:
        if any(one != (at, stage[0][1]) for one in stage):
            raise ValueError(
                f"hand_over: the {name} ranks hold the layers (first, number) {found}, needs stages in order"
            )
        at += stage[0][1]
    if at != layers:
        raise ValueError(f"hand_over: the {name} ranks hold {at} layers, needs {layers}, those of the model")
    return tuple(stage[0][1] for stage in found)


def _agree(told: Sequence[dict[str, Any]], grids: tuple[Grid, Grid]) -> None:
    """Refuse, on every rank in the same words, what cannot be handed over."""
    for rank, one in enumerate(told):
        if "refused" in one:
            raise ValueError(f"hand_over: rank {rank}: {one['refused']}")
    senders = grids[0].ranks
    for rank, one in enumerate(told):
        for name, value in one["same"].items():
            if value != told[0]["same"][name]:
                raise ValueError(
                    f"hand_over: rank {rank} has {name} {value}, rank 0 {told[0]['same'][name]}; needs the same"
                )
        wanted = grids[rank >= senders].page_size
        if one["page_size"] != wanted:
            raise ValueError(f"hand_over: rank {rank} has pages of {one['page_size']} tokens, its grid {wanted}")
        if rank < senders and one["lengths"] != told[0]["lengths"]:
            raise ValueError(
                f"hand_over: rank {rank} has requests of {one['lengths']} tokens, rank 0 of {told[0]['lengths']}; "
                "needs the same requests on all prefill ranks"
            )
    for rank, one in enumerate(told[senders:], senders):
        pages = sum(-(-n // one["page_tokens"]) for n in told[0]["lengths"])
        if pages > one["free"]:
            raise PoolFull(
                f"hand_over: requests of {told[0]['lengths']} tokens need {pages} pages of {one['page_tokens']} tokens "
                f"on rank {rank}, {one['free']} are free; nothing was moved, the prefill ranks have them still"
            )


def _hand_logits(world: Any, root: int | None, takers: range, logits: Any, shape: tuple[int, int]) -> Any:
    """Logits from the first rank that has them to all decode ranks."""
    if root is None or not shape[0]:
        return None if root is None else np.empty(shape, np.float32)
    if world.rank == root:
        rows = np.ascontiguousarray(logits, np.float32)
        for work in [world.isend(rows, to, _TAG) for to in takers]:
            work.wait()
    elif world.rank in takers:
        return world.recv(np.empty(shape, np.float32), root, _TAG)
    return logits


def hand_over(
    world: Any, grids: tuple[Grid, Grid], config: ModelConfig, pool: KvPool, requests: Sequence[int], logits: Any,
    timeout: float | None, threads: int,
) -> HandOver:  # fmt: skip
    """See :meth:`PdRanks.hand_over`."""
    prefills = world.rank < grids[0].ranks
    told = share(world, _facts(config, pool, requests, logits, prefills), timeout)
    begun = time.monotonic()
    _agree(told, grids)
    senders, lengths, caches = grids[0].ranks, told[0]["lengths"], pool.caches
    layers, takers = config.num_hidden_layers, range(senders, len(told))
    first = _stages("prefill", grids[0], told[:senders], layers)
    second = _stages("decode", grids[1], told[senders:], layers)
    plan = cp.transfer_plan(
        side(grids[0], False, first), side(grids[1], True, second), lengths, num_layers=layers,
        kv_bytes=kv_layout(caches.kv_layout).bytes_per_token,
        index_bytes=kv_layout(caches.index_layout).bytes_per_token,
        index_layers=config.index_layers,
    )  # fmt: skip
    root = next((rank for rank, one in enumerate(told[:senders]) if one["logits"]), None)
    mine = list(requests) if prefills else [pool.open() for _ in lengths]
    try:
        logits = _hand_logits(world, root, takers, logits, (len(lengths), config.vocab_size))
        if not prefills:
            pool.reserve(mine, lengths)
        here = _caches(grids[not prefills], pool, mine)
        report = cp.run_transfer(
            world, plan, here if prefills else None, None if prefills else here, layout=caches.kv_layout,
            index_layout=caches.index_layout, threads=threads,
        )  # fmt: skip
    except BaseException:
        for request in [] if prefills else mine:
            pool.close(request)
        raise
    if not prefills:
        pool.advance(mine, lengths)
    return HandOver(tuple(mine), logits, plan, report, time.monotonic() - begun)
