"""sparse_mha on rows that name each key once: rows share staged keys, and no bit of a row may tell with whom."""

import ml_dtypes
import numpy as np
import pytest

import sparsespan.reference.attention as reference
from sparsespan.attention import sparse_mha
from sparsespan.testing import assert_row_invariant, compare_attn, each_isa

BF16 = ml_dtypes.bfloat16
# float32 throughout: sums of 192 and of up to 300 terms of order 1.
FLOAT32 = {"out_abs": 3e-6, "out_rel": 1e-5, "cos": 1e-11, "lse_abs": 5e-6, "lse_rel": 2e-6}
# FlashMLA's bounds, which compare_attn has, are for values of order 1/10; these are of order 1.
BFLOAT16 = {"out_abs": 8e-3}
# rows, keys, columns of indices, heads, key heads, Dqk, Dv: V3.2's head sizes; odd sizes; more heads to a key head than
# a tile has columns, and a number of them that no tile divides; one key.
SHAPES = [
    (6, 500, 300, 4, 2, 192, 128),
    (70, 700, 300, 2, 2, 37, 19),
    (300, 333, 100, 3, 1, 64, 32),
    (5, 1000, 20, 130, 1, 24, 16),
    (4, 1, 1, 2, 2, 8, 8),
]


def data(rng, shape, dtype=np.float32):
    rows, keys, topk, heads, key_heads, dim, d_v = shape
    q, k, v = (
        rng.standard_normal(s).astype(dtype)
        for s in ((rows, heads, dim), (keys, key_heads, dim), (keys, key_heads, d_v))
    )
    indices = np.stack([rng.permutation(keys)[:topk] for _ in range(rows)]).astype(np.int32)
    indices[rng.uniform(size=indices.shape) < 0.1] = -1
    indices[1] = -1
    return q, k, v, indices


def bits(result):
    return [np.ascontiguousarray(x).view(np.uint8) for x in result]


def assert_same_bits(a, b, rows=slice(None)):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(bits([x[rows]]), bits([y[rows]]))


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(rng, shape, dtype):
    q, k, v, indices = data(rng, shape, dtype)
    if indices.shape[1] > 9:
        indices[3, :3] = indices[3, 3]  # a row that is no set stands among them
    want = reference.sparse_mha(q, k, v, indices, 0.08)
    for _ in each_isa():
        compare_attn(sparse_mha(q, k, v, indices, 0.08), want, **(BFLOAT16 if dtype is BF16 else FLOAT32))


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_row_invariant(rng, shape, dtype):
    q, k, v, indices = data(rng, shape, dtype)
    indices[3, :3] = indices[3, 3]
    assert_row_invariant(
        lambda ids, threads: sparse_mha(q[ids], k, v, indices[ids], 0.1, threads=threads), len(q), alone=4
    )


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_neither_later_keys_nor_the_order_of_indices_matter(rng, dtype):
    q, k, v, indices = data(rng, (90, 600, 200, 2, 2, 192, 128), dtype)
    indices[indices >= 300] = -1
    for _ in each_isa():
        want = sparse_mha(q, k, v, indices, 0.1)
        assert_same_bits(want, sparse_mha(q, k[:300], v[:300], indices, 0.1))
        assert_same_bits(want, sparse_mha(q, k, v, np.sort(indices, axis=1), 0.1))


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_other_rows_see_never_leaks(rng, shape, dtype, bad):
    q, k, v, indices = data(rng, shape, dtype)
    other = 3
    keys = indices[other].copy()
    indices[indices % 7 == 0] = -1
    indices[other] = keys
    dirty_k, dirty_v = k.copy(), v.copy()
    dirty_k[::7], dirty_v[::7] = bad, bad
    rest = np.arange(len(q)) != other
    for _ in each_isa():
        got = sparse_mha(q, dirty_k, dirty_v, indices, 0.1)
        assert_same_bits(got, sparse_mha(q, k, v, indices, 0.1), rest)
        assert not np.isfinite(np.asarray(got[0][other], np.float32)).any()


def test_a_row_that_sees_a_value_of_infinity(rng):
    """Its own sums are what they would be alone: the harness above compares finite rows only."""
    q, k, v, indices = data(rng, (70, 300, 90, 2, 2, 32, 16))
    v[indices[5][indices[5] >= 0][:2], :, 3] = np.inf
    for _ in each_isa():
        whole = sparse_mha(q, k, v, indices, 0.1)
        assert np.isposinf(whole[0][5, :, 3]).all() and np.isfinite(whole[0][5, :, :3]).all()
        assert_same_bits([x[5:6] for x in whole], sparse_mha(q[5:6], k, v, indices[5:6], 0.1))


def test_strides_of_transformers(rng):
    """Heads first, and values that are half of a wider row."""
    q, k, v, indices = data(rng, (70, 300, 90, 3, 3, 192, 128), BF16)
    q_t, k_t = (np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2) for x in (q, k))
    wide = np.concatenate([v, v], axis=2)[..., 128:]
    for _ in each_isa():
        assert_same_bits(sparse_mha(q, k, v, indices, 0.1), sparse_mha(q_t, k_t, wide, indices, 0.1))


def test_more_rows_than_fit_at_a_time(rng):
    """The sets of a few thousand rows are made at a time; here of one group."""
    keys = 240_000
    q, k, v, _ = data(rng, (520, keys, 2, 1, 1, 8, 8))
    indices = rng.permutation(keys)[:1040].reshape(520, 2).astype(np.int64)
    compare_attn(sparse_mha(q, k, v, indices, 0.1), reference.sparse_mha(q, k, v, indices, 0.1), **FLOAT32)


def test_indices_of_no_columns(rng):
    q, k, v, indices = data(rng, SHAPES[0])
    out, lse = sparse_mha(q, k, v, indices[:, :0], 0.1)
    assert not out.any() and np.isneginf(lse).all()
    out, lse = sparse_mha(q, k[:0], v[:0], np.full((6, 2), -1), 0.1)
    assert not out.any() and np.isneginf(lse).all()
