"""``sparsespan trace``: check a Chrome / Perfetto trace of a pipeline, sum it up, draw it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("trace", help="check and sum up a trace that a pipeline run or simulation wrote")
    parser.add_argument("file", help="Chrome / Perfetto JSON")
    parser.add_argument("--svg", metavar="FILE", help="write it as a picture")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from .. import pipeline

    try:
        trace = pipeline.Trace.from_json(Path(arguments.file).read_text(encoding="utf-8"))
        if arguments.svg is not None:
            Path(arguments.svg).write_text(pipeline.to_svg(trace), encoding="utf-8")
    except (OSError, ValueError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    lines = trace.summary()
    if arguments.json:
        facts = {"figures": trace.figures, "makespan": trace.makespan, "overlap": trace.overlap()}
        print(json.dumps({**facts, "arrows": len(trace.arrows), "lanes": [line._asdict() for line in lines]}))
        return 0
    print(f"{len(trace.spans)} spans nest, {len(trace.arrows)} arrows have both ends; seconds {trace.figures}")
    print(f"{'rank':>4} {'lane':9} {'spans':>6} {'busy':>12} {'bubble':>12}")
    for line in lines:
        print(f"{line.rank:4} {line.lane:9} {line.spans:6} {line.busy:12.6g} {line.bubble:12.6g}")
    print(f"makespan {trace.makespan:.6g}, two or more ranks compute at once for {trace.overlap():.6g}")
    return 0
