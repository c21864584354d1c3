"""The table: models x grids, each row held against transformers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..._runtime import build_info
from .._teams import Team, Threads
from ._grids import Way
from ._rank import Job
from ._reference import LEAST_GAP, Reference

__all__ = ["DEFINITIONS", "LIMIT", "row", "table"]

LIMIT = 1e-4  # of the row's largest logit: float32 throughout, caches f32_576 and index_f32
Before = dict[str, dict[str, str]]
DEFINITIONS = {
    "error": "measured: largest |logit - eager logit| over the row's largest |eager logit|, on any rank; held to limit"
    "; null: not finite, or no result",
    "prefill": "behind every token of the prompts, computed in one pass",
    "decode": "behind each of the 63 own tokens that follow",
    "chunked": "the same, prompts in two parts and each part in chunks of 29 rows",
    "forced": "behind each of 3 tokens of transformers that follow that",
    "tokens_equal": "measured: whether all ranks' 64 greedy tokens of each prompt are those of generate()",
    "bits": "measured: the first row whose logits have the same bits, in all stages, on all ranks; bits_promised: the "
    "stages that must have those of one rank",
    "bytes": "counted: what each rank received, by group, stage (prefill, hand over, 63 decode steps) and primitive",
    "prompt_rows": "counted: rows of the prompts that some rank compared; all must be",
    "seconds": "measured: the slowest rank",
}


def _tokens(found: Sequence[dict[str, Any]], reference: Reference) -> str:
    """Where the first rank's tokens part from those of transformers."""
    for said in found:
        tokens = said["tokens"]
        if tokens is None:  # a rank that only prefills
            continue
        off = np.argwhere(np.asarray(tokens).T != reference.tokens.T)
        if len(off):
            step, prompt = off[0].tolist()
            return (
                f"rank {said['rank']}: token {step} of prompt {prompt} is {tokens[prompt][step]}, transformers has "
                f"{reference.tokens[prompt, step]}"
            )
    return ""


def _finite(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None


def _bits(found: Sequence[dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """A digest for each stage, and the stages in which ranks differ."""
    stages: dict[str, str] = {}
    torn = []
    for said in found:
        for stage, digest in said["digests"].items():
            if stages.setdefault(stage, digest) != digest and stage not in torn:
                torn.append(stage)
    return stages, torn


def _worst(found: Sequence[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """The largest error of each stage, and the rank and place of the largest of all."""
    errors: dict[str, float] = {}
    words, most = "", -1.0
    for said in found:
        for stage, error in said["errors"].items():
            errors[stage] = max(error, errors.get(stage, 0.0))
            if error > most:
                words, most = f"rank {said['rank']}: {stage} is off by {error:.1e} ({said['worst'][stage]})", error
    return errors, words


def _rows(found: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many rows of the prompts ranks have compared, by stage."""
    return {stage: len(set().union(*(said["rows"][stage] for said in found))) for stage in found[0]["rows"]}


def _merged(way: Way, reference: Reference, found: Sequence[dict[str, Any]], before: Before) -> dict[str, Any]:
    """One row from all ranks' findings; the first of ``before`` is one rank's."""
    (errors, words), other, (stages, torn) = _worst(found), _tokens(found, reference), _bits(found)
    same = next((name for name, theirs in before.items() if theirs == stages), "") if not torn else ""
    why = [] if max(errors.values()) <= LIMIT else [f"{words}, needs {LIMIT:g}"]
    why += [other] if other else []
    rows, total = _rows(found), sum(map(len, reference.prompts))
    why += [f"{stage}: {n} of {total} rows of the prompts were compared" for stage, n in rows.items() if n < total]
    why += [f"ranks have logits of different bits: {', '.join(torn)}"] if torn else []
    one = next(iter(before.values()), stages)
    off = [stage for stage in way.promised if stages.get(stage) != one.get(stage)]
    why += [f"the bits are not those of one rank: {', '.join(off)}"] if off and not torn else []
    before[way.name] = {} if torn else stages
    return {
        "errors": {stage: _finite(error) for stage, error in errors.items()},
        "error": _finite(max(errors.values())), "tokens_equal": not other, "bits": same,
        "bits_promised": list(way.promised), "prompt_rows": rows, "bytes": [f["bytes"] for f in found],
        "seconds": max(f["seconds"] for f in found), "why": why, "passed": not why,
    }  # fmt: skip


def row(
    folder: Path, reference: Reference, way: Way, team: Team | None = None, before: Before | None = None, *,
    timeout: float = 60.0, flip: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run a checkpoint on one grid and hold its logits and tokens against those of transformers.

    Parameters
    ----------
    folder : Path
        With the checkpoint.
    reference : Reference
    way : Way
    team : Team, optional
        Default: ranks are threads of this process. A larger program leaves ranks idle.
    before : dict, optional
        Digests of earlier rows by grid, one rank first; this one is added.
    timeout : float
        Seconds that an operation waits for its peers.
    flip : bool
        Turn the sign of a weight: the row must fail.

    Returns
    -------
    dict
        Plain JSON data; see :data:`DEFINITIONS`.
    """
    team = team or Threads()
    job = Job(folder, way, reference, flip)

    def on_rank(world: Any) -> dict[str, Any]:
        part = world if world.size == way.ranks else world.split(0 if world.rank < way.ranks else -1)
        return job(part) if part is not None else {}

    head = {"model": reference.model, "grid": way.name, "ranks": way.ranks, "backend": team.backend, "error_words": ""}
    begun = time.perf_counter()
    try:
        found = [findings for findings in team.run(way.ranks, on_rank, timeout) if findings]
        return head | _merged(way, reference, found, {} if before is None else before)
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        return head | {
            "errors": {}, "error": None, "tokens_equal": False, "bits": "",
            "bits_promised": list(way.promised), "prompt_rows": {}, "bytes": [],
            "seconds": time.perf_counter() - begun, "why": [words], "error_words": words, "passed": False,
        }  # fmt: skip


def table(
    sources: Iterable[tuple[Path, Reference]], ways: Sequence[Way], team: Team | None = None, *, timeout: float = 60.0,
    flip: bool = False, tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run every grid for every model; the first grid is the one rank that others are compared with.

    Parameters
    ----------
    sources : iterable of (Path, Reference)
        A checkpoint and the answers of transformers for each model.
    ways : sequence of Way
    team, timeout, flip
        As in :func:`row`.
    tell : callable(row), optional
        Called after each row.

    Returns
    -------
    dict
        Plain JSON data; ``passed`` is true when every row held.
    """
    team, begun = team or Threads(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    gaps, versions, planned = {}, {}, 0
    for folder, reference in sources:
        before: Before = {}
        planned += len(ways)
        gaps[reference.model], versions = {"seed": reference.seed, **reference.gaps}, reference.versions
        for way in ways:
            if rows and rows[-1]["error_words"] and team.size is not None:
                break  # the program's group has been given up
            rows.append(row(folder, reference, way, team, before, timeout=timeout, flip=flip))
            if tell is not None:
                tell(rows[-1])
    return {
        "kind": "parity",
        "passed": bool(rows) and len(rows) == planned and all(r["passed"] for r in rows),
        "backend": team.backend,
        "isa": build_info()["isa"],
        "versions": versions,
        "limit": LIMIT,
        "least_gap": LEAST_GAP,
        "gaps": gaps,
        "seconds": time.perf_counter() - begun,
        "planned": planned,
        "failed": [f"{r['model']} {r['grid']}" for r in rows if not r["passed"]],
        "definitions": DEFINITIONS,
        "rows": rows,
    }  # fmt: skip
