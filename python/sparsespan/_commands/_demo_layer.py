"""The demo's second half: one layer's DSA at a model's real size, checked against the references while it runs."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

from .._runtime import build_info
from ..testing._model_inputs import MODELS
from ._meter import Meter

__all__ = ["print_table", "run_layer"]

# At the 128-bit level the full length would take minutes: a shorter prompt, and the demo says so.
SEQ, SHORTER = 4096, {"generic": 3072}


def run_layer(name: str, seq: int, chunk: int, decode: int, seed: int) -> tuple[dict[str, Any], Meter]:
    """Chunks of a prompt, then decode steps; what was measured and checked."""
    info = build_info()
    length = seq or SHORTER.get(info["isa"], SEQ)
    model = MODELS[name]
    print(
        f"{model.name}, one layer's DSA: {model.heads} heads x 576, {model.index_heads} indexer heads x 128, "
        f"top-{model.topk}; {length} prompt tokens in chunks of {chunk}, {decode} decode steps; isa {info['isa']}, "
        f"{info['threads']} threads; inputs: seeded random tensors",
        file=sys.stderr,
    )
    if not seq and info["isa"] in SHORTER:
        print(f"(the {info['isa']} level is slower: {length} tokens instead of {SEQ})", file=sys.stderr)
    from ._demo_steps import Demo

    start = time.perf_counter()
    with _Progress(length + decode) as tick:
        demo = Demo(model, length + decode, chunk, seed, tick)
        demo.prefill(length)
        demo.decode(length, decode)
    rows = demo.meter.rows()
    checks = [row["passed"] for row in rows if row["passed"] is not None]
    summary = {
        "model": model.name,
        "seq": length,
        "decode": decode,
        "isa": info["isa"],
        "threads": int(info["threads"]),
        "seconds": round(time.perf_counter() - start, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "ops": rows,
        "passed": bool(checks) and all(checks),
    }
    return summary, demo.meter


HEADS = ("phase", "op", "shape", "calls", "ms", "GFLOP/s", "GB/s", "max error", "held against", "")


def _cells(row: dict[str, Any]) -> list[str]:
    def text(key: str, form: str) -> str:
        return "" if row[key] is None else format(row[key], form)

    verdict = {None: "", True: "pass", False: "FAIL"}[row["passed"]]
    return [
        row["phase"], row["op"], row["shape"], str(row["calls"]), text("ms", ".1f"), text("gflops", ".1f"),
        text("gbytes_per_s", ".2f"), text("max_error", ".2g"), row["bound"], verdict,
    ]  # fmt: skip


def print_table(meter: Meter) -> None:
    """A line per op: rich's where it is installed, plain otherwise."""
    rows = [_cells(row) for row in meter.rows()]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [list(HEADS), *rows]) for i in range(len(HEADS))]
        for line in [list(HEADS), *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        return
    table = Table(title="ms measured; GFLOP/s and GB/s from counted flops and bytes")
    for head in HEADS:
        table.add_column(head, justify="right" if head in ("calls", "ms", "GFLOP/s", "GB/s", "max error") else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # Piped into a file there is no terminal to fit: keep every column whole.
    (console if console.is_terminal else Console(width=200)).print(table)


class _Progress:
    """A bar on stderr: rich when it is installed, dots otherwise, so that stdout stays one table or one JSON."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.bar: Any = None

    def __enter__(self) -> _Progress:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self.bar = Progress(
                TextColumn("tokens"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("tokens", total=self.total)
        except ImportError:
            pass
        return self

    def __call__(self, tokens: int) -> None:
        self.done += tokens
        if self.bar is not None:
            self.bar.update(self.task, advance=tokens)
        elif tokens > 1 or self.done == self.total:
            print(f"  {self.done} of {self.total} tokens", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
