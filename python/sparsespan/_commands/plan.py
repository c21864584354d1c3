"""``sparsespan plan``: what a layout costs, from formulas that the runnable code obeys."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import _plan_cp, _plan_cp_svg, _plan_cp_text

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command and its sub-commands."""
    parser = commands.add_parser("plan", help="bytes, balance and break-even of a parallel layout (modelled)")
    kinds = parser.add_subparsers(dest="kind", required=True)
    _register_cp(kinds)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of integers such as 1,2,4") from None


def _register_cp(kinds: Any) -> None:
    parser = kinds.add_parser("cp", help="prefill context parallelism against tensor parallelism")
    parser.add_argument("--model", default="v3.2", help="v3.1, v3.2, glm-5 or glm-5.2 (default v3.2)")
    parser.add_argument(
        "--tokens", type=_integers, default=[65536], help="new tokens of each request: 65536 or 8192,100"
    )
    parser.add_argument("--prefix", type=_integers, default=[0], help="cached tokens of each request (default 0)")
    parser.add_argument(
        "--cp", type=_integers, default=[1, 2, 4, 8, 16, 32], help="ranks to compare (default 1,2,...,32)"
    )
    parser.add_argument("--scheme", default="zigzag", help="the split that is priced and drawn (default zigzag)")
    parser.add_argument("--cache", default="bf16", help="bf16 or fp8 rows in the cache gather (default bf16)")
    parser.add_argument("--weights", default="bf16", help="bf16, fp8 or int8 o_proj weights (default bf16)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the strategy: who owns which tokens, what moves")
    parser.add_argument("--svg-cp", type=int, metavar="N", help="ranks in the drawing (default: the one nearest to 8)")
    parser.set_defaults(run=_run_cp)


def _run_cp(arguments: argparse.Namespace) -> int:
    try:
        document = _plan_cp.document(
            model=arguments.model,
            tokens=arguments.tokens,
            prefix=arguments.prefix,
            sizes=arguments.cp,
            scheme=arguments.scheme,
            cache=arguments.cache,
            weights=arguments.weights,
        )
        if arguments.svg is not None:
            drawing = _plan_cp_svg.draw(document, arguments.svg_cp)
            arguments.svg.write_text(drawing, encoding="utf-8")
            print(f"wrote {arguments.svg}", file=sys.stderr)
    except (ValueError, TypeError, IndexError, OSError) as error:
        print(f"sparsespan plan cp: {error}", file=sys.stderr)
        return 2
    print(json.dumps(document, indent=2) if arguments.json else _plan_cp_text.text(document))
    return 0
