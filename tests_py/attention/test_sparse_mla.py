import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsespan.reference.attention as reference
from sparsespan.attention import sparse_mla
from sparsespan.testing import assert_row_invariant, compare_attn, each_isa

sys.path.insert(0, str(Path(__file__).parent))
from attention_cases import BF16, assert_same_bits, flashmla_rows, fp8_tokens, paged, scatter, sinks

sys.path.pop(0)

# float32 in and out: the error is that of a float32 sum of 576 products in the score (about 1e-6 of sum |q k| * scale,
# which is below 10 here) and of 4096 terms in the output, not of any rounding of inputs or outputs.
FLOAT32 = {"out_abs": 2e-6, "out_rel": 1e-5, "cos": 1e-11, "lse_abs": 5e-6, "lse_rel": 2e-6}


@pytest.mark.parametrize(
    ("keys", "topk"), [(128, 128), (592, 128), (1840, 256), (1592, 384), (1521, 512), (95, 128), (32, 2048)]
)
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_flashmla_prefill_shapes(rng, keys, topk, dtype):
    q, kv, indices = flashmla_rows(rng, 6, 8, keys, topk, dtype=dtype)
    sink = sinks(rng, 8)
    length = np.minimum(topk, rng.integers(0, max(topk, 63), 6)).astype(np.int32)
    length[0] = 0
    indices[1] = -1
    want = reference.sparse_mla(q, kv, indices, 0.5, 512, length, sink)
    assert np.isneginf(want[1][:2]).all() and np.isneginf(want[2][:2]).all()
    for _ in each_isa():
        got = sparse_mla(q, kv, indices, 0.5, topk_length=length, attn_sink=sink)
        assert got[0].dtype == dtype and got[1].dtype == np.float32
        compare_attn(got, want, **({} if dtype is BF16 else FLOAT32))
        compare_attn(sparse_mla(q, kv, indices[:, None], 0.5, 512, length.astype(np.int64), sink), got)


@pytest.mark.parametrize("heads", [1, 3, 9, 63, 64, 126, 128])
def test_any_number_of_heads_and_keys(rng, heads):
    q, kv, indices = flashmla_rows(rng, 2, heads, 700, 333)
    want = reference.sparse_mla(q, kv, indices, 0.1)
    for _ in each_isa():
        compare_attn(sparse_mla(q, kv, indices, 0.1), want)


@settings(max_examples=60)
@given(
    rows=st.integers(0, 4), heads=st.integers(1, 40), dim=st.integers(1, 70), keys=st.integers(1, 600),
    topk=st.integers(1, 700), seed=st.integers(0, 2**32 - 1), data=st.data(),
)  # fmt: skip
def test_any_shape(rows, heads, dim, keys, topk, seed, data):
    d_v = data.draw(st.integers(1, dim))
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((rows, heads, dim)).astype(np.float32)
    kv = rng.standard_normal((keys, dim)).astype(np.float32)
    indices = rng.integers(-1, keys, (rows, topk)).astype(np.int32)
    want = reference.sparse_mla(q, kv, indices, dim**-0.5, d_v)
    for _ in each_isa():
        compare_attn(sparse_mla(q, kv, indices, dim**-0.5, d_v), want, **FLOAT32)


@pytest.mark.parametrize("page_size", [2, 53, 61, 64, 69, 256])
@pytest.mark.parametrize("layout", ["f32_576", "bf16_576", "fp8_656"])
@pytest.mark.parametrize("pad_pages", [False, True])
def test_paged_equals_packed_bitwise(rng, page_size, layout, pad_pages):
    """Slots instead of rows, NaN wherever no token is, pages padded: the same bits as the decoded packed rows."""
    tokens, pages = 300, 300 // page_size + 4
    raw, decoded = fp8_tokens(rng, tokens, pow2=bool(page_size % 2))
    if layout != "fp8_656":
        decoded = raw = rng.standard_normal((tokens, 576)).astype(BF16 if layout == "bf16_576" else np.float32)
    else:  # fp8_656 decodes to bfloat16: levels with products of bfloat16 use them for that type, not for float32
        decoded = decoded.astype(BF16)
    slots = rng.permutation(pages * page_size)[:tokens]
    cache = scatter(raw, slots, page_size, pages, pad_pages)
    assert cache.strides[0] == (page_size + pad_pages) * cache.strides[1]
    q = rng.standard_normal((3, 5, 576)).clip(-1, 1).astype(BF16)
    indices = rng.integers(-1, tokens, (3, 270)).astype(np.int32)
    at_slots = np.where(indices < 0, -1, slots[indices]).astype(np.int32)
    for _ in each_isa():
        packed = sparse_mla(q, decoded, indices, 576**-0.5)
        assert np.isfinite(packed[0].astype(np.float32)).all()
        assert_same_bits(sparse_mla(q, cache, at_slots, 576**-0.5, layout=layout, page_size=page_size), packed)
        four = cache[:, :, None]  # the peers' head axis
        assert_same_bits(sparse_mla(q, four, at_slots, 576**-0.5, layout=layout, page_size=page_size), packed)


def test_every_fp8_code_and_scale_decodes_exactly():
    """Each of the 256 codes under scales of many sizes, seen through one key: the output is the decoded value."""
    codes = np.arange(512, dtype=np.uint16).astype(np.uint8).reshape(1, 512)
    nan = (codes & 0x7F) == 0x7F
    codes = np.where(nan, 0, codes).astype(np.uint8)
    scales = np.array([1.0, 2.0**-20, 3.3e-5, 1.7e4], np.float32)
    table = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(4, 128)
    want = (table * scales[:, None]).astype(BF16).astype(np.float32).reshape(1, 1, 512)
    raw = np.concatenate([codes, scales.view(np.uint8)[None], np.zeros((1, 128), np.uint8)], axis=1)
    q = np.zeros((1, 1, 576), np.float32)
    for _ in each_isa():
        out, _, _ = sparse_mla(q, raw[None], np.zeros((1, 1), np.int32), 1.0, layout="fp8_656", page_size=1)
        np.testing.assert_array_equal(out, want)
    raw[0, 7] = 0x7F  # a NaN code of a key that is used is the user's own: it shows
    for _ in each_isa():
        out, lse, _ = sparse_mla(q, raw[None], np.zeros((1, 1), np.int32), 1.0, layout="fp8_656", page_size=1)
        assert np.isnan(out[0, 0, 7]) and np.isnan(lse[0, 0])


def test_two_part_queries_and_free_strides(rng):
    q, kv, indices = flashmla_rows(rng, 4, 6, 300, 130)
    for _ in each_isa():
        want = sparse_mla(q, kv, indices, 0.2)
        parts = (np.ascontiguousarray(q[..., :512]), np.ascontiguousarray(q[..., 512:]))
        assert_same_bits(sparse_mla(parts, kv, indices, 0.2), want)
        wide_q = np.zeros((4, 9, 600), BF16)
        wide_q[:, 1:7, 10:586] = q
        wide_kv = np.zeros((600, 590), BF16)
        wide_kv[::2, :576] = kv
        wide_i = np.zeros((4, 260), np.int64)
        wide_i[:, ::2] = indices
        got = sparse_mla(wide_q[:, 1:7, 10:586], wide_kv[::2, None, :576], wide_i[:, ::2], 0.2)
        assert_same_bits(got, want)


def test_duplicates_count_as_often_as_they_occur(rng):
    q = rng.standard_normal((1, 2, 16)).astype(np.float32)
    kv = rng.standard_normal((4, 16)).astype(np.float32)
    indices = np.array([[2, 2, 1, 2]], np.int32)
    for _ in each_isa():
        got = sparse_mla(q, kv, indices, 0.3, 16)
        compare_attn(got, reference.sparse_mla(q, kv[[1, 2, 2, 2]], np.array([[0, 1, 2, 3]]), 0.3, 16), **FLOAT32)


def test_order_of_indices_is_only_rounding(rng):
    q, kv, indices = flashmla_rows(rng, 3, 4, 900, 800, dtype=np.float32)
    for _ in each_isa():
        shuffled = rng.permuted(indices, axis=1)
        compare_attn(sparse_mla(q, kv, shuffled, 0.1), sparse_mla(q, kv, indices, 0.1), **FLOAT32)


def test_minus_one_anywhere_changes_no_bit(rng):
    q, kv, indices = flashmla_rows(rng, 2, 4, 900, 500, fill=1.0)
    holes = np.full((2, 1500), -1, np.int32)
    for t in range(2):
        holes[t, np.sort(rng.permutation(1500)[:500])] = indices[t]
    for _ in each_isa():
        assert_same_bits(sparse_mla(q, kv, holes, 0.1), sparse_mla(q, kv, indices, 0.1))


def test_nan_in_unused_rows_never_leaks(rng):
    q, kv, indices = flashmla_rows(rng, 3, 4, 300, 100)
    dirty = kv.copy()
    dirty[np.setdiff1d(np.arange(300), indices)] = np.nan
    length = np.array([50, 100, 0], np.int32)
    garbage = indices.copy()
    garbage[0, 50:], garbage[2] = 2**31 - 1, -123456  # never read
    for _ in each_isa():
        want = sparse_mla(q, kv, indices, 0.1, topk_length=length)
        assert_same_bits(sparse_mla(q, dirty, garbage, 0.1, topk_length=length), want)


def test_sink(rng):
    q, kv, indices = flashmla_rows(rng, 2, 6, 300, 100, dtype=np.float32)
    indices[1] = -1
    sink = np.array([-np.inf, np.inf, 0.0, 3.0, 80.0, -90.0], np.float32)
    for _ in each_isa():
        plain = sparse_mla(q, kv, indices, 0.1)
        out, lse, top = sparse_mla(q, kv, indices, 0.1, attn_sink=sink)
        assert_same_bits((lse, top), plain[1:])
        assert_same_bits((out[:, 0], out[:, 5]), (plain[0][:, 0], plain[0][:, 5]))
        assert not out[:, 1].any() and not out[1].any()
        # The sink as one more key with score `sink` and value 0.
        weight = np.exp(lse[0, 3]) / (np.exp(lse[0, 3]) + np.exp(np.float32(3)))
        np.testing.assert_allclose(out[0, 3], plain[0][0, 3] * weight, rtol=1e-5)


def test_extreme_scores(rng):
    kv = rng.standard_normal((600, 32)).astype(np.float32)
    q = rng.standard_normal((2, 3, 32)).astype(np.float32)
    indices = np.tile(np.arange(600, dtype=np.int32), (2, 1))
    for scale in (1e-30, 50.0, -50.0, 1e4, 0.0):
        want = reference.sparse_mla(q, kv, indices, float(np.float32(scale)), 32)
        for _ in each_isa():
            # Scores of 1e5 carry an absolute error of 1e-2, so the weights of near ties move; lse stays relative.
            got = sparse_mla(q, kv, indices, scale, 32)
            loose = (
                {"out_abs": 1e-4, "cos": 1e-7, "lse_rel": 1e-6} if abs(scale) < 1e3 else {"out_abs": 0.1, "cos": 1e-3}
            )
            compare_attn(got, want, **loose)


@pytest.mark.parametrize("layout", ["packed", "f32_576", "bf16_576", "fp8_656"])
def test_row_invariant(rng, layout):
    tokens = 2000
    q = rng.standard_normal((12, 7, 576)).clip(-1, 1).astype(BF16)
    raw, decoded = fp8_tokens(rng, tokens)
    indices = rng.integers(-1, tokens, (12, 1100)).astype(np.int32)
    length = rng.integers(0, 1100, 12)
    length[3:5] = [0, 1100]
    cache = {"packed": decoded, "f32_576": decoded, "bf16_576": decoded.astype(BF16), "fp8_656": raw}[layout]
    where = {} if layout == "packed" else {"layout": layout, "page_size": 50}
    if where:
        cache = paged(cache, 50, 40)

    def op(ids, threads):
        return sparse_mla(q[ids], cache, indices[ids], 0.05, topk_length=length[ids], threads=threads, **where)

    assert_row_invariant(op, 12, alone=3)


def test_heads_are_independent(rng):
    """128 heads at once, in any subset, alone: the same bits, whatever panel or thread a head falls into."""
    q, kv, indices = flashmla_rows(rng, 1, 128, 900, 700)
    for _ in each_isa():
        want = sparse_mla(q, kv, indices, 0.1, threads=1)
        for heads in (np.arange(128), np.array([5]), np.arange(40, 107), np.arange(127, -1, -1)):
            for threads in (1, 2, 5):
                got = sparse_mla(np.ascontiguousarray(q[:, heads]), kv, indices, 0.1, threads=threads)
                assert_same_bits(got, tuple(w[:, heads] for w in want))


def test_a_nan_that_is_used_shows_everywhere(rng):
    """One NaN in one key or query of a row: its out, lse and max_logits are NaN, the other rows untouched."""
    q, kv, indices = flashmla_rows(rng, 3, 3, 900, 800, dtype=np.float32, fill=1.0)
    lonely = np.setdiff1d(indices[1], indices[[0, 2]])[0]
    for _ in each_isa():
        want = sparse_mla(q, kv, indices, 0.1)
        dirty_kv, dirty_q = kv.copy(), q.copy()
        dirty_kv[lonely, 570], dirty_q[1, :, 3] = np.nan, np.nan
        for got in (sparse_mla(q, dirty_kv, indices, 0.1), sparse_mla(dirty_q, kv, indices, 0.1)):
            assert all(np.isnan(g[1]).all() for g in got)
            assert_same_bits(tuple(g[[0, 2]] for g in got), tuple(w[[0, 2]] for w in want))


@pytest.mark.parametrize("topk", [257, 1025, 2816])
def test_few_rows_share_blocks_among_threads_bitwise(rng, topk):
    """One or two rows: their blocks, cut into chunks by the number of threads, meet in the same tree."""
    q, kv, indices = flashmla_rows(rng, 2, 10, 3000, topk, dtype=np.float32, fill=1.0)
    indices[1, topk // 2 :] = -1  # a shorter row beside it
    for _ in each_isa():
        want = sparse_mla(q, kv, indices, 0.1, threads=1)
        for threads in (2, 3, 4, 7, 16):
            assert_same_bits(sparse_mla(q, kv, indices, 0.1, threads=threads), want)
            one = sparse_mla(q[1:], kv, indices[1:], 0.1, threads=threads)
            assert_same_bits(one, tuple(w[1:] for w in want))


@pytest.mark.peer
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_torch_writes_the_same_formula(rng, dtype):
    torch = pytest.importorskip("torch")
    q, kv, indices = flashmla_rows(rng, 3, 16, 500, 200, dtype=dtype)
    tq, tkv = (torch.from_numpy(a.astype(np.float32)) for a in (q, kv))
    keys = tkv[torch.from_numpy(indices).long().clamp(min=0)]
    score = torch.einsum("thd,tkd->thk", tq, keys) * 0.135
    score = score.masked_fill(torch.from_numpy(indices < 0)[:, None], float("-inf"))
    want = (torch.einsum("thk,tkd->thd", score.softmax(-1), keys[..., :512]), score.logsumexp(-1), score.amax(-1))
    for _ in each_isa():
        if dtype is BF16:
            narrow = (tq.bfloat16(), tkv.bfloat16(), torch.from_numpy(indices))
            got = sparse_mla(*narrow, 0.135)
            assert all(isinstance(g, torch.Tensor) for g in got) and got[0].dtype == torch.bfloat16
            compare_attn(got, want, lse_abs=2e-6)
        else:
            compare_attn(sparse_mla(q, kv, indices, 0.135), want, **FLOAT32)


def test_scores_of_minus_infinity_alone_are_no_keys():
    q = np.full((1, 1, 2), -np.inf, np.float32)
    kv = np.array([[1, 1], [2, 1]], np.float32)
    indices = np.array([[0, 1]], np.int32)
    for _ in each_isa():
        for result in (sparse_mla(q, kv, indices, 1.0, d_v=2), reference.sparse_mla(q, kv, indices, 1.0, d_v=2)):
            out, lse, largest = result
            assert (out == 0).all() and np.isneginf(lse).all() and np.isneginf(largest).all()
