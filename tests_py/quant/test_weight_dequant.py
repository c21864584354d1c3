import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.quant as reference
from sparsespan.quant import weight_dequant
from sparsespan.testing import assert_row_invariant, each_isa

BF16 = ml_dtypes.bfloat16
E4M3 = ml_dtypes.float8_e4m3fn
E8M0 = ml_dtypes.float8_e8m0fnu
F32 = np.float32


def random_weight(rng, m, n, block):
    w = rng.integers(0, 256, (m, n), dtype=np.uint8).view(E4M3)  # every code, NaN too
    scale = (rng.random((-(-m // block), -(-n // block))) * 2.0 ** rng.integers(-20, 20)).astype(F32)
    return w, scale


def same(a, b):
    """Equal bits, but for the payload of NaN: two casts to bfloat16 may keep different ones."""
    a, b = np.asarray(a), np.asarray(b)
    nan = np.isnan(a.astype(F32))
    np.testing.assert_array_equal(nan, np.isnan(b.astype(F32)))
    assert a.dtype == b.dtype
    bits = np.uint16 if a.dtype == BF16 else np.uint32
    np.testing.assert_array_equal(a.view(bits)[~nan], b.view(bits)[~nan])


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("shape", [(256, 384), (1, 1), (130, 700), (127, 129)])
@pytest.mark.parametrize("block", [128, 32, 1000])
def test_equals_reference(rng, shape, block, dtype):
    w, scale = random_weight(rng, *shape, block)
    for _ in each_isa():
        same(weight_dequant(w, scale, block, dtype), reference.weight_dequant(w, scale, block, dtype))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 50), st.integers(0, 2**32 - 1))
def test_any_shape(m, n, block, seed):
    w, scale = random_weight(np.random.default_rng(seed), m, n, block)
    same(weight_dequant(w, scale, block), reference.weight_dequant(w, scale, block))


def test_e8m0_scales_down_to_byte_zero():
    w = np.ones((2, 4), E4M3)
    bytes_ = np.array([[0, 1, 127, 254]], np.uint8)
    got = weight_dequant(w, bytes_.view(E8M0).repeat(2, 0), 1, F32)
    np.testing.assert_array_equal(got, [[2.0**-127, 2.0**-126, 1.0, 2.0**127]] * 2)


def test_all_codes_decode_exactly():
    codes = np.arange(256, dtype=np.uint8)[None].view(E4M3)
    same(weight_dequant(codes, np.ones((1, 2), F32), dtype=F32), codes.astype(F32))
    same(weight_dequant(codes, np.ones((1, 2), F32)), codes.astype(BF16))


def test_row_invariant(rng):
    w, _ = random_weight(rng, 50, 300, 128)
    scale = rng.random((50, 3)).astype(F32)
    # One row per block, so that a row can be taken alone with its own scales.
    assert_row_invariant(
        lambda ids, threads: np.concatenate(
            [weight_dequant(w[i : i + 1], scale[i : i + 1], threads=threads) for i in ids] or [np.empty((0, 300), BF16)]
        ),
        50,
    )
    assert_row_invariant(lambda _, threads: weight_dequant(w, scale[:1], threads=threads), 50, subsets=False)


def test_out_and_strided_scales(rng):
    w, scale = random_weight(rng, 256, 256, 128)
    out = np.empty((256, 256), F32)
    assert weight_dequant(w, scale.T, out=out) is out
    same(out, reference.weight_dequant(w, scale.T, dtype=F32))


def test_refusals():
    w, scale = np.ones((130, 260), E4M3), np.ones((2, 3), F32)
    with pytest.raises(TypeError, match=r"w has dtype float8_e4m3fnuz, needs float8_e4m3fn"):
        weight_dequant(w.view(ml_dtypes.float8_e4m3fnuz), scale)
    with pytest.raises(TypeError, match=r"scale_inv has dtype uint8, needs float32 or float8_e8m0fnu"):
        weight_dequant(w, np.ones((2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"scale_inv has shape \[1, 3\], needs .* = \[2, 3\]"):
        weight_dequant(w, scale[:1])
    with pytest.raises(ValueError, match=r"block is 0, needs at least 1"):
        weight_dequant(w, scale, 0)
    with pytest.raises(TypeError, match=r"dtype is float16, needs bfloat16 or float32"):
        weight_dequant(w, scale, dtype=np.float16)
    with pytest.raises(ValueError, match=r"w has a strided last axis"):
        weight_dequant(np.ones((130, 520), E4M3)[:, ::2], scale)
    with pytest.raises(ValueError, match=r"w has shape \[2, 130, 260\], needs \[M, N\]"):
        weight_dequant(np.ones((2, 130, 260), E4M3), scale)
    with pytest.raises(ValueError, match=r"out has shape \[1, 260\]"):
        weight_dequant(w, scale, out=np.empty((1, 260), F32))
    with pytest.raises(TypeError, match=r"out has dtype float16"):
        weight_dequant(w, scale, out=np.empty(w.shape, np.float16))


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
def test_bad_scales(bad):
    w, scale = np.ones((130, 260), E4M3), np.ones((2, 3), F32)
    scale[1, 2] = bad
    out = np.zeros(w.shape, BF16)
    with pytest.raises(ValueError, match=rf"scale_inv is {bad:g} in row 1, column 2, needs finite scales >= 0"):
        weight_dequant(w, scale, out=out)
    assert (out == 0).all()
    weight_dequant(w, scale, out=out, validate="trusted")
    assert (out[:128] == 1).all()
    with pytest.raises(ValueError, match=r"scale_inv is nan in row 0, column 1"):
        weight_dequant(w[:1], np.array([[0, 255, 0]], np.uint8).view(E8M0))


@pytest.mark.peer
def test_equals_torch(rng):
    torch = pytest.importorskip("torch")
    w, scale = random_weight(rng, 256, 128, 128)
    w, scale = torch.from_numpy(w.view(np.uint8)).view(torch.float8_e4m3fn), torch.from_numpy(scale)
    expected = (w.float() * scale.repeat_interleave(128, 0)).to(torch.bfloat16)
    got = weight_dequant(w, scale)
    assert got.dtype == torch.bfloat16 and torch.equal(torch.isnan(got), torch.isnan(expected))
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    e8m0 = scale.clamp_min(1e-30).to(torch.float8_e8m0fnu)
    expected = (w.float() * e8m0.float().repeat_interleave(128, 0)).to(torch.bfloat16)
    assert torch.equal(weight_dequant(w, e8m0).nan_to_num(), expected.nan_to_num())
