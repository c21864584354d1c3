"""Ratios that were reached once, kept beside the code: `--check` says which of them fell.

Only ratios are kept, with their quartiles and the class of machine: a ratio says the same on a quiet and on a busy
machine, a time does not. A ratio has fallen when even the upper quartile of its fast pairs lies more than 15 % below
the lower quartile of the baseline. What cannot be judged is skipped, in words.
"""

from __future__ import annotations

import json
from pathlib import Path

FALL = 0.15
ENOUGH = 5


def path_of(folder: Path, quick: bool) -> Path:
    return folder / ("baseline_quick.json" if quick else "baseline.json")


def key(row: dict) -> str:
    return " | ".join((row["op"], row["shape"], row.get("isa", ""), row["peer"]))


def judged(rows: list[dict]) -> dict[str, dict]:
    return {key(row): row for row in rows if row.get("pairs", 0) >= ENOUGH}


def write(path: Path, machine: dict, rows: list[dict]) -> int:
    ratios = {
        name: {which: round(row[which], 4) for which in ("ratio", "ratio_q1", "ratio_q3")} | {"pairs": row["pairs"]}
        for name, row in sorted(judged(rows).items())
    }
    path.write_text(json.dumps({"machine": machine, "ratios": ratios}, indent=1) + "\n")
    return len(ratios)


def load(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def compare(baseline: dict, rows: list[dict]) -> tuple[list[str], list[str]]:
    """(keys that fell, lines that say what was skipped)"""
    seen = {key(row): row for row in rows if "peer" in row}
    enough = judged(rows)
    fell, skipped = [], []
    for name, kept in baseline["ratios"].items():
        if name not in seen:
            skipped.append(f"{name}: not measured here (the peer or the level is absent)")
        elif name not in enough:
            skipped.append(f"{name}: {seen[name].get('pairs', 0)} fast pairs, needs {ENOUGH}")
        elif enough[name]["ratio_q3"] < (1 - FALL) * kept["ratio_q1"]:
            fell.append(name)
    return fell, skipped


def other_machine(baseline: dict, machine: dict) -> str:
    """What differs, in words; empty where the class of machine is the same."""
    kept = baseline["machine"]
    return ", ".join(f"{k} {kept.get(k)} there and {machine[k]} here" for k in machine if kept.get(k) != machine[k])
