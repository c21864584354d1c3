"""Tools to hold an implementation against its contract: row invariance, comparison of attention and of top-k.

They work on any implementation's outputs, so engine developers may use them on their own kernels.
"""

from __future__ import annotations

from ._attn import compare_attn
from ._faults import FaultyComm
from ._invariance import assert_row_invariant, each_isa
from ._schedules import prove_mutations, schedule_mutations
from ._topk import compare_topk

__all__ = [
    "FaultyComm",
    "assert_row_invariant",
    "compare_attn",
    "compare_topk",
    "each_isa",
    "prove_mutations",
    "schedule_mutations",
]
