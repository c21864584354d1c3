import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.quant as reference
from sparsespan.quant import act_quant
from sparsespan.testing import assert_row_invariant, each_isa

BF16 = ml_dtypes.bfloat16
E4M3 = ml_dtypes.float8_e4m3fn
F32 = np.float32


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def formula(x, block, scale_fmt):
    """The issue's formula once more, with ml_dtypes' rounding and the bit method for powers of two."""
    groups = x.astype(F32).reshape(*x.shape[:-1], -1, block)
    t = np.maximum(np.abs(groups).max(-1), F32(1e-4)) * F32(1 / 448)
    if scale_fmt == "ue8m0":
        u = t.view(np.uint32)
        t = np.where(u & 0x7FFFFF, (u & 0x7F800000) + 0x800000, u).astype(np.uint32).view(F32)
    y = np.clip(groups / t[..., None], -448, 448).astype(E4M3)
    return y.reshape(x.shape), t


def random_rows(rng, rows, n, dtype):
    """Every row at a scale of its own, every element too: exponents from far below the floor to far above."""
    x = (
        rng.standard_normal((rows, n))
        * 2.0 ** rng.integers(-30, 30, (rows, 1))
        * 2.0 ** rng.integers(-14, 1, (rows, n))
    )
    return x.astype(dtype)


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("block", [1, 4, 128, 384])
def test_equals_the_formula_bit_for_bit(rng, dtype, scale_fmt, block):
    x = random_rows(rng, 70, 768, dtype)
    for _ in each_isa():
        y, scale = act_quant(x, block, scale_fmt)
        for expected in (formula(x, block, scale_fmt), reference.act_quant(x, block, scale_fmt)):
            assert y.dtype == E4M3 and scale.dtype == F32 and scale.shape == (70, 768 // block)
            np.testing.assert_array_equal(scale, expected[1])
            np.testing.assert_array_equal(bits(y), bits(expected[0]))


@given(
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 130),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, "ue8m0"]),
)
def test_any_float32_bits(rows, groups, block, seed, scale_fmt):
    u = np.random.default_rng(seed).integers(0, 2**32, (rows, groups * block), dtype=np.uint32)
    x = np.where((u & 0x7F800000) == 0x7F800000, 0, u).astype(np.uint32).view(F32)
    y, scale = act_quant(x, block, scale_fmt)
    expected_y, expected_scale = reference.act_quant(x, block, scale_fmt)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(bits(y), bits(expected_y))


def test_every_e4m3_value_and_every_tie_between_two():
    """With a largest value of 448 the ue8m0 scale is exactly 1, so y is the rounding of x itself."""
    codes = np.arange(127, dtype=np.uint8)
    values = codes.view(E4M3).astype(np.float64)
    ties = (values[:-1] + values[1:]) / 2
    below, above = np.nextafter(ties.astype(F32), F32(0)), np.nextafter(ties.astype(F32), F32(1e9))
    for sign in (1, -1):
        for points, expected in (
            (values, codes),
            (ties, (codes[:-1] + 1) // 2 * 2),
            (below, codes[:-1]),
            (above, codes[1:]),
        ):
            x = np.concatenate([sign * points.astype(F32), [F32(448)]])[None].astype(F32)
            y, scale = act_quant(x, x.shape[1], "ue8m0")
            assert scale == 1
            np.testing.assert_array_equal(bits(y)[0, :-1], expected + (128 if sign < 0 else 0))


@pytest.mark.parametrize("k", [-15, -1, 0, 7, 60])
def test_amax_on_and_just_above_a_power_of_two(k):
    on = F32(448 * 2.0**k)
    for amax, exponent in ((on, k), (np.nextafter(on, F32(np.inf)), k + 1), (np.nextafter(on, F32(0)), k)):
        y, scale = act_quant(np.array([[amax, -amax]], F32), 2, "ue8m0")
        assert scale[0, 0] == 2.0**exponent
        assert abs(float(y[0, 0])) == (448 if exponent == k else 224)
        y, scale = act_quant(np.array([[amax, -amax]], F32), 2)
        assert y.astype(F32).tolist() == [[448, -448]]


def test_zero_groups_and_values_below_the_floor():
    x = np.zeros((2, 256), F32)
    x[0, 7] = -0.0
    x[1, 128:] = 1e-12
    y, scale = act_quant(x)
    assert (y.astype(F32) == 0).all() and np.signbit(y.astype(F32))[0, 7]
    np.testing.assert_array_equal(scale, np.full((2, 2), F32(1e-4) * F32(1 / 448)))
    assert (act_quant(x, 128, "ue8m0")[1] == 2.0**-22).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, "ue8m0"]))
def test_round_trip_error(seed, scale_fmt):
    x = random_rows(np.random.default_rng(seed), 4, 256, F32)
    y, scale = act_quant(x, 128, scale_fmt)
    s = np.repeat(scale, 128, -1).astype(np.float64)
    error = np.abs(y.astype(np.float64) * s - x)
    # Half a step: 2^-4 of the value where e4m3 is normal, 2^-10 of the scale below; 2^-22: the float32 division and
    # the clamp of a quotient just above 448.
    assert (error <= np.maximum(np.abs(x) * 2.0**-4, s * 2.0**-10) * (1 + 2.0**-18) + np.abs(x) * 2.0**-22).all()


def test_row_invariant(rng):
    x = random_rows(rng, 60, 256, BF16)
    for scale_fmt in (None, "ue8m0"):
        assert_row_invariant(lambda ids, threads, f=scale_fmt: act_quant(x[ids], 128, f, threads=threads), 60)


def test_leading_axes_out_strides_and_empty(rng):
    x = rng.standard_normal((2, 3, 256)).astype(F32)
    out = np.empty(x.shape, E4M3), np.empty((2, 3, 2), F32)
    y, scale = act_quant(x, out=out)
    assert y is out[0] and scale is out[1]
    np.testing.assert_array_equal(scale.reshape(6, 2), act_quant(x.reshape(6, 256))[1])
    wide = rng.standard_normal((5, 512)).astype(F32)
    np.testing.assert_array_equal(bits(act_quant(wide[:, 128:384])[0]), bits(act_quant(wide[:, 128:384].copy())[0]))
    assert act_quant(rng.standard_normal(128).astype(F32))[1].shape == (1,)
    for shape, groups in (((0, 256), (0, 2)), ((3, 0), (3, 0)), ((0, 2, 128), (0, 2, 1))):
        y, scale = act_quant(np.empty(shape, F32))
        assert y.shape == shape and scale.shape == groups


def test_refusals():
    x = np.zeros((4, 256), F32)
    with pytest.raises(TypeError, match=r"x has dtype float16, needs float32 or bfloat16"):
        act_quant(x.astype(np.float16))
    with pytest.raises(ValueError, match=r"x has a last axis of 129, needs a multiple of block_size 128; pad it"):
        act_quant(np.zeros((4, 129), F32))
    with pytest.raises(ValueError, match=r"block_size is 0, needs at least 1"):
        act_quant(x, 0)
    for bad in ("e8m0", ""):
        with pytest.raises(ValueError, match=rf'scale_fmt is "{bad}", needs None \(float32 scales\) or "ue8m0"'):
            act_quant(x, 128, bad)
    with pytest.raises(ValueError, match=r"x has a strided last axis \(stride 2\)"):
        act_quant(np.zeros((4, 512), F32)[:, ::2])
    with pytest.raises(TypeError, match=r"out needs a tuple of two arrays"):
        act_quant(x, out=np.empty(x.shape, E4M3))
    with pytest.raises(ValueError, match=r"scale has shape \[4, 1\], needs \[T, N / block_size\] = \[4, 2\]"):
        act_quant(x, out=(np.empty(x.shape, E4M3), np.empty((4, 1), F32)))
    with pytest.raises(TypeError, match=r"y has dtype float8_e4m3fnuz, needs float8_e4m3fn"):
        act_quant(x, out=(np.empty(x.shape, ml_dtypes.float8_e4m3fnuz), None))
    shared = np.zeros(x.nbytes, np.uint8)
    with pytest.raises(ValueError, match=r"y shares memory with an input"):
        act_quant(shared.view(F32).reshape(4, 256), out=(shared[: x.size].view(E4M3).reshape(x.shape), None))
    read_only = np.empty(x.shape, E4M3)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match=r"y is read-only"):
        act_quant(x, out=(read_only, None))
    with pytest.raises(ValueError, match=r'validate is "no", needs "full" or "trusted"'):
        act_quant(x, validate="no")
    with pytest.raises(ValueError, match=r"threads is -1"):
        act_quant(x, threads=-1)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(dtype, bad):
    x = np.ones((40, 1536), dtype)
    x[35, 1300] = x[38, 2] = x[35, 1400] = bad
    out = np.ones(x.shape, E4M3), np.ones((40, 12), F32)
    with pytest.raises(ValueError, match=rf"x has {bad} in row 35, column 1300, needs finite values"):
        act_quant(x, out=out)
    assert (out[0].astype(F32) == 1).all() and (out[1] == 1).all()
    y, scale = act_quant(x, out=out, validate="trusted")
    poisoned = np.zeros((40, 12), bool)
    poisoned[[35, 38], [10, 0]] = True
    np.testing.assert_array_equal(np.isnan(y.astype(F32)).reshape(40, 12, 128).all(-1), poisoned)
    np.testing.assert_array_equal(scale == 1, poisoned)
    np.testing.assert_array_equal(bits(y), bits(reference.act_quant(x)[0]))


@pytest.mark.peer
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_equals_torch(rng, scale_fmt):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(random_rows(rng, 64, 512, F32)).to(torch.bfloat16)
    y, scale = act_quant(x, 128, scale_fmt)
    assert isinstance(y, torch.Tensor) and y.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    groups = x.float().view(64, 4, 128)
    t = groups.abs().amax(-1).clamp_min(1e-4) * torch.tensor(1 / 448, dtype=torch.float32)
    if scale_fmt:
        t = torch.exp2(torch.ceil(torch.log2(t)))  # exact here: amax is a bfloat16 number
    # torch's cast does not saturate (above 464 it gives NaN), hence the clamp, as in the official kernel.
    expected = (groups / t[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn).view(64, 512)
    assert torch.equal(scale, t)
    assert torch.equal(y.view(torch.uint8), expected.view(torch.uint8))
