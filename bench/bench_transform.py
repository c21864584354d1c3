"""Transforms against NumPy and torch; they are bound by bandwidth: what counts is the fraction of a copy's."""

from __future__ import annotations

import numpy as np
from peers import BF16, to_torch, torch_or_none
from timing import compare

from sparsespan.transform import apply_rope, hadamard_transform, layer_norm, rms_norm, yarn_cos_sin


def _hadamard_rows(count: int):
    x = np.random.default_rng(0).standard_normal((count, 128), dtype=np.float32)
    matrix = hadamard_transform(np.eye(128, dtype=np.float32))
    torch = torch_or_none()
    for array in (x, x.astype(BF16)):
        out = np.empty_like(array)
        peers = {}
        if array.dtype == np.float32:
            product = np.empty_like(x)
            peers["numpy float32 matmul"] = lambda product=product: np.matmul(x, matrix, out=product)
        if torch is not None:
            t, m = to_torch(array), to_torch(matrix.astype(array.dtype))
            peers["torch matmul"] = lambda t=t, m=m: t @ m
        yield from compare(
            "hadamard_transform", f"[{count}, 128] {array.dtype}",
            lambda array=array, out=out: hadamard_transform(array, out=out), peers,
            flops=7.0 * array.size, moved=2.0 * array.nbytes, copy=True,
        )  # fmt: skip


def _rope_rows(count: int):
    """128 heads of one rope part, the sizes of DeepSeek-V3.2; torch runs the official complex product."""
    x = np.random.default_rng(1).standard_normal((count, 128, 64), dtype=np.float32).astype(BF16)
    positions, table, out = np.arange(count), yarn_cos_sin(count, factor=40), np.empty_like(x)
    torch = torch_or_none()
    for pairs in (True, False):
        peers = {}
        if pairs and torch is not None:
            t = to_torch(x)
            turn = torch.complex(*torch.from_numpy(table).chunk(2, -1))[:, None]

            def official(t=t, turn=turn):
                both = torch.view_as_complex(t.float().unflatten(-1, (32, 2)))
                return torch.view_as_real(both * turn).flatten(-2).bfloat16()

            peers["torch complex product"] = official
        yield from compare(
            "apply_rope", f"[{count}, 128, 64] bf16 {'interleaved' if pairs else 'half-split'}",
            lambda pairs=pairs: apply_rope(x, positions, table, pairs, out=out), peers,
            flops=3.0 * x.size, moved=2.0 * x.nbytes, copy=True,
        )  # fmt: skip


def _norm_rows(count: int):
    x = np.random.default_rng(2).standard_normal((count, 7168), dtype=np.float32).astype(BF16)
    w, b, out = np.ones(7168, np.float32), np.zeros(7168, np.float32), np.empty_like(x)
    ours = {"rms_norm": lambda: rms_norm(x, w, 1e-6, out=out), "layer_norm": lambda: layer_norm(x, w, b, out=out)}
    peers: dict = {"rms_norm": {}, "layer_norm": {}}
    torch = torch_or_none()
    if torch is not None:
        f, t, tw, tb = torch.nn.functional, to_torch(x), torch.from_numpy(w), torch.from_numpy(b)
        peers["rms_norm"]["torch in float32"] = lambda: f.rms_norm(t.float(), (7168,), tw, 1e-6).bfloat16()
        peers["layer_norm"]["torch in float32"] = lambda: f.layer_norm(t.float(), (7168,), tw, tb, 1e-6).bfloat16()
    for op, run in ours.items():
        yield from compare(
            op, f"[{count}, 7168] bf16", run, peers[op], flops=4.0 * x.size, moved=2.0 * x.nbytes, copy=True
        )


def rows(quick: bool):
    yield from _hadamard_rows(8192 if quick else 65536)
    yield from _rope_rows(256 if quick else 1024)
    if not quick:
        yield from _norm_rows(1024)
