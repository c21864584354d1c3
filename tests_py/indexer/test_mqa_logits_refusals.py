import ml_dtypes
import numpy as np
import pytest

from sparsespan.indexer import mqa_logits

F32 = np.float32


def good():
    return {
        "q": np.ones((3, 4, 32), F32),
        "k": np.ones((9, 32), F32),
        "weights": np.ones((3, 4), F32),
        "ks": np.zeros(3, np.int32),
        "ke": np.full(3, 9, np.int32),
    }


def fp8(shape):
    return np.ones(shape, ml_dtypes.float8_e4m3fn)


def scale(at, value):
    s = np.ones(9, F32)
    s[at] = value
    return {"k": fp8((9, 32)), "k_scale": s}


def changed(array, index, value):
    array[index] = value
    return array


REFUSED = [
    ({"q": np.ones((3, 4, 32), np.float16)}, TypeError, r"q has dtype float16, needs float8_e4m3fn or bfloat16"),
    ({"q": np.ones((3, 4, 32), ml_dtypes.float8_e4m3fnuz)}, TypeError, r"q has dtype float8_e4m3fnuz, needs"),
    ({"k": np.ones((9, 32), ml_dtypes.float8_e4m3fnuz)}, TypeError, r"k has dtype float8_e4m3fnuz, needs"),
    ({"k": np.ones((9, 32), np.uint8)}, TypeError, r"k has dtype uint8, needs"),
    ({"k": [1.0]}, TypeError, r"k is a list, needs a NumPy array"),
    ({"weights": np.ones((3, 4))}, TypeError, r"weights has dtype float64, needs float32"),
    ({"ks": np.zeros(3, F32)}, TypeError, r"ks has dtype float32, needs int32 or int64"),
    ({"ke": np.zeros(3, np.uint8)}, TypeError, r"ke has dtype uint8, needs int32 or int64"),
    ({"q": np.ones((3, 32), F32)}, ValueError, r"q has shape \[3, 32\], needs \[T, Hi, D\]"),
    (
        {"q": np.ones((3, 4, 0), F32), "k": np.ones((9, 0), F32)},
        ValueError,
        r"q has shape .* needs at least one head and one dim",
    ),
    (
        {"q": np.ones((3, 0, 32), F32), "weights": np.ones((3, 0), F32)},
        ValueError,
        r"q has shape .* needs at least one head",
    ),
    ({"k": np.ones((9, 64), F32)}, ValueError, r"k has shape \[9, 64\], needs \[S, D\] = \[\*, 32\]"),
    ({"weights": np.ones((3, 5), F32)}, ValueError, r"weights has shape \[3, 5\], needs \[T, Hi\] = \[3, 4\]"),
    ({"ks": np.zeros(4, np.int32)}, ValueError, r"ks has shape \[4\], needs \[T\] = \[3\]"),
    ({"ke": np.zeros((3, 1), np.int32)}, ValueError, r"ke has shape \[3, 1\], needs \[T\]"),
    ({"q": np.ones((3, 4, 64), F32)[..., ::2]}, ValueError, r"q has a strided last axis \(stride 2\)"),
    ({"k": np.ones((9, 64), F32)[:, ::2]}, ValueError, r"k has a strided last axis"),
    ({"weights": np.ones((3, 8), F32)[:, ::2]}, ValueError, r"weights has a strided last axis"),
    ({"ks": np.array([0, -1, 0])}, ValueError, r"ks has -1 at row 1, needs 0 <= ks <= S = 9"),
    ({"ke": np.array([9, 9, 10])}, ValueError, r"ke has 10 at row 2, needs 0 <= ke <= S = 9"),
    ({"ks": np.array([0, 10, 0])}, ValueError, r"ks has 10 at row 1"),
    ({"ke": np.array([9, -2, 9])}, ValueError, r"ke has -2 at row 1"),
    ({"k_scale": np.ones(9, F32)}, ValueError, r"k_scale is given with float32 keys, needs float8_e4m3fn keys"),
    ({"k": fp8((9, 32)), "k_scale": np.ones(9)}, TypeError, r"k_scale has dtype float64, needs float32"),
    ({"k": fp8((9, 32)), "k_scale": np.ones(8, F32)}, ValueError, r"k_scale has shape \[8\], needs \[S\] = \[9\]"),
    (scale(5, np.nan), ValueError, r"k_scale has nan at key 5, needs finite scales that are not negative"),
    (scale(2, -1.0), ValueError, r"k_scale has -1 at key 2"),
    (scale(8, np.inf), ValueError, r"k_scale has inf at key 8"),
    ({"max_seqlen_k": 9}, ValueError, r"clean_logits is true with max_seqlen_k = 9, needs false"),
    ({"max_seqlen_k": -1}, ValueError, r"max_seqlen_k is -1, needs at least 0"),
    (
        {"max_seqlen_k": 8, "clean_logits": False},
        ValueError,
        r"max_seqlen_k is 8, needs at least 9, the length of row 0",
    ),
    ({"max_seqlen_k": 2**62, "clean_logits": False}, ValueError, r"out overflows 64 bits"),
    ({"out": np.empty((3, 8), F32)}, ValueError, r"out has shape \[3, 8\], needs \[T, S\] = \[3, 9\]"),
    ({"out": np.empty((3, 9))}, TypeError, r"out has dtype float64, needs float32"),
    ({"out": np.empty((3, 18), F32)[:, ::2]}, ValueError, r"out has a strided last axis"),
    ({"out": np.broadcast_to(np.ones(9, F32), (3, 9))}, ValueError, r"out is read-only"),
    ({"threads": -1}, ValueError, r"threads is -1"),
    ({"validate": "none"}, ValueError, r"validate is \"none\", needs \"full\" or \"trusted\""),
]


@pytest.mark.parametrize("change, error, message", REFUSED, ids=[r[2][:40] for r in REFUSED])
def test_refused_before_anything_is_written(change, error, message):
    arguments = good() | change
    out = arguments.get("out")
    if out is None and "max_seqlen_k" not in change:
        out = arguments["out"] = np.full((3, 9), 7.5, F32)
    with pytest.raises(error, match=r"^(mqa_logits|parallel_for): " + message):
        mqa_logits(**arguments)
    if out is not None and out.shape == (3, 9) and out.flags.writeable:
        assert "out" in change or (out == 7.5).all()


def test_overlap_is_refused():
    memory = np.ones(9 * 32 + 27, F32)
    arguments = good() | {"k": memory[: 9 * 32].reshape(9, 32)}
    with pytest.raises(ValueError, match=r"out shares memory with an input"):
        mqa_logits(**arguments, out=memory[280 : 280 + 27].reshape(3, 9))
    mqa_logits(**arguments, out=memory[288:].reshape(3, 9))


def test_scales_nobody_sees_may_be_anything():
    arguments = good() | scale(5, np.nan) | {"ke": np.full(3, 5, np.int32)}
    mqa_logits(**arguments)
    arguments["k_scale"][:] = np.nan
    arguments["ks"] = arguments["ke"]
    mqa_logits(**arguments)


def test_trusted_skips_the_scan_of_scales_only():
    got = mqa_logits(**(good() | scale(5, np.nan)), validate="trusted")
    np.testing.assert_array_equal(np.isnan(got).any(0), np.arange(9) == 5)
    with pytest.raises(ValueError, match=r"ke has 10 at row 2"):
        mqa_logits(**(good() | {"ke": np.array([9, 9, 10])}), validate="trusted")
