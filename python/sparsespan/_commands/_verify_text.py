"""``sparsespan verify`` as text: a line for each case, as it ends."""

from __future__ import annotations

import sys
from typing import Any, TextIO

__all__ = ["Printer"]


def _moved(rows: list[dict[str, Any]]) -> str:
    """Counted bytes of all ranks by stage and primitive; ``=`` when they are those of the formula."""
    parts: list[str] = []
    stage = ""
    for row in rows:
        sign = "=" if row["counted"] == row["formula"] else f"!= {row['formula']:,}"
        lead = "" if row["stage"] == stage else f"{row['stage']}: "
        stage = row["stage"]
        parts.append(f"{lead}{row['primitive']} {row['counted']:,} {sign}")
    return "; ".join(parts) or "-"


def _cells(result: dict[str, Any]) -> list[str]:
    checks = result["checks"]
    promised = [c for c in checks if c["promise"] == "bits"]
    out = [c for c in checks if c["what"].startswith("out")]
    bits = "-" if not out else "yes" if all(c["bitwise"] for c in (*promised, out[0])) else "no"
    errors = [c["max_error"] for c in out]
    error = "-" if not errors else "not finite" if None in errors else f"{max(errors):.1e}"
    held = out[0]["promise"] if out else "-"
    balance = result["imbalance"]
    verdict = "ok" if result["passed"] else "FAIL"
    uneven = f"{100 * balance['indexer']:.1f} / {100 * balance['attention']:.1f}%"
    return [
        verdict, result["name"], bits, error, held, uneven,
        f"{1e3 * result['seconds']:.0f}", _moved(result["bytes"]),
    ]  # fmt: skip


HEAD = ["", "case", "bits", "max error", "held to", "imbalance", "ms", "bytes into all ranks"]


def _summary(cases: list[dict[str, Any]]) -> list[str]:
    """A line for each part: results at their promise, largest error, bytes."""
    lines = []
    for part in dict.fromkeys(case["part"] for case in cases):
        own = [case for case in cases if case["part"] == part]
        out = [next((c for c in case["checks"] if c["what"].startswith("out")), None) for case in own]
        exact = [c for c in out if c is not None and c["promise"] == "bits"]
        near = [c["max_error"] for c in out if c is not None and c["promise"] != "bits"]
        words = f"{part}: {len(own)} cases, {sum(case['passed'] for case in own)} ok"
        if exact:
            words += f"; bits promised {len(exact)} times, kept {sum(c['bitwise'] for c in exact)}"
        if near:
            worst = "not finite" if None in near else f"{max(near):.1e}"
            words += f"; tolerance promised {len(near)} times, largest error {worst}"
        rows = [row for case in own for row in case["bytes"]]
        same = sum(row["counted"] == row["formula"] for row in rows)
        total = sum(row["counted"] for row in rows)
        lines.append(f"{words}; {same} of {len(rows)} byte counts are the formula's, {total:,} bytes in all")
    return lines


class Printer:
    """Prints in the leading process alone; errors of other processes go to stderr with their rank."""

    def __init__(self, cases: list[Any], team: Any, stream: TextIO) -> None:
        self.team = team
        self.stream = stream
        width = max([len("case"), *(len(case.name) for case in cases)])
        self.widths = [4, width, 4, 9, 17, 15, 5, 0]
        if team.leader and cases:
            model = cases[0].model
            topk = sorted({case.model.dims(case.batch).topk for case in cases})
            dims = model.dims(cases[0].batch)
            self._print(
                f"verify: {len(cases)} cases on {team.backend}; {dims.name} dims: latent 512 + rope 64, "
                f"{dims.index_heads} index heads x 128, {dims.heads} attention heads, top-{', '.join(map(str, topk))}, "
                f"{model.layout} + {model.index_layout}, pages of {model.page_size}, seed {model.seed}"
            )
            self._print("max error, bits and ms measured; bytes and imbalance (indexer / sparse attention) counted; "
                        "'=' is the closed form of cp.volume, exactly")  # fmt: skip
            self._line(HEAD)

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _line(self, cells: list[str]) -> None:
        self._print("  ".join(cell.ljust(width) for cell, width in zip(cells, self.widths)).rstrip())

    def case(self, result: dict[str, Any]) -> None:
        """One case has ended."""
        from ..verification import reasons

        if self.team.leader:
            self._line(_cells(result))
            if result["union"]:
                u = result["union"]
                self._print(
                    f"      union: recall {u['recall']:.3f}, attends {u['attended']:.2f} times the keys, off the exact "
                    f"selection by {u['off_exact']:.1e}"
                )
            for reason in reasons(result):
                self._print(f"      {reason}")
        elif result["error"]:
            words = "; ".join(reasons(result))
            sys.stderr.write(f"rank {self.team.comm.rank}: {words}\n")  # one write: lines stay whole

    def end(self, document: dict[str, Any]) -> None:
        """The last line."""
        if not self.team.leader:
            return
        run, failed = len(document["cases"]), len(document["failed"])
        skipped = document["planned"] - run
        for line in _summary(document["cases"]):
            self._print(line)
        words = "every case kept its contract" if document["passed"] else f"{failed} FAILED"
        if skipped:
            words += f", {skipped} not run: the group was given up"
        self._print(f"{run} of {document['planned']} cases in {document['seconds']:.1f} s ({document['isa']}): {words}")
