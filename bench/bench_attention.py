"""Sparse MLA at the sizes of V3.2 (128 heads) and GLM-5 (64): sampled prefill rows, decode, both KV formats.

FLOPs are counted as the peers count them, 2 * heads * valid keys * (576 + 512); bytes as one read of each row's keys.
"""

from __future__ import annotations

import numpy as np
from native_peers import sglang_sparse, vllm_sparse
from peers import BF16, to_torch, torch_or_none
from session import SESSION
from timing import compare

from sparsespan import empty_kv_pool, quant
from sparsespan.attention import merge_states, mha, sparse_mla

DIM, D_V, TOPK, PAGE = 576, 512, 2048, 64
SCALE = 192**-0.5
MODELS = {128: "V3.2", 64: "GLM-5"}


def kv_rows(keys: int) -> np.ndarray:
    """[keys, 576] bf16; one block of noise laid end to end, so that a gigabyte takes a second."""
    noise = np.random.default_rng(0).standard_normal((min(keys, 8192), DIM), dtype=np.float32).astype(BF16)
    kv = empty_kv_pool("bf16_576", -(-keys // PAGE), PAGE).reshape(-1, DIM)[:keys]
    for begin in range(0, keys, len(noise)):
        kv[begin : begin + len(noise)] = noise[: keys - begin]
    return kv


def chosen(rows: int, keys: int, apart: bool) -> np.ndarray:
    """Each row's 2048 keys, ascending. Neighbours share nine in ten, as they do in a prefill; `apart`: no more than
    chance has it."""
    rng = np.random.default_rng(3)
    if apart or keys <= TOPK:
        picks = [rng.choice(keys, TOPK, replace=False) for _ in range(rows)]
        return np.sort(np.stack(picks), axis=1).astype(np.int32)
    row = rng.choice(keys, TOPK, replace=False)
    picks = []
    for _ in range(rows):
        others = np.setdiff1d(rng.choice(keys, TOPK, replace=False), row)[: TOPK // 10]
        row = row.copy()
        row[rng.choice(TOPK, len(others), replace=False)] = others
        picks.append(np.sort(row))
    return np.stack(picks).astype(np.int32)


def _numpy(q, kv, indices):
    """gather, matmul, softmax, matmul in float32; q and kv are converted beforehand, in its favour."""
    wide_q, wide_kv = q.astype(np.float32), kv.astype(np.float32)

    def run():
        for t in range(len(q)):
            keys = wide_kv[indices[t]]
            s = wide_q[t] @ keys.T
            s *= np.float32(SCALE)
            s -= s.max(axis=1, keepdims=True)
            np.exp(s, out=s)
            s /= s.sum(axis=1, keepdims=True)
            s @ keys[:, :D_V]

    return run


def _torch(q, kv, indices):
    torch = torch_or_none()
    if torch is None:
        return {}
    tq, tkv, ti = to_torch(q), to_torch(kv), torch.from_numpy(indices.astype(np.int64))

    def run():
        for t in range(len(q)):
            keys = tkv.index_select(0, ti[t])
            torch.softmax((tq[t] @ keys.T).float() * SCALE, -1).bfloat16() @ keys[:, :D_V]

    return {"torch bf16 composed": run}


def _sparse(op: str, shape: str, heads: int, rows: int, keys: int, apart: bool, numpy_too: bool, decode: bool):
    q = np.random.default_rng(1).standard_normal((rows, heads, DIM), dtype=np.float32).astype(BF16)
    kv, indices = kv_rows(keys), chosen(rows, keys, apart)
    paged = kv.reshape(-1, PAGE, DIM)
    cache = quant.convert_kv(paged, "bf16_576", "fp8_656", out=empty_kv_pool("fp8_656", len(paged), PAGE))
    out = (np.empty((rows, heads, D_V), BF16), None, None)
    flops = 2.0 * heads * indices.size * (DIM + D_V)

    def bf16(threads=0):
        sparse_mla(q, paged, indices, SCALE, layout="bf16_576", page_size=PAGE, out=out, threads=threads)

    def fp8():
        sparse_mla(q, cache, indices, SCALE, layout="fp8_656", page_size=PAGE, out=out)

    peers = {"numpy float32": _numpy(q, kv, indices)} if numpy_too else {}
    peers |= _torch(q, kv, indices) | sglang_sparse(q, paged, indices, SCALE, False)
    narrow = sglang_sparse(q, cache, indices, SCALE, True) | vllm_sparse(q, keys, PAGE, indices, SCALE)
    own = {"own, 1 thread": lambda: bf16(1)} if decode else {}
    if keys > 1 << 19:
        small = np.array(paged)  # ordinary memory, though NumPy too may ask for huge pages
        own["own, KV as NumPy has it"] = lambda: sparse_mla(
            q, small, indices, SCALE, layout="bf16_576", page_size=PAGE, out=out
        )
    name = f"{MODELS[heads]} {shape}"
    yield from compare(
        op, f"{name} bf16", bf16, peers, own=own, flops=flops, moved=indices.size * 1152.0,
        seconds=SESSION.seconds() * (1.4 if heads == 128 else 1.0),
    )  # fmt: skip
    yield from compare(
        op, f"{name} fp8", fp8, narrow, own={"own bf16 KV": bf16}, flops=flops, moved=indices.size * 656.0,
        seconds=SESSION.seconds() * 0.7,
    )  # fmt: skip


def _mha_rows(length: int):
    torch = torch_or_none()
    rng = np.random.default_rng(1)
    heads = 8
    q, k = (rng.standard_normal((length, heads, 192), dtype=np.float32) for _ in range(2))
    v = rng.standard_normal((length, heads, 128), dtype=np.float32)
    cu = np.array([0, length])
    peers = {}
    if torch is not None:
        tq, tk, tv = (torch.from_numpy(x).transpose(0, 1)[None].contiguous() for x in (q, k, v))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        peers["torch sdpa float32"] = lambda: sdpa(tq, tk, tv, is_causal=True, scale=SCALE)
    yield from compare(
        "mha", f"[{length}, 8, 192 | 128] causal f32", lambda: mha(q, k, v, cu, cu, SCALE), peers,
        flops=float(heads * length * (length + 1) * (192 + 128)), moved=float(q.nbytes + k.nbytes + 2 * v.nbytes),
    )  # fmt: skip


def _merge_rows(rows: int):
    rng = np.random.default_rng(2)
    outs = rng.standard_normal((4, rows, 128, D_V), dtype=np.float32)
    lses = rng.standard_normal((4, rows, 128), dtype=np.float32)
    out = np.empty((rows, 128, D_V), np.float32)

    def composed():
        w = np.exp(lses - lses.max(axis=0))
        w /= w.sum(axis=0)
        np.einsum("nthd,nth->thd", outs, w, out=out)

    peers = {"numpy": composed}
    torch = torch_or_none()
    if torch is not None:
        t_outs, t_lses = torch.from_numpy(outs), torch.from_numpy(lses)
        peers["torch composed"] = lambda: (t_outs * torch.softmax(t_lses, 0)[..., None]).sum(0)
    yield from compare(
        "merge_states", f"[4, {rows}, 128, 512] f32", lambda: merge_states(outs, lses, out=(out, None)), peers,
        flops=2.0 * outs.size, moved=float(outs.nbytes + out.nbytes), copy=True,
    )  # fmt: skip


def rows(quick: bool):
    if quick:
        yield from _sparse("sparse_mla", "T=8 S=8192", 128, 8, 8192, False, False, False)
        yield from _sparse("sparse_mla decode", "B=1 ctx=8192", 128, 1, 8192, True, False, True)
        yield from _merge_rows(64)
        return
    for heads in (128, 64):
        for keys in (8192, 32768, 131072):
            yield from _sparse("sparse_mla", f"T=16 S={keys}", heads, 16, keys, False, keys == 8192, False)
        for batch, length in ((1, 8192), (1, 131072), (16, 8192), (16, 131072)):
            yield from _sparse("sparse_mla decode", f"B={batch} ctx={length}", heads, batch, length, True, False, True)
    yield from _sparse("sparse_mla", "T=16 over 1 GB", 128, 16, 933_888, True, False, False)
    yield from _mha_rows(2048)
    yield from _merge_rows(128)
