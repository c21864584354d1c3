"""Keys of one layer into its caches, on one rank and on the ranks of a plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import quant
from ..cp import CpPlan
from ._caches import PagedCaches

__all__ = ["batch_slots", "gather_and_cache", "write"]

Keys = tuple[Any, Any, Any]  # latent [n, 512], rope key [n, 64], index key [n, 128] or None


def batch_slots(plan: CpPlan, caches: PagedCaches) -> np.ndarray:
    """Slot of each row of the batch, in the batch's own order."""
    lengths = np.diff(plan.cu_seqlens)
    request = np.repeat(np.arange(plan.num_requests), lengths)
    row = np.arange(plan.num_rows) - plan.cu_seqlens[request]
    real = row < plan.real_lens[request]
    return caches.slots(np.where(real, request, -1), np.where(real, plan.prefix_lens[request] + row, 0))


def write(caches: PagedCaches, layer: int, keys: Keys, slots: np.ndarray, threads: int = 0) -> None:
    """Store keys at slots (-1 skips) of a layer's caches."""
    latent, k_pe, index = keys
    quant.concat_and_cache_mla(
        latent, k_pe, caches.kv[layer], slots, caches.kv_layout, caches.page_size, threads=threads
    )
    if index is not None:
        quant.indexer_k_quant_and_cache(
            index, caches.index_k[layer], slots, caches.page_size, caches.index_layout, threads=threads
        )


def gather_and_cache(
    comm: Any, plan: CpPlan, rank: int, caches: PagedCaches, layer: int, keys: Keys, threads: int = 0
) -> None:
    """Bring every rank's keys into this rank's caches; without a communicator, this rank's are all there are."""
    slots = batch_slots(plan, caches)
    if comm is None:
        write(caches, layer, keys, plan.slot_mapping(slots, rank), threads)
        return
    parts: list[Any] = []
    for part in keys:
        if part is None:
            parts.append(None)
            continue
        padded = np.zeros((plan.padded_len, part.shape[1]), part.dtype)
        padded[: len(part)] = part
        parts.append(comm.all_gather(padded, plan=f"{plan.fingerprint:016x}"))
    write(caches, layer, (parts[0], parts[1], parts[2]), plan.gathered_slot_mapping(slots), threads)
