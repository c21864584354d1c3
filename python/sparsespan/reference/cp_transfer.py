"""Twins of :func:`sparsespan.cp.transfer_plan`: what must move, and a plan carried out on arrays, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..quant import kv_layout
from .quant import token_fields

__all__ = ["holds", "needed_rows", "rows_of_plan", "run_transfer"]


def _stage_layers(side: Any, num_layers: int, stage: int) -> range:
    stages = side.stages or [num_layers // side.pp + (i < num_layers % side.pp) for i in range(side.pp)]
    return range(sum(stages[:stage]), sum(stages[: stage + 1]))


def holds(side: Any, decode: bool, num_layers: int, part: str, rank: int, layer: int, position: int) -> bool:
    """Whether a rank keeps the row of (part, layer, position): the definition of every layout, one line each."""
    tp_rank, cp_rank, pp_rank = rank % side.tp, rank // side.tp % side.cp, rank // (side.tp * side.cp)
    layers = _stage_layers(side, num_layers, pp_rank)
    if layer not in layers:
        return False
    replicated = part == "index" and side.index_k == "replicated"
    dcp_rank = tp_rank % side.dcp
    if decode:
        return bool(replicated or position // side.interleave % side.dcp == dcp_rank)
    if side.kv == "full":
        return True
    if side.kv == "layer_split":
        return bool(layer in np.array_split(np.array(layers), side.cp)[cp_rank])
    shard = cp_rank * side.dcp + dcp_rank
    return bool(replicated or position // side.interleave % (side.cp * side.dcp) == shard)


def needed_rows(plan: Any) -> set[tuple[int, int, str, int, int]]:
    """Every (decode rank, request, part, layer, position) that the decode layout needs and nobody brought before."""
    index_layers = range(plan.num_layers) if plan.index_layers is None else plan.index_layers
    parts = [
        (part, layers)
        for part, layers, size in (
            ("kv", range(plan.num_layers), plan.kv_bytes),
            ("index", index_layers, plan.index_bytes),
        )
        if size
    ]
    return {
        (rank, s, part, layer, p)
        for rank in range(plan.decode.world_size)
        for s, (length, present) in enumerate(zip(plan.lengths, plan.present))
        for part, layers in parts
        for layer in layers
        for p in range(present, length)
        if holds(plan.decode, True, plan.num_layers, part, rank, layer, p)
    }


def rows_of_plan(plan: Any) -> list[tuple[int, int, int, str, int, int]]:
    """Every (source, decode rank, request, part, layer, position) that a plan moves, from its table's definition."""
    rows = []
    for t in plan:
        src_block, src_ranks = plan.prefill.shards(t.part, False)
        dst_block, dst_ranks = plan.decode.shards(t.part, True)
        for layer in range(t.layer_begin, t.layer_end):
            for p in range(t.start, t.stop):
                if p // src_block % src_ranks == t.src_class and p // dst_block % dst_ranks == t.dst_class:
                    rows.append((t.src, t.dst, t.request, t.part, layer, p))
    return rows


def _slot(pages: np.ndarray, page_size: int, shards: tuple[int, int], position: int) -> int:
    block, ranks = shards
    local = position // (block * ranks) * block + position % block
    return int(pages[local // page_size]) * page_size + local % page_size


def run_transfer(plan: Any, sources: list[Any], dests: list[Any], layout: str, index_layout: str) -> None:
    """Row by row from the prefill ranks' caches to the decode ranks', field by field; one entry per rank."""
    for src, dst, request, part, layer, position in rows_of_plan(plan):
        info = kv_layout(layout if part == "kv" else index_layout)
        places = []
        for caches, side, decode in ((sources[src], plan.prefill, False), (dests[dst], plan.decode, True)):
            own = part == "index" and caches.index_pages is not None
            pages = (caches.index_pages if own else caches.pages)[request]
            slot = _slot(pages, side.page_size, side.shards(part, decode), position)
            places.append(token_fields(getattr(caches, part)[layer], slot, info, side.page_size))
        for there, here in zip(places[1], places[0], strict=True):
            there[:] = here
