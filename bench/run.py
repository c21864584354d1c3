"""All benches: `python bench/run.py [--quick] [--json] [--only NAME]`.

Every bench_<family>.py here has `rows(quick)`, a generator of dicts with op, shape, isa, ours_ms, peer, peer_ms, ratio
(peer time / ours, both medians of interleaved runs of this process) and, where they mean something, gflops,
gbytes_per_s and fraction_of_probe (of the register-resident probe of that ISA level and thread count, measured in the
same run). Milliseconds drift with the machine; only ratios are meant to be compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

CRIPPLED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def uncripple() -> None:
    """Restart without the variables that slow NumPy down: as a peer it runs at its best."""
    present = [name for name in CRIPPLED if name in os.environ]
    if not present:
        return
    print(f"bench: {', '.join(present)} unset for the NumPy peer", file=sys.stderr)
    environment = {k: v for k, v in os.environ.items() if k not in CRIPPLED}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def show(row: dict) -> str:
    def number(key: str, form: str) -> str:
        value = row.get(key)
        return "" if value is None else format(value, form)

    return (
        f"{row['op']:24} {row['shape']:34} {row.get('isa', ''):8} {number('ours_ms', '10.3f')} "
        f"{row.get('peer', ''):30} {number('peer_ms', '10.3f'):>10} {number('ratio', '7.2f'):>7} "
        f"{number('gflops', '8.1f'):>8} {number('gbytes_per_s', '7.2f'):>7} {number('fraction_of_probe', '6.2f'):>6}"
    )


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and repeats")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--only", default="", help="families, comma separated")
    arguments = parser.parse_args()
    uncripple()

    import sparsespan

    folder = Path(__file__).parent
    sys.path.insert(0, str(folder))
    wanted = [f for f in arguments.only.split(",") if f]
    info = {"cpu": cpu_name(), **sparsespan.build_info()}
    out = sys.stderr if arguments.json else sys.stdout
    print(f"{info['cpu']}, {info['threads']} threads, isa {info['isa']}, {info['compiler']}", file=out)
    print(
        f"{'op':24} {'shape':34} {'isa':8} {'ours ms':>10} {'peer':30} {'peer ms':>10} {'ratio':>7} {'GFLOP/s':>8} "
        f"{'GB/s':>7} {'/probe':>6}",
        file=out,
    )
    rows = []
    for path in sorted(folder.glob("bench_*.py")):
        family = path.stem.removeprefix("bench_")
        if wanted and family not in wanted:
            continue
        for row in importlib.import_module(path.stem).rows(arguments.quick):
            rows.append(row)
            print(show(row), file=out, flush=True)
    if arguments.json:
        print(json.dumps({"machine": info, "rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
