"""How time and memory grow with the sequence, and what the attention ops need at 128K.

Time of a whole prefill is that of sampled rows times S / rows: for select the rows lie all over the sequence, for
sparse MLA behind position 2048, where every row has the same work. Memory is the peak of a child process per length
over what it held before its arrays were made; the number of rows grows with S.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from bench_attention import BF16, DIM, SCALE, chosen, kv_rows
from bench_indexer import FP8, TOPK, inputs
from goals import ENOUGH
from session import SESSION
from timing import measured

from sparsespan.attention import sparse_mla
from sparsespan.indexer import select

LENGTHS = (4096, 8192, 16384, 32768, 65536)
GIB = float(1 << 30)


def exponent(lengths, values) -> float:
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def _row(op: str, shape: str, found: float, goal: float, slack: float, values: str) -> dict:
    holds = abs(found - goal) <= slack
    words = f"exponent {found:.3f}, needs {goal} +- {slack}: {'holds' if holds else 'DOES NOT HOLD'} ({values})"
    return {
        "op": op, "shape": shape, "isa": SESSION.top(), "exponent": found, "holds": holds, "words": words,
        "needs": f"{goal} +- {slack}", "came": f"{found:.3f}",
    }  # fmt: skip


def _select_call(length: int):
    q, k, weights, ks, ke, scale = inputs(16, length, 64, FP8)
    return lambda: select(q, k, weights, ks, ke, scale, TOPK)


def _mla_call(length: int):
    q = np.random.default_rng(1).standard_normal((4, 128, DIM), dtype=np.float32).astype(BF16)
    kv, indices = kv_rows(length), chosen(4, length, False)
    return lambda: sparse_mla(q, kv, indices, SCALE)


def _repeated(call, times: int):
    def run():
        for _ in range(times):
            call()

    return run


def _time_rows():
    for op, make, rows, goal, slack in (
        ("select", _select_call, 16, 2.0, 0.15),
        ("sparse_mla", _mla_call, 4, 1.0, 0.1),
    ):
        lengths = np.array(LENGTHS)
        # A sample has the same work at every length: what waking the threads takes is no part of a long prefill.
        again = {n: LENGTHS[-1] // n if op == "select" else 1 for n in LENGTHS}
        found = measured({str(n): _repeated(make(n), again[n]) for n in LENGTHS}, 9, 12.0)
        past = lengths if op == "select" else lengths - TOPK
        whole = [found[str(n)][0] / again[n] * p / rows for n, p in zip(LENGTHS, past)]
        values = ", ".join(f"{n // 1024}K {t:.2f} s" for n, t in zip(LENGTHS, whole))
        over = "S" if op == "select" else "rows past topk"
        row = _row(f"{op} growth", f"time over {over}, 4K..64K", exponent(past, whole), goal, slack, values)
        fast = min(count for _, count in found.values())
        if fast < ENOUGH:
            del row["holds"]
            row["words"] = f"exponent {row['exponent']:.3f}, not judged: {fast} fast samples of some length ({values})"
        yield row


def _peak(length: int, rows: int) -> dict:
    script = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), str(length), str(rows)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _memory_rows(quick: bool):
    if not Path("/proc/self/clear_refs").exists():
        SESSION.note("peak memory: this system does not tell it, skipped")
        return
    at_128k = _peak(131072, 64)
    used = at_128k["peak"] / GIB
    yield {
        "op": "attention ops", "shape": "peak memory, 64 rows, S=131072", "isa": SESSION.top(),
        "holds": at_128k["peak"] < 3e9, "bytes_peak": at_128k["peak"], "needs": "< 3 GB",
        "came": f"{at_128k['peak'] / 1e9:.2f} GB",
        "words": f"select + sparse_mla: {used:.2f} GiB of the whole process, arrays of {at_128k['arrays'] / GIB:.2f} "
        f"GiB included; needs < 3 GB: {'holds' if at_128k['peak'] < 3e9 else 'DOES NOT HOLD'}",
    }  # fmt: skip
    if quick:
        return
    peaks = [_peak(n, n // 256)["grown"] for n in LENGTHS]
    values = ", ".join(f"{n // 1024}K {p / 1e6:.0f} MB" for n, p in zip(LENGTHS, peaks))
    yield _row("attention ops", "memory over S, S/256 rows, 4K..64K", exponent(LENGTHS, peaks), 1.0, 0.1, values)


def rows(quick: bool):
    if SESSION.only is not None:
        return
    yield from _memory_rows(quick)
    if not quick:
        yield from _time_rows()
