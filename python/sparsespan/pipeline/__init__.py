"""Pipeline schedules as data: they print, parse, are proved, simulated and drawn; and stages that carry them out.

A schedule is, for each rank, the ordered list of its actions. Generators write compute-only schedules, lowering passes
add messages and weight traffic, :func:`validate` proves that the result can run and does all its work, and
:func:`simulate` gives it a time line.
"""

from __future__ import annotations

from ._batch import Batch
from ._check import ScheduleError, validate
from ._chunking import ChunkCost, chunk_sizes, fit_chunk_cost, split_layers
from ._draw import chrome_trace, text_timeline, to_svg
from ._generate import (
    chunked_prefill,
    decode_loop,
    dualpipe_v,
    gpipe,
    interleaved,
    mixed_prefill_decode,
    one_f_one_b,
    zero_bubble,
)
from ._layer_shard import LayerShard
from ._lower import add_fetch_evict, add_send_recv, merge_backward
from ._messages import MessageError, ring_exchange
from ._prefetch import PrefetchTimes, simulate_prefetch
from ._run import dummy_run, run_pipeline
from ._schedule import Action, Schedule
from ._simulate import Costs, Simulation, Span, simulate
from ._stage import Stage, StageInput, StageProgram
from ._stage_buffers import IntermediateTensors
from ._stage_run import PipelineRun
from ._trace import Arrow, LaneSummary, Sample, Trace, TraceSpan
from ._waves import SmWaves, logit_tiles, sm_waves, threads_for_compute

__all__ = [
    "Action",
    "Arrow",
    "Batch",
    "ChunkCost",
    "Costs",
    "IntermediateTensors",
    "LaneSummary",
    "LayerShard",
    "MessageError",
    "PipelineRun",
    "PrefetchTimes",
    "Sample",
    "Schedule",
    "ScheduleError",
    "Simulation",
    "SmWaves",
    "Span",
    "Stage",
    "StageInput",
    "StageProgram",
    "Trace",
    "TraceSpan",
    "add_fetch_evict",
    "add_send_recv",
    "chrome_trace",
    "chunk_sizes",
    "chunked_prefill",
    "decode_loop",
    "dualpipe_v",
    "dummy_run",
    "fit_chunk_cost",
    "gpipe",
    "interleaved",
    "logit_tiles",
    "merge_backward",
    "mixed_prefill_decode",
    "one_f_one_b",
    "ring_exchange",
    "run_pipeline",
    "simulate",
    "simulate_prefetch",
    "sm_waves",
    "split_layers",
    "text_timeline",
    "threads_for_compute",
    "to_svg",
    "validate",
    "zero_bubble",
]
