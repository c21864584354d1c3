"""compare_attn must see planted faults, and say where."""

import numpy as np
import pytest

from sparsespan.testing import compare_attn


@pytest.fixture
def result(rng):
    out = rng.standard_normal((3, 4, 32))
    lse = rng.standard_normal((3, 4)) + 5
    top = lse - 1
    out[1], lse[1], top[1] = 0, -np.inf, -np.inf
    return out, lse, top


def copy(result):
    return tuple(a.copy() for a in result)


def test_equal_and_slightly_off_pass(result, rng):
    compare_attn(result, result)
    compare_attn(result[0], result[0])
    got = copy(result)
    got[0][...] *= 1 + 2.0**-9 * rng.uniform(-1, 1, got[0].shape)  # bfloat16 rounding
    got[1][...] *= 1 + 1e-5
    compare_attn(got, result)
    compare_attn((np.zeros((0, 1, 4)),), (np.zeros((0, 1, 4)),))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda out, lse, top: out.__setitem__((2, 3, 7), np.nan), r"out\[2, 3, 7\] is nan.*NaN must stand"),
        (lambda out, lse, top: out.__setitem__((0, 0, 0), np.inf), r"out\[0, 0, 0\] is inf.*\+inf must stand"),
        (lambda out, lse, top: lse.__setitem__((1, 2), np.inf), r"lse\[1, 2\] is inf, reference -inf"),
        (lambda out, lse, top: lse.__setitem__((0, 1), lse[0, 1] * 1.0001), r"lse\[0, 1\] .*; 1 of 12 are off"),
        (lambda out, lse, top: top.__setitem__((2, 0), 0.0), r"max_logits\[2, 0\]"),
        (lambda out, lse, top: out.__setitem__((0, 2, 5), out[0, 2, 5] * 1.1 + 0.01), r"out\[0, 2, 5\] .*off by"),
        (lambda out, lse, top: out.__setitem__((1, 0, 0), 0.001), r"out\[1, 0, 0\] is 0.001, reference 0"),
        (lambda out, lse, top: lse.__imul__(np.log2(np.e)), r"lse\[0, 0\]"),  # base 2 instead of natural
        (lambda out, lse, top: out.__imul__(1.02), r"out leans away"),  # each element passes alone
    ],
)
def test_planted_faults_are_seen(result, plant, message):
    got = copy(result)
    plant(*got)
    with pytest.raises(AssertionError, match=message):
        compare_attn(got, result)


def test_shapes_and_counts(result):
    with pytest.raises(AssertionError, match=r"out has shape \[3, 4, 31\], reference \[3, 4, 32\]"):
        compare_attn(result[0][..., :31], result[0])
    with pytest.raises(AssertionError, match="1 results against 2"):
        compare_attn(result[0], result[:2])
