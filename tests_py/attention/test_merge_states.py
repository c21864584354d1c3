import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.attention as reference
from sparsespan.attention import merge_states, sparse_mla
from sparsespan.testing import assert_row_invariant, compare_attn, each_isa

sys.path.insert(0, str(Path(__file__).parent))
from attention_cases import BF16, assert_same_bits, flashmla_rows, fp8_tokens, paged, sinks

sys.path.pop(0)

# A tree of float32 merges: each stage rounds the weights and the sum once.
TIGHT = {"out_abs": 3e-6, "out_rel": 3e-6, "cos": 1e-11, "lse_abs": 1e-6, "lse_rel": 5e-7}


def parts(rng, n, rows=3, heads=4, width=32, dtype=np.float32):
    outs = rng.standard_normal((n, rows, heads, width)).astype(dtype)
    lses = (5 * rng.standard_normal((n, rows, heads))).astype(np.float32)
    return outs, lses


@given(st.integers(0, 9), st.integers(0, 3), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_equals_reference(n, rows, width, seed):
    rng = np.random.default_rng(seed)
    outs, lses = parts(rng, n, rows, 3, width)
    lses[rng.uniform(size=lses.shape) < 0.2] = -np.inf
    lses[rng.uniform(size=lses.shape) < 0.1] = np.inf
    outs[np.isinf(lses)] = np.nan
    sink = sinks(rng, 3)
    for _ in each_isa():
        compare_attn(merge_states(outs, lses, sink), reference.merge_states(outs, lses, sink), **TIGHT)


def one(values, lses):
    n = len(values)
    return (np.array(values, np.float32).reshape(n, 1, 1, 1), np.array(lses, np.float32).reshape(n, 1, 1))


def test_laws():
    inf, nan = np.inf, np.nan
    table = [
        # values, lses -> out, lse
        ([1, 5], [2, 2], 3, 2 + np.log(2)),  # equal lse
        ([3, 7], [-inf, 0], 7, 0),  # one side empty
        ([3, 7], [0.3, inf], 3, 0.3),  # +inf is the peers' empty
        ([nan, 7], [inf, 0], 7, 0),
        ([3, nan], [1, -inf], 3, 1),
        ([nan, nan], [-inf, inf], 0, -inf),  # both empty
        ([nan], [inf], 0, -inf),
        ([3, nan], [300, 0], 3, 300),  # a difference above 200: weight exactly 0, never 0 * NaN
        ([inf, 4], [-250, 10], 4, 10),
        ([1, 2, 3], [-inf, -inf, 1], 3, 1),
    ]
    for _ in each_isa():
        for values, lses, out, lse in table:
            got_out, got_lse = merge_states(*one(values, lses))
            assert got_out.item() == out, (values, lses)
            assert got_lse.item() == np.float32(lse), (values, lses)
        assert np.isnan(merge_states(*one([1, 2], [0, nan]))[1]).all()  # a NaN lse is the user's own: it shows
        out, lse = merge_states(np.zeros((0, 2, 3, 4), np.float32), np.zeros((0, 2, 3), np.float32))
        assert not out.any() and np.isneginf(lse).all()


def test_an_empty_part_changes_no_bit(rng):
    outs, lses = parts(rng, 1)
    for _ in each_isa():
        for place in range(4):
            wide_outs, wide_lses = (
                np.full((4, *outs.shape[1:]), np.nan, np.float32),
                np.full((4, 3, 4), -np.inf, np.float32),
            )
            wide_outs[place], wide_lses[place] = outs[0], lses[0]
            assert_same_bits(merge_states(wide_outs, wide_lses), (outs[0], lses[0]))


def test_grouping_of_the_tree(rng):
    """Strides 4, 2, 1: merging even and odd parts first gives the very bits of merging all."""
    outs, lses = parts(rng, 8)
    for _ in each_isa():
        want = merge_states(outs, lses)
        for ranks in (2, 4, 8):
            each = [merge_states(outs[r::ranks], lses[r::ranks]) for r in range(ranks)]
            assert_same_bits(merge_states(np.stack([o for o, _ in each]), np.stack([s for _, s in each])), want)


def test_sink_and_dtypes(rng):
    outs, lses = parts(rng, 3, dtype=BF16)
    sink = np.array([-np.inf, np.inf, 0.5, -2], np.float32)
    for _ in each_isa():
        out, lse = merge_states(outs, lses, sink)
        assert out.dtype == BF16
        plain = merge_states(outs, lses, out_dtype="float32")
        assert_same_bits((lse,), (plain[1],))
        assert not out[:, 1].any()
        assert_same_bits((out[:, 0],), (plain[0][:, 0].astype(BF16),))
        compare_attn((out, lse), reference.merge_states(outs, lses, sink))


def test_row_invariant(rng):
    outs, lses = parts(rng, 5, rows=40)
    assert_row_invariant(lambda ids, threads: merge_states(outs[:, ids], lses[:, ids], threads=threads), 40)


def test_refusals(rng):
    outs, lses = parts(rng, 2)
    for error, message, args, kwargs in [
        (TypeError, "outs has dtype float16", (outs.astype(np.float16), lses), {}),
        (TypeError, "lses has dtype float64, needs float32", (outs, lses.astype(np.float64)), {}),
        (ValueError, "outs has shape [3, 4, 32], needs [n, T, H, D]", (outs[0], lses), {}),
        (ValueError, "lses has shape [1, 3, 4], needs [n, T, H] = [2, 3, 4]", (outs, lses[:1]), {}),
        (ValueError, "attn_sink is NaN at head 2", (outs, lses, np.array([0, 0, np.nan, 0], np.float32)), {}),
        (ValueError, "outs has a strided last axis", (outs[..., ::2], lses), {}),
        (ValueError, "out shares memory with an input", (outs, lses), {"out": outs[0]}),
        (ValueError, "lse shares memory", (outs, lses), {"out": (None, lses[1])}),
        (ValueError, "out has 3 entries, needs (out, lse)", (outs, lses), {"out": (None, None, None)}),
        (ValueError, 'out_dtype is "f4"', (outs, lses), {"out_dtype": "f4"}),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            merge_states(*args, **kwargs)


def attend_by_ranks(ranks, q, kv, indices, lanes, scale, sink, **where):
    """Rank r owns lanes r mod N; indices keep their order and may leave holes, as a rank's own list would not."""
    results = []
    for r in range(ranks):
        mine = np.where(lanes % ranks == r, indices, -1)
        results.append(sparse_mla(q, kv, mine, scale, lane_of=lanes, out_dtype="float32", **where))
    return merge_states(
        np.stack([r[0] for r in results]), np.stack([r[1] for r in results]), sink,
        out_dtype="bfloat16" if q.dtype == BF16 else "float32",
    )  # fmt: skip


@pytest.mark.parametrize("interleave", [1, 64])
@pytest.mark.parametrize("layout", [None, "fp8_656"])
def test_lanes_make_every_number_of_ranks_bitwise_equal(rng, interleave, layout):
    tokens = 1200
    q = rng.standard_normal((5, 6, 576)).clip(-1, 1).astype(BF16)
    raw, decoded = fp8_tokens(rng, tokens)
    indices = rng.integers(-1, tokens, (5, 900)).astype(np.int32)
    indices[3] = -1
    indices[4] = np.where(indices[4] // interleave % 8 == 5, indices[4], -1)  # one lane only
    lanes = np.where(indices < 0, -7, indices // interleave % 8).astype(np.int32)  # lanes of -1 are not looked at
    where = {} if layout is None else {"layout": layout, "page_size": 60}
    kv = decoded if layout is None else paged(raw, 60, 21)
    sink = sinks(rng, 6)
    for _ in each_isa():
        whole = sparse_mla(q, kv, indices, 0.06, attn_sink=sink, lane_of=lanes, **where)
        compare_attn(whole, reference.sparse_mla(q, decoded, indices, 0.06, attn_sink=sink))
        for ranks in (1, 2, 4, 8):
            assert_same_bits(attend_by_ranks(ranks, q, kv, indices, lanes, 0.06, sink, **where), whole[:2])


def test_lanes_row_invariant(rng):
    q, kv, indices = flashmla_rows(rng, 8, 70, 1500, 1200)
    lanes = rng.integers(0, 8, indices.shape).astype(np.int32)
    assert_row_invariant(
        lambda ids, threads: sparse_mla(q[ids], kv, indices[ids], 0.1, lane_of=lanes[ids], threads=threads), 8, alone=2
    )
