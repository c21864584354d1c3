"""What ``sparsespan verify --stages`` prints."""

from __future__ import annotations

from typing import Any

__all__ = ["planted_table", "report_text"]


def report_text(head: dict[str, Any], report: Any) -> str:
    """A report in lines."""
    lines = [
        f"stages: {report.b} against {report.a}; {head['model_type']}, {head['requests']} requests, "
        f"{head['prefill_rows']} prefill and {head['decode_rows']} decode rows"
    ]
    lines += _layers(report)
    if report.ties:
        lines.append(
            f"{report.ties} rows chose otherwise between values that rounding cannot tell apart: "
            f"{report.left_out} rows are not compared behind them"
        )
    return "\n".join(lines + (_nothing(report) if report.finding is None else _finding(report)))


def _layers(report: Any) -> list[str]:
    lines = []
    for layer in dict.fromkeys(line.layer for line in report.lines):
        own = [line for line in report.lines if line.layer == layer]
        exact = sum(line.bits for line in own)
        worst = max(own, key=lambda line: line.error)
        words = f"layer {layer}: {len(own)} stages, {exact} bit for bit"
        lines.append(words + (f", largest error {worst.error:.1e} ({worst.stage})" if exact < len(own) else ""))
    return lines


def _nothing(report: Any) -> list[str]:
    if report.bits:
        return [f"no difference: all {len(report.lines)} stages are equal bit for bit"]
    exact = sum(line.bits for line in report.lines)
    return [
        f"no difference: {exact} of {len(report.lines)} stages are equal bit for bit, the others within "
        f"{report.tolerance:g} of a row's size, which rounding explains"
    ]


def _finding(report: Any) -> list[str]:
    from ..verification.stages import STAGES

    f = report.finding
    size = "sets of numbers" if STAGES[f.stage].ids else f"largest error {f.error:.2g} of the row's size"
    lines = [
        f"first difference: layer {f.layer}, {f.stage} ({STAGES[f.stage].what}), request {f.request}, position "
        f"{f.position} (token {f.token}), rank {f.rank}",
        f"  {f.rows} of {f.compared} rows differ ({f.where}); {size}, tolerance {report.tolerance:g}",
    ]
    if f.beside:
        lines.append(f"  beside it, and not computed from it, {', '.join(f.beside)}")
    if not f.verdicts:
        return [*lines, f"  looks like: unknown; none of {f.tested} hypotheses explains half of the rows"]
    first, *others = f.verdicts
    other = "" if f.suspect == report.b else f" (in {f.suspect})"
    lines += [f"  looks like: {first.bug}{other}, {first.sure}: {first.words}", f"    {first.tested}"]
    for verdict in others:
        lines.append(f"  or: {verdict.bug}, {verdict.sure}: {verdict.words}")
        lines.append(f"    {verdict.tested}")
    return lines


def planted_table(rows: list[dict[str, Any]], head: bool = True) -> str:
    """A line for each planted bug."""
    widths = (17, 18, 15, 26, 18, 9)
    lines = [("planted", "class", "in B", "first difference", "named", "", "as")] if head else []
    for row in rows:
        found = row["found"] or {}
        verdict = (found.get("verdicts") or [{}])[0]
        place = f"{found['layer']} {found['stage']} {found['request']}:{found['position']}" if found else "none"
        lines.append((row["planted"], row["bug"], row["b"], place, found.get("bug", "-"), verdict.get("sure", "-"),
                      verdict.get("words", "-")))  # fmt: skip
    made = ["  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0))).rstrip() for line in lines]
    return "\n".join(made)
