import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.transform as reference
from sparsespan.testing import assert_row_invariant, each_isa
from sparsespan.transform import hadamard_transform

BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("n", [1, 2, 8, 64, 128, 1024])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_equals_reference(rng, n, dtype):
    x = rng.standard_normal((7, n)).astype(dtype)
    for _ in each_isa():
        y = hadamard_transform(x, n**-0.5)
        expected = reference.hadamard_transform(x, n**-0.5)
        # float32: log2(n) roundings of a sum bounded by sum|x|; bfloat16: half an ulp (2^-9) on top.
        bound = 1e-6 * np.abs(x.astype(np.float64)).sum(-1, keepdims=True)
        if dtype is BF16:
            bound = bound + np.abs(expected) * 2.0**-8
        assert (np.abs(y.astype(np.float64) - expected) <= bound).all()


def test_equals_scipy(rng):
    linalg = pytest.importorskip("scipy.linalg")
    x = rng.standard_normal((4, 128)).astype(np.float32)
    np.testing.assert_allclose(hadamard_transform(x), x @ linalg.hadamard(128), rtol=3e-4, atol=3e-3)


@given(st.integers(0, 9), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_involution_and_linearity(log2n, rows, seed):
    n = 2**log2n
    x = np.random.default_rng(seed).standard_normal((rows, n)).astype(np.float32)
    scale = n**-0.5
    np.testing.assert_allclose(hadamard_transform(hadamard_transform(x, scale), scale), x, atol=2e-5)
    np.testing.assert_array_equal(hadamard_transform(2 * x), 2 * hadamard_transform(x))


def test_row_invariant(rng):
    x = rng.standard_normal((200, 128)).astype(BF16)
    assert_row_invariant(lambda ids, threads: hadamard_transform(x[ids], 0.1, threads=threads), 200)


def test_leading_axes_out_and_empty(rng):
    x = rng.standard_normal((2, 3, 16)).astype(np.float32)
    out = np.empty_like(x)
    assert hadamard_transform(x, out=out) is out
    np.testing.assert_array_equal(out.reshape(6, 16), hadamard_transform(x.reshape(6, 16)))
    assert hadamard_transform(np.empty((0, 16), np.float32)).shape == (0, 16)


def test_axes_of_one_element_do_not_count(rng):
    x = rng.standard_normal((5, 16)).astype(np.float32)
    want = hadamard_transform(x)
    for view in (x[:, None], x[None], x[None, :, None], x[:, None, None]):
        np.testing.assert_array_equal(hadamard_transform(view).reshape(5, 16), want)
    padded = np.zeros((5, 24), np.float32)
    padded[:, :16] = x
    np.testing.assert_array_equal(hadamard_transform(padded[:, None, :16])[:, 0], want)
    with pytest.raises(ValueError, match="leading axes that do not lie one behind the other"):
        hadamard_transform(np.zeros((3, 4, 24), np.float32)[:, :2, :16])


def test_refusals():
    x = np.zeros((4, 16), np.float32)
    with pytest.raises(TypeError, match=r"x has dtype float16, needs float32 or bfloat16"):
        hadamard_transform(x.astype(np.float16))
    with pytest.raises(TypeError, match=r"x is a list, needs a NumPy array or a DLPack tensor"):
        hadamard_transform([1.0, 2.0])
    with pytest.raises(ValueError, match=r"x has a last axis of 12, needs a power of two"):
        hadamard_transform(x[:, :12].copy())
    with pytest.raises(ValueError, match=r"x has a strided last axis \(stride 2\)"):
        hadamard_transform(x[:, ::2])
    with pytest.raises(ValueError, match=r"out shares memory with an input"):
        hadamard_transform(x, out=x)
    with pytest.raises(ValueError, match=r"out has shape \[3, 16\], needs"):
        hadamard_transform(x, out=np.empty((3, 16), np.float32))
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"out is read-only"):
        hadamard_transform(x, out=read_only)
    with pytest.raises(ValueError, match=r"threads is -1"):
        hadamard_transform(x, threads=-1)
