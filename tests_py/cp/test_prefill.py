"""Prefill under context parallelism is one rank's, bit for bit."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import SCALE, SCHEMES, TOPK, Batch, even, same_bits

sys.path.pop(0)


from sparsespan import cp
from sparsespan.comm import run_ranks


def attend(comm, batch, plan, caches, order=None, **options):
    """One rank's part of the batch; `order` notes what happened when."""
    local = [cp.split(x, plan, comm.rank) for x in (batch.c_kv, batch.k_pe, batch.k_index)]

    def queries(positions):
        if order is not None:
            order.append(("queries", caches.kv.tobytes()))
        np.testing.assert_array_equal(positions, plan.positions(comm.rank) * (plan.row_to_request(comm.rank) >= 0))
        return tuple(cp.split(x, plan, comm.rank) for x in (batch.q, batch.index_q, batch.weights))

    return cp.prefill_attention(
        comm, plan, caches, *local, queries, sm_scale=SCALE, block_table=batch.table, topk=TOPK, timeout=20, **options
    )


def check(batch, scheme, ranks, **options):
    plan = batch.plan(scheme, ranks)
    want_caches, *want = batch.one_rank()
    every = [batch.caches() for _ in range(ranks)]

    def rank(comm):
        result = attend(comm, batch, plan, every[comm.rank], **options)
        pads = plan.row_to_request(comm.rank) < 0
        assert (result.indices[pads] == -1).all() and (result.lse[pads] == -np.inf).all()
        for a, b in zip(result, want):  # the copies of decode rows, too, are right on every rank
            assert same_bits(np.asarray(a)[~pads], cp.split(b, plan, comm.rank)[~pads])
        return [cp.gather_rows(comm, x, plan) for x in result]

    for caches, got in zip(every, run_ranks(ranks, rank)):
        assert same_bits(caches.kv, want_caches.kv)
        assert same_bits(caches.index, want_caches.index)
        for a, b in zip(got, want):
            assert same_bits(a, b)


BATCHES = {
    "single": ((37,), (0,), ()),
    "ragged": ((5, 0, 23, 1, 12), (0, 0, 0, 0, 0), ()),
    "prefix": ((9, 16, 3), (13, 0, 30), ()),
    "mixed": ((1, 2, 19, 6), (17, 3, 0, 8), (True, True, False, False)),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_bits_of_one_rank(scheme, ranks, name):
    lengths, prefixes, decode = BATCHES[name]
    check(Batch(even(lengths, scheme, ranks, decode), prefixes, decode), scheme, ranks)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_batch(data):
    scheme, ranks = data.draw(st.sampled_from(SCHEMES)), data.draw(st.sampled_from([1, 2, 3, 4, 8]))
    requests = data.draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.booleans()), max_size=5))
    requests.sort(key=lambda r: not r[2])
    decode = tuple(r[2] for r in requests)
    layouts = data.draw(
        st.sampled_from([("fp8_656", "index_132"), ("bf16_576", "index_bf16"), ("f32_576", "index_132")])
    )
    batch = Batch(
        even([r[0] for r in requests], scheme, ranks, decode), tuple(r[1] for r in requests), decode, *layouts
    )
    check(batch, scheme, ranks, by=data.draw(st.sampled_from(["packed", "paged"])))
