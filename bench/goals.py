"""What the kernels have to reach, judged by the rows that a run measured.

A figure counts when at least three fast samples (or pairs) stand behind it; of several shapes the worst one counts.
Fractions are of the AMX probe where nothing else is said: without AMX they are not measured, and the best level's
fraction of its own probe stands there instead. Ratios to peers are judged at the best level that ran.

`python bench/goals.py FILE COMMAND` prints the table of a run's `--json` document as Markdown; with `--notes` it goes
into NOTES.md.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENOUGH", "GOALS", "Goal", "judge", "lines", "markdown", "write_notes"]

ENOUGH = 3
COPY = "copy, same footprint"
TORCH = "torch bf16 composed"
HOLDS, MISSES = "holds", "misses"
NO_AMX = "not measured here (no AMX)"


@dataclass(frozen=True)
class Goal:
    name: str
    must: float
    unit: str  # what stands behind the figure
    op: str  # op and shape are regular expressions for the whole text
    shape: str
    peer: str = ""  # the figure is the ratio to this peer; without one it is `value`
    value: str = "fraction_of_probe"
    most: bool = False  # at most `must`, where the figure is our time over the peer's
    level: str = "best"  # or the level's name

    def wanted(self) -> str:
        return f"{'<=' if self.most else '>='} {self.must:g} {self.unit}"

    def figure(self, row: dict) -> float:
        if not self.peer:
            return float(row[self.value])
        return 1 / row["ratio"] if self.most else float(row["ratio"])

    def samples(self, row: dict) -> int:
        return int(row["pairs"] if self.peer else row["fast"])

    def reached(self, figure: float) -> bool:
        return figure <= self.must if self.most else figure >= self.must


AMX, SLOWER, MS = "of the AMX probe", "x the time", "ms (informative)"
L3, WIDE = r"V3.2 T=\d+ S=8192 bf16", r"V3.2 T=\d+ over 1 GB bf16"
DECODE, INDEX = "V3.2 B=1 ctx=.* bf16", "V3.2 B=1 ctx=131072 index_132"
LOGITS, ROWS = "own logits alone", r"V3.2 T=\d+ .*"
ONE, KINDS = "131072 -> 2048, normal", "131072 -> 2048, (?!normal).*"
DECODING, BEST, OTHERS = "paged_select decode 128K, B = 1, fp8 K", "top-2048 of 131072", "top-2048, ties, zeros, sorted"
CACHED, RANDOM = "sparse_mla prefill, 128 heads, KV in L3", "sparse_mla prefill, KV random over 1 GB"
NUMPY, WIDENED = "numpy from the same fp8 pages", "numpy, keys float32 and in a row beforehand"
ALONE = "select prefill over logits alone"
CLASS = {"unit": MS, "value": "ours_ms", "most": True, "level": "amx"}


def _isa(level: str) -> list[Goal]:
    probe = f"of the {level} probe"
    return [
        Goal(f"{level}: logits", 0.70, probe, "mqa_logits", ROWS, level=level),
        Goal(f"{level}: sparse_mla", 0.50, probe, "sparse_mla", ROWS, level=level),
    ]


GOALS = [
    Goal("logits prefill, 64 heads x 128", 0.50, AMX, "mqa_logits", ROWS, level="amx"),
    Goal("logits prefill, 64 heads x 128", 2.0, "x torch composed", "mqa_logits", ROWS, TORCH),
    Goal(f"{ALONE}, S >= 32K", 1.15, SLOWER, "select", r"V3.2 T=\d+ S=(?!8192 ).*", LOGITS, most=True),
    Goal(f"{ALONE}, S = 8K", 1.35, SLOWER, "select", r"V3.2 T=\d+ S=8192 .*", LOGITS, most=True),
    Goal(DECODING, 15, "x NumPy (astype)", "paged_select", INDEX, NUMPY),
    Goal(DECODING, 15, "x NumPy (table of codes)", "paged_select", INDEX, f"{NUMPY}, table of codes"),
    Goal(DECODING, 15, "x NumPy (keys float32 before)", "paged_select", INDEX, WIDENED),
    Goal(DECODING, 2.0, op="paged_select", shape=INDEX, **CLASS),
    Goal(BEST, 8, "x torch.topk", "topk", ONE, "torch.topk"),
    Goal(BEST, 0.15, op="topk", shape=ONE, **CLASS),
    Goal(OTHERS, 8, "x torch.topk", "topk", KINDS, "torch.topk"),
    Goal(OTHERS, 0.25, op="topk", shape=KINDS, **CLASS),
    Goal(CACHED, 0.30, AMX, "sparse_mla", L3, level="amx"),
    Goal(CACHED, 1.8, "x torch composed", "sparse_mla", L3, TORCH),
    Goal(RANDOM, 0.22, AMX, "sparse_mla", WIDE, level="amx"),
    Goal(RANDOM, 1.5, "x torch composed", "sparse_mla", WIDE, TORCH),
    Goal("sparse_mla decode B = 1, 2 threads", 1.8, "x one thread", "sparse_mla decode", DECODE, "own, 1 thread"),
    Goal("sparse_mla decode B = 1", 1.8, "x torch composed", "sparse_mla decode", DECODE, TORCH),
    Goal("fp8 KV over bf16 KV", 1.25, SLOWER, "sparse_mla.*", "V3.2 .* fp8", "own bf16 KV", most=True),
    Goal("fp8 dequant with scale to bf16", 2.0, "x torch composed", "weight_dequant", ".*", "torch to, mul, to bf16"),
    Goal("Hadamard", 0.80, "of a copy", "hadamard_transform", ".*", COPY),
    Goal("merge", 0.80, "of a copy", "merge_states", ".*", COPY),
    Goal("KV convert", 0.80, "of a copy", "convert_kv", ".*", COPY),
    *_isa("avx512"),
    *_isa("avx2"),
    Goal("DSA ops of one layer, S = 3072", 5, "x transformers eager", "DSA ops.*", ".*", "transformers eager"),
    Goal(
        "layer in transformers, S = 3072", 5, "x transformers eager", "transformers layer", ".*", "transformers eager"
    ),
]


def _with_its_own_words(rows: list[dict]) -> list[dict]:
    """Growth and peak memory judge themselves."""
    return [
        {
            "goal": f"{row['op']}: {row['shape']}", "must": row["needs"], "came": row["came"], "level": row["isa"],
            "verdict": HOLDS if row["holds"] else MISSES,
        }
        for row in rows
        if "holds" in row
    ]  # fmt: skip


def _judged(goal: Goal, rows: list[dict], levels: list[str]) -> dict:
    level = levels[-1] if goal.level == "best" or goal.level not in levels else goal.level
    at = [r for r in rows if re.fullmatch(goal.op, r["op"]) and re.fullmatch(goal.shape, r["shape"])]
    at = [r for r in at if r.get("isa") == level and (r.get("peer") == goal.peer if goal.peer else goal.value in r)]
    found = {"goal": goal.name, "must": goal.wanted(), "level": level, "came": "", "shape": ""}
    absent = goal.level != "best" and goal.level not in levels
    counted = [r for r in at if goal.samples(r) >= ENOUGH]
    if not at or (goal.level in ("avx2", "avx512") and absent):
        return found | {"verdict": "not measured in this run"}
    worst = (max if goal.most else min)(counted or at, key=goal.figure)
    figure = goal.figure(worst)
    found |= {"came": f"{figure:.2f}", "figure": figure, "shape": worst["shape"]}
    if absent:
        own = " of its own probe" if goal.value == "fraction_of_probe" else ""
        return found | {"came": f"{figure:.2f}{own}", "verdict": NO_AMX}
    if goal.unit == MS:
        return found | {"verdict": "informative"}
    if not counted:
        return found | {"verdict": f"undecided: {goal.samples(worst)} fast, needs {ENOUGH}"}
    return found | {"verdict": HOLDS if goal.reached(figure) else MISSES}


def judge(rows: list[dict], levels: list[str]) -> list[dict]:
    """One dict per goal: goal, must, came, level, shape, verdict. `levels` are those that ran, lowest first."""
    return [_judged(goal, rows, levels) for goal in GOALS] + _with_its_own_words(rows)


def lines(judged: list[dict], machine: str) -> list[str]:
    """The table; what this run did not measure is counted in the last line."""
    shown = [g for g in judged if g["came"]]
    out = [
        f"goals (fast-mode medians, worst shape; set for a CPU with AMX) on {machine}",
        f"{'goal':44} {'must':30} {'came':>24} {'at level':12} verdict",
    ]
    out += [f"{g['goal']:44} {g['must']:30} {g['came']:>24} {g['level']:12} {g['verdict']}" for g in shown]
    counts = {word: sum(g["verdict"].startswith(word) for g in shown) for word in (HOLDS, MISSES, "undecided", NO_AMX)}
    out.append(", ".join(f"{n} {word}" for word, n in counts.items()))
    if len(shown) < len(judged):
        out.append(f"{len(judged) - len(shown)} not measured in this run (--quick, --only or an absent peer)")
    return out


def markdown(document: dict, command: str) -> str:
    """The goals that a run measured, as a table with the machine and the command."""
    machine = "{cpu}, {threads} threads, {isa}".format(**document["machine"])
    out = ["| goal | must | came | verdict | level | machine | command |", "|---|---|---|---|---|---|---|"]
    for g in document["goals"]:
        if g["came"]:
            cells = (g["goal"], g["must"], g["came"], g["verdict"], g["level"], machine, f"`{command}`")
            out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def write_notes(table: str, notes: Path) -> None:
    """Puts the table between the two marks of NOTES.md."""
    head, mark, rest = notes.read_text().partition("<!-- goals -->\n")
    _, end, tail = rest.partition("<!-- end of goals -->")
    if not mark or not end:
        raise SystemExit(f"goals: {notes} has no marks <!-- goals --> and <!-- end of goals -->")
    notes.write_text(f"{head}{mark}\n{table}\n\n{end}{tail}")


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--notes"]
    table = markdown(json.loads(Path(words[0]).read_text()), " ".join(words[1:]) or "./dev bench")
    if "--notes" in sys.argv:
        write_notes(table, Path(__file__).with_name("NOTES.md"))
    else:
        print(table)
