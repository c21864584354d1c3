"""The ops as ``torch.ops.sparsespan.*``: with shapes that ``torch.compile`` can reason about, without backward.

Importing this module registers them. Tensors are on the CPU; memory is shared, not copied.
"""

from __future__ import annotations

import torch

from .. import attention, indexer

__all__ = ["mqa_logits", "select", "sparse_mha", "sparse_mla"]


@torch.library.custom_op("sparsespan::mqa_logits", mutates_args=(), device_types="cpu")
def mqa_logits(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, ks: torch.Tensor, ke: torch.Tensor
) -> torch.Tensor:
    """:func:`sparsespan.indexer.mqa_logits`: float32 [T, S], -inf outside of [ks, ke)."""
    return indexer.mqa_logits(q, k, weights, ks, ke)


@mqa_logits.register_fake
def _(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, ks: torch.Tensor, ke: torch.Tensor) -> torch.Tensor:
    return q.new_empty((q.shape[0], k.shape[0]), dtype=torch.float32)


@torch.library.custom_op("sparsespan::select", mutates_args=(), device_types="cpu")
def select(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, ks: torch.Tensor, ke: torch.Tensor, topk: int
) -> torch.Tensor:
    """:func:`sparsespan.indexer.select`: int32 [T, topk], ascending packed rows of ``k``, then -1."""
    return indexer.select(q, k, weights, ks, ke, topk=topk)


@select.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, ks: torch.Tensor, ke: torch.Tensor, topk: int
) -> torch.Tensor:
    return q.new_empty((q.shape[0], topk), dtype=torch.int32)


@torch.library.custom_op("sparsespan::sparse_mla", mutates_args=(), device_types="cpu")
def sparse_mla(
    q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, sm_scale: float, d_v: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`sparsespan.attention.sparse_mla` on packed rows: (out [T, H, d_v], lse [T, H])."""
    out, lse, _ = attention.sparse_mla(q, kv, indices, sm_scale, d_v)
    return out, lse


@sparse_mla.register_fake
def _(
    q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, sm_scale: float, d_v: int = 512
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty((*q.shape[:2], d_v)), q.new_empty(q.shape[:2], dtype=torch.float32)


@torch.library.custom_op("sparsespan::sparse_mha", mutates_args=(), device_types="cpu")
def sparse_mha(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, sm_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`sparsespan.attention.sparse_mha`: (out [T, H, Dv], lse [T, H])."""
    return attention.sparse_mha(q, k, v, indices, sm_scale)


@sparse_mha.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, indices: torch.Tensor, sm_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty((*q.shape[:2], v.shape[2])), q.new_empty(q.shape[:2], dtype=torch.float32)
