"""``sparsespan verify --models``: whole models on grids of ranks against transformers, as one table."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["add_arguments", "asked", "run"]

# As in sparsespan.verification.parity, spelled out so that other commands need not import it.
MODELS = ("deepseek_v32", "glm_moe_dsa")
_OURS = ("models", "grids", "find_seeds")
_SHARED = ("backend", "timeout", "json", "inject")


def _models(text: str) -> tuple[str, ...]:
    chosen = MODELS if text == "all" else tuple(text.split(","))
    for name in chosen:
        if name not in MODELS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MODELS)} or all")
    return chosen


def add_arguments(parser: Any) -> None:
    """Options of this part of ``verify``."""
    what = parser.add_argument_group("whole models against transformers (with --backend, --timeout, --json, --inject)")
    what.add_argument(
        "--models",
        type=_models,
        nargs="?",
        const=MODELS,
        metavar="NAMES",
        help=f"{', '.join(MODELS)} (default both): logits, 64 greedy tokens and bytes on each grid",
    )  # fmt: skip
    what.add_argument(
        "--grids",
        metavar="NAMES",
        help="such as tp2,cp4:interleave,dcp4:ag_rs:sharded,tp2xcp2xpp2,cp4-to-tp2xdcp2 (default: one rank, TP, CP "
        "of each scheme, DCP, PP, products of them, and prefill and decode on different grids)",
    )  # fmt: skip
    what.add_argument("--find-seeds", action="store_true", help="search anew the seeds that keep away from ties")


def asked(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for this part."""
    return any(getattr(arguments, name) for name in _OURS)


def _require(arguments: argparse.Namespace) -> None:
    for name in _OURS[1:]:
        if arguments.models is None and getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} needs --models beside it")
    for name, value in vars(arguments).items():
        if name not in (*_OURS, *_SHARED, "command", "run", "defaults") and value != arguments.defaults(name):
            raise ValueError(f"--{name.replace('_', '-')} is not for --models, needs to be left out")
    if not 0 < arguments.timeout < math.inf:
        raise ValueError(f"--timeout is {arguments.timeout:g}, needs seconds above 0")
    if arguments.inject not in (None, "flip"):
        raise ValueError(f"--inject is {arguments.inject}, needs flip with --models")
    if arguments.find_seeds and arguments.backend != "threads":
        raise ValueError("--find-seeds needs no ranks, leave --backend out")


def _ways(arguments: argparse.Namespace, size: int | None) -> list[Any]:
    """The grids, one rank first; those of the default that are larger than the program are left out."""
    from ..verification import parity

    names = parity.GRIDS if arguments.grids is None else tuple(arguments.grids.split(","))
    found = parity.ways(tuple(dict.fromkeys(("one", *names))))
    if size is None:
        return found
    large = [way for way in found if way.ranks > size]
    if large and arguments.grids is not None:
        raise ValueError(
            f"the program has {size} ranks, {large[0].name} needs {large[0].ranks}: launch {large[0].ranks}"
        )
    return [way for way in found if way.ranks <= size]


def _find(models: tuple[str, ...]) -> int:
    from ..verification import parity

    for model in models:
        seed, found = parity.find_seed(model, tell=lambda why: print(f"passed over: {why}", file=sys.stderr))
        print(f"{model}: seed {seed} ({_close(found.gaps)}; {_versions(found.versions)})", flush=True)
    return 0


def _close(gaps: dict[str, Any]) -> str:
    return ", ".join(f"{kind} {gap:.1e}" for kind, gap in gaps.items() if kind != "seed")


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _refused(team: Any, error: Exception) -> int:
    if team is None or team.leader:
        print(f"sparsespan verify: {error}", file=sys.stderr)
    if team is not None:
        team.close()
    return 2


def run(arguments: argparse.Namespace) -> int:
    """Run the table; 0 when every row held."""
    from .. import verification
    from ..verification import parity

    team = None
    with tempfile.TemporaryDirectory(prefix="sparsespan-parity-") as folder:
        try:
            _require(arguments)
            if arguments.find_seeds:
                return _find(arguments.models)
            team = verification.open_team(arguments.backend)
            ways = _ways(arguments, team.size)
            sources = [parity.source(model, Path(folder, model), team) for model in arguments.models]
        except (ValueError, TypeError, OSError) as error:
            return _refused(team, error)
        out = _Printer(team, sys.stderr if arguments.json else sys.stdout)
        out.head([reference for _, reference in sources], ways)
        try:
            document = parity.table(
                sources, ways, team, timeout=arguments.timeout, flip=arguments.inject == "flip", tell=out.row
            )
        except KeyboardInterrupt:
            print("sparsespan verify: interrupted", file=sys.stderr)
            team.give_up(130)
            return 130
    return _end(arguments, team, out, document)


def _end(arguments: argparse.Namespace, team: Any, out: _Printer, document: dict[str, Any]) -> int:
    out.end(document)
    if team.leader and arguments.json:
        print(json.dumps(document, indent=2, allow_nan=False))
    code = 0 if document["passed"] else 1
    if any(row["error_words"] for row in document["rows"]):
        team.give_up(code)
    else:
        team.close()
    return code


def _moved(ranks: list[dict[str, Any]]) -> str:
    """By group, what its busiest rank received, prefill / decode; between two grids, what was handed over."""
    words = []
    for group in dict.fromkeys(name for rank in ranks for name in rank):
        most = {
            stage: max(sum(op["bytes"] for op in rank.get(group, {}).get(stage, {}).values()) for rank in ranks)
            for stage in ("prefill", "hand over", "decode")
        }
        if group == "pd":
            words.append(f"handed over {most['hand over']:,}")
        elif " " in group:  # of one side
            words.append(f"{group} {most[group.split()[0]]:,}")
        else:
            words.append(f"{group} {most['prefill']:,} / {most['decode']:,}")
    return "; ".join(words) or "-"


class _Printer:
    """A line for each row, as it ends, in the leading process."""

    def __init__(self, team: Any, stream: Any) -> None:
        self._team, self._stream, self._widths = team, stream, [0]

    def _print(self, text: str) -> None:
        if self._team.leader:
            print(text, file=self._stream, flush=True)

    def _line(self, cells: list[str]) -> None:
        self._print("  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths)).rstrip())

    def head(self, references: list[Any], ways: list[Any]) -> None:
        """What is compared with what."""
        lengths = ", ".join(str(len(p)) for p in references[0].prompts)
        self._print(
            f"verify --models: {len(references)} x {len(ways)} grids on {self._team.backend} against "
            f"{_versions(references[0].versions)}, eager, float32; prompts of {lengths} tokens in one batch, "
            f"{references[0].tokens.shape[1]} greedy tokens"
        )
        for r in references:
            self._print(f"{r.model}: seed {r.seed}; smallest gap at an edge, as a part of the row's spread: "
                        f"{_close(r.gaps)}")  # fmt: skip
        self._print(
            "error, tokens, bits, s measured; bytes counted, into the busiest rank, by group: prefill / decode\n"
            "bits: the first row that has the same; a-to-b: prefill on grid a, decode on grid b"
        )
        width = max(len(way.name) for way in ways)
        self._widths = [4, max(len(r.model) for r in references), width, 5, 10, 12, width, 6, 0]
        self._line(["", "model", "grid", "ranks", "max error", "tokens equal", "bits", "s", "bytes"])

    def row(self, row: dict[str, Any]) -> None:
        """One row has ended."""
        none = "-" if row["error_words"] else "not finite"
        error = none if row["error"] is None else f"{row['error']:.1e}"
        self._line(
            [
                "ok" if row["passed"] else "FAIL", row["model"], row["grid"], str(row["ranks"]), error,
                "yes" if row["tokens_equal"] else "no", row["bits"] or "-", f"{row['seconds']:.1f}",
                _moved(row["bytes"]),
            ]
        )  # fmt: skip
        for why in row["why"]:
            self._print(f"      {why}")
        if row["error_words"] and not self._team.leader:
            sys.stderr.write(f"rank {self._team.comm.rank}: {row['error_words']}\n")

    def end(self, document: dict[str, Any]) -> None:
        """The last line."""
        rows = document["rows"]
        words = "every row held" if document["passed"] else f"{len(document['failed'])} FAILED"
        if len(rows) < document["planned"]:
            words += f", {document['planned'] - len(rows)} not run: the group was given up"
        worst = max((row["error"] for row in rows if row["error"] is not None), default=math.nan)
        self._print(
            f"{len(rows)} of {document['planned']} rows in {document['seconds']:.1f} s ({document['isa']}): {words}; "
            f"largest error {worst:.1e}, allowed {document['limit']:g}"
        )
