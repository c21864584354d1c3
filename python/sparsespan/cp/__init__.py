"""Context-parallel plans as pure data: splits, owner maps, grids, transfers, volumes. Nothing here communicates."""

from __future__ import annotations

from ._plan import CpPlan
from ._split import DECODE, PAD, PREFILL, split_plan
from ._transfer import transfer_plan
from ._transfer_plan import KvSide, Transfer, TransferPlan
from ._views import CpSegments, NextNRows, StaticBatch

__all__ = [
    "DECODE",
    "PAD",
    "PREFILL",
    "CpPlan",
    "CpSegments",
    "KvSide",
    "NextNRows",
    "StaticBatch",
    "Transfer",
    "TransferPlan",
    "split_plan",
    "transfer_plan",
]
