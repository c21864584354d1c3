"""ThreadComm against what bounds it, natively: std::barrier for small collectives, memcpy on as many threads for large.

Ours and the peer take turns in one process (native/comm_latency.cpp); of many turns the best of each counts, because
two threads that meet suffer first when the machine does something else. Wanted: ratio (peer / ours) of at least 0.25
for 1 KB on two cores, and 0.5 for an all_gather of 64 MB per rank. The rows marked (Python) are called from
Python, where an interpreter and its lock stand between the ranks; they have no peer.
"""

from __future__ import annotations

import collections
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from sparsespan.comm import run_ranks

HERE = Path(__file__).parent
CORE = HERE.parent / "build" / "Release" / "libsparsespan_core.a"


def _build(folder: str) -> str | None:
    """The native bench, linked with the core that ./dev build leaves behind; None without a compiler or a build."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or not CORE.exists():
        return None
    program = f"{folder}/comm_latency"
    source = HERE / "native" / "comm_latency.cpp"
    command = [compiler, "-O2", "-std=c++20", f"-I{HERE.parent / 'csrc'}", str(source), str(CORE), "-o", program]
    subprocess.run([*command, "-lpthread", "-ldl"], check=True)
    return program


def _best(program: str, *words: object) -> dict[str, tuple[float, float]]:
    """Best seconds of ours and of the peer, by operation."""
    run = subprocess.run([program, *map(str, words)], check=True, capture_output=True, text=True)
    turns = collections.defaultdict(list)
    for line in run.stdout.splitlines():
        op, ours, peer = line.split()
        turns[op].append((float(ours), float(peer)))
    return {op: (min(t[0] for t in pairs), min(t[1] for t in pairs)) for op, pairs in turns.items()}


def _row(op: str, shape: str, ours: float, peer: str, peer_seconds: float, size: int = 0) -> dict:
    row = {"op": op, "shape": shape, "isa": "", "ours_ms": ours * 1e3, "peer": peer, "peer_ms": peer_seconds * 1e3}
    return row | {"ratio": peer_seconds / ours} | ({"gbytes_per_s": size / ours / 1e9} if size else {})


def _through_python(rounds: int) -> float:
    """Seconds of a barrier as Python calls it, two ranks."""

    def rank(comm) -> float:
        comm.barrier()
        begin = time.perf_counter()
        for _ in range(rounds):
            comm.barrier()
        return (time.perf_counter() - begin) / rounds

    return max(run_ranks(2, rank))


def _all_gather(ranks: int, size: int) -> float:
    def rank(comm) -> float:
        x, out = np.ones(size // ranks, np.uint8), np.zeros(size, np.uint8)
        comm.all_gather(x, out=out)
        comm.barrier()
        begin = time.perf_counter()
        comm.all_gather(x, out=out)
        return time.perf_counter() - begin

    return max(run_ranks(ranks, rank, 1))


def rows(quick: bool):
    turns, large = (20, 5) if quick else (60, 15)
    with tempfile.TemporaryDirectory() as folder:
        program = _build(folder)
        if program is None:
            return
        small = _best(program, "small", 2, 1024, 500, turns)  # short turns: some meet an idle machine
        for op, (ours, peer) in small.items():
            yield _row(f"comm.{op}", "1 KB, 2 ranks", ours, "std::barrier", peer)
        for size in (1 << 20, 64 << 20):
            ours, peer = _best(program, "large", 4, size, large)["all_gather"]
            name = f"{size >> 20} MB per rank, 4 ranks"
            yield _row("comm.all_gather", name, ours, "memcpy, 4 threads", peer, 4 * size)
    seconds = min(_all_gather(4, 64 << 20) for _ in range(large))
    yield {"op": "comm.all_gather (Python)", "shape": "64 MB per rank, 4 ranks", "ours_ms": seconds * 1e3}
    seconds = min(_through_python(100) for _ in range(turns))
    yield {"op": "comm.barrier (Python)", "shape": "2 ranks", "ours_ms": seconds * 1e3}
