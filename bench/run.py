"""All benches: `sparsespan bench`, `./dev bench` or `python bench/run.py`; the options are in _commands/bench.py.

Every bench_<family>.py here has `rows(quick)`, a generator of dicts with op, shape, isa, ours_ms, peer, peer_ms, ratio
(peer time / ours) and, where they mean something, gflops, gbytes_per_s, fraction_of_probe (of the register-resident
probe around that very timing) and fraction_of_bandwidth (of a copy of as many bytes). `timing.compare` makes such rows
from bracketed pairs, the only ones that a baseline judges; `timing.interleaved` gives plain medians. `words` is free
text. Milliseconds drift with the machine; only ratios are meant to be compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CRIPPLED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def uncripple() -> None:
    """Restart without the variables that slow NumPy down: as a peer it runs at its best. Nothing of ours reads them."""
    present = [name for name in CRIPPLED if name in os.environ]
    if not present:
        return
    print(f"bench: {', '.join(present)} unset for the NumPy peer", file=sys.stderr, flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in CRIPPLED}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def families(only: str) -> list[str]:
    known = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    wanted = [name.strip() for name in only.split(",")] if only else []
    strange = [name or "an empty name" for name in wanted if name not in known]
    if strange:
        raise SystemExit(f"bench: --only has {', '.join(strange)}, needs some of {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def measure(names: list[str], quick: bool, out: object) -> Iterator[dict]:
    """The rows of each family. One that fails ends alone: it is said, and the bench's exit code tells."""
    from report import line
    from session import SESSION

    for family in names:
        start = time.perf_counter()
        try:
            for row in importlib.import_module(f"bench_{family}").rows(quick):
                row["family"] = family
                print(line(row), file=out, flush=True)
                yield row
        except Exception as failure:
            traceback.print_exc()
            SESSION.failed.append(family)
            SESSION.note(f"{family}: ended with {type(failure).__name__}: {failure}")
        print(f"-- {family}: {time.perf_counter() - start:.0f} s", file=out, flush=True)


def check(rows: list[dict], names: list[str], quick: bool, out: object) -> bool:
    """True when no ratio fell. A fall has to be seen twice: what fell is measured again."""
    import baseline
    from session import SESSION, machine

    kept = baseline.load(baseline.path_of(FOLDER, quick))
    if kept is None:
        print("check: skipped, there is no baseline (--write-baseline makes one)", file=out)
        return True
    other = baseline.other_machine(kept, machine())
    if other:
        print(f"check: skipped, the baseline is of another class of machine: {other}", file=out)
        return True
    if names != families(""):
        measured = {baseline.key(r) for r in rows if "peer" in r}
        kept["ratios"] = {k: v for k, v in kept["ratios"].items() if k in measured}
    fell, skipped = baseline.compare(kept, rows)
    if fell:
        print(f"check: {len(fell)} fell, measured once more", file=out)
        SESSION.only = {(k.split(" | ")[0], k.split(" | ")[1]) for k in fell}
        ops = {r["family"] for r in rows if "peer" in r and baseline.key(r) in fell}
        again = list(measure([n for n in names if n in ops], quick, out))
        fell = [k for k in baseline.compare(kept, again)[0] if k in fell]
        rows = [r for r in rows if "peer" not in r or (r["op"], r["shape"]) not in SESSION.only] + again
    for words in skipped:
        print(f"check: skipped {words}", file=out)
    now = baseline.judged(rows)
    for k in fell:
        print(f"check: FELL {k}: {kept['ratios'][k]['ratio']:.2f} -> {now[k]['ratio']:.2f}", file=out)
    judged = len(kept["ratios"]) - len(skipped)
    print(f"check: {judged} ratios judged, {len(fell)} fell, {len(skipped)} skipped", file=out)
    return not fell


def heading(info: dict, out: object) -> None:
    from report import HEAD
    from session import levels_not_run

    print(f"{info['cpu']}, {info['threads']} threads, isa {info['isa']}, {info['compiler']}", file=out)
    for words in levels_not_run():
        print(words, file=out)
    print(HEAD, file=out)


def closing(document: dict, out: object) -> None:
    """What the machine gives, what was skipped, the goals."""
    from goals import lines

    peaks, bandwidth = document["probe_flops"], document["memory_gbytes_per_s"]
    best = ", ".join(f"{isa} {rate / 1e9:.0f} GFLOP/s" for isa, rate in peaks.items())
    print(f"probe at its best, all threads: {best}", file=out)
    print(f"memory: copy {bandwidth['copy']:.1f} GB/s (read + written), read {bandwidth['read']:.1f} GB/s", file=out)
    for words in document["notes"]:
        print(words, file=out)
    machine = "{cpu}, {threads} threads, best level {isa}".format(**document["machine"])
    print("", *lines(document["goals"], machine), sep="\n", file=out)


def measured(names: list[str], quick: bool, out: object) -> dict:
    """The whole run as one document."""
    import goals
    from session import SESSION, levels_not_run, machine

    import sparsespan

    info = {**machine(), **sparsespan.build_info()}
    heading(info, out)
    SESSION.calibrate()
    rows = list(measure(names, quick, out))
    levels = SESSION.levels()
    return {
        "machine": info,
        "probe_flops": {isa: SESSION.peak(isa) for isa in levels},
        "memory_gbytes_per_s": SESSION.bandwidth(),
        "notes": [*levels_not_run(), *SESSION.notes],
        "goals": goals.judge(rows, levels),
        "rows": rows,
    }


def refuse_early(arguments: argparse.Namespace) -> None:
    """What would spoil the end of a run of minutes ends it at once."""
    import baseline

    kept = baseline.path_of(FOLDER, arguments.quick)
    if arguments.write_baseline and arguments.only:
        raise SystemExit("bench: --write-baseline needs all families, without --only")
    for option, path in (("--svg", arguments.svg), ("--write-baseline", kept if arguments.write_baseline else None)):
        if path and (Path(path).is_dir() or not os.access(path if Path(path).exists() else Path(path).parent, os.W_OK)):
            raise SystemExit(f"bench: {option} cannot write {path}, needs a file in a folder that may be written")
    try:
        if arguments.check:
            baseline.load(kept)
    except (OSError, ValueError) as failure:
        raise SystemExit(f"bench: --check cannot read {kept}: {failure}") from None


def run(arguments: argparse.Namespace) -> int:
    uncripple()
    sys.path.insert(0, str(FOLDER))
    import baseline
    from session import SESSION, cpu_name, machine

    SESSION.quick = arguments.quick
    out = sys.stderr if arguments.json else sys.stdout
    names = families(arguments.only)
    refuse_early(arguments)
    start = time.perf_counter()
    document = measured(names, arguments.quick, out)
    rows = document["rows"]
    closing(document, out)
    if arguments.svg:
        from roofline import draw

        picture = draw(rows, document["probe_flops"], document["memory_gbytes_per_s"]["copy"], cpu_name())
        Path(arguments.svg).write_text(picture, encoding="utf-8")
    good = not SESSION.failed
    if arguments.check:
        good &= check(rows, names, arguments.quick, out)
        for row in (row for row in rows if row.get("holds") is False):
            good = False
            print(f"check: {row['op']}, {row['shape']}: {row['words']}", file=out)
    if arguments.write_baseline:
        path = baseline.path_of(FOLDER, arguments.quick)
        print(f"{baseline.write(path, machine(), rows)} ratios written to {path}", file=out)
    if arguments.json:
        print(json.dumps(document, indent=2))
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes", file=out)
    return 0 if good else 1


if __name__ == "__main__":
    from sparsespan.cli import main

    sys.exit(main(["bench", *sys.argv[1:]]))
