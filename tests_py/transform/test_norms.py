import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.transform as reference
from sparsespan.testing import assert_row_invariant, each_isa
from sparsespan.transform import add_rms_norm, layer_norm, rms_norm

BF16 = ml_dtypes.bfloat16
SIZES = [1, 2, 15, 16, 17, 64, 100, 128, 1536, 7168]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, BF16])


def relative_bound(n, dtype, roundings=1):
    """Sixteen running sums of n / 16 terms, a tree of four, then a handful of single steps; each half an ulp."""
    return (n / 16 + 10) * 2.0**-24 + (roundings * 2.0**-8 if dtype is BF16 else 0)


@DTYPES
@pytest.mark.parametrize("n", SIZES)
def test_rms_norm_equals_reference(rng, n, dtype):
    x = (3 * rng.standard_normal((5, n))).astype(dtype)
    for w in (rng.standard_normal(n).astype(np.float32), rng.standard_normal(n).astype(BF16)):
        for cast, roundings in (("after", 1), ("before", 3)):  # "before" rounds twice, and the twin's first may differ
            expected = reference.rms_norm(x, w, 1e-6, cast)
            for _ in each_isa():
                y = rms_norm(x, w, 1e-6, cast).astype(np.float64)
                assert (np.abs(y - expected) <= relative_bound(n, dtype, roundings) * np.abs(expected)).all()


@DTYPES
@pytest.mark.parametrize("n", SIZES)
def test_layer_norm_equals_reference(rng, n, dtype):
    x = (rng.standard_normal((5, n)) + 0.5).astype(dtype)
    w, b = rng.standard_normal((2, n)).astype(np.float32)
    expected = reference.layer_norm(x, w, b)
    wide = x.astype(np.float64)
    # The mean's own error, in units of the standard deviation, is scaled by w like the value itself.
    spread = np.abs(wide).max(-1, keepdims=True) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    bound = relative_bound(n, np.float32) * ((3 + 2 * spread) * np.abs(w) + np.abs(b))
    bound = bound + (np.abs(expected) * 2.0**-8 if dtype is BF16 else 0)
    for _ in each_isa():
        assert (np.abs(layer_norm(x, w, b).astype(np.float64) - expected) <= bound).all()


def merged(terms):
    """The documented order of a row sum, in float32."""
    partials = np.zeros(16, np.float32)
    for i, term in enumerate(terms):
        partials[i % 16] += term
    for stride in (8, 4, 2, 1):
        partials = partials[:stride] + partials[stride : 2 * stride]
    return partials[0]


@pytest.mark.parametrize("n", [1, 7, 16, 45, 128, 500])
def test_the_order_of_the_sums_is_the_documented_one(rng, n):
    x = rng.standard_normal((3, n)).astype(np.float32)
    one, zero, f32 = np.ones(n, np.float32), np.zeros(n, np.float32), np.float32
    for _ in each_isa():
        for row, rms, layer in zip(x, rms_norm(x, one, 1e-6), layer_norm(x, one, zero)):
            inverse = f32(1) / np.sqrt(merged(row * row) / f32(n) + f32(1e-6))
            np.testing.assert_array_equal(rms, row * inverse)
            centred = row - merged(row) / f32(n)
            inverse = f32(1) / np.sqrt(merged(centred * centred) / f32(n) + f32(1e-6))
            np.testing.assert_array_equal(layer, centred * inverse)


def test_layer_norm_keeps_its_digits_beside_a_large_mean(rng):
    x = (4096 + rng.integers(-8, 8, (4, 128))).astype(np.float32)
    one, zero = np.ones(128, np.float32), np.zeros(128, np.float32)
    # Here mean and centred values are exact; E[x^2] - mean^2 in float32 would be off by 10 %.
    np.testing.assert_allclose(layer_norm(x, one, zero), reference.layer_norm(x, one, zero), rtol=0, atol=2e-6)


def test_cast_orders_differ_in_bfloat16_only(rng):
    x, w = rng.standard_normal((9, 256)), rng.standard_normal(256).astype(np.float32)
    single, narrow = x.astype(np.float32), x.astype(BF16)
    np.testing.assert_array_equal(rms_norm(single, w, 1e-6, "after"), rms_norm(single, w, 1e-6, "before"))
    after, before = (rms_norm(narrow, w, 1e-6, cast).astype(np.float32) for cast in ("after", "before"))
    assert 0.05 < (after != before).mean() < 0.9
    one_step = rms_norm(narrow, np.ones(256, np.float32), 1e-6)
    np.testing.assert_array_equal(before, (one_step.astype(np.float32) * w).astype(BF16).astype(np.float32))


@DTYPES
def test_add_rms_norm(rng, dtype):
    x, residual = rng.standard_normal((2, 6, 256)).astype(dtype)
    w = rng.standard_normal(256).astype(np.float32)
    y, total = add_rms_norm(x, residual, w, 1e-6)
    wide = x.astype(np.float32) + residual.astype(np.float32)
    np.testing.assert_array_equal(total, wide.astype(dtype))
    # The norm sees the sum before its rounding.
    np.testing.assert_array_equal(y, rms_norm(wide, w, 1e-6).astype(dtype))
    expected, expected_total = reference.add_rms_norm(x, residual, w, 1e-6)
    bound = relative_bound(256, dtype)
    # float32: the sum's own rounding is half an ulp of it, and cancellation makes no more of it: 1e-6 of a deviation.
    assert (np.abs(y.astype(np.float64) - expected) <= bound * np.abs(expected) + 1e-6).all()
    assert (np.abs(total.astype(np.float64) - expected_total) <= bound * np.abs(expected_total)).all()
    before, _ = add_rms_norm(x, residual, w, 1e-6, "before")
    expected, _ = reference.add_rms_norm(x, residual, w, 1e-6, "before")
    bound = relative_bound(256, dtype, 3) * np.abs(expected) + 1e-6
    assert (np.abs(before.astype(np.float64) - expected) <= bound).all()
    results = add_rms_norm(x, residual, w, 1e-6, out=x, residual_out=residual)
    assert results[0] is x and results[1] is residual
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(residual, total)


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(-20, 20))
def test_scale_and_shift_fall_out(seed, n, power):
    x = np.random.default_rng(seed).standard_normal((3, n)).astype(np.float32)
    one, zero = np.ones(n, np.float32), np.zeros(n, np.float32)
    # A power of two scales every step exactly.
    scaled = x * np.float32(2.0**power)
    np.testing.assert_array_equal(rms_norm(scaled, one, 0.0), rms_norm(x, one, 0.0))
    np.testing.assert_array_equal(layer_norm(scaled, one, zero, 2.0 ** (2 * power)), layer_norm(x, one, zero, 1.0))


def test_row_invariant(rng):
    x, residual = rng.standard_normal((2, 90, 200)).astype(BF16)
    w, b = rng.standard_normal((2, 200)).astype(np.float32)
    assert_row_invariant(lambda ids, threads: rms_norm(x[ids], w, 1e-6, threads=threads), 90)
    assert_row_invariant(lambda ids, threads: rms_norm(x[ids], w, 1e-6, "before", threads=threads), 90)
    assert_row_invariant(lambda ids, threads: layer_norm(x[ids], w, b, threads=threads), 90)
    assert_row_invariant(lambda ids, threads: add_rms_norm(x[ids], residual[ids], w, 1e-6, threads=threads), 90)


def test_nan_stays_in_its_row_and_zero_rows_are_zero():
    x, w, b = np.ones((3, 20), np.float32), np.ones(20, np.float32), np.full(20, 0.5, np.float32)
    x[0, 3], x[1] = np.nan, 0
    for y, of_zero in ((rms_norm(x, w, 1e-6), 0.0), (layer_norm(x, w, b), 0.5)):
        assert np.isnan(y[0]).all() and not np.isnan(y[1:]).any()
        assert (y[1] == of_zero).all()


@DTYPES
def test_leading_axes_in_place_slices_and_empty(rng, dtype):
    whole = rng.standard_normal((2, 3, 48)).astype(dtype)
    w, b = rng.standard_normal((2, 32)).astype(np.float32)
    x = whole[..., :32]
    for op in (lambda v, **k: rms_norm(v, w, 1e-5, **k), lambda v, **k: layer_norm(v, w, b, **k)):
        expected = op(np.ascontiguousarray(x).reshape(6, 32)).reshape(2, 3, 32)
        np.testing.assert_array_equal(op(x), expected)
        again = whole.copy()[..., :32]
        assert op(again, out=again) is again
        np.testing.assert_array_equal(again, expected)
        for shape in [(0, 32), (2, 0, 32), (0, 3, 32)]:
            assert op(np.empty(shape, dtype)).shape == shape
    assert rms_norm(np.empty((2, 0), dtype), w[:0], 1e-5).shape == (2, 0)
    assert layer_norm(np.empty((2, 0), dtype), w[:0], b[:0]).shape == (2, 0)


def test_refusals():
    x, w, b = np.zeros((4, 16), np.float32), np.ones(16, np.float32), np.zeros(16, np.float32)
    cases = [
        (TypeError, "x has dtype float16, needs float32 or bfloat16", (x.astype(np.float16), w, 1e-6), {}),
        (TypeError, "w has dtype float64, needs float32 or bfloat16", (x, w.astype(np.float64), 1e-6), {}),
        (ValueError, r"w has shape \[15\], needs \[n\], n the last axis of x = \[16\]", (x, w[:15], 1e-6), {}),
        (ValueError, "w has a strided last axis", (x, np.ones(32, np.float32)[::2], 1e-6), {}),
        (ValueError, "x has a strided last axis", (np.zeros((4, 32), np.float32)[:, ::2], w, 1e-6), {}),
        (ValueError, "x has no axes", (np.float32(1)[...], w, 1e-6), {}),
        (ValueError, "eps is -1, needs a finite number >= 0", (x, w, -1.0), {}),
        (ValueError, "eps is nan, needs", (x, w, float("nan")), {}),
        (ValueError, r"out has shape \[3, 16\], needs", (x, w, 1e-6), {"out": x[:3].copy()}),
        (ValueError, "out shares memory with an input", (x, w, 1e-6), {"out": x[::-1]}),
        (ValueError, "threads is -1", (x, w, 1e-6), {"threads": -1}),
    ]
    for kind, match, args, kwargs in cases:
        with pytest.raises(kind, match="rms_norm: " + match if "threads" not in match else match):
            rms_norm(*args, **kwargs)
        with pytest.raises(kind, match="layer_norm: " + match if "threads" not in match else match):
            layer_norm(args[0], args[1], b, args[2], **kwargs)
    with pytest.raises(ValueError, match=r'cast is "never", needs "after" or "before"'):
        rms_norm(x, w, 1e-6, "never")
    with pytest.raises(ValueError, match=r"b has shape \[4, 16\], needs \[n\]"):
        layer_norm(x, w, x)
    buffer = np.zeros((4, 16), np.float32)
    for weights in ((buffer[0], b), (w, buffer[3])):
        with pytest.raises(ValueError, match="out shares memory"):
            layer_norm(x, *weights, out=buffer)


def test_refusals_of_add_rms_norm():
    x, residual, w = np.zeros((4, 16), np.float32), np.zeros((4, 16), np.float32), np.ones(16, np.float32)
    with pytest.raises(TypeError, match="residual has dtype bfloat16, needs float32"):
        add_rms_norm(x, residual.astype(BF16), w, 1e-6)
    with pytest.raises(TypeError, match="residual is None, needs an array; without one call rms_norm"):
        add_rms_norm(x, None, w, 1e-6)
    with pytest.raises(ValueError, match=r"residual has shape \[3, 16\], needs \[T, n\] = \[4, 16\]"):
        add_rms_norm(x, residual[:3], w, 1e-6)
    with pytest.raises(ValueError, match="add_rms_norm: out shares memory with an input"):
        add_rms_norm(x, residual, w, 1e-6, out=residual)
    both = np.empty_like(x)
    with pytest.raises(ValueError, match="residual_out shares memory"):
        add_rms_norm(x, residual, w, 1e-6, out=both, residual_out=both)


def nearly_equal(mine, theirs):
    """Another order of summing moves a value across a rounding boundary now and then, by one bfloat16 ulp at most."""
    mine, theirs = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    assert (np.abs(mine - theirs) <= 2.0**-7 * np.abs(theirs)).all()
    assert (mine == theirs).mean() > 0.99


@pytest.mark.peer
def test_equals_torch(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((64, 1536)).astype(np.float32)).bfloat16()
    w, b = (torch.from_numpy(v) for v in rng.standard_normal((2, 1536)).astype(np.float32))
    theirs = torch.nn.functional.rms_norm(x.float(), (1536,), w, 1e-6)
    np.testing.assert_allclose(rms_norm(x.float(), w, 1e-6).numpy(), theirs.numpy(), rtol=1e-6)
    nearly_equal(rms_norm(x, w, 1e-6).float().numpy(), theirs.bfloat16().float().numpy())
    theirs = torch.nn.functional.layer_norm(x.float(), (1536,), w, b, 1e-6)
    np.testing.assert_allclose(layer_norm(x.float(), w, b).numpy(), theirs.numpy(), rtol=1e-6, atol=2e-6)
    nearly_equal(layer_norm(x, w, b).float().numpy(), theirs.bfloat16().float().numpy())


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "kind"), [("deepseek_v32", "DeepseekV32RMSNorm"), ("glm_moe_dsa", "GlmMoeDsaRMSNorm")]
)
def test_equals_transformers(rng, name, kind):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    norm = getattr(modeling, kind)(1536, eps=1e-5).bfloat16()
    x = torch.from_numpy(rng.standard_normal((64, 1536)).astype(np.float32)).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(rng.standard_normal(1536)))
        theirs = norm(x)
    mine = rms_norm(x, norm.weight.detach(), 1e-5, "before")
    nearly_equal(mine.float().numpy(), theirs.float().numpy())
    # The other order is another op: it disagrees far more often.
    other = rms_norm(x, norm.weight.detach(), 1e-5, "after")
    assert (other != theirs).float().mean() > 0.05
