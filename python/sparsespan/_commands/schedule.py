"""``sparsespan schedule``: make or read a pipeline schedule, prove it, simulate it, draw it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["register"]

KINDS = ("gpipe", "one_f_one_b", "interleaved", "zero_bubble", "zero_bubble_v", "dualpipe_v", "chunked_prefill",
         "decode_loop")  # fmt: skip

OUTCOMES = ("refused", "harmless", "wrong")


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("schedule", help="make, prove, simulate and draw a pipeline schedule")
    parser.add_argument(
        "kind",
        help=f"{', '.join(KINDS)}; a CSV file as torch.distributed.pipelining writes it; or all, with --mutations",
    )
    parser.add_argument("--ranks", type=int, help="4 when not given; a CSV file must have as many")
    parser.add_argument("--microbatches", type=int, default=8, help="for decode_loop: steps")
    parser.add_argument("--stages-per-rank", type=int, default=2, help="for interleaved")
    parser.add_argument("--chunks", default="4096,4096,4096,4096", help="for chunked_prefill: tokens of each chunk")
    parser.add_argument("--messages", action="store_true", help="add sends and receives")
    for name, value in (("F", 1.0), ("B", 2.0), ("I", 1.0), ("W", 1.0), ("latency", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=value, help=f"cost, {value:g} when not given")
    parser.add_argument("--overlap", type=float, help="cost of an overlapped pair; the sum of both when not given")
    parser.add_argument("--csv", metavar="FILE", help="write the schedule")
    parser.add_argument("--svg", metavar="FILE", help="write the time line as a picture")
    parser.add_argument("--trace", metavar="FILE", help="write the time line for ui.perfetto.dev")
    parser.add_argument("--mutations", action="store_true", help="count how every single mutation is judged")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_run)


def _chunks(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise ValueError(f"schedule: --chunks is {text!r}, needs numbers of tokens with commas between") from None


def _make(arguments: argparse.Namespace) -> Any:
    from .. import pipeline

    kind, m = arguments.kind, arguments.microbatches
    ranks = 4 if arguments.ranks is None else arguments.ranks
    makers: dict[str, Callable[[], Any]] = {
        "gpipe": lambda: pipeline.gpipe(ranks, m),
        "one_f_one_b": lambda: pipeline.one_f_one_b(ranks, m),
        "interleaved": lambda: pipeline.interleaved(ranks, m, stages_per_rank=arguments.stages_per_rank),
        "zero_bubble": lambda: pipeline.zero_bubble(ranks, m),
        "zero_bubble_v": lambda: pipeline.zero_bubble(ranks, m, flavor="v"),
        "dualpipe_v": lambda: pipeline.dualpipe_v(ranks, m),
        "chunked_prefill": lambda: pipeline.chunked_prefill(ranks, _chunks(arguments.chunks)),
        "decode_loop": lambda: pipeline.decode_loop(ranks, m),
    }
    if kind in makers:
        return makers[kind]()
    if not Path(kind).is_file():
        raise ValueError(f"schedule: kind is {kind!r}, needs a CSV file or one of {', '.join(KINDS)}")
    return pipeline.Schedule.from_csv(Path(kind).read_text())


def _mutations(schedule: Any) -> dict[str, dict[str, int]]:
    from ..testing import prove_mutations

    counts = prove_mutations(schedule)
    kinds = dict.fromkeys(what for what, _ in counts)
    return {what: {outcome: counts[what, outcome] for outcome in OUTCOMES} for what in kinds}


def _all_mutations(arguments: argparse.Namespace) -> int:
    """Every generator at this size, with and without messages."""
    from .. import pipeline

    totals: dict[str, dict[str, int]] = {}
    refused: dict[str, str] = {}
    for kind in KINDS:
        try:
            made = _make(argparse.Namespace(**{**vars(arguments), "kind": kind}))
        except ValueError as refusal:
            refused[kind] = str(refusal)
            continue
        rows = [_mutations(made), _mutations(pipeline.add_send_recv(made))]
        totals[kind] = {o: sum(row[o] for table in rows for row in table.values()) for o in OUTCOMES}
    whole = {o: sum(row[o] for row in totals.values()) for o in OUTCOMES}
    if arguments.json:
        print(json.dumps({"mutations": totals, "refused": refused, "total": whole}))
        return int(whole["wrong"] > 0)
    print(f"{'schedule':18} {'refused':>8} {'harmless':>9} {'wrong':>6}")
    for kind, row in {**totals, "all": whole}.items():
        print(f"{kind:18} {row['refused']:8} {row['harmless']:9} {row['wrong']:6}")
    print("every single mutation of each schedule, with and without messages")
    for kind, words in refused.items():
        print(f"{kind}: not of this size: {words}")
    return int(whole["wrong"] > 0)


def _run(arguments: argparse.Namespace) -> int:
    from .. import pipeline

    if arguments.kind == "all" and arguments.mutations:
        return _all_mutations(arguments)
    try:
        schedule = _make(arguments)
        pipeline.validate(schedule, ranks=arguments.ranks)
        if arguments.messages:
            schedule = pipeline.add_send_recv(schedule)
        # A chunk costs its tokens, a decode step 1: the picture shows proportions, not seconds.
        costs = pipeline.Costs(
            arguments.F, arguments.B, arguments.I, arguments.W, arguments.overlap,
            prefill=lambda length, prefix: float(length), latency=arguments.latency,
        )  # fmt: skip
        run = pipeline.simulate(schedule, costs)
        for path, text in (
            (arguments.csv, lambda: schedule.to_csv(torch=True)),
            (arguments.svg, lambda: pipeline.to_svg(run)),
            (arguments.trace, lambda: pipeline.chrome_trace(run)),
        ):
            if path is not None:
                Path(path).write_text(text())
    except (OSError, ValueError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    counts = _mutations(schedule) if arguments.mutations else {}
    wrong = sum(row["wrong"] for row in counts.values())
    if arguments.json:
        names = ("makespan", "busy", "bubble", "peak_activations")
        facts = {"schedule": repr(schedule), "modelled": {name: getattr(run, name) for name in names}}
        print(json.dumps({**facts, "mutations": counts} if counts else facts))
        return int(wrong > 0)
    print(f"{schedule!r}: valid")
    print(pipeline.text_timeline(run))
    print(f"modelled: makespan {run.makespan:g}, bubble {run.bubble}, peak activations {run.peak_activations}")
    if counts:
        print(f"{'mutation':18} {'refused':>8} {'harmless':>9} {'wrong':>6}")
        for what, row in counts.items():
            print(f"{what:18} {row['refused']:8} {row['harmless']:9} {row['wrong']:6}")
        total = sum(sum(row.values()) for row in counts.values())
        print(f"{total} single mutations, {wrong} wrong: accepted though they do other work or do not end")
    return int(wrong > 0)
