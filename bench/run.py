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
    wanted = [name for name in only.split(",") if name]
    strange = [name for name in wanted if name not in known]
    if strange:
        raise SystemExit(f"bench: --only has {', '.join(strange)}, needs some of {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def measure(names: list[str], quick: bool, out: object) -> Iterator[dict]:
    from report import line

    for family in names:
        for row in importlib.import_module(f"bench_{family}").rows(quick):
            row["family"] = family
            print(line(row), file=out, flush=True)
            yield row


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


def run(arguments: argparse.Namespace) -> int:
    uncripple()
    sys.path.insert(0, str(FOLDER))
    import baseline
    from report import HEAD
    from session import SESSION, cpu_name, levels_not_run, machine

    import sparsespan

    SESSION.quick = arguments.quick
    out = sys.stderr if arguments.json else sys.stdout
    names = families(arguments.only)
    if arguments.write_baseline and arguments.only:
        raise SystemExit("bench: --write-baseline needs all families, without --only")
    info = {**machine(), **sparsespan.build_info()}
    print(f"{cpu_name()}, {info['threads']} threads, isa {info['isa']}, {info['compiler']}", file=out)
    for words in levels_not_run():
        print(words, file=out)
    SESSION.calibrate()
    print(HEAD, file=out)
    rows = list(measure(names, arguments.quick, out))
    peaks = {isa: SESSION.peak(isa) for isa in SESSION.levels()}
    print(
        "probe at its best, all threads: " + ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in peaks.items()), file=out
    )
    bandwidth = SESSION.bandwidth()
    print(f"memory: copy {bandwidth['copy']:.1f} GB/s (read + written), read {bandwidth['read']:.1f} GB/s", file=out)
    for words in SESSION.notes:
        print(words, file=out)
    if arguments.svg:
        from roofline import draw

        Path(arguments.svg).write_text(draw(rows, peaks, bandwidth["copy"]), encoding="utf-8")
    broken = [row for row in rows if row.get("holds") is False]
    good = True
    if arguments.check:
        good = check(rows, names, arguments.quick, out) and not broken
        for row in broken:
            print(f"check: {row['op']}, {row['shape']}: {row['words']}", file=out)
    if arguments.write_baseline:
        path = baseline.path_of(FOLDER, arguments.quick)
        print(f"{baseline.write(path, machine(), rows)} ratios written to {path}", file=out)
    if arguments.json:
        notes = [*levels_not_run(), *SESSION.notes]
        print(
            json.dumps(
                {"machine": info, "probe_flops": peaks, "memory_gbytes_per_s": bandwidth, "notes": notes, "rows": rows},
                indent=2,
            )
        )
    return 0 if good else 1


if __name__ == "__main__":
    from sparsespan.cli import main

    sys.exit(main(["bench", *sys.argv[1:]]))
