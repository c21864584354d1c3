"""cp.dcp_decode, cp.dcp_partial and cp.dcp_combine: N ranks against one, and against the twin."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan import comm, cp
from sparsespan.reference import cp_decode as twin
from sparsespan.testing import assert_row_invariant

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import BF16, SCALE, Batch, assert_same_bits

sys.path.pop(0)
pytestmark = pytest.mark.timeout(120)


# Against float64: a score is a float32 sum of 576 products of size 1, off by some 2^-24 * sqrt(576) * 24 / 14 and so
# are the lse and, relatively, the weights of values of size up to 4.
TWIN = 2e-5
# Against one rank the scores have the same bits; sums of exps and of weighted values run in another order.
ONE_RANK = 2e-6


def assert_near(got, expected, atol):
    """Empty rows exactly."""
    out, lse = got
    np.testing.assert_allclose(np.asarray(out, np.float64), expected[0], atol=atol, rtol=1e-5)
    np.testing.assert_allclose(lse, expected[1], atol=atol, rtol=1e-6)
    assert not out[np.isneginf(lse)].any()


lengths = st.lists(st.one_of(st.integers(0, 3), st.integers(4, 300)), min_size=0, max_size=4)


@given(
    lengths=lengths,
    next_n=st.integers(1, 3),
    ranks=st.sampled_from([1, 2, 4, 8]),
    interleave=st.sampled_from([1, 16, 64]),
    topk=st.integers(1, 64),
    kv_layout=st.sampled_from(["f32_576", "bf16_576", "fp8_656"]),
    dtype=st.sampled_from([np.float32, BF16]),
    sink=st.booleans(),
    replicate_q=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_lanes_and_a2a_give_the_bits_of_one_rank(
    lengths, next_n, ranks, interleave, topk, kv_layout, dtype, sink, replicate_q, seed
):
    batch = Batch(lengths, next_n, topk, dtype=dtype, kv_layout=kv_layout, seed=seed)
    attn_sink = np.linspace(-2, 2, batch.heads, dtype=np.float32) if sink else None
    got = batch.on_ranks(
        cp.dcp_layout(interleave, ranks, 64), combine="a2a", replicate_q=replicate_q, attn_sink=attn_sink
    )
    assert_same_bits(got, batch.one_rank(interleave, lanes=True, attn_sink=attn_sink))


@given(
    lengths=lengths,
    next_n=st.integers(1, 3),
    ranks=st.integers(1, 8),
    interleave=st.sampled_from([1, 16, 64]),
    combine=st.sampled_from(["ag_rs", "a2a", "ar"]),
    payload=st.sampled_from(["fp32", "bf16"]),
    lanes=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_every_way_to_combine_is_near_the_twin(lengths, next_n, ranks, interleave, combine, payload, lanes, seed):
    batch = Batch(lengths, next_n, topk=40, heads=ranks * 2, seed=seed)
    sink = np.linspace(-1, 1, batch.heads, dtype=np.float32)
    out, lse = batch.on_ranks(
        cp.dcp_layout(interleave, ranks, 64), combine=combine, payload=payload, attn_sink=sink,
        lanes=lanes and 8 % ranks == 0,
    )  # fmt: skip
    expected = twin.dcp_decode(batch.q, batch.kv, batch.indices, batch.request, SCALE, interleave, ranks, 512, sink)
    if payload == "fp32":
        assert_near((out, lse), expected, TWIN)
        assert_near((out, lse), batch.one_rank(interleave, False, sink), ONE_RANK)
    else:
        # Each partial output, of size up to about 4, is rounded once to 8 bits, and so is (ag_rs, ar) their sum.
        np.testing.assert_allclose(out, expected[0], atol=4 * 2.0**-8, rtol=2.0**-7)
        np.testing.assert_allclose(lse, expected[1], atol=TWIN, rtol=1e-6)


def test_next_n_rows_see_their_own_key_and_no_later_one():
    # History 5, 4 rows, 2 ranks: the golden counts of the sheet, [3, 3, 4, 4] and [3, 4, 4, 5].
    layout = cp.dcp_layout(1, 2, 4)
    ends = np.array([6, 7, 8, 9], np.int32)
    indices = np.where(np.arange(9) < ends[:, None], np.arange(9), -1)
    counts = [layout.remap_topk(indices, r, return_counts=True)[1].tolist() for r in range(2)]
    assert counts == [[3, 4, 4, 5], [3, 3, 4, 4]]
    batch = Batch([9], next_n=4, topk=9, heads=2)
    batch.indices = indices.astype(np.int32)
    assert batch.context.tolist() == ends.tolist()
    assert_same_bits(batch.on_ranks(layout, combine="a2a"), batch.one_rank(1, lanes=True))
    batch.indices[0, 8] = 6  # the key of row 1
    with pytest.raises(IndexError, match=r"indices holds 6 at row 0, column 8, needs -1 or a logical position below 6"):
        batch.on_ranks(layout)


@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
def test_forms_of_q_change_no_bit(combine):
    batch = Batch([200, 3, 64], heads=8, dtype=BF16)
    layout = cp.dcp_layout(16, 4, 64)
    plain = batch.on_ranks(layout, combine=combine)
    assert_same_bits(batch.on_ranks(layout, combine=combine, replicate_q=True), plain)
    for pad in (1, 5, 64):
        assert_same_bits(batch.on_ranks(layout, combine=combine, head_pad=pad), plain)
    whole = batch.q_of
    batch.q_of = lambda rank, ranks: (whole(rank, ranks)[..., :512], whole(rank, ranks)[..., 512:])
    assert_same_bits(batch.on_ranks(layout, combine=combine), plain)
    batch.q_of = lambda rank, ranks: np.ascontiguousarray(whole(rank, ranks))
    assert_same_bits(batch.on_ranks(layout, combine=combine, validate="trusted"), plain)


@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
def test_a_row_has_the_same_bits_in_any_batch(combine):
    whole = Batch([200, 3, 64, 130], next_n=2, heads=4)
    layout = cp.dcp_layout(1, 2, 64)

    def op(ids, threads):
        part = Batch(whole.lengths, next_n=2, heads=4)
        part.q, part.indices = whole.q[ids], whole.indices[ids]
        part.request, part.context = whole.request[ids], whole.context[ids]
        return part.on_ranks(layout, combine=combine, threads=threads)

    assert_row_invariant(op, whole.rows, alone=2)


def test_partials_are_those_of_the_twin():
    batch = Batch([150, 1, 40], topk=30, heads=4)
    layout = cp.dcp_layout(4, 3, 8)
    table, _ = batch.table(layout)
    outs, lses = twin.dcp_partials(batch.q, batch.kv, batch.indices, batch.request, SCALE, 4, 3)
    for rank in range(3):
        got = cp.dcp_partial(
            batch.q, batch.cache(layout, rank), batch.indices, layout, rank, table, SCALE,
            row_to_request=batch.request, kv_layout="f32_576",
        )  # fmt: skip
        assert_near(got, (outs[rank], lses[rank]), TWIN)
    assert np.isneginf(lses[2, 1]).all()  # rank 2 owns nothing of the second request


def test_topk_length_hides_what_stands_behind():
    batch = Batch([100], topk=20, heads=2)
    layout = cp.dcp_layout(1, 2, 4)
    keep = batch.indices.copy()
    expected = batch.on_ranks(layout, combine="a2a")
    batch.indices = np.concatenate([keep, np.full((1, 5), 10**6, np.int32)], axis=1)
    assert_same_bits(batch.on_ranks(layout, combine="a2a", topk_length=np.array([20])), expected)


def test_a_padding_row_has_no_request():
    batch = Batch([100, 50], heads=2)
    batch.request = np.array([0, -1])
    batch.indices[1] = -1
    out, lse = batch.on_ranks(cp.dcp_layout(1, 2, 4))
    assert np.isneginf(lse[1]).all() and not out[1].any() and np.isfinite(lse[0]).all()
    batch.indices[1, 3] = 7
    with pytest.raises(IndexError, match=r"row 1, column 3, needs -1 .*row_to_request is -1: the row has no keys"):
        batch.on_ranks(cp.dcp_layout(1, 2, 4))


def test_no_rows_and_given_outputs():
    def rank(c):
        layout = cp.dcp_layout(1, 2, 4)
        out = (np.full((0, 2, 512), 7, np.float32), np.zeros((0, 2), np.float32))
        got = cp.dcp_decode(
            c, np.zeros((0, 2, 576), np.float32), np.zeros((1, 4, 576), np.float32), np.zeros((0, 8), np.int64), layout,
            np.zeros((1, 1), np.int32), 1.0, kv_layout="f32_576", out=out,
        )  # fmt: skip
        return got[0] is out[0] and got[1] is out[1]

    assert comm.run_ranks(2, rank, timeout=20) == [True, True]


@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
@pytest.mark.parametrize("empty", ["columns", "heads", "pages", "rows"])
def test_nothing_to_do_is_legal(combine, empty):
    rows, heads, columns, pages = (0 if empty == name else 2 for name in ("rows", "heads", "columns", "pages"))

    def rank(c):
        return cp.dcp_decode(
            c, np.zeros((rows, heads, 576), np.float32), np.zeros((1, 4, 576), np.float32),
            np.full((rows, columns), -1, np.int32), cp.dcp_layout(1, 2, 4), np.zeros((1, pages), np.int32), 1.0,
            kv_layout="f32_576", combine=combine,
        )  # fmt: skip

    for out, lse in comm.run_ranks(2, rank, timeout=20):
        assert out.shape == (rows, heads, 512) and not out.any() and np.isneginf(lse).all()


@pytest.mark.parametrize("payload", ["fp32", "bf16"])
@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
def test_combine_takes_nothing_from_ranks_without_keys(combine, payload):
    # Rank 1 has no keys: its outputs are NaN, its lse +inf or -inf. Row 1 has keys nowhere.
    def rank(c):
        out = np.full((2, 6, 4), 3.0 if c.rank == 0 else np.nan, np.float32)
        lse = np.full((2, 6), 0.5 if c.rank == 0 else np.inf, np.float32)
        lse[1] = -np.inf
        out[1] = np.nan
        return cp.dcp_combine(c, out, lse, combine=combine, payload=payload)

    for out, lse in comm.run_ranks(3, lambda c: rank(c), timeout=20):
        assert (out[0] == 3).all() and (out[1] == 0).all()
        assert (lse[0] == 0.5).all() and np.isneginf(lse[1]).all()


@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
def test_the_merge_of_vllm_ascend(combine):
    """Its golden case: 1 and 5 at equal lse give 3; 3 at -inf and 7 at 0 give 7."""

    def rank(c):
        out = np.array([[[[1.0]], [[3.0]]], [[[5.0]], [[7.0]]]], np.float32)[c.rank].repeat(2, axis=1)
        lse = np.array([[[0.0], [-np.inf]], [[0.0], [0.0]]], np.float32)[c.rank].repeat(2, axis=1)
        return cp.dcp_combine(c, out, lse, combine=combine)[0].reshape(-1).tolist()

    assert comm.run_ranks(2, rank, timeout=20) == [[3.0, 7.0], [3.0, 7.0]]


@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
def test_combine_lets_a_nan_show(combine):
    def rank(c):
        lse = np.full((1, 2), np.nan if c.rank == 1 else 0.0, np.float32)
        return cp.dcp_combine(c, np.ones((1, 2, 4), np.float32), lse, combine=combine)

    for out, lse in comm.run_ranks(2, rank, timeout=20):
        assert np.isnan(lse).all() and np.isnan(out).all()


def test_a_head_axis_of_one_and_wide_integers_change_no_bit():
    batch = Batch([100, 7], heads=4)
    layout = cp.dcp_layout(1, 2, 16)
    plain = batch.on_ranks(layout, combine="a2a")
    batch.indices = batch.indices[:, None].astype(np.int64)
    batch.request, batch.context = batch.request.astype(np.int32), batch.context.astype(np.int64)
    assert_same_bits(batch.on_ranks(layout, combine="a2a"), plain)


@pytest.mark.peer
def test_torch_agrees_and_gets_its_tensors_back():
    torch = pytest.importorskip("torch")
    batch = Batch([90, 30], topk=16, heads=4, kv_layout="bf16_576", dtype=BF16)
    layout = cp.dcp_layout(1, 2, 16)
    table, _ = batch.table(layout)

    def tensor(x):
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == BF16 else torch.from_numpy(x)

    def rank(c):
        return cp.dcp_decode(
            c, tensor(np.ascontiguousarray(batch.q_of(c.rank, 2))), tensor(batch.cache(layout, c.rank)),
            tensor(batch.indices), layout, tensor(table), SCALE, row_to_request=tensor(batch.request),
            out_dtype="float32",
        )  # fmt: skip

    parts = comm.run_ranks(2, rank, timeout=20)
    assert all(isinstance(x, torch.Tensor) for part in parts for x in part)
    out, lse = (torch.cat([part[i] for part in parts], dim=1) for i in range(2))
    for t, s in enumerate(batch.request):
        keys = tensor(batch.kv[s]).double()[torch.from_numpy(batch.indices[t][batch.indices[t] >= 0]).long()]
        scores = SCALE * tensor(batch.q[t]).double() @ keys.T
        torch.testing.assert_close(lse[t].double(), scores.logsumexp(-1), atol=TWIN, rtol=1e-6)
        # Levels with products of bfloat16 round weights to 8 bits, values being of size up to 4.
        torch.testing.assert_close(out[t].double(), scores.softmax(-1) @ keys[:, :512], atol=4 * 2.0**-9, rtol=1e-5)
