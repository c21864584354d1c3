"""Context parallelism: plans as pure data (splits, owner maps, grids, transfers, volumes), and ops that follow them."""

from __future__ import annotations

from ._cache import LayerCache, gather_kv_and_cache
from ._dcp import DcpLayout, dcp_layout
from ._dcp_capacity import DcpCapacity, DcpHeads
from ._dcp_combine import dcp_combine
from ._dcp_decode import dcp_decode, dcp_partial
from ._dcp_gather import DcpBlockGather, DcpGatherPlan
from ._dcp_select import dcp_select, global_topk
from ._dcp_tables import DcpSpans
from ._dcp_write import dcp_write_index, dcp_write_kv
from ._dims import AttentionDims, attention_dims
from ._grid import RankGrid, rank_grid
from ._linear import GatherWeight, LinearShard, broadcast_weight, gather_weight, igather_weight
from ._o_proj import exchange_heads, iexchange_heads, o_proj
from ._plan import CpPlan
from ._prefill import PrefillResult, prefill_attention, prefill_select, prefill_slots
from ._rows import gather_rows, igather_rows, split
from ._split import DECODE, PAD, PREFILL, split_plan
from ._transfer import transfer_plan
from ._transfer_plan import KvSide, Transfer, TransferPlan
from ._transfer_run import TransferCaches, TransferReport, run_transfer
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
    "DcpBlockGather",
    "DcpCapacity",
    "DcpGatherPlan",
    "DcpHeads",
    "DcpLayout",
    "DcpSpans",
    "GatherWeight",
    "KvSide",
    "LayerCache",
    "LinearShard",
    "NextNRows",
    "PrefillResult",
    "RankGrid",
    "StaticBatch",
    "Transfer",
    "TransferCaches",
    "TransferPlan",
    "TransferReport",
    "Volume",
    "VolumeRow",
    "attention_dims",
    "broadcast_weight",
    "dcp_combine",
    "dcp_decode",
    "dcp_layout",
    "dcp_partial",
    "dcp_select",
    "dcp_write_index",
    "dcp_write_kv",
    "exchange_heads",
    "gather_kv_and_cache",
    "gather_rows",
    "gather_weight",
    "global_topk",
    "iexchange_heads",
    "igather_rows",
    "igather_weight",
    "o_proj",
    "o_proj_break_even",
    "prefill_attention",
    "prefill_select",
    "prefill_slots",
    "rank_grid",
    "run_transfer",
    "split",
    "split_plan",
    "transfer_plan",
    "volume",
]
