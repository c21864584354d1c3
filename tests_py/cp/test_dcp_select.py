"""cp.global_topk and cp.dcp_select: N ranks against one, ties and NaN included."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan import comm, cp, indexer
from sparsespan.reference import cp_decode as twin
from sparsespan.reference import indexer as indexer_twin
from sparsespan.testing import assert_row_invariant

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import IndexBatch

sys.path.pop(0)
pytestmark = pytest.mark.timeout(120)
EXACT = ["replicated", "sharded", "sharded_routed", "gathered"]
EXCHANGES = ["sharded", "sharded_routed"]


@given(
    lengths=st.lists(st.one_of(st.integers(0, 3), st.integers(4, 300)), max_size=4),
    next_n=st.integers(1, 3),
    ranks=st.integers(1, 8),
    interleave=st.sampled_from([1, 16, 64]),
    topk=st.integers(1, 64),
    index_k=st.sampled_from(EXACT),
    index_layout=st.sampled_from(["index_132", "index_bf16", "index_f32"]),
    ties=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=100)
def test_every_exact_design_is_one_rank(lengths, next_n, ranks, interleave, topk, index_k, index_layout, ties, seed):
    batch = IndexBatch(lengths, next_n, index_layout=index_layout, ties=ties, seed=seed)
    expected = batch.one_rank(topk)
    for got in batch.on_ranks(cp.dcp_layout(interleave, ranks, 64), topk, index_k):
        np.testing.assert_array_equal(got, expected)


def test_designs_are_those_of_the_twin():
    # Whole numbers: float32 and float64 scores are the same, and many of them are equal.
    batch = IndexBatch([150, 1, 40, 0], index_layout="index_f32", ties=True)
    scores = np.full((4, 150), -np.inf)
    for b, k in enumerate(batch.k):
        dots = np.maximum(batch.q[b, 0].astype(np.float64) @ k.astype(np.float64).T, 0)
        scores[b, : len(k)] = dots.sum(axis=0)
    for index_k in [*EXACT, "union"]:
        got = batch.on_ranks(cp.dcp_layout(4, 3, 8), 20, index_k)
        np.testing.assert_array_equal(got, twin.dcp_select(scores, batch.context, 20, 4, 3, index_k))


def test_union_keeps_the_exact_choice_and_each_rank_its_own_keys():
    batch = IndexBatch([300, 97], next_n=2)
    layout = cp.dcp_layout(16, 4, 32)
    exact = batch.one_rank(24)
    own = batch.on_ranks(layout, 24, "union")
    for rank, picks in enumerate(own):
        assert (layout.owner(picks)[picks >= 0] == rank).all()
    for t, chosen in enumerate(exact):
        assert set(chosen) <= {p for picks in own for p in picks[t]} | {-1}


def test_a_rectangle_of_lengths():
    batch = IndexBatch([90, 40], next_n=3, index_layout="index_bf16")
    batch.context = np.array([[88, 0, 90], [1, 2, 40]])
    expected = batch.one_rank(10)
    for index_k in EXACT:
        for got in batch.on_ranks(cp.dcp_layout(4, 2, 8), 10, index_k):
            np.testing.assert_array_equal(got, expected)


@given(
    lengths=st.lists(st.integers(0, 200), max_size=5),
    ranks=st.integers(1, 8),
    interleave=st.sampled_from([1, 16]),
    k=st.integers(1, 50),
    exchange=st.sampled_from(EXCHANGES),
    nan=st.sampled_from(["raise", "lowest"]),
    data=st.data(),
)
@settings(max_examples=100)
def test_global_topk_is_topk(lengths, ranks, interleave, k, exchange, nan, data):
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    some = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 1e-45, 3.5] + [np.nan] * (nan == "lowest"), np.float32)
    rows, width = len(lengths), max(lengths, default=0)
    scores = rng.choice(some, (rows, width))
    lens = np.array(lengths, np.int64)
    layout = cp.dcp_layout(interleave, ranks, 16)
    expected = indexer.topk(scores, k, lens, nan=nan)

    def rank(c):
        mine = layout.logical(c.rank, np.arange(layout.local_len(width, c.rank)))
        return cp.global_topk(c, np.ascontiguousarray(scores[:, mine]), k, layout, lens, exchange=exchange, nan=nan)

    for got in comm.run_ranks(ranks, rank, timeout=20):
        np.testing.assert_array_equal(got, expected)


def test_global_topk_without_lengths_is_the_twin():
    rng = np.random.default_rng(0)
    shares = [rng.integers(0, 3, (4, n)).astype(np.float32) for n in (9, 0, 5)]  # holes: rank 1 brings nothing
    layout = cp.dcp_layout(1, 3, 4)
    expected = twin.global_topk(shares, 6, 1)

    def rank(c):
        return [cp.global_topk(c, shares[c.rank], 6, layout, exchange=exchange) for exchange in EXCHANGES]

    for got in comm.run_ranks(3, rank, timeout=20):
        np.testing.assert_array_equal(got, [expected, expected])


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_nan_is_told_on_every_rank(exchange):
    layout = cp.dcp_layout(1, 3, 4)
    whole = np.zeros((5, 30), np.float32)
    whole[3, [20, 7]] = np.nan
    whole[1, 29] = np.nan  # outside its row's context
    told = []

    def rank(c):
        mine = np.ascontiguousarray(whole[:, c.rank :: 3])
        out = np.zeros((5, 4), np.int32)
        with pytest.raises(ValueError) as refusal:
            cp.global_topk(c, mine, 4, layout, np.array([30, 29, 30, 30, 30]), exchange=exchange, out=out)
        told.append((str(refusal.value), (out == -1).all()))
        return cp.global_topk(c, mine, 4, layout, np.full(5, 7), exchange=exchange)  # the group goes on

    assert comm.run_ranks(3, rank, timeout=20)[0].tolist() == [[0, 1, 2, 3]] * 5
    words = 'global_topk: scores has a NaN at row 3, logical position 7, inside the window; needs numbers (nan="lowest"'
    assert len(told) == 3 and all(text.startswith(words) and cleared for text, cleared in told)


def test_dcp_select_tells_a_nan_on_every_rank():
    batch = IndexBatch([40, 40], index_layout="index_f32")
    batch.k[1][33, 0] = np.nan
    layout = cp.dcp_layout(1, 2, 32)

    def rank(c, index_k):
        with pytest.raises(ValueError, match=r"NaN"):
            batch.select(c, layout, 8, index_k)
        return batch.select(c, layout, 8, index_k, nan="lowest")

    for index_k in EXACT:
        got = comm.run_ranks(2, lambda c, index_k=index_k: rank(c, index_k), timeout=20)
        np.testing.assert_array_equal(got[0], got[1])
        assert 33 not in got[0][1]


def test_a_row_has_the_same_bits_in_any_batch():
    whole = IndexBatch([200, 3, 64, 130, 90])
    layout = cp.dcp_layout(1, 2, 128)
    table, _ = whole.table(layout)
    caches = [whole.cache(layout, r) for r in range(2)]

    def op(ids, threads):
        def rank(c):
            return cp.dcp_select(
                c, whole.q[ids], caches[c.rank], whole.weights[ids], whole.context[ids], table[ids], layout, 16,
                index_k="sharded_routed", threads=threads,
            )  # fmt: skip

        return comm.run_ranks(2, rank, timeout=20)[0]

    assert_row_invariant(op, 5, alone=2)


def test_shared_picks_make_one_decode_of_many_ranks():
    """The whole road: writers, indexer, attention, at 1, 2, 4 and 8 ranks, to the same bits."""
    from dcp_cases import SCALE, Batch, assert_same_bits

    keys = Batch([300, 2, 97], next_n=2, kv_layout="fp8_656", heads=8)
    picks = IndexBatch(keys.lengths, next_n=2)

    def rank(c, layout, index_k):
        table, _ = keys.table(layout)
        chosen = picks.select(c, layout, 32, index_k)
        return cp.dcp_decode(
            c, keys.q_of(c.rank, c.size), keys.cache(layout, c.rank), chosen, layout, table, SCALE,
            row_to_request=keys.request, context_lens=keys.context, kv_layout=keys.kv_layout, combine="a2a",
        )  # fmt: skip

    first = None
    for ranks, index_k in [(1, "replicated"), (2, "sharded"), (4, "gathered"), (8, "sharded_routed")]:
        layout = cp.dcp_layout(16, ranks, 64)
        got = comm.run_ranks(ranks, lambda c, a=layout, b=index_k: rank(c, a, b), timeout=20)
        whole = tuple(np.concatenate([g[i] for g in got], axis=1) for i in range(2))
        first = first or whole
        assert_same_bits(whole, first)


def test_union_attends_the_picks_of_all_ranks():
    from dcp_cases import SCALE, Batch

    keys, picks = Batch([120, 30], heads=4), IndexBatch([120, 30])
    layout = cp.dcp_layout(4, 2, 16)
    own = picks.on_ranks(layout, 12, "union")

    def rank(c):
        table, _ = keys.table(layout)
        return cp.dcp_decode(
            c, keys.q_of(c.rank, 2), keys.cache(layout, c.rank), own[c.rank], layout, table, SCALE,
            row_to_request=keys.request, kv_layout="f32_576",
        )  # fmt: skip

    got = comm.run_ranks(2, rank, timeout=20)
    both = np.concatenate(own, axis=1)
    out, lse = twin.dcp_decode(keys.q, keys.kv, both, keys.request, SCALE, 4, 2)
    np.testing.assert_allclose(np.concatenate([g[0] for g in got], axis=1), out, atol=2e-5)
    np.testing.assert_allclose(np.concatenate([g[1] for g in got], axis=1), lse, atol=2e-5)


@pytest.mark.parametrize("index_k", [*EXACT, "union"])
@pytest.mark.parametrize(("requests", "next_n", "pages"), [(0, 1, 1), (2, 0, 1), (2, 1, 0)])
def test_nothing_to_choose_from_is_legal(index_k, requests, next_n, pages):
    def rank(c):
        return cp.dcp_select(
            c, np.zeros((requests, next_n, 2, 128), np.float32), np.zeros((2, 4, 128), np.float32),
            np.zeros((requests * next_n, 2), np.float32), np.zeros(requests, np.int32),
            np.zeros((requests, pages), np.int32), cp.dcp_layout(1, 2, 4), 3, index_k=index_k, index_layout="index_f32",
        )  # fmt: skip

    for got in comm.run_ranks(2, rank, timeout=20):
        assert got.shape == (requests * next_n, 3) and (got == -1).all()


def test_twin_of_global_topk_is_the_twin_of_topk():
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 4, (3, 50)).astype(np.float32)
    lens = np.array([50, 0, 17])
    shares = [scores[:, r::4] for r in range(4)]
    np.testing.assert_array_equal(twin.global_topk(shares, 9, 1, lens), indexer_twin.topk(scores, 9, lens))
