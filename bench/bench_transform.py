"""Transforms against NumPy and torch; they are bandwidth bound, so GB/s is the figure to look at."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
from timing import interleaved

from sparsespan.testing import each_isa
from sparsespan.transform import hadamard_transform


def _hadamard_peers(x, matrix):
    peers = {"numpy float32 matmul": lambda: x @ matrix}
    if importlib.util.find_spec("torch"):
        import torch

        t, m = torch.from_numpy(x), torch.from_numpy(matrix)
        peers["torch float32 matmul"] = lambda: t @ m
    return peers


def rows(quick: bool):
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
