"""Context-parallel plans as pure data: splits, owner maps, grids, transfers, volumes. Nothing here communicates."""

from __future__ import annotations

from ._dims import AttentionDims, attention_dims
from ._plan import CpPlan
from ._split import DECODE, PAD, PREFILL, split_plan
from ._transfer import transfer_plan
from ._transfer_plan import KvSide, Transfer, TransferPlan
from ._views import CpSegments, NextNRows, StaticBatch
from ._volume import BreakEven, Volume, VolumeRow, o_proj_break_even, volume

__all__ = [
    "DECODE",
    "PAD",
    "PREFILL",
    "AttentionDims",
    "BreakEven",
    "CpPlan",
    "CpSegments",
    "KvSide",
    "NextNRows",
    "StaticBatch",
    "Transfer",
    "TransferPlan",
    "Volume",
    "VolumeRow",
    "attention_dims",
    "o_proj_break_even",
    "split_plan",
    "transfer_plan",
    "volume",
]
