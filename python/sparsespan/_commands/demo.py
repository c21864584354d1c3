"""``sparsespan demo``: whole models on grids of ranks beside one rank, then a layer at a model's real size, checked."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..testing._model_inputs import MODELS
from ._leaving import leave

__all__ = ["register"]

_TOPK = 2048  # of the real models
_EPILOG = "Exit code 0: everything held; 1: something did not; 2: refused; 130: interrupted."


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "demo", help="whole models on grids of ranks against one rank; a layer at real size against the reference",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("--part", choices=("all", "models", "layer"), default="all", help="default all")
    whole = parser.add_argument_group("models", "small random checkpoints, prefill on CP 4 x PP 2, decode on DCP 4")
    whole.add_argument("--text", type=Path, metavar="FILE", help="what the models read (default: the README)")
    whole.add_argument("--tokens", type=int, default=2560, help="prompt tokens, the text's first")
    whole.add_argument("--new", type=int, default=16, metavar="N", help="tokens to generate")
    layer = parser.add_argument_group("layer", "seeded random tensors of the real sizes")
    layer.add_argument("--model", choices=sorted(MODELS), default="v3.2")
    layer.add_argument("--seq", type=int, default=0, help="prompt tokens (default 4096; 3072 at the generic level)")
    layer.add_argument("--decode", type=int, default=16, help="decode steps")
    layer.add_argument("--chunk", type=int, default=1024, help="tokens a prefill chunk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=_run)


def _text(arguments: argparse.Namespace) -> tuple[str, str]:
    """(name, text), and refusals of every number."""
    from ._demo_models import text_of

    for name, least in (("tokens", 8), ("new", 1), ("seq", 0), ("decode", 0), ("chunk", 1), ("seed", 0)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}, needs at least {least}")
    if arguments.part == "layer":
        return "", ""
    name, text = text_of(arguments.text)
    if len(text.encode()) < arguments.tokens:
        raise ValueError(f"{name} has {len(text.encode())} tokens, needs {arguments.tokens}: --tokens asks for so many")
    return name, text


def _models(arguments: argparse.Namespace, name: str, text: str) -> list[dict[str, Any]]:
    from . import _demo_models, _demo_models_text

    topk = _TOPK if arguments.tokens > _TOPK else arguments.tokens // 4
    start = time.perf_counter()

    def say(words: str) -> None:
        print(f"[{time.perf_counter() - start:5.1f} s] {words}", file=sys.stderr, flush=True)

    print(f"Whole models read {name}: a prompt longer than what they attend to.", file=sys.stderr)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for model in _demo_models.FAMILIES:
            one = _demo_models.compare(
                Path(folder), model, text, arguments.tokens, arguments.new, topk, arguments.seed, say
            )
            found.append(one)
            if not arguments.json:
                print(f"\n{_demo_models_text.tables(one)}\n", flush=True)
    return found


def _run(arguments: argparse.Namespace) -> int:
    try:
        return _shown(arguments)
    except KeyboardInterrupt:
        print("\nsparsespan demo: interrupted", file=sys.stderr)
        return leave(130)


def _shown(arguments: argparse.Namespace) -> int:
    from . import _demo_layer, _demo_models, _demo_models_text

    try:
        name, text = _text(arguments)
    except (OSError, ValueError) as refusal:
        print(f"sparsespan demo: {refusal}", file=sys.stderr)
        return 2
    start, verdicts = time.perf_counter(), []
    document: dict[str, Any] = {}
    if arguments.part != "layer":
        document["models"] = _models(arguments, name, text)
        document["kv"] = _demo_models.kv_facts()
        verdicts += [one["passed"] for one in document["models"]]
        if not arguments.json:
            print(f"{_demo_models_text.PROVES}\n\n{_demo_models_text.facts(document['kv'])}\n", flush=True)
    if arguments.part != "models":
        a = arguments
        summary, meter = _demo_layer.run_layer(a.model, a.seq, a.chunk, a.decode, a.seed)
        document |= summary
        verdicts.append(summary["passed"])
        if not arguments.json:
            _demo_layer.print_table(meter)
    document |= {"seconds": round(time.perf_counter() - start, 2), "passed": all(verdicts)}
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        print(f"\n{document['seconds']} s in all; {'every check passed' if all(verdicts) else 'A CHECK FAILED'}")
    return 0 if document["passed"] else 1
