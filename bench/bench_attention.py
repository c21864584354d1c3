"""Sparse MLA at DeepSeek-V3.2's size against NumPy and torch doing the same work in float32; the other ops beside it.

FLOPs are counted as the peers count them: 2 * heads * valid keys * (Dqk + Dv).
"""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
from timing import interleaved

from sparsespan import _core, num_threads
from sparsespan.attention import merge_states, mha, sparse_mla
from sparsespan.testing import each_isa

HEADS, DIM, D_V, TOPK, KEYS, PAGE = 128, 576, 512, 2048, 8192, 64
SCALE = 192**-0.5
BF16 = ml_dtypes.bfloat16


def _data(rows: int):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((rows, HEADS, DIM), dtype=np.float32).astype(BF16)
    kv = rng.standard_normal((KEYS, DIM), dtype=np.float32).astype(BF16)
    indices = np.stack([rng.permutation(KEYS)[:TOPK] for _ in range(rows)]).astype(np.int32)
    return q, kv, indices


def _fp8_cache(kv: np.ndarray) -> np.ndarray:
    """The same keys as fp8_656 bytes with scale 2^-6, page 64."""
    latent = (kv[:, :512].astype(np.float32) * 64).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    scales = np.full((KEYS, 4), 2.0**-6, np.float32)
    parts = [latent.view(np.uint8), scales.view(np.uint8), np.ascontiguousarray(kv[:, 512:]).view(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(KEYS // PAGE, PAGE, 656)


def _numpy_rows(q: np.ndarray, kv: np.ndarray, indices: np.ndarray):
    """gather, matmul, softmax, matmul in float32; q and kv are converted beforehand, in its favour."""

    def run():
        for t in range(len(q)):
            keys = kv[indices[t]]
            s = q[t] @ keys.T
            s *= np.float32(SCALE)
            s -= s.max(axis=1, keepdims=True)
            np.exp(s, out=s)
            s /= s.sum(axis=1, keepdims=True)
            s @ keys[:, :D_V]

    return run


def _torch_rows(q: np.ndarray, kv: np.ndarray, indices: np.ndarray):
    import torch

    tq, tkv, ti = (torch.from_numpy(x) for x in (q, kv, indices.astype(np.int64)))

    def run():
        for t in range(len(q)):
            keys = tkv[ti[t]]
            torch.softmax(tq[t] @ keys.T * SCALE, -1) @ keys[:, :D_V]

    return run


def _peers(q, kv, indices):
    wide = (q.astype(np.float32), kv.astype(np.float32), indices)
    peers = {"numpy float32": _numpy_rows(*wide)}
    if importlib.util.find_spec("torch"):
        peers["torch float32"] = _torch_rows(*wide)
    return peers


def _sparse_rows(rows: int, repeats: int):
    q, kv, indices = _data(rows)
    cache = _fp8_cache(kv)
    flops = 2 * HEADS * TOPK * (DIM + D_V) * rows
    out = (np.empty((rows, HEADS, D_V), BF16), None, None)
    for isa in each_isa():
        probe: list[float] = []
        runs = {
            "bf16": lambda: sparse_mla(q, kv, indices, SCALE, out=out),
            "fp8_656": lambda: sparse_mla(q, cache, indices, SCALE, layout="fp8_656", page_size=PAGE, out=out),
            **_peers(q, kv, indices),
            "probe": lambda isa=isa, probe=probe: probe.append(_core.probe(isa, 2_000_000, num_threads())),
        }
        median = interleaved(runs, repeats)
        peak = max(probe)  # a rate in registers is never better than the machine; a cold turn may be worse
        for ours in ("bf16", "fp8_656"):
            for peer in [name for name in runs if name not in ("bf16", "fp8_656", "probe")]:
                yield {
                    "op": "sparse_mla", "shape": f"[{rows}, 128, 576] x 2048 {ours}", "isa": isa,
                    "ours_ms": median[ours] * 1e3, "peer": peer, "peer_ms": median[peer] * 1e3,
                    "ratio": median[peer] / median[ours], "gflops": flops / median[ours] / 1e9,
                    "fraction_of_probe": flops / median[ours] / peak,
                }  # fmt: skip


def _mha_rows(length: int):
    if not importlib.util.find_spec("torch"):
        return
    import torch

    rng = np.random.default_rng(1)
    heads = 8
    q, k = (rng.standard_normal((length, heads, 192), dtype=np.float32) for _ in range(2))
    v = rng.standard_normal((length, heads, 128), dtype=np.float32)
    cu = np.array([0, length])
    tq, tk, tv = (torch.from_numpy(x).transpose(0, 1)[None].contiguous() for x in (q, k, v))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for isa in each_isa():
        runs = {
            "ours": lambda: mha(q, k, v, cu, cu, SCALE),
            "torch": lambda: sdpa(tq, tk, tv, is_causal=True, scale=SCALE),
        }
        median = interleaved(runs, 5)
        yield {
            "op": "mha", "shape": f"[{length}, 8, 192 | 128] causal f32", "isa": isa, "ours_ms": median["ours"] * 1e3,
            "peer": "torch sdpa float32", "peer_ms": median["torch"] * 1e3, "ratio": median["torch"] / median["ours"],
            "gflops": heads * length * (length + 1) * (192 + 128) / median["ours"] / 1e9,
        }  # fmt: skip


def _merge_rows(rows: int):
    rng = np.random.default_rng(2)
    outs = rng.standard_normal((4, rows, HEADS, D_V), dtype=np.float32)
    lses = rng.standard_normal((4, rows, HEADS), dtype=np.float32)
    out = np.empty((rows, HEADS, D_V), np.float32)

    def composed():
        w = np.exp(lses - lses.max(axis=0))
        w /= w.sum(axis=0)
        np.einsum("nthd,nth->thd", outs, w, out=out)

    for isa in each_isa():
        median = interleaved({"ours": lambda: merge_states(outs, lses, out=out), "numpy": composed}, 5)
        yield {
            "op": "merge_states", "shape": f"[4, {rows}, 128, 512] f32", "isa": isa, "ours_ms": median["ours"] * 1e3,
            "peer": "numpy", "peer_ms": median["numpy"] * 1e3, "ratio": median["numpy"] / median["ours"],
            "gbytes_per_s": (outs.nbytes + out.nbytes) / median["ours"] / 1e9,
        }  # fmt: skip


def rows(quick: bool):
    yield from _sparse_rows(1, 5 if quick else 15)  # decode: one row, its blocks shared among the threads
    yield from _sparse_rows(4 if quick else 16, 3 if quick else 7)
    yield from _mha_rows(512 if quick else 2048)
    yield from _merge_rows(16 if quick else 128)
