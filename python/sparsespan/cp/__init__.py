"""Context-parallel plans as pure data: splits, owner maps, grids, transfers, volumes. Nothing here communicates."""

from __future__ import annotations
