"""``sparsespan run``: a checkpoint, a prompt and a grid of ranks; tokens, and what each rank spent."""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._leaving import leave
from ._run_grid import add_grid, grid_facts, grid_of

__all__ = ["register"]

_EPILOG = """\
sparsespan run CHECKPOINT --prompt-file TEXT --cp 4 --pp 2 --decode-dcp 4
mpirun -n 4 sparsespan run CHECKPOINT --prompt-file TEXT --cp 2 --pp 2 --backend mpi
torchrun --nproc-per-node 2 -m sparsespan.cli run CHECKPOINT --prompt TEXT --tp 2 --backend gloo
Exit code 0: tokens were generated; 1: the ranks failed; 2: refused; 130: interrupted.
"""


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run", help="generate from a DSA checkpoint on a grid of ranks",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("checkpoint", help="folder with config.json, safetensors and tokenizer.json")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt-file", type=Path, metavar="TEXT", help="file whose text is the prompt (UTF-8)")
    prompt.add_argument("--prompt", metavar="STRING")
    add_grid(parser)
    what = parser.add_argument_group("generation")
    what.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    what.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the best token")
    what.add_argument("--seed", type=int, default=0)
    what.add_argument("--ignore-eos", action="store_true", help="go on behind the model's end token")
    what.add_argument("--chunk", type=int, default=0, help="most rows of a prefill pass (default all)")
    what.add_argument("--dense-until", type=int, default=0, metavar="N",
                      help="rows that see at most N keys (up to index_topk) take all, unscored")  # fmt: skip
    what.add_argument("--pool", type=int, default=0, metavar="TOKENS", help="size of the KV pool (default: as needed)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout; the text goes to stderr")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write what ran when, for ui.perfetto.dev")
    parser.set_defaults(run=_run)


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt_file is None:
        if any("\ud800" <= c <= "\udfff" for c in arguments.prompt):  # Python's stand-ins for such bytes
            raise ValueError("--prompt: is no UTF-8 text")
        return str(arguments.prompt)
    try:
        return str(arguments.prompt_file.read_bytes().decode())  # as it stands there, line ends too
    except UnicodeDecodeError as error:
        raise ValueError(f"{arguments.prompt_file}: is no UTF-8 text ({error})") from None
    except OSError as error:
        raise ValueError(f"--prompt-file {arguments.prompt_file} cannot be read: {error.strerror or error}") from None


def _job(arguments: argparse.Namespace, out: Any) -> tuple[Any, dict[str, Any], str]:
    """The work of a rank, the head of the document, and the fingerprint that all processes share."""
    from .. import models
    from ._run_pd import PdJob
    from ._run_rank import Job, fingerprint
    from ._run_text import TokenPrinter

    a = arguments
    for name in ("max_new_tokens", "temperature", "seed", "chunk", "pool", "dense_until"):
        least = int(name == "max_new_tokens")
        if not getattr(a, name) >= least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(a, name)}, needs at least {least}")
    if math.isinf(a.temperature):
        raise ValueError(f"--temperature is {a.temperature}, needs a finite number")
    grid = grid_of(a)
    text = _prompt(a)
    checkpoint = models.Checkpoint(a.checkpoint)
    grid.require(checkpoint.config)
    if a.dense_until > checkpoint.config.dims.topk:
        raise ValueError(f"--dense-until is {a.dense_until}, needs at most index_topk = {checkpoint.config.dims.topk}")
    tokenizer = models.open_tokenizer(a.checkpoint)
    prompt = tuple(tokenizer.encode(text))
    if max(prompt, default=0) >= checkpoint.config.vocab_size:
        raise ValueError(
            f"{a.checkpoint}: tokenizer.json gives token {max(prompt)}, the model's vocabulary has "
            f"{checkpoint.config.vocab_size}; needs the tokenizer of this model"
        )
    room = grid.require_room(checkpoint.config, len(prompt), a.max_new_tokens, a.pool)
    settings = (grid, prompt, a.max_new_tokens, room, a.chunk, a.temperature, a.seed, not a.ignore_eos, a.dense_until)
    printer = TokenPrinter(tokenizer, out)
    kind = PdJob if isinstance(grid, models.PdGrid) else Job
    job = kind(a.checkpoint, *settings, a.trace is not None, printer)
    head = {
        "checkpoint": a.checkpoint, "model_type": checkpoint.config.model_type, "backend": a.backend,
        "grid": grid_facts(grid, a.flavor),
        "prompt_tokens": len(prompt), "temperature": a.temperature, "seed": a.seed,
    }  # fmt: skip
    return job, head | {"tokenizer": tokenizer, "printer": printer}, fingerprint(checkpoint, *settings, bool(a.trace))


def _agreed(team: Any, words: str, mark: str, ranks: int) -> str:
    """Why not to begin, or nothing: on a program of processes, what any of them refuses, or has otherwise."""
    if not words and team.size is None and ranks > 1024:
        words = f"the grid has {ranks} ranks, threads give at most 1024: --backend mpi or gloo has more"
    if not words and team.size not in (None, ranks):
        words = f"the program has {team.size} ranks, the grid {ranks}: launch {ranks}"
    told = team.share({"words": words, "mark": mark})
    for rank, one in enumerate(told):
        if one["words"]:
            return str(one["words"]) if rank == 0 else f"rank {rank}: {one['words']}"
    for rank, one in enumerate(told):
        if one["mark"] != told[0]["mark"]:
            return f"rank {rank} has another checkpoint, prompt or options than rank 0, needs the same on every rank"
    return ""


def _document(head: dict[str, Any], found: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The document, and the spans of all ranks."""
    tokens = [rank.pop("tokens") for rank in found]
    for rank, said in enumerate(tokens):
        if said is not None and said != tokens[0]:  # a prefill rank that hands its requests over says nothing
            raise RuntimeError(f"rank {rank} has other tokens than rank 0: {said} against {tokens[0]}")
    spans = [[rank["rank"], *span] for rank in found for span in rank.pop("spans")]
    tokenizer, _ = head.pop("tokenizer"), head.pop("printer")
    text = {"tokens": tokens[0], "text": tokenizer.decode(tokens[0])}
    longest = {name: max(r[name] for r in found) for name in ("load_seconds", "prefill_seconds", "decode_seconds")}
    return head | text | longest | _handed_over(found) | {"ranks": found}, spans


def _handed_over(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What went from prefill ranks to decode ranks, where there are both."""
    told = [rank["hand_over"] for rank in found if "hand_over" in rank]
    if not told:
        return {}
    sent, planned = sum(one["sent"] for one in told), told[0]["planned"]
    if sent != planned:
        raise RuntimeError(f"the prefill ranks sent {sent} bytes of caches, the plan has {planned}")
    return {"hand_over": {"bytes": sent, "planned_bytes": planned, "seconds": max(one["seconds"] for one in told)}}


def _require_end(arguments: argparse.Namespace, team: Any) -> None:
    """What would fail only after the work; of processes only the leader writes."""
    path = arguments.trace
    if path is not None and team.leader and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError(f"--trace is {str(path)!r}, needs a file in a directory that exists")


def _write_trace(path: Path, spans: list[Any]) -> bool:
    from ..pipeline import Trace, TraceSpan

    rows = [TraceSpan(rank, lane, name, a, b, {"bytes": n} if n else {}) for rank, lane, name, a, b, n in spans]
    try:
        path.write_text(Trace(rows).to_json(), encoding="utf-8")
    except OSError as error:
        print(f"sparsespan run: --trace {path} cannot be written: {error.strerror or error}", file=sys.stderr)
        return False
    print(f"wrote {path}", file=sys.stderr)
    return True


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C tells the ranks: one that waits for nobody would go on otherwise."""

    def interrupt(*_: Any) -> None:
        stop.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _on_ranks(team: Any, job: Any, timeout: float) -> list[dict[str, Any]]:
    """A single rank runs in this thread, where Ctrl-C reaches it at once."""
    from ..comm import ThreadComm

    with _stopping(job.stop):
        alone = team.size is None and job.grid.ranks == 1
        return [job(ThreadComm(1)[0])] if alone else list(team.run(job.grid.ranks, job, timeout))


def _interrupted(team: Any) -> int:
    print("\nsparsespan run: interrupted", file=sys.stderr)
    team.give_up(130)
    return leave(130)


def _run(arguments: argparse.Namespace) -> int:
    from .. import verification

    out = sys.stderr if arguments.json else sys.stdout
    team, job, mark, words = None, None, "", ""
    head: dict[str, Any] = {}
    try:
        if not 0 < arguments.timeout < math.inf:
            raise ValueError(f"--timeout is {arguments.timeout:g}, needs more than 0 seconds, and a finite number")
        team = verification.open_team(arguments.backend)
        _require_end(arguments, team)
        job, head, mark = _job(arguments, out)
    except (OSError, ValueError, TypeError) as refusal:
        words = _in_words(refusal)
    if team is not None:
        words = _agreed(team, words, mark, job.grid.ranks if job is not None else 0)
    if team is None or job is None or words:
        return _refused(team, words)
    try:
        document, spans = _document(head, _on_ranks(team, job, arguments.timeout))
    except KeyboardInterrupt:
        return _interrupted(team)
    except BrokenPipeError:  # nobody reads the text any more
        team.give_up(141)
        raise
    except (ValueError, RuntimeError, OSError, TypeError, MemoryError, OverflowError) as error:
        print(f"\nsparsespan run: {_in_words(error)}", file=sys.stderr)
        team.give_up(1)
        return 1
    code = _told(arguments, job, document, spans) if team.leader else 0
    team.close()
    return code


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return f"out of memory: {error}" if isinstance(error, MemoryError) else str(error)


def _told(arguments: argparse.Namespace, job: Any, document: dict[str, Any], spans: list[Any]) -> int:
    from ._run_text import table

    job.tell.end()
    print(json.dumps(document, allow_nan=False) if arguments.json else "\n" + table(document))
    return 0 if arguments.trace is None or _write_trace(arguments.trace, spans) else 1


def _refused(team: Any, words: str) -> int:
    if team is None or team.leader:
        print(f"sparsespan run: {words}", file=sys.stderr)
    if team is not None:
        team.close()
    return 2
