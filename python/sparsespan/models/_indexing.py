"""What a layer's indexer is given: keys for its cache, queries and weights for its rows."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from .. import indexer, quant, transform
from ._caches import PagedCaches
from ._dims import LayerDims, rope_table
from ._taps import seen
from ._weights import LayerWeights

__all__ = ["index_keys", "index_queries", "select_paged"]


def _turn(x: Any, positions: Any, dims: LayerDims, hadamard: bool, threads: int) -> Any:
    """RoPE on the first dims, in place, then the Hadamard transform where it is wanted."""
    pe = x[..., : dims.rope]
    table = rope_table(dims, int(positions.max(initial=0)) + 1)
    transform.apply_rope(pe, positions, table, dims.index_rope_interleaved, out=pe, threads=threads)
    return transform.hadamard_transform(x, dims.index_dim**-0.5, threads=threads) if hadamard else x


def index_keys(x: Any, positions: Any, dims: LayerDims, w: LayerWeights, hadamard: bool, threads: int) -> Any:
    """[n, 128] of normed hidden rows. The norm's eps is 1e-6 in all models."""
    k = transform.layer_norm(w.index_k(x, threads=threads), *w.index_k_norm, 1e-6, threads=threads)
    return _turn(k, positions, dims, hadamard, threads)


def index_queries(
    x: Any, qr: Any, positions: Any, dims: LayerDims, w: LayerWeights, caches: PagedCaches, hadamard: bool, threads: int
) -> tuple[Any, np.ndarray]:
    """Queries [n, Hi, 128] in the precision of the index cache; float32 weights [n, Hi] with every factor in them."""
    q = w.index_q(qr, threads=threads).reshape(len(x), dims.index_heads, dims.index_dim)
    q = _turn(q, positions, dims, hadamard, threads)
    weights = w.index_weights(x, out_dtype="float32", threads=threads)
    weights *= np.float32(dims.index_heads**-0.5 * dims.index_dim**-0.5)
    seen(index_q=q, index_weights=weights)
    if caches.index_layout == "index_132":
        q, scale = quant.act_quant(q, dims.index_dim, "ue8m0", threads=threads)
        weights *= scale[..., 0]
    elif caches.index_layout == "index_bf16":
        q = q.astype(ml_dtypes.bfloat16)
    return q, weights


def select_paged(
    q: Any, weights: Any, positions: Any, request: Any, rows: np.ndarray | None, next_n: int, caches: PagedCaches,
    layer: int, topk: int, threads: int,
) -> Any:  # fmt: skip
    """Logical positions for the rows of a decode step, or for some of them, of which each is then its own request."""
    table, lens = caches.block_table, positions[next_n - 1 :: next_n] + 1
    if rows is None:
        q = q.reshape(len(lens), next_n, *q.shape[1:])
    else:
        table, lens = np.ascontiguousarray(table[request[rows]]), positions[rows] + 1
    return indexer.paged_select(
        q, caches.index_k[layer], weights, lens, table, caches.page_size, topk=topk, layout=caches.index_layout,
        threads=threads,
    )  # fmt: skip
