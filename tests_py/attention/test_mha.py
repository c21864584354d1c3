# ruff: noqa: E501
import re

import ml_dtypes
import numpy as np
import pytest

import sparsespan.reference.attention as reference
from sparsespan.attention import mha, sparse_mha, sparse_mla
from sparsespan.testing import assert_row_invariant, compare_attn, each_isa

BF16 = ml_dtypes.bfloat16
# float32 throughout: sums of 192 and of up to 600 terms of order 1.
FLOAT32 = {"out_abs": 3e-6, "out_rel": 1e-5, "cos": 1e-11, "lse_abs": 5e-6, "lse_rel": 2e-6}


def batch(rng, rows, lens, heads, key_heads, dim=192, d_v=128, dtype=np.float32):
    def tensor(*shape):
        return rng.standard_normal(shape).astype(dtype)

    cu_q, cu_k = (np.concatenate([[0], np.cumsum(n)]).astype(np.int32) for n in (rows, lens))
    return tensor(cu_q[-1], heads, dim), tensor(cu_k[-1], key_heads, dim), tensor(cu_k[-1], key_heads, d_v), cu_q, cu_k


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_equals_reference(rng, causal, heads, key_heads):
    # rows = keys, rows < keys, rows > keys (the first rows see nothing), no rows, no keys
    data = batch(rng, [300, 7, 9, 0, 3], [300, 260, 5, 4, 0], heads, key_heads)
    want = reference.mha(*data, 0.08, causal)
    for _ in each_isa():
        compare_attn(mha(*data, 0.08, causal), want, **FLOAT32)


def test_bfloat16_and_odd_sizes(rng):
    data = batch(rng, [33, 1], [70, 300], 5, 5, 37, 19, BF16)
    for _ in each_isa():
        compare_attn(mha(*data, 0.2), reference.mha(*data, 0.2))


def test_unseen_keys_never_leak(rng):
    """NaN and inf in keys behind the causal edge, inside the same block: finite results, the same bits."""
    q, k, v, cu_q, cu_k = batch(rng, [90], [90], 2, 2)
    for _ in each_isa():
        want = mha(q, k, v, cu_q, cu_k, 0.1)
        for edge in (1, 17, 64, 89):
            dirty_k, dirty_v = k.copy(), v.copy()
            dirty_k[edge:], dirty_v[edge:] = np.nan, np.inf
            out, lse = mha(q, dirty_k, dirty_v, cu_q, cu_k, 0.1)
            np.testing.assert_array_equal(out[:edge], want[0][:edge])
            np.testing.assert_array_equal(lse[:edge], want[1][:edge])


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_rows_do_not_depend_on_the_rows_before_them(rng, rows):
    """The last rows of a prefill, run as a chunk: the same bits (chunked prefill)."""
    q, k, v, _, cu_k = batch(rng, [600], [600], 2, 1)
    for _ in each_isa():
        whole = mha(q, k, v, np.array([0, 600]), cu_k, 0.07)
        chunk = mha(q[-rows:], k, v, np.array([0, rows]), cu_k, 0.07)
        np.testing.assert_array_equal(chunk[0], whole[0][-rows:])
        np.testing.assert_array_equal(chunk[1], whole[1][-rows:])


def test_row_invariant(rng):
    q, k, v, _, _ = batch(rng, [1] * 10, [300] * 10, 4, 2)
    keys = [np.arange(300 * b, 300 * b + 300) for b in range(10)]

    def op(ids, threads):
        row = np.concatenate([keys[i] for i in ids])
        cu = np.arange(len(ids) + 1)
        return mha(q[ids], k[row], v[row], cu, 300 * cu, 0.1, threads=threads)

    assert_row_invariant(op, 10, alone=3)
    many = batch(rng, [100, 500], [700, 500], 3, 1)
    assert_row_invariant(lambda ids, threads: mha(*many, 0.1, threads=threads), 600, subsets=False)


def sparse_data(rng, rows=6, keys=500, topk=300, heads=4, key_heads=2, dtype=np.float32):
    q, k, v, _, _ = batch(rng, [rows], [keys], heads, key_heads, dtype=dtype)
    return q, k, v, rng.integers(-1, keys, (rows, topk)).astype(np.int32)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_sparse_equals_reference(rng, dtype):
    q, k, v, indices = sparse_data(rng, dtype=dtype)
    indices[2] = -1
    want = reference.sparse_mha(q, k, v, indices, 0.08)
    for _ in each_isa():
        compare_attn(sparse_mha(q, k, v, indices, 0.08), want, **({} if dtype is BF16 else FLOAT32))
        cut = reference.sparse_mha(q, k, v, indices[:, :50], 0.08)
        garbage = indices.copy()
        garbage[:, 50:] = 999999
        compare_attn(sparse_mha(q, k, v, garbage, 0.08, np.full(6, 50)), cut, **({} if dtype is BF16 else FLOAT32))


def test_sparse_row_invariant(rng):
    q, k, v, indices = sparse_data(rng, rows=10)
    assert_row_invariant(lambda ids, threads: sparse_mha(q[ids], k, v, indices[ids], 0.1, threads=threads), 10, alone=3)


def test_absorbed_equals_expanded(rng):
    """Sheet 5.1: scores by W_UK-absorbed queries and outputs through W_UV equal attention on expanded keys."""
    heads, d_n, d_r, d_c, d_v = 3, 24, 8, 64, 20
    w_uk, w_uv = (rng.standard_normal((heads, d, d_c)) / 8 for d in (d_n, d_v))
    c, k_pe = rng.standard_normal((400, d_c)), rng.standard_normal((400, d_r))
    q_nope, q_pe = rng.standard_normal((5, heads, d_n)), rng.standard_normal((5, heads, d_r))
    indices = rng.integers(0, 400, (5, 290)).astype(np.int32)
    scale = (d_n + d_r) ** -0.5
    f32 = lambda x: np.ascontiguousarray(x, np.float32)  # noqa: E731
    absorbed = f32(np.einsum("thn,hnc->thc", q_nope, w_uk)), f32(q_pe)
    k = np.concatenate([np.einsum("hnc,sc->shn", w_uk, c), np.repeat(k_pe[:, None], heads, 1)], axis=2)
    q = f32(np.concatenate([q_nope, q_pe], axis=2))
    for _ in each_isa():
        latent, lse, _ = sparse_mla(absorbed, f32(np.concatenate([c, k_pe], axis=1)), indices, scale, d_c)
        expanded = sparse_mha(q, f32(k), f32(np.einsum("hvc,sc->shv", w_uv, c)), indices, scale)
        # float32 rounding of the expanded keys and absorbed queries themselves, 1e-7 of sums of 64 terms.
        got = np.einsum("thc,hvc->thv", latent.astype(np.float64), w_uv), lse
        compare_attn(got, expanded, out_abs=2e-5, out_rel=1e-5, cos=1e-10, lse_abs=1e-5)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "k has dtype float16", {"k": np.zeros((5, 2, 8), np.float16)}),
        (ValueError, "k has shape [5, 2, 9], needs [S, Hk, Dqk] = [*, *, 8]", {"k": np.zeros((5, 2, 9), np.float32)}),
        (ValueError, "v has shape [4, 2, 8], needs [S, Hk, Dv] = [5, 2, *]", {"v": np.zeros((4, 2, 8), np.float32)}),
        (ValueError, "q has 3 heads, needs a multiple of k's 2", {"q": np.zeros((3, 3, 8), np.float32)}),
        (ValueError, "cu_q is 1 at place 0, needs 0 first", {"cu_q": np.array([1, 3])}),
        (ValueError, "cu_k is 2 at place 2, needs 0 first and then no less than before (5)", {"cu_k": np.array([0, 5, 2])}),
        (ValueError, "cu_q ends at 2, needs the number of rows, 3", {"cu_q": np.array([0, 2])}),
        (ValueError, "cu_k has shape [3], needs [B + 1] = [2]", {"cu_k": np.array([0, 2, 5])}),
        (ValueError, "cu_q is empty", {"cu_q": np.zeros(0, np.int32)}),
        (TypeError, "cu_q has dtype float64", {"cu_q": np.array([0.0, 3.0])}),
        (ValueError, "sm_scale is inf", {"sm_scale": float("inf")}),
        (ValueError, "threads is -2", {"threads": -2}),
    ],
)  # fmt: skip
def test_refusals(error, message, changes):
    good = {"q": np.zeros((3, 4, 8), np.float32), "k": np.zeros((5, 2, 8), np.float32),
            "v": np.zeros((5, 2, 8), np.float32), "cu_q": np.array([0, 3]), "cu_k": np.array([0, 5]),
            "sm_scale": 0.1}  # fmt: skip
    with pytest.raises(error, match=re.escape(message)):
        mha(**{**good, **changes})


def test_sparse_refusals(rng):
    q, k, v, indices = sparse_data(rng)
    indices[4, 9] = 500
    with pytest.raises(
        IndexError, match="indices holds 500 at row 4, column 9, needs -1 or one of the 500 packed rows of k"
    ):
        sparse_mha(q, k, v, indices, 0.1)
    with pytest.raises(ValueError, match=r"indices has shape \[5, 300\], needs \[T, K\] = \[6, \*\]"):
        sparse_mha(q, k, v, indices[:5], 0.1)
    with pytest.raises(ValueError, match="topk_length is 301 at row 0"):
        sparse_mha(q, k, v, indices, 0.1, np.full(6, 301))
    with pytest.raises(ValueError, match="lse shares memory"):
        shared = np.zeros((6, 4, 128), np.float32)
        sparse_mha(q, k, v, np.full((6, 3), -1), 0.1, out=(shared, shared.reshape(-1)[:24].reshape(6, 4)))
    out, lse = sparse_mha(q[:0], k, v, indices[:0], 0.1)
    assert out.shape == (0, 4, 128) and lse.shape == (0, 4)


@pytest.mark.peer
@pytest.mark.parametrize("causal", [True, False])
def test_torch_sdpa(rng, causal):
    torch = pytest.importorskip("torch")
    q, k, v, cu_q, cu_k = batch(rng, [120], [120], 6, 2, 192, 128)
    tq, tk, tv = (torch.from_numpy(x).transpose(0, 1)[None] for x in (q, k, v))
    want = torch.nn.functional.scaled_dot_product_attention(tq, tk, tv, is_causal=causal, scale=0.07, enable_gqa=True)
    for _ in each_isa():
        got, _ = mha(*(torch.from_numpy(x) for x in (q, k, v, cu_q, cu_k)), 0.07, causal)
        assert isinstance(got, torch.Tensor)
        compare_attn(got, want[0].transpose(0, 1), **FLOAT32)
