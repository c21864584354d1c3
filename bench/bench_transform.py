"""Transforms against NumPy and torch; they are bandwidth bound, so GB/s is the figure to look at."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
from timing import interleaved

from sparsespan.testing import each_isa
from sparsespan.transform import apply_rope, hadamard_transform, layer_norm, rms_norm, yarn_cos_sin


def _hadamard_peers(x, matrix):
    peers = {"numpy float32 matmul": lambda: x @ matrix}
    if importlib.util.find_spec("torch"):
        import torch

        t, m = torch.from_numpy(x), torch.from_numpy(matrix)
        peers["torch float32 matmul"] = lambda: t @ m
    return peers


def _row(op, shape, runs, moved_bytes):
    median = interleaved(runs)
    ours = median.pop("ours")
    row = {"op": op, "shape": shape, "ours_ms": ours * 1e3, "gbytes_per_s": moved_bytes / ours / 1e9}
    for peer, seconds in median.items():
        row |= {"peer": peer, "peer_ms": seconds * 1e3, "ratio": seconds / ours}
    return row


def _rope_rows(count):
    """128 heads of one rope part, the sizes of DeepSeek-V3.2; torch runs the official complex product."""
    x = np.random.default_rng(1).standard_normal((count, 128, 64), dtype=np.float32).astype(ml_dtypes.bfloat16)
    positions, table, out = np.arange(count), yarn_cos_sin(count, factor=40), np.empty_like(x)
    for interleaved_pairs in (True, False):
        runs = {"ours": lambda pairs=interleaved_pairs: apply_rope(x, positions, table, pairs, out=out)}
        if interleaved_pairs and importlib.util.find_spec("torch"):
            import torch

            t = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
            turn = torch.complex(*torch.from_numpy(table).chunk(2, -1))[:, None]

            def official(t=t, turn=turn):
                pairs = torch.view_as_complex(t.float().unflatten(-1, (32, 2)))
                return torch.view_as_real(pairs * turn).flatten(-2).bfloat16()

            runs["torch complex product"] = official
        name = "interleaved" if interleaved_pairs else "half-split"
        yield _row("apply_rope", f"[{count}, 128, 64] bf16 {name}", runs, 2 * x.nbytes)


def _norm_rows(count):
    x = np.random.default_rng(2).standard_normal((count, 7168), dtype=np.float32).astype(ml_dtypes.bfloat16)
    w, b, out = np.ones(7168, np.float32), np.zeros(7168, np.float32), np.empty_like(x)
    runs = {"rms_norm": lambda: rms_norm(x, w, 1e-6, out=out), "layer_norm": lambda: layer_norm(x, w, b, out=out)}
    peers = {}
    if importlib.util.find_spec("torch"):
        import torch

        f = torch.nn.functional
        t, tw, tb = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16), torch.from_numpy(w), torch.from_numpy(b)
        peers["rms_norm"] = lambda: f.rms_norm(t.float(), (7168,), tw, 1e-6).bfloat16()
        peers["layer_norm"] = lambda: f.layer_norm(t.float(), (7168,), tw, tb, 1e-6).bfloat16()
    for op, run in runs.items():
        both = {"ours": run, **({f"torch {op} in float32": peers[op]} if op in peers else {})}
        yield _row(op, f"[{count}, 7168] bf16", both, 2 * x.nbytes)


def rows(quick: bool):
    yield from _hadamard_rows(quick)
    yield from _rope_rows(128 if quick else 1024)
    yield from _norm_rows(128 if quick else 1024)


def _hadamard_rows(quick: bool):
    count = 4096 if quick else 65536
    x = np.random.default_rng(0).standard_normal((count, 128), dtype=np.float32)
    matrix = hadamard_transform(np.eye(128, dtype=np.float32))
    narrow = x.astype(ml_dtypes.bfloat16)
    out, narrow_out = np.empty_like(x), np.empty_like(narrow)
    for isa in each_isa():
        runs = {"ours": lambda: hadamard_transform(x, out=out), **_hadamard_peers(x, matrix)}
        runs["copy"] = lambda: np.copyto(out, x)
        median = interleaved(runs)
        for peer in [name for name in runs if name != "ours"]:
            yield {
                "op": "hadamard_transform",
                "shape": f"[{count}, 128] f32",
                "isa": isa,
                "ours_ms": median["ours"] * 1e3,
                "peer": peer,
                "peer_ms": median[peer] * 1e3,
                "ratio": median[peer] / median["ours"],
                "gbytes_per_s": 2 * x.nbytes / median["ours"] / 1e9,
            }
        bf16 = interleaved({"ours": lambda: hadamard_transform(narrow, out=narrow_out)})["ours"]
        yield {
            "op": "hadamard_transform",
            "shape": f"[{count}, 128] bf16",
            "isa": isa,
            "ours_ms": bf16 * 1e3,
            "gbytes_per_s": 2 * narrow.nbytes / bf16 / 1e9,
        }
