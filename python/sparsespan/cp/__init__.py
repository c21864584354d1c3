"""Context-parallel plans as pure data: splits, owner maps, grids, transfers, volumes. Nothing here communicates."""

from __future__ import annotations

from ._transfer import transfer_plan
from ._transfer_plan import KvSide, Transfer, TransferPlan

__all__ = ["KvSide", "Transfer", "TransferPlan", "transfer_plan"]
