"""Does sharding the keys pay? One rank's share of a DCP decode step at N = 8 against the whole step on one rank.

Both on one thread, interleaved in one run. Work that follows the keys would take (own valid keys / K) of the one-rank
time; what a row costs without any key is measured beside it. The peer is the bound, 1.15 * share * one rank + empty
row: a ratio of at least 1 is the requirement.
"""

from __future__ import annotations

import time

import ml_dtypes
import numpy as np
from timing import Took, interleaved

from sparsespan.cp import dcp_layout, dcp_partial, dcp_write_kv

HEADS, TOPK, CONTEXT, PAGE, RANKS = 128, 2048, 32768, 64, 8
SCALE = 192**-0.5
BF16 = ml_dtypes.bfloat16


def _cache(layout, keys: np.ndarray, kv_layout: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    pages = layout.pages_for(CONTEXT)
    table = np.random.default_rng(1).permutation(pages)[None]
    cache = np.zeros((pages, PAGE, 656), np.uint8) if kv_layout == "fp8_656" else np.zeros((pages, PAGE, 576), BF16)
    dcp_write_kv(keys[:, :512], keys[:, 512:], cache, np.arange(CONTEXT), table, layout, rank, kv_layout=kv_layout)
    return cache, table


def _ratio(rows: int, interleave: int, kv_layout: str, lanes: bool, repeats: int) -> dict:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((CONTEXT, 576), dtype=np.float32).astype(BF16)
    q = rng.standard_normal((rows, HEADS, 576), dtype=np.float32).astype(BF16)
    indices = np.stack([np.sort(rng.permutation(CONTEXT)[:TOPK]) for _ in range(rows)]).astype(np.int32)
    whole, shared = (dcp_layout(interleave, n, PAGE) for n in (1, RANKS))
    counts = shared.remap_topk(indices, 0, return_counts=True)[1]
    others = np.where(shared.owner(indices) == 0, -1, indices)  # rank 0 owns none of these
    out = (np.empty((rows, HEADS, 512), np.float32), np.empty((rows, HEADS), np.float32))
    requests = np.zeros(rows, np.int32)
    one, table = _cache(whole, keys, kv_layout, 0)
    shard, shared_table = _cache(shared, keys, kv_layout, 0)

    def run(cache, picks, layout, pages):
        def once():
            start = time.thread_time()  # whatever else the machine does
            dcp_partial(
                q, cache, picks, layout, 0, pages, SCALE, row_to_request=requests, kv_layout=kv_layout, lanes=lanes,
                out=out, threads=1,
            )  # fmt: skip
            return Took(time.thread_time() - start)

        return once

    median = interleaved(
        {
            "one": run(one, indices, whole, table),
            "share": run(shard, indices, shared, shared_table),
            "empty": run(shard, others, shared, shared_table),
        },
        repeats,
    )
    share = counts.sum() / indices.size
    bound = 1.15 * share * median["one"] + median["empty"]
    return {
        "op": "dcp_partial 1 of 8", "shape": f"[{rows},128] S={interleave} {kv_layout}{' lanes' if lanes else ''}",
        "ours_ms": median["share"] * 1e3, "peer": "1.15 x share x one + empty", "peer_ms": bound * 1e3,
        "ratio": bound / median["share"], "share": share, "one_rank_ms": median["one"] * 1e3,
        "empty_ms": median["empty"] * 1e3,
        "words": f"share {share:.4f}, one rank {median['one'] * 1e3:.2f} ms, empty {median['empty'] * 1e3:.3f} ms",
    }  # fmt: skip


def rows(quick: bool):
    for count in (1,) if quick else (1, 4, 16):
        for kv_layout in ("bf16_576", "fp8_656"):
            for lanes in (False, True):
                yield _ratio(count, 1 if lanes else 64, kv_layout, lanes, 9 if quick else 11)
