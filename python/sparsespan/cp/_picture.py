"""A small picture of who owns what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ._plan import CpPlan

__all__ = ["picture"]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDTH = 60
_LINES = 8


def _some(values: np.ndarray) -> str:
    shown = " ".join(map(str, values[:_LINES].tolist()))
    return shown + (f" ... {values[-1]}" if len(values) > _LINES else "")


def _request_line(plan: CpPlan, s: int) -> str:
    start, length, real = int(plan.cu_seqlens[s]), int(np.diff(plan.cu_seqlens)[s]), int(plan.real_lens[s])
    head = f"request {s} ({plan.prefix_lens[s]} cached + {real} rows): "
    if real == 0:
        return head + "nobody" + ("" if length == 0 else ", padding only")
    if plan.replicated[s]:
        return head + "every rank"
    shown = np.linspace(0, length - 1, min(length, _WIDTH)).round().astype(np.int64)
    marks = "".join(
        "." if i >= real else _DIGITS[plan.owner[start + i]] if plan.owner[start + i] < len(_DIGITS) else "+"
        for i in shown.tolist()
    )
    return head + marks + (f"  (1 mark = {length / _WIDTH:.1f} rows)" if length > _WIDTH else "")


def picture(plan: CpPlan) -> str:
    """One head line, then for each request (the first eight) the owner of every row; ``.`` is padding."""
    flavor = f", as {plan.flavor}" if plan.flavor else ""
    requests = f"{plan.num_requests} request" + ("" if plan.num_requests == 1 else "s")
    lines = [
        f"{plan.scheme} over {plan.world_size} ranks{flavor}: {plan.num_rows} rows of {requests}, "
        f"counts {_some(plan.counts)}, padded to {plan.padded_len}, imbalance {100 * plan.imbalance():.1f}%"
    ]
    lines += [_request_line(plan, s) for s in range(min(plan.num_requests, _LINES))]
    if plan.num_requests > _LINES:
        lines.append(f"... and {plan.num_requests - _LINES} requests more")
    if plan.world_size > len(_DIGITS):
        lines.append(f"(+ = a rank above {len(_DIGITS) - 1})")
    return "\n".join(lines)
