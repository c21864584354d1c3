"""linear: the formula at every dtype and ragged size, a row's own bits, refusals."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsespan import quant
from sparsespan.models import Linear, linear
from sparsespan.reference import models as reference
from sparsespan.testing import assert_row_invariant, each_isa

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


def bound(x, w, out_dtype):
    """K / 4 additions per lane (4 lanes at the least) and a product, half an ulp each; then one rounding."""
    depth = x.shape[-1]
    magnitude = np.abs(np.asarray(x, np.float64))[..., None, :] * np.abs(np.asarray(w, np.float64))
    total = magnitude.sum(-1)
    return total * ((depth / 4 + 12) * 2.0**-24) + (total * 2.0**-8 if out_dtype == BF16 else 0) + 1e-30


@pytest.mark.parametrize("x_dtype", [np.float32, BF16])
@pytest.mark.parametrize("w_dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 48, 512), (5, 49, 513), (65, 97, 130), (130, 6, 1030)])
def test_equals_float64(rng, x_dtype, w_dtype, shape):
    rows, n, k = shape
    x = rng.standard_normal((rows, k)).astype(x_dtype)
    w = rng.standard_normal((n, k)).astype(w_dtype)
    want = reference.linear(x, w)
    for _ in each_isa():
        for dtype, name in ((np.float32, "float32"), (BF16, "bfloat16")):
            got = linear(x, w, out_dtype=name)
            assert got.dtype == dtype
            assert (np.abs(got.astype(np.float64) - want) <= bound(x, w, dtype)).all()


def test_float16_is_decoded_exactly():
    """All 65536 halves, subnormals and both zeros among them, come through a product with one."""
    codes = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = codes[np.isfinite(codes)]
    np.testing.assert_array_equal(linear(np.ones((1, 1), np.float32), finite[:, None])[0], finite.astype(np.float32))
    with_nan = linear(np.ones((1, 1), np.float32), codes[~np.isfinite(codes)][:, None])[0]
    np.testing.assert_array_equal(np.isnan(with_nan), np.isnan(codes[~np.isfinite(codes)]))


@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.float8_e8m0fnu])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_float8_has_the_bits_of_the_dequantised_weight(rng, rows, scale_dtype):
    w = rng.standard_normal((300, 1100)).astype(FP8)
    scale = np.exp2(rng.integers(-6, 2, (3, 9))).astype(scale_dtype)
    x = rng.standard_normal((rows, 1100)).astype(BF16)
    for _ in each_isa():
        np.testing.assert_array_equal(
            linear(x, w, scale, out_dtype="float32"), linear(x, quant.weight_dequant(w, scale), out_dtype="float32")
        )


def test_heads_meet_their_own_weights(rng):
    """[T, H, K] by [H, N, K], through strided views: the parts of kv_b are views of one tensor."""
    x = rng.standard_normal((9, 3, 20)).astype(np.float32)[:, :, 2:18]
    w = rng.standard_normal((3, 11, 16)).astype(BF16)[:, 4:]
    got = linear(x, w)
    for h in range(3):
        np.testing.assert_array_equal(got[:, h], linear(np.ascontiguousarray(x[:, h]), w[h]))


@given(st.integers(0, 9), st.integers(0, 60), st.integers(0, 40), st.integers(1, 2))
def test_any_size(rows, n, k, heads):
    rng = np.random.default_rng(rows * 10000 + n * 100 + k)
    x = rng.integers(-4, 5, (rows, heads, k)).astype(np.float32)
    w = rng.integers(-4, 5, (heads, n, k)).astype(np.float32)
    # Small integers: every order of summation gives the same number.
    np.testing.assert_array_equal(linear(x, w), np.einsum("thk,hnk->thn", x, w))


@pytest.mark.parametrize("w_dtype", [np.float32, BF16, FP8])
def test_a_row_has_its_own_bits(rng, w_dtype):
    """Few rows take another way through memory than many: the same bits on both."""
    x = rng.standard_normal((137, 1000)).astype(BF16)
    w = rng.standard_normal((100, 1000)).astype(w_dtype)
    scale = np.full((1, 8), 0.5, np.float32) if w_dtype == FP8 else None
    assert_row_invariant(lambda ids, threads: linear(x[ids], w, scale, out_dtype="float32", threads=threads), 137)
    x3 = rng.standard_normal((21, 4, 50)).astype(np.float32)
    w3 = rng.standard_normal((4, 30, 50)).astype(np.float32)
    assert_row_invariant(lambda ids, threads: linear(x3[ids], w3, threads=threads), 21)


def test_out_and_leading_axes(rng):
    x, w = rng.standard_normal((2, 3, 8)).astype(np.float32), rng.standard_normal((5, 8)).astype(np.float32)
    out = np.empty((2, 3, 5), BF16)
    assert linear(x, w, out=out) is out
    np.testing.assert_array_equal(out, linear(x, w, out_dtype="bfloat16"))
    assert linear(x[0, 0], w).shape == (5,)
    assert linear(x[:0], w).shape == (0, 3, 5)
    np.testing.assert_array_equal(Linear(w)(x), linear(x, w))
    assert Linear(w).nbytes == w.nbytes


def test_no_float32_copy_of_the_weight(rng):
    """The counted peak beyond inputs and output stays far below the 4 bytes a weight that a copy would take."""
    import tracemalloc

    x, w = rng.standard_normal((2, 2048)).astype(BF16), np.ones((4096, 2048), BF16)
    tracemalloc.start()  # NumPy's own allocations; the core's are blocks of fixed size
    linear(x, w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < w.nbytes // 8


REFUSALS = [
    (lambda x, w: linear(x.astype(np.float64), w), TypeError, "linear: x has dtype float64"),
    (lambda x, w: linear(x, w.astype(np.int8)), TypeError, "linear: w has dtype int8"),
    (lambda x, w: linear(x, w[:, :7]), ValueError, "linear: w has shape"),
    (lambda x, w: linear(x, w[0]), ValueError, r"linear: w has shape \[8\], needs \[N, K\] or"),
    (lambda x, w: linear(x, w.astype(FP8)), ValueError, "weight_scale_inv is None, needs the scales"),
    (lambda x, w: linear(x, w, np.ones((1, 1), np.float32)), ValueError, "weight_scale_inv is given, needs None"),
    (lambda x, w: linear(x, w.astype(FP8), np.ones((2, 1), np.float32)), ValueError, "weight_scale_inv has shape"),
    (lambda x, w: linear(x, w.astype(FP8), np.full((1, 1), np.nan, np.float32)), ValueError, "is nan in row 0, column"),
    (lambda x, w: linear(x, w.astype(FP8), np.ones((1, 1), np.float32), block=0), ValueError, "block is 0"),
    (
        lambda x, w: linear(np.stack([x, x], 1), np.stack([w, w]).astype(FP8), np.ones((1, 1), np.float32)),
        ValueError,
        "float8 with a head",
    ),
    (lambda x, w: linear(x, w, out_dtype="int8"), ValueError, 'out_dtype is "int8"'),
    (lambda x, w: linear(x, w, out=np.empty((4, 4), np.float32)), ValueError, "out has shape"),
    (lambda x, w: linear(x, w, out=np.empty((4, 5), np.float64)), TypeError, "out has dtype float64"),
    (lambda x, w: linear(x, w, out=x[:, :5]), ValueError, "out shares memory"),
    (lambda x, w: linear(x[:, ::2], w[:, ::2]), ValueError, "x .*last axis"),
    (lambda x, w: linear(None, w), TypeError, "linear: x"),
    (lambda x, w: linear(x, w, validate="maybe"), ValueError, "validate is"),
]


@pytest.mark.parametrize("op, error, words", REFUSALS)
def test_refusals(rng, op, error, words):
    x, w = rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((5, 8)).astype(np.float32)
    with pytest.raises(error, match=words):
        op(x, w)


@pytest.mark.peer
def test_torch_tensors_go_in_and_come_back(rng):
    torch = pytest.importorskip("torch")
    x, w = torch.randn(6, 64, dtype=torch.bfloat16), torch.randn(10, 64, dtype=torch.bfloat16)
    got = linear(x, w, out_dtype="float32")
    assert isinstance(got, torch.Tensor)
    torch.testing.assert_close(got, torch.nn.functional.linear(x.float(), w.float()), rtol=1e-5, atol=1e-5)


# ---- peak memory, and other families of arrays -----------------------------------------------------------------------

PEAK = """
import resource, sys
import ml_dtypes, numpy as np
from sparsespan import cp
from sparsespan.models import linear
what, rows, n, k = sys.argv[1], int(sys.argv[2]), 4096, 8192
rng = np.random.default_rng(0)
x = rng.standard_normal((rows, k), np.float32).astype(ml_dtypes.bfloat16)
if what == "float8":
    w, args = np.ones((n, k), ml_dtypes.float8_e4m3fn), (np.ones((n // 128, k // 128), np.float32),)
    def product(w): return linear(x, w, *args)
elif what == "shard":
    w = np.ones((k, n), ml_dtypes.bfloat16)
    def product(w): return cp.LinearShard({"weight": w}).apply(x, {"weight": w})
else:
    w = np.ones((n, k), ml_dtypes.bfloat16)
    def product(w): return linear(x, w)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
product(w)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("what", ["bfloat16", "float8", "shard"])
@pytest.mark.parametrize("rows", [1, 100])
def test_peak_memory_has_no_float32_weight(what, rows):
    """Measured by the system over a whole process: 128 MB would be the copy; blocks, rows and result are let pass."""
    out = subprocess.run(
        [sys.executable, "-c", PEAK, what, str(rows)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(out.stdout) * 1024 < 4096 * 8192 * 4 / 3


@pytest.mark.peer
def test_torch_rows_give_torch_rows_with_the_same_bits(rng):
    torch = pytest.importorskip("torch")
    x, w = rng.standard_normal((5, 40)).astype(BF16), rng.standard_normal((7, 40)).astype(BF16)
    tx, tw = (torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) for a in (x, w))
    want = linear(x, w)
    for got in (linear(tx, tw), linear(tx, w), Linear(tw)(tx), Linear(w)(tx)):
        assert isinstance(got, torch.Tensor) and got.dtype == torch.bfloat16 and got.shape == (5, 7)
        assert got.view(torch.int16).numpy().tobytes() == want.tobytes()
    for got in (linear(x, tw), Linear(tw)(x)):  # the rows say what comes out, not what keeps the weight
        assert isinstance(got, np.ndarray) and got.tobytes() == want.tobytes()
    assert linear(tx[:0], tw).shape == (0, 7) and linear(tx[0], tw).shape == (7,)
    assert linear(tx, tw, out_dtype="float32").dtype == torch.float32
    out = torch.empty(5, 7)
    assert linear(tx, tw, out=out) is out
    np.testing.assert_array_equal(out.numpy(), linear(x, w, out_dtype="float32"))
    # Views: some columns of a wider matrix, rows in steps, a head axis.
    wide = torch.from_numpy(rng.standard_normal((7, 60)).astype(np.float32))
    rows = torch.from_numpy(rng.standard_normal((10, 40)).astype(np.float32))
    np.testing.assert_array_equal(
        linear(rows[::2], wide[:, 10:50]).numpy(), linear(rows.numpy()[::2], wide.numpy()[:, 10:50])
    )
    heads, own = torch.ones(3, 2, 4), torch.ones(2, 5, 4, dtype=torch.bfloat16)
    assert (linear(heads, own) == 4).all()
    assert repr(Linear(tw)) == "Linear([7, 40] bfloat16)" == repr(Linear(w)) and Linear(tw).nbytes == w.nbytes


@pytest.mark.peer
def test_torch_float8_weights_and_refusals(rng):
    torch = pytest.importorskip("torch")
    w, scale = rng.standard_normal((130, 200)).astype(FP8), rng.random((2, 2)).astype(np.float32)
    tw = torch.from_numpy(w.view(np.int8)).view(torch.float8_e4m3fn)
    x = rng.standard_normal((3, 200)).astype(np.float32)
    got = linear(torch.from_numpy(x), tw, torch.from_numpy(scale))
    np.testing.assert_array_equal(got.numpy(), linear(x, w, scale))
    assert Linear(tw, torch.from_numpy(scale)).nbytes == w.nbytes + scale.nbytes
    np.testing.assert_array_equal(linear(x, tw, torch.from_numpy(scale)), linear(x, w, scale))
    with pytest.raises(ValueError, match=r"w requires grad, needs a tensor without"):
        linear(x, torch.nn.Parameter(torch.ones(4, 200)))
    with pytest.raises(ValueError, match=r"w requires grad, needs a tensor without"):
        linear(torch.from_numpy(x), torch.nn.Parameter(torch.ones(4, 200)))
    with pytest.raises(ValueError, match="linear: w has shape"):
        linear(torch.from_numpy(x), torch.ones(4, 199))
    with pytest.raises(TypeError, match="linear: x has dtype float16"):
        linear(torch.from_numpy(x).half(), tw, torch.from_numpy(scale))
