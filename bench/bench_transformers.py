"""One attention layer of DeepSeek-V3.2 inside transformers: attn_implementation="sparsespan" beside eager and sdpa.

`sparsespan bench --only transformers` repeats it. Every forward runs in a process of its own, so that its peak is its
own; the kinds take turns, three of ours and of eager, and up to two more where too few were fast: the probe of this
process stands around each, and the other process tells what others took of its time. The linear layers (1.24 TFLOP at
S = 3072) are the same on all sides; their share is printed, and the ratio without them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from goals import ENOUGH
from session import SESSION, median, quartiles
from timing import MOST_OTHERS

LENGTH, LONG = 3072, 32768
# A forward of eager or sdpa needs half a minute; ours and eager's are judged and may take MORE turns.
TURNS, MORE = {"sparsespan": 3, "eager": 3, "sdpa": 1}, 2
HEADS = 128
GB = 1e9


def eager_bytes(length: int) -> float:
    """What eager holds at its worst, in its softmax: scores in bfloat16, their float32 copy, the float32 weights."""
    return float(HEADS * length * length * (2 + 4 + 4))


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _forward(kind: str, length: int) -> dict:
    script = Path(__file__).with_name("layer_process.py")
    done = subprocess.run([sys.executable, str(script), kind, str(length)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _bracketed(kind: str) -> dict:
    """One forward, and whether it was fast."""
    top = SESSION.top()
    before = SESSION.probe_again(top, 3)
    told = _forward(kind, LENGTH)
    rates = before + SESSION.probe_again(top, 3)
    return told | {"fast": SESSION.judge(top, rates) == "fast" and told["others"] <= MOST_OTHERS}


def _fast_pairs(ours: list[dict], theirs: list[dict]) -> list[tuple[dict, dict]]:
    return [(a, b) for a, b in zip(ours, theirs) if a["fast"] and b["fast"]]


def _turns() -> dict[str, list[dict]]:
    """The forwards of each kind."""
    found: dict[str, list[dict]] = {kind: [] for kind in TURNS}
    for turn in range(max(TURNS.values()) + MORE):
        over = turn >= TURNS["eager"]
        if over and len(_fast_pairs(found["sparsespan"], found["eager"])) >= ENOUGH:
            break
        for kind, runs in found.items():
            if turn < TURNS[kind] or (over and kind != "sdpa"):
                runs.append(_bracketed(kind))
    return found


def _difference(ours: dict, theirs: dict) -> float:
    largest = max(abs(x) for x in theirs["sample"])
    return max(abs(a - b) for a, b in zip(ours["sample"], theirs["sample"], strict=True)) / largest


def _time_row(kind: str, ours: list[dict], theirs: list[dict]) -> dict:
    fast = _fast_pairs(ours, theirs)
    if fast:
        ours, theirs = ([pair[i] for pair in fast] for i in range(2))
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=True)]
    low, high = quartiles(ratios)
    rest = median(
        [
            (b["seconds"] - b["linear_seconds"]) / (a["seconds"] - a["linear_seconds"])
            for a, b in zip(ours, theirs, strict=True)
        ]
    )
    share = [median([x["linear_seconds"] / x["seconds"] for x in side]) for side in (ours, theirs)]
    cpu = [median([x["cpu_seconds"] for x in side]) for side in (ours, theirs)]
    return {
        "op": "transformers layer", "shape": f"V3.2 S={LENGTH} bf16", "isa": SESSION.top(),
        "ours_ms": median([x["seconds"] for x in ours]) * 1e3, "peer": f"transformers {kind}",
        "peer_ms": median([x["seconds"] for x in theirs]) * 1e3, "ratio": median(ratios), "ratio_q1": low,
        "ratio_q3": high, "pairs": len(fast), "ratio_without_linears": rest,
        "words": f"linears are {share[0]:.0%} of ours, {share[1]:.0%} of theirs; without them {rest:.1f}x; CPU seconds "
        f"of all threads {cpu[0]:.1f} and {cpu[1]:.1f}; outputs differ by {_difference(ours[0], theirs[0]):.1e} of the "
        "largest",
    }  # fmt: skip


def _memory_row(kind: str, ours: list[dict], theirs: list[dict]) -> dict:
    peaks = [median([x["grown"] for x in side]) for side in (ours, theirs)]
    ratio = peaks[1] / peaks[0]
    row = {
        "op": "transformers layer", "shape": f"peak memory against {kind}, S={LENGTH}", "isa": SESSION.top(),
        "bytes_peak": peaks[0], "words": f"{peaks[0] / GB:.2f} GB over weights and input, {kind} {peaks[1] / GB:.2f} "
        f"GB: {ratio:.1f}x less",
    }  # fmt: skip
    if kind == "eager":
        row |= {"holds": ratio >= 5, "needs": ">= 5x less than eager", "came": f"{ratio:.1f}x"}
    return row


def _long_row() -> dict:
    need, have = eager_bytes(LONG), _memory()
    told = f"eager would need {need / GB:.0f} GB for its softmax (10 B x {HEADS} heads x S^2)"
    told += ", does not fit" if need > have else ""
    told += f" in this machine's {have / GB:.0f} GB"
    row = {"op": "transformers layer", "shape": f"V3.2 S={LONG} bf16", "isa": SESSION.top()}
    try:
        ours = _forward("sparsespan", LONG)
    except (RuntimeError, OSError) as failure:
        return row | {"words": f"did not run ({failure}); {told}"}
    return row | {
        "ours_ms": ours["seconds"] * 1e3, "bytes_peak": ours["grown"],
        "words": f"linears {ours['linear_seconds']:.0f} s of it, "
        f"CPU seconds {ours['cpu_seconds']:.0f}, peak {ours['grown'] / GB:.2f} GB; {told}",
    }  # fmt: skip


def rows(quick: bool):
    if quick or SESSION.only is not None:
        return
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        SESSION.note("transformers: not installed, its layer was skipped")
        return
    if not Path("/proc/self/clear_refs").exists():
        SESSION.note("transformers layer: this system does not tell peak memory, skipped")
        return
    try:
        found = _turns()
    except RuntimeError as failure:
        SESSION.note(f"transformers layer: {failure}, skipped")
        return
    ours = found.pop("sparsespan")
    for kind, runs in found.items():
        yield _time_row(kind, ours[: len(runs)], runs)
        yield _memory_row(kind, ours, runs)
    yield _long_row()
