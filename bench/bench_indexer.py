"""The indexer at the sizes of V3.2 (64 heads) and GLM-5 (32): logits, select, decode from a paged cache.

Prefill rows are sampled: clusters of eight neighbours over the whole sequence, each row with its own causal window.
NumPy's decode starts from the same pages of fp8, which is the same job (widened by astype, or by a table, which is
quicker), and once from keys widened to float32 and laid in a row beforehand: the product and the choice alone.
FLOPs are counted as 2 * heads * 128 per visible key, bytes as one read of the visible keys, the queries and the output.
"""

from __future__ import annotations

import numpy as np
from native_peers import sglang_logits, sglang_paged_logits, vllm_logits
from peers import BF16, FP8, to_torch, torch_or_none
from session import SESSION
from timing import compare

from sparsespan.indexer import mqa_logits, paged_select, select, topk

DIM, TOPK, PAGE = 128, 2048, 64
MODELS = {64: "V3.2", 32: "GLM-5"}


def sampled_rows(count: int, length: int) -> np.ndarray:
    """Positions of clusters of up to eight neighbouring rows, spread over the sequence."""
    width = min(8, count)
    ends = np.linspace(0, length, count // width + 1)[1:].astype(np.int64)
    return (ends[:, None] - width + np.arange(width)).ravel()


def inputs(rows: int, keys: int, heads: int, dtype) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((rows, heads, DIM), dtype=np.float32).astype(dtype)
    k = rng.standard_normal((keys, DIM), dtype=np.float32).astype(dtype)
    weights = rng.standard_normal((rows, heads), dtype=np.float32)
    ks, ke = np.zeros(rows, np.int32), (sampled_rows(rows, keys) + 1).astype(np.int32)
    return q, k, weights, ks, ke, np.ones(keys, np.float32) if dtype == FP8 else None


def _numpy_logits(q, k, weights, ke, out):
    """One product per query row, everything in float32 and in place: the quickest of the forms tried."""
    wide_q, wide_k = q.astype(np.float32), k.astype(np.float32)
    scores = np.empty(q.shape[1] * len(k), np.float32)

    def run():
        for t in range(len(q)):
            mine = scores[: q.shape[1] * ke[t]].reshape(q.shape[1], ke[t])
            np.matmul(wide_q[t], wide_k[: ke[t]].T, out=mine)
            np.maximum(mine, 0, out=mine)
            np.matmul(weights[t], mine, out=out[t, : ke[t]])

    return run


def _torch_logits(q, k, weights, ke, best=0):
    """bf16 product, relu, weighted sum; with `best`, torch.topk of each row behind it."""
    torch = torch_or_none()
    if torch is None:
        return {}
    tq, tk = (to_torch(x.astype(np.float32).astype(BF16)) for x in (q, k))
    tw = to_torch(weights.astype(BF16))

    def run():
        for t in range(len(q)):
            row = tw[t] @ torch.relu(tq[t] @ tk[: ke[t]].T)
            if best:
                torch.topk(row, min(best, len(row)))

    return {"torch bf16 composed": run}


def _prefill_rows(rows: int, keys: int, heads: int, dtype, numpy_too: bool):
    q, k, weights, ks, ke, scale = inputs(rows, keys, heads, dtype)
    out, theirs = np.empty((rows, keys), np.float32), np.empty((rows, keys), np.float32)
    shape = f"{MODELS[heads]} T={rows} S={keys} {'fp8' if dtype == FP8 else 'bf16'}"
    visible = float(ke.sum())
    flops = 2.0 * visible * heads * DIM
    read = keys * DIM * k.itemsize + q.nbytes

    def logits():
        mqa_logits(q, k, weights, ks, ke, scale, clean_logits=False, out=out)

    peers = {"numpy float32": _numpy_logits(q, k, weights, ke, theirs)} if numpy_too else {}
    peers |= _torch_logits(q, k, weights, ke) | sglang_logits(q, k, scale, weights, ks, ke)
    # A call over 128K keys takes 0.1 s at the best level; OpenBLAS's pool needs as long to come to rest.
    seconds = 2 * SESSION.seconds() if keys > 32768 or (numpy_too and not SESSION.quick) else 0.0
    yield from compare("mqa_logits", shape, logits, peers, flops=flops, moved=read + 4 * visible, seconds=seconds)
    best = np.empty((rows, TOPK), np.int32)
    yield from compare(
        "select", shape, lambda: select(q, k, weights, ks, ke, scale, TOPK, out=best),
        _torch_logits(q, k, weights, ke, TOPK),
        own={"own logits alone": logits, "own logits + topk": lambda: (logits(), topk(out, TOPK, ke - ks, ks))},
        flops=flops, moved=read + best.nbytes, seconds=seconds if keys > 32768 else 0.0,
    )  # fmt: skip


def _numpy_decode(q, cache, weights, table, length, by_table):
    """What a NumPy user writes who has what paged_select has: gather the pages, widen e4m3, product, relu, weighted
    sum, scale, argpartition. Widened by ml_dtypes' astype, or by a table of the 256 codes."""
    values = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)
    wide_q, wide_k = q.astype(np.float32), np.empty((length, DIM), np.float32)
    scores = np.empty((q.shape[1], length), np.float32)

    def run():
        for b in range(len(q)):
            pages = cache[table[b]]
            codes = np.ascontiguousarray(pages[:, : PAGE * DIM]).reshape(length, DIM)
            scale = np.ascontiguousarray(pages[:, PAGE * DIM :]).view(np.float32).ravel()
            if by_table:
                np.take(values, codes, out=wide_k, mode="clip")
            else:
                np.copyto(wide_k, codes.view(FP8), casting="unsafe")
            np.matmul(wide_q[b], wide_k.T, out=scores)
            np.maximum(scores, 0, out=scores)
            np.argpartition(weights[b] @ scores * scale, length - TOPK)[length - TOPK :]

    return run


def _decode_rows(batch: int, length: int, heads: int):
    rng = np.random.default_rng(1)
    q, k, weights, _, _, scale = inputs(batch, length, heads, FP8)
    pages = batch * length // PAGE
    cache = np.empty((pages, PAGE * 132), np.uint8)
    table = rng.permutation(pages).astype(np.int32).reshape(batch, -1)
    for row in table:
        cache[row, : PAGE * DIM] = k.view(np.uint8).reshape(-1, PAGE * DIM)
        cache[row, PAGE * DIM :] = scale.view(np.uint8).reshape(-1, PAGE * 4)
    lens = np.full(batch, length, np.int32)
    ke = lens.astype(np.int64)
    theirs = np.empty((batch, length), np.float32)
    logits = _numpy_logits(q, k, weights, ke, theirs)

    def numpy_decode():
        logits()
        np.argpartition(theirs, length - TOPK, axis=1)[:, length - TOPK :]

    peers = _torch_logits(q, k, weights, ke, TOPK)
    if batch == 1:  # of sixteen rows NumPy needs many seconds
        peers |= {
            "numpy from the same fp8 pages": _numpy_decode(q, cache, weights, table, length, by_table=False),
            "numpy from the same fp8 pages, table of codes": _numpy_decode(q, cache, weights, table, length, True),
            "numpy, keys float32 and in a row beforehand": numpy_decode,
        }
    paged = q, cache, weights, lens, table, PAGE, length, TOPK
    peers |= vllm_logits(*paged) | sglang_paged_logits(*paged)
    yield from compare(
        "paged_select", f"{MODELS[heads]} B={batch} ctx={length} index_132",
        lambda: paged_select(q, cache, weights, lens, table, PAGE, TOPK), peers,
        own={"own, 1 thread": lambda: paged_select(q, cache, weights, lens, table, PAGE, TOPK, threads=1)},
        flops=2.0 * batch * length * heads * DIM, moved=batch * length * 132.0,
        seconds=2 * SESSION.seconds() if batch == 1 and length > 8192 else 0.0,
    )  # fmt: skip


def rows(quick: bool):
    yield from _prefill_rows(16, 8192, 64, FP8, True)
    if quick:
        yield from _decode_rows(1, 131072, 64)
        return
    for heads in (64, 32):
        for keys in (8192, 32768, 131072):
            if (heads, keys) != (64, 8192):
                yield from _prefill_rows(16, keys, heads, FP8, keys == 8192)
        for batch, length in ((1, 8192), (1, 131072), (16, 8192), (16, 131072)):
            yield from _decode_rows(batch, length, heads)
    yield from _prefill_rows(16, 32768, 64, BF16, False)
