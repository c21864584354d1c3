"""Bytes that DCP ops move, counted where they are copied, against the closed forms."""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsespan import comm, cp

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import BF16, Batch, IndexBatch

sys.path.pop(0)
pytestmark = pytest.mark.timeout(120)

LENGTHS, NEXT_N, HEADS, TOPK = [37, 2, 0, 65, 16], 2, 24, 10
KEYS = Batch(LENGTHS, NEXT_N, TOPK, HEADS, BF16)
MODEL = dataclasses.replace(
    cp.attention_dims("v3.2"), name="one layer", layers=1, index_layers=1, heads=HEADS, topk=TOPK
)


def formula(ranks, **options):
    """Bytes that a rank receives, by primitive."""
    volume = cp.volume("dcp", tokens=[NEXT_N] * len(LENGTHS), ranks=ranks, tp=ranks, model=MODEL, **options)
    received = {}
    for row in volume.rows:
        received[row.primitive] = received.get(row.primitive, 0) + row.received * row.times
    return {name: n for name, n in received.items() if n}


def counted(c):
    return {name: count["bytes"] for name, count in c.trace().items() if count["bytes"]}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_decode_moves_the_bytes_of_the_formula(ranks):
    layout = cp.dcp_layout(1, ranks, 16)
    ways = list(itertools.product(["ag_rs", "a2a", "ar"], ["fp32", "bf16"], [False, True]))

    def rank(c):
        found = []
        for combine, payload, replicate_q in ways:
            c.reset_trace()
            KEYS.decode(c, layout, combine=combine, payload=payload, replicate_q=replicate_q)
            found.append(counted(c))
        return found

    expected = [
        formula(ranks, combine=combine, payload=payload, replicate_q=replicate_q, index_k="replicated")
        for combine, payload, replicate_q in ways
    ]
    assert comm.run_ranks(ranks, rank, timeout=20) == [expected] * ranks


@pytest.mark.parametrize(("index_layout", "cache"), [("index_132", "fp8"), ("index_bf16", "bf16")])
@pytest.mark.parametrize(("ranks", "interleave"), [(1, 1), (2, 16), (3, 1), (8, 4)])
def test_selection_moves_the_bytes_of_the_formula(ranks, interleave, index_layout, cache):
    batch = IndexBatch(LENGTHS, NEXT_N, index_layout=index_layout)
    layout = cp.dcp_layout(interleave, ranks, 16)
    designs = ["replicated", "sharded", "sharded_routed", "union", "gathered"]

    def rank(c):
        found = []
        for index_k in designs:
            c.reset_trace()
            batch.select(c, layout, TOPK, index_k)
            found.append(counted(c))
        return found

    expected = [
        formula(ranks, replicate_q=True, combine="a2a", index_k=i, cache=cache, context=LENGTHS, interleave=interleave)
        for i in designs
    ]
    a2a = formula(ranks, replicate_q=True, combine="a2a", index_k="replicated")  # the merge, which is not run here
    for e in expected:
        for primitive, n in a2a.items():
            e[primitive] -= n
    expected = [{name: n for name, n in e.items() if n} for e in expected]
    assert comm.run_ranks(ranks, rank, timeout=20) == [expected] * ranks


def test_float32_queries_travel_as_they_are():
    """The formula's activations are bfloat16; float32 queries are twice as wide."""
    batch = Batch(LENGTHS, NEXT_N, TOPK, HEADS, np.float32)
    layout = cp.dcp_layout(1, 2, 16)

    def rank(c):
        batch.decode(c, layout, combine="a2a")
        return counted(c)

    wide = formula(2, combine="a2a", index_k="replicated")
    wide["all_gather"] *= 2
    assert comm.run_ranks(2, rank, timeout=20) == [wide, wide]
