import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.indexer as reference
from sparsespan.indexer import mqa_logits
from sparsespan.testing import assert_row_invariant, each_isa

sys.path.insert(0, str(Path(__file__).parent))
from indexer_cases import BF16, DTYPES, FP8, WINDOWS, calc_diff, causal, inputs, packed

sys.path.pop(0)


def agree(got, expected):
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
    assert calc_diff(got, expected) < 5e-6  # DeepGEMM's bound for float32 logits of dequantised inputs


@pytest.mark.parametrize("name", WINDOWS)
def test_windows(rng, name):
    ks, ke, keys = WINDOWS[name]
    q, k, weights, scale = inputs(rng, len(ks), keys)
    expected = reference.mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        agree(mqa_logits(q, k, weights, ks, ke, scale), expected)


@pytest.mark.parametrize("q_dtype", DTYPES)
@pytest.mark.parametrize("k_dtype", DTYPES)
def test_dtypes(rng, q_dtype, k_dtype):
    ks, ke = causal(20, 150)
    q, k, weights, scale = inputs(rng, 20, 150, q_dtype=q_dtype, k_dtype=k_dtype)
    expected = reference.mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        agree(mqa_logits(q, k, weights, ks, ke, scale), expected)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 7, 8, 13, 16, 32, 64, 128])
@pytest.mark.parametrize("dim", [32, 100, 128, 256])
def test_heads_and_dims(rng, heads, dim):
    ks, ke = causal(3, 70)
    for dtype in (FP8, BF16):
        q, k, weights, scale = inputs(rng, 3, 70, heads, dim, dtype, dtype)
        expected = reference.mqa_logits(q, k, weights, ks, ke, scale)
        for _ in each_isa():
            agree(mqa_logits(q, k, weights, ks, ke, scale), expected)


def test_sglang_data(rng):
    """SGLang's CPU case: 4 heads, data N(10, 10), where every dot product is large and the sum over heads cancels."""
    ks, ke, keys = packed([5, 17, 40, 100])
    q, k, weights, scale = inputs(rng, len(ks), keys, 4, mean=10.0, std=10.0)
    expected = reference.mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        agree(mqa_logits(q, k, weights, ks, ke, scale), expected)


def test_every_fp8_code(rng):
    """All 256 codes as keys against a unit query: decoding is exact, subnormals, signed zero and NaN included."""
    k = np.zeros((256, 32), FP8)
    k[:, 3] = np.arange(256, dtype=np.uint8).view(FP8)
    k[:, 20] = np.arange(256, dtype=np.uint8).view(FP8)
    q = np.zeros((4, 1, 32), FP8)
    q[0, 0, 3], q[1, 0, 3], q[2, 0, 20], q[3, 0, 20] = 1, -1, 1, -1
    window = np.zeros(4, np.int32), np.full(4, 256, np.int32)
    values = k[:, 3].astype(np.float32)
    plus, minus = np.maximum(values, 0), np.maximum(-values, 0)
    for _ in each_isa():
        got = mqa_logits(q, k, np.ones((4, 1), np.float32), *window)
        np.testing.assert_array_equal(got, [plus, minus, plus, minus])


def test_nan_stays_where_it_is(rng):
    """relu(NaN) is NaN; a NaN key is seen only by rows whose window holds it, whatever shares its panel."""
    ks, ke = np.array([0, 10, 40, 0]), np.array([10, 40, 90, 90])
    q, k, weights, _ = inputs(rng, 4, 90, q_dtype=np.float32, k_dtype=np.float32)
    k[17, 5] = np.nan
    q[3, 2, 7] = np.nan
    for _ in each_isa():
        got = mqa_logits(q, k, weights, ks, ke)
        expected = reference.mqa_logits(q, k, weights, ks, ke)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        assert np.isnan(got[1, 17]) and np.isnan(got).sum() == 91


def test_keys_outside_the_windows_are_never_read(rng):
    """Key memory is the middle of a file mapping whose other pages cannot be read."""
    import mmap

    page = mmap.PAGESIZE
    per_page = page // 128
    keys = 6 * per_page
    q, k, weights, scale = inputs(rng, 3, keys)
    memory = mmap.mmap(-1, keys * 128)
    memory.write(k.tobytes())
    guarded = np.frombuffer(memory, np.uint8).view(FP8).reshape(keys, 128)
    ks, ke = np.array([per_page, 4 * per_page, 2 * per_page]), np.array([2 * per_page, 5 * per_page, 2 * per_page])
    # Pages 0, 2, 3 and 5 hold no visible key.
    protect(guarded, [0, 2, 3, 5], page, readable=False)
    try:
        for _ in each_isa():
            got = mqa_logits(q, guarded, weights, ks, ke, scale)
            np.testing.assert_array_equal(got, mqa_logits(q, k, weights, ks, ke, scale))
    finally:
        protect(guarded, [0, 2, 3, 5], page, readable=True)


def protect(array, pages, page, readable):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    base = array.__array_interface__["data"][0]
    for n in pages:
        flags = 3 if readable else 0  # PROT_READ | PROT_WRITE, or PROT_NONE
        assert libc.mprotect(ctypes.c_void_p(base + n * page), ctypes.c_size_t(page), ctypes.c_int(flags)) == 0


def test_unclean_leaves_the_rest_alone(rng):
    ks, ke, keys = WINDOWS["four"]
    q, k, weights, scale = inputs(rng, len(ks), keys)
    clean = mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        clean = mqa_logits(q, k, weights, ks, ke, scale)
        out = np.full_like(clean, 7.5)
        assert mqa_logits(q, k, weights, ks, ke, scale, clean_logits=False, out=out) is out
        np.testing.assert_array_equal(out, np.where(np.isneginf(clean), 7.5, clean))


def test_compressed(rng):
    ks, ke, keys = WINDOWS["gap"]
    q, k, weights, scale = inputs(rng, len(ks), keys)
    for _ in each_isa():
        full = mqa_logits(q, k, weights, ks, ke, scale)
        out = np.full((len(ks), 24), 7.5, np.float32)
        mqa_logits(q, k, weights, ks, ke, scale, False, 24, out=out)
        for t in range(len(ks)):
            n = ke[t] - ks[t]
            np.testing.assert_array_equal(out[t, :n], full[t, ks[t] : ke[t]])
            assert (out[t, n:] == 7.5).all()


def test_strides(rng):
    """Rows of q, k, weights and out may be padded; k_scale, ks and ke may have any stride."""
    ks, ke = causal(20, 90)
    q, k, weights, scale = inputs(rng, 20, 90)
    expected = mqa_logits(q, k, weights, ks, ke, scale)
    wide_q = np.zeros((20, 10, 140), FP8)
    wide_q[:, :8, :128] = q
    wide_k = np.zeros((90, 132), FP8)
    wide_k[:, :128] = k
    out = np.zeros((20, 128), np.float32)[:, :90]
    got = mqa_logits(
        wide_q[:, :8, :128],
        wide_k[:, :128],
        np.pad(weights, ((0, 0), (0, 3)))[:, :8],
        np.repeat(ks, 2)[::2],
        np.repeat(ke, 3)[::3],
        np.repeat(scale, 2)[::2],
        out=out,
    )
    np.testing.assert_array_equal(got, expected)


@given(st.data())
def test_properties(data):
    rows = data.draw(st.integers(0, 20))
    keys = data.draw(st.integers(0, 130))
    heads = data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from(DTYPES))
    q, k, weights, scale = inputs(rng, rows, keys, heads, 32, dtype, dtype)
    ks, ke = rng.integers(0, keys + 1, (2, rows))
    expected = reference.mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        got = mqa_logits(q, k, weights, ks, ke, scale)
        agree(got, expected)
        # Powers of two change exponents only: linear in the weights, exactly.
        np.testing.assert_array_equal(mqa_logits(q, k, 4 * weights, ks, ke, scale), 4 * got)


def test_row_invariant(rng):
    ks, ke, keys = packed([5, 17, 40, 100])
    q, k, weights, scale = inputs(rng, len(ks), keys, 5)
    assert_row_invariant(
        lambda i, threads: mqa_logits(q[i], k, weights[i], ks[i], ke[i], scale, threads=threads), len(ks)
    )


def test_a_score_does_not_depend_on_where_its_key_lies(rng):
    """Shifting the packed keys moves the scores and changes no bit of them (contract 4)."""
    ks, ke = causal(10, 200)
    q, k, weights, scale = inputs(rng, 10, 200)
    for _ in each_isa():
        base = mqa_logits(q, k, weights, ks, ke, scale)
        for shift in (1, 13, 48, 77):
            moved = mqa_logits(
                q,
                np.pad(k.view(np.uint8), ((shift, 0), (0, 0))).view(FP8),
                weights,
                ks + shift,
                ke + shift,
                np.pad(scale, (shift, 0)),
            )
            np.testing.assert_array_equal(moved[:, shift:], base)


def test_long_rows_are_split_over_threads(rng):
    ks, ke = causal(2, 20000)
    q, k, weights, scale = inputs(rng, 2, 20000, 2, 32)
    expected = reference.mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        one = mqa_logits(q, k, weights, ks, ke, scale, threads=1)
        agree(one, expected)
        for threads in (2, 3, 5):
            np.testing.assert_array_equal(mqa_logits(q, k, weights, ks, ke, scale, threads=threads), one)


def test_empty():
    f32 = np.float32
    assert mqa_logits(
        np.empty((0, 4, 32), f32),
        np.empty((5, 32), f32),
        np.empty((0, 4), f32),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
    ).shape == (0, 5)
    got = mqa_logits(
        np.empty((3, 4, 32), f32),
        np.empty((0, 32), f32),
        np.empty((3, 4), f32),
        np.zeros(3, np.int32),
        np.zeros(3, np.int32),
    )
    assert got.shape == (3, 0)


@pytest.mark.peer
def test_equals_torch(rng):
    """DeepGEMM's reference written with torch: einsum, relu, weighted sum, mask."""
    torch = pytest.importorskip("torch")
    ks, ke, keys = WINDOWS["four"]
    q, k, weights, scale = inputs(rng, len(ks), keys)
    tq, tk = (torch.from_numpy(x.view(np.uint8)).view(torch.float8_e4m3fn) for x in (q, k))
    tw, ts, tks, tke = (torch.from_numpy(x) for x in (weights, scale, ks, ke))
    dots = torch.einsum("thd,sd->ths", tq.double(), tk.double())
    scores = torch.einsum("ths,th->ts", torch.relu(dots), tw.double()) * ts
    column = torch.arange(keys)
    expected = torch.where((column >= tks[:, None]) & (column < tke[:, None]), scores, -torch.inf)
    for _ in each_isa():
        got = mqa_logits(tq, tk, tw, tks, tke, ts)
        assert isinstance(got, torch.Tensor) and got.dtype == torch.float32
        agree(got.numpy(), expected.numpy())
