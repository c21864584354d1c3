"""Counted bytes against the closed form, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import cp

__all__ = ["Expected", "compare_bytes"]


class Expected:
    """What the ranks of one group receive together, by stage and primitive, from :func:`sparsespan.cp.volume`."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, dict[str, Any]]] = {}

    def add(self, stage: str, row: cp.VolumeRow, primitive: str | None = None) -> None:
        """One collective of one layer."""
        self.add_bytes(stage, primitive or row.primitive, row.total, row.received, f"{row.what}: {row.formula}")

    def add_bytes(self, stage: str, primitive: str, total: int, busiest: int, formula: str) -> None:
        """Bytes that all ranks of the group receive, and the most that one may."""
        row = self.stages.setdefault(stage, {}).setdefault(primitive, {"total": 0, "busiest": 0, "formula": []})
        row["total"] += total
        row["busiest"] += busiest
        row["formula"].append(formula)


def compare_bytes(expected: Expected, ranks: Sequence[dict[str, dict[str, dict[str, int]]]]) -> list[dict[str, Any]]:
    """Rows of a report for one group: ``ranks`` are :attr:`Traffic.stages` of its members."""
    names = dict.fromkeys([*(name for rank in ranks for name in rank), *expected.stages])
    rows = []
    for stage in names:
        formulas = expected.stages.get(stage, {})
        counted = sorted({op for rank in ranks for op, moved in rank.get(stage, {}).items() if moved["bytes"]})
        for primitive in sorted({*formulas, *counted}):
            moved = [rank.get(stage, {}).get(primitive, {"calls": 0, "bytes": 0}) for rank in ranks]
            formula = formulas.get(primitive, {"total": 0, "busiest": 0, "formula": []})
            total, busiest = sum(m["bytes"] for m in moved), max(m["bytes"] for m in moved)
            rows.append(
                {
                    "stage": stage,
                    "primitive": primitive,
                    "calls": max(m["calls"] for m in moved),
                    "counted": total,
                    "formula": formula["total"],
                    "counted_busiest": busiest,
                    "formula_busiest": formula["busiest"],
                    "terms": formula["formula"],
                    "passed": total == formula["total"] and busiest <= formula["busiest"],
                }
            )
    return rows
