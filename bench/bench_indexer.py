"""The indexer at V3.2's sizes: logits against NumPy and torch, select against its two steps, top-k against peers."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from timing import interleaved

from sparsespan import _core, num_threads
from sparsespan.indexer import mqa_logits, paged_select, select, topk
from sparsespan.testing import each_isa

FP8 = ml_dtypes.float8_e4m3fn
DIM, TOPK = 128, 2048


def _inputs(rows: int, keys: int, heads: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((rows, heads, DIM), dtype=np.float32).astype(FP8)
    k = rng.standard_normal((keys, DIM), dtype=np.float32).astype(FP8)
    weights = rng.standard_normal((rows, heads), dtype=np.float32)
    ks, ke = np.zeros(rows, np.int32), np.arange(keys - rows, keys, dtype=np.int32) + 1
    return q, k, weights, ks, ke, np.ones(keys, np.float32)


def _numpy_logits(q: np.ndarray, k: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """One product per query row, everything in float32 and in place: the quickest of the forms tried."""
    scores = np.empty((q.shape[1], len(k)), np.float32)
    for t in range(len(q)):
        np.matmul(q[t], k.T, out=scores)
        np.maximum(scores, 0, out=scores)
        np.matmul(weights[t], scores, out=out[t])


def _torch_logits(q: np.ndarray, k: np.ndarray, weights: np.ndarray):
    import torch

    tq, tk, tw = (torch.from_numpy(x) for x in (q, k, weights))
    return lambda: torch.stack([w @ torch.relu(row @ tk.T) for row, w in zip(tq, tw)])


def _timed(op: str, shape: str, isa: str, runs: dict, repeats: int, flops: float | None = None):
    """One row per peer; the probe of this level and thread count takes its turn among the runs."""
    rates: list[float] = []
    if flops is not None:
        runs = {**runs, "probe": lambda: rates.append(_core.probe(isa, 1 << 20, num_threads()))}
    median = interleaved(runs, repeats)
    median.pop("probe", None)
    ours = median.pop("ours")
    row: dict = {"op": op, "shape": shape, "isa": isa, "ours_ms": ours * 1e3}
    if flops is not None:
        row |= {"gflops": flops / ours / 1e9, "fraction_of_probe": flops / ours / max(rates)}
    for peer, seconds in median.items():
        yield row | {"peer": peer, "peer_ms": seconds * 1e3, "ratio": seconds / ours}


def _logits_rows(rows: int, keys: int, heads: int, repeats: int):
    q, k, weights, ks, ke, scale = _inputs(rows, keys, heads)
    q32, k32 = q.astype(np.float32), k.astype(np.float32)
    out, theirs = np.empty((rows, keys), np.float32), np.empty((rows, keys), np.float32)
    ke = np.full(rows, keys, np.int32)  # whole rows: the peers compute no less
    peers = {"numpy float32": lambda: _numpy_logits(q32, k32, weights, theirs)}
    if importlib.util.find_spec("torch"):
        peers["torch float32"] = _torch_logits(q32, k32, weights)
    shape = f"T={rows} S={keys} Hi={heads} fp8"
    flops = 2.0 * rows * keys * heads * DIM
    for isa in each_isa():
        runs = {"ours": lambda: mqa_logits(q, k, weights, ks, ke, scale, out=out)}
        yield from _timed("mqa_logits", shape, isa, runs | peers, repeats, flops)


def _select_rows(rows: int, keys: int, heads: int, repeats: int):
    q, k, weights, ks, ke, scale = _inputs(rows, keys, heads)
    best = np.empty((rows, TOPK), np.int32)

    def two_steps():
        topk(mqa_logits(q, k, weights, ks, ke, scale), TOPK, ke - ks, ks)

    flops = 2.0 * float((ke - ks).sum()) * heads * DIM
    for isa in each_isa():
        runs = {"ours": lambda: select(q, k, weights, ks, ke, scale, TOPK, out=best), "own logits + topk": two_steps}
        yield from _timed("select", f"T={rows} S={keys} Hi={heads} fp8", isa, runs, repeats, flops)


def _decode_rows(length: int, heads: int, repeats: int):
    q, k, weights, ks, ke, scale = _inputs(1, length, heads)
    pages = length // 64
    cache = np.empty((pages, 64 * 132), np.uint8)
    order = np.random.default_rng(1).permutation(pages).astype(np.int32)
    cache[order, : 64 * 128] = k.view(np.uint8).reshape(pages, -1)
    cache[order, 64 * 128 :] = scale.view(np.uint8).reshape(pages, -1)
    lens = np.array([length], np.int32)
    for isa in each_isa():
        runs = {
            "ours": lambda: paged_select(q, cache, weights, lens, order[None], 64, TOPK),
            "own packed select": lambda: select(q, k, weights, ks, ke, scale, TOPK),
        }
        shape = f"B=1 ctx={length} Hi={heads} index_132"
        yield from _timed("paged_select", shape, isa, runs, repeats, 2.0 * length * heads * DIM)


def _nth_element():
    """std::nth_element built with this machine's compiler; None without one."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    source = Path(__file__).parent / "native" / "nth_element.cpp"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "nth_element.so"
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library)).nth_element_topk


def _topk_rows(keys: int, repeats: int):
    rng = np.random.default_rng(0)
    kinds = {
        "normal": rng.standard_normal(keys),
        "93% zero": np.maximum(rng.standard_normal(keys) - 1.5, 0),
        "10 low bits": 1 + rng.integers(0, 1024, keys) * 2.0**-23,
        "all equal": np.ones(keys),
    }
    native = _nth_element()
    for kind, values in kinds.items():
        scores = values.astype(np.float32)[None]
        best, theirs = np.empty((1, TOPK), np.int32), np.empty(TOPK, np.int32)
        peers = {"np.argpartition": lambda s=scores: np.argpartition(s[0], keys - TOPK)[keys - TOPK :]}
        if native is not None:
            pointers = scores.ctypes.data_as(ctypes.c_void_p), theirs.ctypes.data_as(ctypes.c_void_p)
            peers["std::nth_element"] = lambda p=pointers: native(p[0], keys, TOPK, p[1])
        if importlib.util.find_spec("torch"):
            import torch

            tensor = torch.from_numpy(scores)
            peers["torch.topk"] = lambda t=tensor: torch.topk(t, TOPK)
        for isa in each_isa():
            runs = {"ours": lambda s=scores, b=best: topk(s, TOPK, out=b)} | peers
            yield from _timed("topk", f"{keys} -> {TOPK}, {kind}", isa, runs, repeats)


def rows(quick: bool):
    """All rows of the family; `quick` keeps one shape of each op."""
    repeats = 5 if quick else 15
    yield from _logits_rows(16, 4096, 64, repeats)
    yield from _select_rows(16, 8192, 64, repeats)
    yield from _topk_rows(131072, repeats)
    if quick:
        return
    yield from _logits_rows(1, 32768, 64, repeats)
    yield from _logits_rows(16, 8192, 32, repeats)
    yield from _decode_rows(131072, 64, repeats)
