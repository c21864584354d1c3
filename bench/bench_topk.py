"""The best 2048 of 131072 on one thread, on data of every kind, beside torch.topk, NumPy and the C++ library."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from peers import torch_or_none
from session import SESSION
from timing import compare

from sparsespan.indexer import topk

TOPK = 2048


def _nth_element():
    """std::nth_element built with this machine's compiler; None without one."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        SESSION.note("std::nth_element: no C++ compiler here, skipped")
        return None
    source = Path(__file__).parent / "native" / "nth_element.cpp"
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "nth_element.so"
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library)).nth_element_topk


def kinds(keys: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.standard_normal(keys),
        "all equal": np.ones(keys),
        "93% zero": np.maximum(rng.standard_normal(keys) - 1.5, 0),
        "10 low bits": 1 + rng.integers(0, 1024, keys) * 2.0**-23,
        "ascending": np.sort(rng.standard_normal(keys)),
        "descending": -np.sort(rng.standard_normal(keys)),
    }


def rows(quick: bool):
    keys = 131072
    native, torch = _nth_element(), torch_or_none()
    for kind, values in kinds(keys).items():
        if quick and kind not in ("normal", "all equal"):
            continue
        scores = values.astype(np.float32)[None]
        best, theirs = np.empty((1, TOPK), np.int32), np.empty(TOPK, np.int32)
        peers = {"np.argpartition": lambda s=scores: np.argpartition(s[0], keys - TOPK)[keys - TOPK :]}
        if native is not None:
            pointers = scores.ctypes.data_as(ctypes.c_void_p), theirs.ctypes.data_as(ctypes.c_void_p)
            peers["std::nth_element"] = lambda p=pointers, out=theirs: native(p[0], keys, TOPK, p[1])
        if torch is not None:
            tensor = torch.from_numpy(scores)
            peers["torch.topk"] = lambda t=tensor: torch.topk(t, TOPK)
        yield from compare(
            "topk", f"{keys} -> {TOPK}, {kind}", lambda s=scores, b=best: topk(s, TOPK, out=b, threads=1), peers,
            moved=4.0 * keys + 4 * TOPK,
        )  # fmt: skip
