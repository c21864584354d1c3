import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.transform as reference
from sparsespan.testing import assert_row_invariant, each_isa
from sparsespan.transform import apply_rope, yarn_cos_sin

BF16 = ml_dtypes.bfloat16
BOTH = pytest.mark.parametrize("interleaved", [True, False])


def turned_by(x, positions, table, interleaved):
    """Reference and the bound on a right answer's distance from it."""
    expected = reference.apply_rope(x, positions, table, interleaved)
    # float32: two products and their sum, each within half an ulp of at most |a| + |b|; bfloat16: half an ulp on top.
    # |a| + |b| <= 2 * (the row's largest element).
    bound = 2.0**-23 * 2 * np.abs(x.astype(np.float64)).max(-1, keepdims=True)
    return expected, bound + (np.abs(expected) * 2.0**-8 if x.dtype == BF16 else 0)


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("shape", [(5, 64), (3, 4, 64), (2, 3, 2, 8), (4, 2, 6), (3, 2)])
def test_equals_reference(rng, shape, dtype, interleaved):
    x = rng.standard_normal(shape).astype(dtype)
    table = yarn_cos_sin(40, shape[-1], factor=4.0, original_max_position=16)
    for integer in (np.int32, np.int64):
        positions = rng.integers(0, 40, shape[0]).astype(integer)
        expected, bound = turned_by(x, positions, table, interleaved)
        for _ in each_isa():
            y = apply_rope(x, positions, table, interleaved)
            assert y.dtype == x.dtype and y.shape == x.shape
            assert (np.abs(y.astype(np.float64) - expected) <= bound).all()


def test_the_two_pairings_are_permutations_of_each_other(rng):
    x = rng.standard_normal((6, 3, 64)).astype(BF16)
    positions, table = np.arange(6), yarn_cos_sin(6)
    order = np.arange(64).reshape(2, 32).T.ravel()  # half-split places, in interleaved order
    mixed = apply_rope(np.ascontiguousarray(x[..., order]), positions, table, True)
    np.testing.assert_array_equal(mixed, apply_rope(x, positions, table, False)[..., order])
    assert (apply_rope(x, positions, table, True) != apply_rope(x, positions, table, False)).any()


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_scores_depend_on_the_distance_only(seed, interleaved):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 64)).astype(np.float32)
    table = yarn_cos_sin(1000, arithmetic="float64")
    m, n, shift = rng.integers(0, 500, 3)

    def score(a, b):
        turned = [apply_rope(v, np.array([p]), table, interleaved)[0] for v, p in ((q, a), (k, b))]
        return float(np.dot(*(t.astype(np.float64) for t in turned)))

    # Each factor is within 2^-22 of its exact turn (see turned_by); 64 products of size |q_i| |k_i|.
    assert abs(score(m, n) - score(m + shift, n + shift)) <= 64 * 2.0**-20 * np.abs(q).max() * np.abs(k).max()


@BOTH
def test_row_invariant(rng, interleaved):
    x = rng.standard_normal((300, 3, 64)).astype(BF16)
    positions, table = rng.integers(0, 512, 300), yarn_cos_sin(512, factor=40)
    assert_row_invariant(
        lambda ids, threads: apply_rope(x[ids], positions[ids], table, interleaved, threads=threads), 300
    )


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_in_place_on_a_slice(rng, dtype, interleaved):
    q = rng.standard_normal((5, 3, 96)).astype(dtype)
    before = q.copy()
    positions, table = np.arange(5), yarn_cos_sin(5, 32)
    expected = apply_rope(np.ascontiguousarray(q[..., 64:]), positions, table, interleaved)
    part = q[..., 64:]
    assert apply_rope(part, positions, table, interleaved, out=part) is part
    np.testing.assert_array_equal(q[..., 64:], expected)
    np.testing.assert_array_equal(q[..., :64], before[..., :64])
    one_head = before[:, :1, 64:]  # an axis of extent one keeps the stride of the whole
    np.testing.assert_array_equal(apply_rope(one_head, positions, table, interleaved), expected[:, :1])
    transposed = np.ascontiguousarray(before[..., 64:].swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_array_equal(apply_rope(transposed, positions, table, interleaved), expected)


@BOTH
def test_nan_stays_in_its_pair(interleaved):
    x = np.ones((2, 1, 8), np.float32)
    x[0, 0, 2] = np.nan
    y = apply_rope(x, np.array([1, 1]), yarn_cos_sin(2, 8), interleaved)
    pair = [2, 3] if interleaved else [2, 6]
    assert np.isnan(y[0, 0, pair]).all() and np.isnan(y).sum() == 2


def test_position_zero_and_empty(rng):
    x = rng.standard_normal((3, 2, 64)).astype(BF16)
    table = yarn_cos_sin(1, factor=40)
    np.testing.assert_array_equal(apply_rope(x, np.zeros(3, np.int32), table, True), x)
    none = np.zeros(0, np.int64)
    for shape in [(0, 2, 64), (0, 64), (0, 2, 0, 64)]:
        assert apply_rope(np.empty(shape, np.float32), none, table, False).shape == shape
    assert apply_rope(np.empty((2, 0, 3, 64), np.float32), np.zeros(2, np.int64), table, False).size == 0
    assert apply_rope(np.empty((2, 0), BF16), np.zeros(2, np.int64), np.empty((1, 0), np.float32), True).size == 0


def test_refusals():
    x, positions, table = np.zeros((4, 2, 8), np.float32), np.arange(4), yarn_cos_sin(4, 8)

    def refused(kind, match, *args, **kwargs):
        with pytest.raises(kind, match=match):
            apply_rope(*args, **kwargs)

    refused(TypeError, "x has dtype float16, needs float32 or bfloat16", x.astype(np.float16), positions, table, True)
    refused(TypeError, "cos_sin has dtype bfloat16, needs float32", x, positions, table.astype(BF16), True)
    refused(
        TypeError, "positions has dtype float32, needs int32 or int64", x, positions.astype(np.float32), table, True
    )
    refused(TypeError, "interleaved is 'half', needs True or False", x, positions, table, "half")
    refused(
        ValueError,
        r"x has a last axis of 7, needs an even one",
        np.zeros((4, 2, 7), np.float32),
        positions,
        table,
        True,
    )
    refused(ValueError, r"x has shape \[8\], needs \[T, ..., d\]", x[0, 0], positions, table, True)
    refused(
        ValueError, r"x has a strided last axis", np.zeros((4, 2, 16), np.float32)[..., ::2], positions, table, True
    )
    crossed = np.zeros((4, 2, 3, 8), np.float32).swapaxes(1, 2)
    refused(ValueError, "x has leading axes that do not lie one behind the other", crossed, positions, table, True)
    refused(
        ValueError,
        r"cos_sin has shape \[4, 6\], needs \[max_positions, d\], d the last axis of x",
        x,
        positions,
        yarn_cos_sin(4, 6),
        True,
    )
    refused(ValueError, r"positions has shape \[3\], needs \[T\]", x, positions[:3], table, True)
    refused(ValueError, r'validate is "no", needs "full" or "trusted"', x, positions, table, True, validate="no")
    refused(ValueError, r"threads is -1", x, positions, table, True, threads=-1)
    out = np.full_like(x, 7)
    for wrong in (-1, 4, 2**40):
        refused(
            IndexError,
            rf"positions has {wrong} in row 3, needs 0 <= position < 4",
            x,
            np.array([0, 1, 2, wrong]),
            table,
            True,
            out=out,
        )
    assert (out == 7).all()
    refused(ValueError, r"out has shape \[4, 1, 8\], needs \[4, 2, n\]", x, positions, table, True, out=out[:, :1])
    refused(TypeError, r"out has dtype bfloat16, needs float32", x, positions, table, True, out=out.astype(BF16))
    read_only = out.copy()
    read_only.flags.writeable = False
    refused(ValueError, "out is read-only", x, positions, table, True, out=read_only)
    wide = np.zeros((5, 2, 8), np.float32)
    refused(ValueError, "out shares memory with an input", wide[:4], positions, table, True, out=wide[1:])
    refused(ValueError, "out shares memory with an input", wide[:4], positions, table, True, out=wide[3::-1])
    refused(
        ValueError, "out shares memory with an input", np.zeros((4, 8), np.float32), positions, table, True, out=table
    )


@pytest.mark.peer
def test_equals_the_official_complex_product_bit_for_bit(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((50, 4, 64)).astype(np.float32)).bfloat16()
    positions = torch.from_numpy(rng.integers(0, 4096, 50))
    table = yarn_cos_sin(4096, factor=40)
    turn = torch.complex(*torch.from_numpy(table)[positions].chunk(2, -1))[:, None]
    pairs = torch.view_as_complex(x.float().view(50, 4, 32, 2))
    expected = torch.view_as_real(pairs * turn).flatten(-2).bfloat16()
    y = apply_rope(x, positions, table, True)
    assert isinstance(y, torch.Tensor) and torch.equal(y, expected)
    split = torch.view_as_complex(x.float().view(50, 4, 2, 32).transpose(-1, -2).contiguous())
    expected = torch.view_as_real(split * turn).transpose(-1, -2).flatten(-2).bfloat16()
    assert torch.equal(apply_rope(x, positions, table, False), expected)
    assert apply_rope(x, positions, table, False, out=x) is x and torch.equal(x, expected)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["deepseek_v32", "glm_moe_dsa"])
def test_equals_transformers(rng, name):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    x = torch.from_numpy(rng.standard_normal((7, 3, 64)).astype(np.float32))
    positions, table = torch.arange(7), yarn_cos_sin(7)
    cos, sin = (torch.from_numpy(np.concatenate([t, t], 1)) for t in np.split(table, 2, axis=1))
    # transformers leaves half-split places behind: undo that before comparing.
    _, theirs = modeling.apply_rotary_pos_emb_interleave(x, x, cos, sin)
    places = theirs.unflatten(-1, (2, 32)).transpose(-1, -2).flatten(-2)
    assert torch.equal(places, apply_rope(x, positions, table, True))
    if hasattr(modeling, "apply_rotary_pos_emb"):
        _, theirs = modeling.apply_rotary_pos_emb(x, x, cos, sin)
        assert torch.equal(theirs, apply_rope(x, positions, table, False))
