"""``sparsespan verify``: the distributed operators on N ranks, held against one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from . import _verify_models, _verify_stages

__all__ = ["register"]

# As in sparsespan.verification, spelled out so that other commands need not import it.
CHOICES = {
    "scheme": ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even"),
    "combine": ("a2a", "ag_rs", "ar"),
    "index_k": ("replicated", "sharded", "sharded_routed", "union", "gathered"),
    "payload": ("fp32", "bf16"),
    "o_proj": ("full", "gather_weight", "a2a_rs", "broadcast"),
    "batches": ("single", "ragged", "prefix", "mixed"),
}
_EPILOG = """\
Without --cp and --dcp: prefill over cp and decode over dcp, 4 ranks each. With both: one grid of cp x tp ranks.
mpirun -n 4 sparsespan verify --backend mpi --cp 4
torchrun --nproc-per-node 4 -m sparsespan.cli verify --backend gloo --dcp 4 --index-k all
sparsespan verify --models    # whole models, against transformers
sparsespan verify --stages transformers cp4    # stage by stage: which one differs first, and why
Exit code 0: every case kept its contract; 1: one did not, or ended in an error
(with --stages: a difference was found); 2: refused.
"""


def _integer(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer") from None
    if not -(2**31) <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is out of range, needs less than 2^31")
    return value


def _integers(text: str) -> tuple[int, ...]:
    try:
        [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of integers such as 1,2,4") from None
    return tuple(_integer(part) for part in text.split(","))


def _names(key: str) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        chosen = CHOICES[key] if text == "all" else tuple(text.split(","))
        for name in chosen:
            if name not in CHOICES[key]:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(CHOICES[key])} or all")
        return chosen

    return parse


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "verify", help="run the distributed operators on N ranks, hold every byte against one rank",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    grid = parser.add_argument_group("grid (lists such as 2,4,8 make several)")
    grid.add_argument("--cp", type=_integers, help="ranks of prefill context parallelism")
    grid.add_argument("--dcp", type=_integers, help="ranks that share a KV cache in decode")
    grid.add_argument("--tp", type=_integer, help="ranks that share the heads (default dcp)")
    grid.add_argument("--ranks", type=_integer, help="ranks in all: the grid's; without a grid, the size of cp and dcp")
    grid.add_argument("--backend", choices=("threads", "mpi", "gloo"), default="threads")
    grid.add_argument("--table", action="store_true", help="cp and dcp 2, 4, 8 (the program's ranks on mpi and gloo) "
                      "x everything there is, interleaves 1,16,64")  # fmt: skip
    what = parser.add_argument_group("what runs (lists, or all)")
    what.add_argument("--scheme", type=_names("scheme"), help=f"{', '.join(CHOICES['scheme'])} (default zigzag)")
    what.add_argument("--interleave", type=_integers, help="tokens in a row on one dcp rank (default 1)")
    what.add_argument("--combine", type=_names("combine"), help=f"{', '.join(CHOICES['combine'])} (default a2a)")
    what.add_argument("--index-k", type=_names("index_k"), help=f"{', '.join(CHOICES['index_k'])} (default replicated)")
    what.add_argument("--payload", type=_names("payload"), help="fp32 (default) or bf16 partial results")
    what.add_argument("--replicate-q", action="store_true", help="every dcp rank has all query heads")
    what.add_argument(
        "--o-proj", type=_names("o_proj"), help=f"also the output projection: {', '.join(CHOICES['o_proj'])}"
    )
    what.add_argument("--layer", action="store_true", help="also a whole attention layer in prefill")
    what.add_argument("--batch", type=_names("batches"), help=f"{', '.join(CHOICES['batches'])} (default all)")
    what.add_argument("--lens", type=_integers, help="prefill: new tokens, decode: keys of each request; for --batch")
    what.add_argument("--prefix", type=_integers, help="prefill: cached tokens, one number or one for each request")
    what.add_argument("--next-n", type=_integers, help="query rows of a decode request (default 1)")
    _verify_models.add_arguments(parser)
    model = parser.add_argument_group("tensors")
    model.add_argument("--model", choices=("v3.2", "glm-5"), default="v3.2")
    model.add_argument("--layout", choices=("fp8_656", "bf16_576"), default="fp8_656", help="KV cache; index-K follows")
    model.add_argument("--heads", type=_integer, default=16, help="attention heads (default 16)")
    model.add_argument("--topk", type=_integer, help="default: a quarter of the longest context, at most the model's")
    model.add_argument("--page-size", type=_integer, default=64)
    model.add_argument("--seed", type=int, default=0)
    _verify_stages.add_options(parser)
    end = parser.add_argument_group("how it ends")
    end.add_argument("--timeout", type=float, default=60.0, help="seconds that an operation waits for its peers")
    end.add_argument("--timeline", type=Path, metavar="FILE", help="write the operations for ui.perfetto.dev")
    end.add_argument("--json", action="store_true", help="print one JSON document; progress goes to stderr")
    end.add_argument("--inject", choices=("flip", "count", "corrupt", "raise", "skip", "delay", "plan", "die"),
                     help="something wrong on the last rank (--models: in a weight); verify must fail")  # fmt: skip
    end.add_argument("--inject-at", type=_integer, default=0, metavar="N", help="operation that goes wrong, from 0")
    parser.set_defaults(run=_run, defaults=parser.get_default)


def _cases(arguments: argparse.Namespace, size: int | None) -> list[Any]:
    """The cases that were asked for; ``size`` is that of a running program."""
    from .. import verification

    model = verification.Model(
        arguments.model, arguments.heads, arguments.topk, arguments.layout, arguments.page_size, arguments.seed
    )
    options = dataclasses.replace(
        verification.TABLE if arguments.table else verification.Options(cp=(4,), dcp=(4,)),
        tp=arguments.tp, replicate_q=arguments.replicate_q, model=model,
    )  # fmt: skip
    grid = arguments.cp or arguments.dcp
    ranks = arguments.ranks or size
    if arguments.tp and not grid:
        raise ValueError("--tp needs --cp or --dcp beside it")
    if grid:
        options = dataclasses.replace(options, cp=arguments.cp or (), dcp=arguments.dcp or ())
    elif ranks:
        options = dataclasses.replace(options, cp=(ranks,), dcp=(ranks,))
    given = {"batches": arguments.batch}
    given |= {
        key: getattr(arguments, key)
        for key in ("scheme", "interleave", "combine", "index_k", "payload", "o_proj", "lens", "prefix", "next_n")
    }
    given["layer"] = arguments.layer or None  # fmt: skip
    options = dataclasses.replace(options, **{key: value for key, value in given.items() if value is not None})
    cases = verification.cases(options, joint=bool(grid) and not arguments.table)
    for case in cases:
        if size is not None and case.ranks != size:
            raise ValueError(f"the program has {size} ranks, {case.name!r} needs {case.ranks}: launch {case.ranks}")
        if size is None and case.ranks > 1024:
            raise ValueError(f"{case.name!r} needs {case.ranks} ranks, threads give at most 1024")
        if arguments.ranks is not None and case.ranks != arguments.ranks:
            raise ValueError(f"--ranks is {arguments.ranks}, {case.name!r} needs {case.ranks}")
    return cases


def _check_end(arguments: argparse.Namespace, team: Any) -> None:
    """What would fail only after the work."""
    if not 0 < arguments.timeout < math.inf:
        raise ValueError(f"--timeout is {arguments.timeout:g}, needs seconds above 0")
    path = arguments.timeline
    if path is None or team.size is not None:  # of processes only the leader writes: the others must not wait for it
        return
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--timeline is {str(path)!r}, needs a file in a directory that exists")


def _write_timeline(path: Path, spans: Any) -> bool:
    from .. import verification

    try:
        path.write_text(verification.trace({"spans": spans}).to_json(), encoding="utf-8")
    except OSError as error:
        print(f"sparsespan verify: --timeline {path} cannot be written: {error.strerror or error}", file=sys.stderr)
        return False
    print(f"wrote {path}", file=sys.stderr)
    return True


def _refuse(team: Any, error: Exception) -> int:
    if team is None or team.leader:
        print(f"sparsespan verify: {error}", file=sys.stderr)
    if team is not None:
        team.close()
    return 2


def _run(arguments: argparse.Namespace) -> int:
    if _verify_models.asked(arguments):
        return _verify_models.run(arguments)
    if _verify_stages.asked(arguments):
        return _verify_stages.run(arguments)
    from .. import verification
    from . import _verify_text

    team = None
    try:
        team = verification.open_team(arguments.backend)
        _check_end(arguments, team)
        cases = _cases(arguments, team.size)
        fault = None
        if arguments.inject is not None:
            fault = verification.Fault(arguments.inject, arguments.inject_at, 2 * arguments.timeout)
    except (ValueError, TypeError, IndexError) as error:
        return _refuse(team, error)
    out = _verify_text.Printer(cases, team, sys.stderr if arguments.json else sys.stdout)
    try:
        document = verification.verify(cases, team, timeout=arguments.timeout, fault=fault, tell=out.case)
    except KeyboardInterrupt:
        print("sparsespan verify: interrupted", file=sys.stderr)
        team.give_up(130)
        return 130
    out.end(document)
    spans = document.pop("spans")
    code = 0 if document["passed"] else 1
    if team.leader:
        if arguments.json:
            print(json.dumps(document, indent=2, allow_nan=False))
        if arguments.timeline is not None and not _write_timeline(arguments.timeline, spans):
            code = 1
    if any(case["error"] for case in document["cases"]):
        team.give_up(code)
    else:
        team.close()
    return code
