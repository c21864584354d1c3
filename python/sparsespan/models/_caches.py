"""Paged caches of a stack of layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..cp import LayerCache
from ..quant import concat_and_cache_mla, indexer_k_quant_and_cache, kv_layout

__all__ = ["PagedCaches"]


class PagedCaches:
    """Latent KV and index keys of some layers, in pages that one block table names for all of them.

    Parameters
    ----------
    layers : int or iterable of int
        Layer indices (absolute, as in the checkpoint); a number n means 0 .. n-1.
    pages, page_size : int
        Pages of each layer's caches and tokens per page.
    kv_layout : {"fp8_656", "bf16_576", "f32_576"}
    index_layout : {"index_132", "index_bf16", "index_f32"}
        index_132 makes the indexer work in fp8, the others in that dtype.
    index_layers : iterable of int, optional
        Layers that own an indexer; default all. The others ("shared") have no index cache.
    block_table : integers [B, blocks], optional
        Page of each block of each request of the present batch; may be set later and changed between calls.
    index_pages : int, optional
        Pages of the index caches, where ranks share the KV cache and each has all index keys: ``pages`` times ranks.

    Attributes
    ----------
    kv : dict of array [pages, page_size, width]
        By layer.
    index_k : dict of array [pages, page_size, width]
        By layer, for layers with an indexer.
    """

    def __init__(
        self,
        layers: int | Iterable[int],
        pages: int,
        page_size: int = 64,
        kv_layout: str = "fp8_656",
        index_layout: str = "index_132",
        index_layers: Iterable[int] | None = None,
        block_table: Any = None,
        index_pages: int | None = None,
    ) -> None:
        self.layers = tuple(range(layers) if isinstance(layers, int) else layers)
        self.page_size = page_size
        self.kv_layout = kv_layout
        self.index_layout = index_layout
        own = set(self.layers if index_layers is None else index_layers)
        kv, index = _layout("kv_layout", kv_layout, 576), _layout("index_layout", index_layout, 128)
        self.kv = {layer: kv.zeros(pages, page_size) for layer in self.layers}
        self.index_k = {layer: index.zeros(index_pages or pages, page_size) for layer in self.layers if layer in own}
        self.block_table = np.zeros((0, 0), np.int32) if block_table is None else np.asarray(block_table)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches, counted."""
        return sum(c.nbytes for c in (*self.kv.values(), *self.index_k.values()))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes in all layers."""
        latent = kv_layout(self.kv_layout).bytes_per_token * len(self.kv)
        return latent + kv_layout(self.index_layout).bytes_per_token * len(self.index_k)

    def layer(self, index: int) -> LayerCache:
        """One layer's caches, as the operations of :mod:`sparsespan.cp` take them."""
        return LayerCache(self.kv[index], self.index_k.get(index), self.kv_layout, self.index_layout, self.page_size)

    def write(self, layer: int, keys: tuple[Any, Any, Any], slots: Any, threads: int = 0) -> None:
        """Write (KV latent, rope key, index key or None) of new tokens to their slots; -1 writes nothing."""
        latent, k_pe, index = keys
        concat_and_cache_mla(latent, k_pe, self.kv[layer], slots, self.kv_layout, self.page_size, threads=threads)
        if index is not None:
            cache = self.index_k[layer]
            indexer_k_quant_and_cache(index, cache, slots, self.page_size, self.index_layout, threads=threads)

    def slots(self, requests: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Slot of each (row of the block table, logical position); -1 where the request is -1."""
        requests, positions = np.asarray(requests), np.asarray(positions)
        live = requests >= 0
        block = positions // self.page_size
        worst = int(block[live].max(initial=-1))
        if worst >= self.block_table.shape[1]:
            raise ValueError(
                f"PagedCaches: position {worst * self.page_size} needs block {worst}, block_table has "
                f"{self.block_table.shape[1]} blocks a request: hand it more pages"
            )
        slots = np.full(len(requests), -1, np.int64)
        page = self.block_table[requests[live], block[live]].astype(np.int64)
        slots[live] = page * self.page_size + positions[live] % self.page_size
        return slots


def _layout(argument: str, name: str, dim: int) -> Any:
    layout = kv_layout(name)
    if layout.dim != dim:
        raise ValueError(f'PagedCaches: {argument} is "{name}", needs a layout of {dim} values a token')
    return layout
