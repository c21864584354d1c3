"""``sparsespan demo``: DSA at a model's real size, on this CPU, checked while it runs."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from typing import Any

from .._runtime import build_info
from ..testing._model_inputs import MODELS
from ._meter import Meter

__all__ = ["register"]

# At the 128-bit level the full length would take minutes: a shorter prompt, and the demo says so.
DEFAULT_SEQ = {"generic": 3072}


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("demo", help="run DSA at a model's real size, checked against the reference")
    parser.add_argument("--model", choices=sorted(MODELS), default="v3.2")
    parser.add_argument("--seq", type=int, default=0, help="prompt tokens (default 8192; 3072 at the generic level)")
    parser.add_argument("--decode", type=int, default=16, help="decode steps")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens a prefill chunk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=_run)


def _refuse(text: str) -> int:
    print(f"sparsespan demo: {text}", file=sys.stderr)
    return 2


def _run(arguments: argparse.Namespace) -> int:
    info = build_info()
    for name, least in (("seq", 0), ("decode", 0), ("chunk", 1), ("seed", 0)):
        if getattr(arguments, name) < least:
            return _refuse(f"--{name} is {getattr(arguments, name)}, needs at least {least}")
    seq = arguments.seq or DEFAULT_SEQ.get(info["isa"], 8192)
    model = MODELS[arguments.model]
    print(
        f"{model.name}, one layer's DSA: {model.heads} heads x 576, {model.index_heads} indexer heads x 128, "
        f"top-{model.topk}; {seq} prompt tokens in chunks of {arguments.chunk}, {arguments.decode} decode steps; "
        f"isa {info['isa']}, {info['threads']} threads; inputs: seeded random tensors",
        file=sys.stderr,
    )
    if not arguments.seq and info["isa"] in DEFAULT_SEQ:
        print(f"(the {info['isa']} level is slower: {seq} tokens instead of 8192)", file=sys.stderr)
    from ._demo_steps import Demo

    start = time.perf_counter()
    with _Progress(seq + arguments.decode) as tick:
        demo = Demo(model, seq + arguments.decode, arguments.chunk, arguments.seed, tick)
        demo.prefill(seq)
        demo.decode(seq, arguments.decode)
    summary = {
        "model": model.name,
        "seq": seq,
        "decode": arguments.decode,
        "isa": info["isa"],
        "threads": int(info["threads"]),
        "seconds": round(time.perf_counter() - start, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "ops": demo.meter.rows(),
    }
    checks = [row["passed"] for row in summary["ops"] if row["passed"] is not None]
    summary["passed"] = bool(checks) and all(checks)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        _print_table(demo.meter)
        print(
            f"\n{summary['seconds']} s measured in all, peak memory {summary['peak_memory_gb']} GB measured; "
            f"{'every check passed' if summary['passed'] else 'A CHECK FAILED'}"
        )
    return 0 if summary["passed"] else 1


HEADS = ("phase", "op", "shape", "isa", "calls", "ms", "GFLOP/s", "GB/s", "max error", "held against", "")


def _cells(row: dict[str, Any], isa: str) -> list[str]:
    def text(key: str, form: str) -> str:
        return "" if row[key] is None else format(row[key], form)

    verdict = {None: "", True: "pass", False: "FAIL"}[row["passed"]]
    return [
        row["phase"], row["op"], row["shape"], isa, str(row["calls"]), text("ms", ".1f"), text("gflops", ".1f"),
        text("gbytes_per_s", ".2f"), text("max_error", ".2g"), row["bound"], verdict,
    ]  # fmt: skip


def _print_table(meter: Meter) -> None:
    isa = build_info()["isa"]
    rows = [_cells(row, isa) for row in meter.rows()]
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
