import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.transform as reference
from sparsespan.transform import yarn_cos_sin, yarn_frequencies, yarn_softmax_scale

V32 = dict(factor=40.0, original_max_position=4096, beta_fast=32.0, beta_slow=1.0)
SETTINGS = [
    dict(dim=64, base=10000.0, **V32),
    dict(dim=64, base=1e6),
    dict(dim=64, base=8e6),
    dict(dim=128, base=10000.0, factor=4.0, original_max_position=32768),
    dict(dim=2, base=500.0, factor=2.0, original_max_position=8),
    dict(dim=8, base=10000.0, factor=3.0, original_max_position=1),
]


def float32_steps(dim, base, factor=1.0, original_max_position=4096, beta_fast=32.0, beta_slow=1.0):
    """The official expression, each step in float32: an independent writing of what the op promises, bit for bit."""
    f32 = np.float32
    exponent = np.arange(0, dim, 2, dtype=f32) / f32(dim)
    plain = f32(1) / np.power(float(base), exponent.astype(np.float64)).astype(f32)
    if factor == 1:
        return plain

    def correction(turns):
        return dim * math.log(original_max_position / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(correction(beta_fast)), 0), min(math.ceil(correction(beta_slow)), dim - 1)
    high = high + 0.001 if low == high else high
    smooth = f32(1) - np.clip((np.arange(dim // 2, dtype=f32) - f32(low)) / f32(high - low), f32(0), f32(1))
    return plain / f32(factor) * (f32(1) - smooth) + plain * smooth


@pytest.mark.parametrize("how", SETTINGS)
def test_frequencies(how):
    single = yarn_frequencies(**how)
    assert single.dtype == np.float32 and single.shape == (how["dim"] // 2,)
    np.testing.assert_array_equal(single, float32_steps(**how))
    expected = reference.yarn_frequencies(**how)
    # At most seven roundings of half an ulp, 2^-24 relative each, none of which cancels.
    np.testing.assert_allclose(single, expected, rtol=7 * 2.0**-24)
    double = yarn_frequencies(arithmetic="float64", **how)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, rtol=1e-14)


def test_published_values_of_v32():
    f = yarn_frequencies(64, **V32)
    plain = yarn_frequencies(64)
    np.testing.assert_array_equal(f[:11], plain[:11])
    np.testing.assert_array_equal(f[23:], plain[23:] / np.float32(40))
    assert (f[11:23] < plain[11:23]).all() and (f[11:23] > plain[11:23] / 40).all()
    for i, value in {16: 0.0055, 22: 1.7782794e-4, 23: 3.3338036e-5, 31: 3.3338036e-6}.items():
        assert f[i] == pytest.approx(value, rel=3e-7)
    assert yarn_softmax_scale(192, 40) == pytest.approx(0.1352337789, abs=5e-11)
    assert yarn_softmax_scale(192, 40) == reference.yarn_softmax_scale(192, 40)
    assert yarn_softmax_scale(256) == 0.0625
    assert yarn_softmax_scale(192, 40, 0.0) == pytest.approx(192**-0.5, rel=1e-15)


@pytest.mark.parametrize("how", SETTINGS)
def test_table(how):
    table = yarn_cos_sin(700, **how)
    assert table.dtype == np.float32 and table.shape == (700, how["dim"])
    angles = np.arange(700, dtype=np.float32)[:, None] * yarn_frequencies(**how)
    exact = angles.astype(np.float64)
    expected = np.concatenate([np.cos(exact), np.sin(exact)], 1)
    # float64 libraries differ by less than 2^-52, so a correct rounding to float32 is within half an ulp and a bit.
    np.testing.assert_allclose(table, expected, rtol=2.0**-24 * 1.001, atol=2.0**-150)
    np.testing.assert_allclose(
        yarn_cos_sin(700, arithmetic="float64", **how), reference.yarn_cos_sin(700, **how), rtol=2.0**-24, atol=1e-12
    )


def test_float32_angles_are_those_of_the_official_code_far_out():
    """At long positions the two arithmetics part: the default is the float32 one."""
    single, double = yarn_cos_sin(131072, **V32), yarn_cos_sin(131072, arithmetic="float64", **V32)
    worst = np.abs(single - double).max()
    assert 1e-3 < worst < 131072 * 2.0**-24 + 2.0**-8  # frequency off by half an ulp of [0.5, 1), angle rounded


def test_amplitude():
    plain = yarn_cos_sin(9, **V32)
    np.testing.assert_allclose(yarn_cos_sin(9, mscale_all_dim=0.0, **V32), plain * (0.1 * math.log(40) + 1), rtol=2e-7)
    np.testing.assert_array_equal(yarn_cos_sin(9, mscale=0.7, mscale_all_dim=0.7, **V32), plain)
    np.testing.assert_array_equal(yarn_cos_sin(9, mscale=3.0), yarn_cos_sin(9))


@given(st.integers(0, 300), st.integers(1, 40), st.floats(1.0, 64.0), st.integers(1, 3))
def test_rows_are_turns_and_do_not_depend_on_the_table(rows, half, factor, threads):
    table = yarn_cos_sin(rows, 2 * half, factor=factor, threads=threads)
    np.testing.assert_allclose(table[:, :half] ** 2 + table[:, half:] ** 2, 1, rtol=3e-7)
    np.testing.assert_array_equal(table, yarn_cos_sin(rows + 70, 2 * half, factor=factor)[:rows])


def test_out_and_empty():
    out = np.empty((5, 128), np.float32)[:, :64]
    assert yarn_cos_sin(5, out=out) is out
    np.testing.assert_array_equal(out, yarn_cos_sin(5))
    assert yarn_cos_sin(0).shape == (0, 64)
    frequencies = np.empty(32, np.float32)
    assert yarn_frequencies(64, out=frequencies) is frequencies


@pytest.mark.parametrize(
    ("match", "how"),
    [
        ("max_positions is -1, needs >= 0", dict(max_positions=-1)),
        ("dim is 63, needs an even number >= 2", dict(dim=63)),
        ("dim is 0, needs an even number >= 2", dict(dim=0)),
        (r"max_positions \* dim overflows 64 bits", dict(max_positions=2**60)),
        (r"max_positions \* dim \* 4 bytes overflows 64 bits", dict(max_positions=2**57 - 1, dim=32)),
        ("base is 1, needs a finite number > 1", dict(base=1.0)),
        ("base is nan, needs", dict(base=math.nan)),
        ("factor is 0.5, needs a finite number >= 1", dict(factor=0.5)),
        ("factor is inf, needs", dict(factor=math.inf)),
        ("original_max_position is 0, needs >= 1", dict(original_max_position=0)),
        ("beta_slow is 0, needs a number > 0", dict(beta_slow=0.0)),
        ("beta_fast is 0.5, needs a finite number >= 1", dict(beta_fast=0.5)),
        ("mscale is -1, needs a finite number >= 0", dict(mscale=-1.0)),
        ("mscale_all_dim is nan, needs", dict(mscale_all_dim=math.nan)),
        ('arithmetic is "bf16", needs "float32" or "float64"', dict(arithmetic="bf16")),
        (r"out has shape \[3, 64\], needs \[max_positions, dim\]", dict(out=np.empty((3, 64), np.float32))),
    ],
)
def test_refusals(match, how):
    with pytest.raises(ValueError, match=match):
        yarn_cos_sin(**{"max_positions": 4, **how})


def test_refusals_of_the_others():
    with pytest.raises(TypeError, match="out has dtype bfloat16, needs float32"):
        yarn_cos_sin(4, out=np.empty((4, 64), ml_dtypes.bfloat16))
    with pytest.raises(TypeError, match="out has dtype float32, needs float64"):
        yarn_frequencies(64, arithmetic="float64", out=np.empty(32, np.float32))
    with pytest.raises(ValueError, match="dim is 7, needs an even number"):
        yarn_frequencies(7)
    with pytest.raises(ValueError, match="head_dim is 0, needs >= 1"):
        yarn_softmax_scale(0)
    with pytest.raises(ValueError, match="factor is nan, needs"):
        yarn_softmax_scale(192, math.nan)


@pytest.mark.peer
@pytest.mark.parametrize("base", [1e4, 1e6, 8e6])
def test_bits_of_torch(base):
    """The official expression run by torch itself: the claim about its float32 power."""
    torch = pytest.importorskip("torch")
    plain = 1.0 / (base ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64))
    np.testing.assert_array_equal(yarn_frequencies(64, base=base), plain.numpy())
    turns = torch.polar(torch.ones(5000, 32), torch.outer(torch.arange(5000), plain))
    theirs = torch.cat([turns.real, turns.imag], -1).numpy()
    # Same angles; torch's float32 cos and sin are within an ulp of ours.
    np.testing.assert_allclose(yarn_cos_sin(5000, base=base), theirs, rtol=0, atol=2.0**-23)


@pytest.mark.peer
def test_yarn_of_transformers():
    pytest.importorskip("torch")
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    configuration = pytest.importorskip("transformers.models.deepseek_v32.configuration_deepseek_v32")
    rope = dict(
        rope_type="yarn",
        rope_theta=10000.0,
        factor=40.0,
        original_max_position_embeddings=4096,
        beta_fast=32,
        beta_slow=1,
        mscale=1.0,
        mscale_all_dim=1.0,
    )
    config = configuration.DeepseekV32Config(rope_parameters=rope)
    theirs, attention_factor = utils.ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    assert attention_factor == 1.0
    # 1 / (40 p) instead of 1 / p / 40: two more places to round.
    np.testing.assert_allclose(yarn_frequencies(64, **V32), theirs.numpy(), rtol=3 * 2.0**-24)
