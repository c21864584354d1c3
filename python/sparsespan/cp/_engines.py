"""A plan in the words of the engine whose flavor it has: the metadata that the engine itself would build."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ._plan import CpPlan

__all__ = ["engine_metadata"]

Metadata = dict[str, Any]


def _cu(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _sglang_blocks(plan: CpPlan) -> tuple[np.ndarray, np.ndarray]:
    """Block sizes [B, blocks] and, per rank, the blocks it owns [N, 1 or 2] (front, back)."""
    n = plan.world_size
    length = plan._core.split_lens()[:, None]
    if plan.scheme == "contiguous":
        edge = length * np.arange(n + 1) // n
        return np.diff(edge, axis=1), np.arange(n)[:, None]
    block = np.arange(2 * n)
    return length // (2 * n) + (block < length % (2 * n)), np.stack([block[:n], 2 * n - 1 - block[:n]], 1)


def _sglang(plan: CpPlan, r: int) -> Metadata:
    """ZigzagContextParallelMetadata; the lengths include what was padded to the last request, as in SGLang."""
    blocks, owned = _sglang_blocks(plan)
    requests, per_request = blocks.shape
    ids = np.arange(requests)[:, None] * per_request
    stream = [(ids[:, 0] + b).tolist() for rank in owned for b in rank]  # gathered, rank-major, in pieces
    place = np.empty(blocks.size, np.int64)
    place[np.concatenate(stream)] = np.arange(blocks.size)
    logical = blocks[:, owned].sum(axis=(0, 2))
    end = np.cumsum(blocks, axis=1) + plan.prefix_lens[:, None]
    out: Metadata = {
        "bs": requests,
        "total_seq_lens": int(blocks.sum()),
        "split_list": blocks.ravel(),
        "zigzag_index": np.concatenate([ids[:, 0] + b for b in owned[r]]),
        "cp_reverse_index": place,
        "reverse_split_len": blocks.ravel()[np.concatenate(stream)],
        "per_rank_logical_token": logical,
        "per_rank_actual_token": np.full(plan.world_size, plan.padded_len),
        "max_rank_len": np.full(plan.world_size, plan.padded_len),
    }
    for name, part in (("prev", 0), ("next", 1)):
        there = part < owned.shape[1]
        q = blocks[:, owned[r][part]] if there else np.zeros(0, np.int64)
        out[f"actual_seq_q_{name}_list"] = q
        out[f"kv_len_{name}_list"] = end[:, owned[r][part]] if there else np.zeros(0, np.int64)
        out[f"cu_seqlens_q_{name}"] = _cu(q)
        out[f"total_q_{name}_tokens"] = int(q.sum())
    return out


def _sglang_interleave(plan: CpPlan, r: int) -> Metadata:
    counts = plan.request_counts(r)
    kept = plan.kept_requests(r)
    return {
        "bs_idx": kept,
        "q_lens": counts[kept],
        "cu_seqlens_q": np.arange(plan.real_counts[r] + 1),
        "cache_seqlens": plan.actual_seq_kv(r),
        "per_rank_real_token": plan.real_counts,
        "per_rank_actual_token": plan.counts,
    }


def _padded_stream(plan: CpPlan) -> tuple[np.ndarray, np.ndarray]:
    """(padded rows of each request, restore index of the padded stream)."""
    n = plan.world_size
    length = np.diff(plan.cu_seqlens)
    padded = np.where(plan.replicated, length * n, -(-length // (2 * n)) * 2 * n)
    start = _cu(padded)
    places = []
    for r in range(n):
        request = plan.row_to_request(r, include_pads=True)
        request = request[request >= 0]
        offset = plan.positions(r)[: len(request)] - plan.prefix_lens[request]
        places.append(start[request] + offset + np.where(plan.replicated[request], r * length[request], 0))
    return padded, np.argsort(np.concatenate(places), kind="stable")


def _head_tail(plan: CpPlan, r: int) -> Metadata:
    """Index lists over the prefill requests: q in the local prefill rows, kv in the restored padded prefill KV."""
    n = plan.world_size
    prefill = ~plan.replicated
    chunk = -(-np.diff(plan.cu_seqlens)[prefill] // (2 * n))
    prefix = plan.prefix_lens[prefill]
    offset = _cu(2 * chunk)[:-1]

    def ranges(start: np.ndarray, size: np.ndarray) -> np.ndarray:
        return np.concatenate([np.arange(a, a + m) for a, m in zip(start, size)] or [np.zeros(0, np.int64)])

    head, tail = ranges(offset, chunk), ranges(offset + chunk, chunk)
    out: Metadata = {
        "q_head_idx": head,
        "q_tail_idx": tail,
        "q_full_idx": np.argsort(np.concatenate([head, tail]), kind="stable"),
        "actual_seq_q_half": np.cumsum(2 * chunk) // 2,
    }
    for name, k in (("head", r), ("tail", 2 * n - 1 - r)):
        out[f"kv_with_q_{name}_nomask_idx"] = ranges(offset * n, k * chunk)
        out[f"kv_with_q_{name}_mask_idx"] = ranges(offset * n + k * chunk, chunk)
        out[f"{name}_actual_seq_kv"] = prefix + (k + 1) * chunk
    return out


def _head_tail_padded(plan: CpPlan, r: int) -> Metadata:
    n = plan.world_size
    length = np.diff(plan.cu_seqlens)
    padded, restore = _padded_stream(plan)
    pads = padded - length
    # Decode rows are seen as (-1, N), of which column 0 is real.
    mask = [
        (np.arange(m) % n == 0) if whole else (np.arange(m) < k) for m, k, whole in zip(padded, length, plan.replicated)
    ]
    local = np.where(plan.replicated, length, padded // n)
    return {
        "pcp_tokens": local,
        "num_pcp_pads": pads,
        "pcp_unpad_mask": np.concatenate(mask or [np.zeros(0, bool)]),
        "pcp_allgather_restore_idx": restore,
        "positions": plan.positions(r),
        "logits_indices": np.cumsum(local) * n - pads - 1,
        **_head_tail(plan, r),
    }


def _ceil_chunk(plan: CpPlan, r: int) -> Metadata:
    segments = plan.segments(r)
    request, start, length = segments.request, segments.kv_len - segments.q_len, segments.q_len
    if len(request) == 0:  # a rank without rows runs one request row of length zero
        request, length = np.zeros(1, np.int64), np.zeros(1, np.int64)
        start = plan.prefix_lens[:1]
    rows = [plan.rank_rows(k, length=plan.padded_len) for k in range(plan.world_size)]
    return {
        "local_to_global_batch_req_idx": request,
        "num_computed_tokens": start,
        "num_scheduled_tokens": length,
        "seq_lens": start + length,
        "query_start_loc": _cu(length),
        "per_rank_num_tokens": plan.counts,
        "padded_num_tokens": plan.padded_len,
        "hidden_restore_idx": plan.restore_index,
        "padded_gather_idx": np.maximum(np.concatenate(rows), 0),
        "gathered_kv_write_mask": np.concatenate(
            [plan.kv_write_mask(k, length=plan.padded_len) for k in range(plan.world_size)]
        ),
    }


def _dsa_cp(plan: CpPlan, r: int) -> Metadata:
    t = plan.padded_len
    first, end = r * t, (r + 1) * t
    q0 = plan.cu_seqlens
    e0 = np.clip(q0[1:], first, end)
    m = e0 - np.clip(q0[:-1], first, end)
    keys = np.where(plan.real_lens > 0, plan.prefix_lens + plan.real_lens, 0)
    seen = np.where((m > 0) & (keys > 0), np.maximum(keys - (q0[1:] - e0), 0), 0)
    return {
        "num_tokens_pad": t * plan.world_size,
        "local_start": first,
        "local_end": min(end, plan.num_rows),
        "local_end_with_pad": end,
        "actual_seq_lengths_query": np.cumsum(m),
        "actual_seq_lengths_key": seen,
    }


_BUILDERS: dict[str, Callable[[CpPlan, int], Metadata]] = {
    "zigzag": _sglang,
    "contiguous": _sglang,
    "interleave": _sglang_interleave,
    "zigzag_padded": _head_tail_padded,
    "ceil_chunk": _ceil_chunk,
    "contiguous_flat": _dsa_cp,
}


def engine_metadata(plan: CpPlan, r: int) -> Metadata:
    """See CpPlan.engine_metadata."""
    if plan.flavor is None:
        raise ValueError('engine_metadata: the plan has flavor None, needs "sglang", "vllm" or "vllm_ascend"')
    if not 0 <= r < plan.world_size:
        raise IndexError(f"engine_metadata: r is {r}, needs 0 to {plan.world_size - 1}")
    return _BUILDERS[plan.scheme](plan, r)
