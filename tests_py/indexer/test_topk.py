import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sparsespan.reference.indexer as reference
from sparsespan.indexer import topk
from sparsespan.testing import assert_row_invariant, each_isa

F32 = np.float32


def long_rows(rng, n):
    """Rows that are hard for a radix, a sample or a tie rule."""
    lsb = (1 + rng.integers(0, 1024, n) * 2.0**-23).astype(F32)  # flashinfer's: only the 10 low bits differ
    relu = np.maximum(rng.standard_normal(n) - 1.5, 0) * -1  # mostly -0.0
    hot = rng.standard_normal(n)
    hot[: n // 10] *= 4  # vLLM's hot prefix
    periodic = np.zeros(n)
    periodic[:: max(1, n // 2048)] = np.arange(len(periodic[:: max(1, n // 2048)]))  # what a strided sample meets
    inverse = np.ones(n)
    inverse[:: max(1, n // 2048)] = -1  # what it meets is the worst there is
    infinite = rng.choice([-np.inf, np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38], n)
    rows = [
        rng.standard_normal(n),
        lsb,
        relu,
        hot,
        np.arange(n),
        -np.arange(n),
        np.zeros(n),
        -np.zeros(n),
        periodic,
        inverse,
        infinite,
        rng.integers(-3, 3, n),
    ]
    return np.stack([np.asarray(r, F32) for r in rows])


@pytest.mark.parametrize("n", [1, 15, 16, 17, 2047, 2048, 2049, 8192, 20000, 131072])
@pytest.mark.parametrize("k", [1, 512, 2048, 3000])
def test_hard_rows(rng, n, k):
    scores = long_rows(rng, n)
    expected = reference.topk(scores, k)
    for _ in each_isa():
        np.testing.assert_array_equal(topk(scores, k), expected)


@given(st.data())
def test_equals_reference(data):
    rows, columns = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 60))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 1e-45, 2.5]) | st.floats(width=32, allow_nan=False)
    scores = data.draw(hnp.arrays(F32, (rows, columns), elements=values))
    k = data.draw(st.integers(1, 70))
    starts = data.draw(hnp.arrays(np.int64, rows, elements=st.integers(0, columns)))
    lengths = np.array([data.draw(st.integers(0, columns - s)) for s in starts], np.int32)
    options = {
        "lengths": lengths,
        "row_starts": starts,
        "base": data.draw(st.sampled_from(["packed", "row"])),
        "order": data.draw(st.sampled_from(["index", "score"])),
    }
    expected = reference.topk(scores, k, **options)
    for _ in each_isa():
        np.testing.assert_array_equal(topk(scores, k, **options), expected)


@given(st.data())
def test_nan_lowest(data):
    scores = data.draw(hnp.arrays(F32, (3, 40), elements=st.sampled_from([np.nan, -np.inf, 0.0, 1.0])))
    k = data.draw(st.integers(1, 45))
    order = data.draw(st.sampled_from(["index", "score"]))
    for _ in each_isa():
        expected = reference.topk(scores, k, nan="lowest", order=order)
        np.testing.assert_array_equal(topk(scores, k, nan="lowest", order=order), expected)


def test_nan_in_long_rows(rng):
    scores = long_rows(rng, 20000)[:5]
    scores[2, 100:] = np.nan  # more NaN than the sample can overlook, fewer numbers than k
    scores[3, ::2] = np.nan
    for _ in each_isa():
        np.testing.assert_array_equal(topk(scores, 2048, nan="lowest"), reference.topk(scores, 2048, nan="lowest"))


@pytest.mark.parametrize("sign", [1, -1])
def test_nan_raises_and_leaves_nothing(rng, sign):
    nan = np.copysign(F32(np.nan), F32(sign))
    for columns, k in ((50, 100), (50, 3), (30000, 2048)):
        for threads in (1, 3):
            scores = rng.standard_normal((40, columns)).astype(F32)
            scores[39, 2] = scores[7, 45] = scores[7, 46] = nan
            for _ in each_isa():
                out = np.full((40, k), 5, np.int32)
                with pytest.raises(ValueError, match=r"topk: scores has a NaN score at row 7, column 45, inside"):
                    topk(scores, k, out=out, threads=threads)
                assert (out == -1).all()


def test_nan_outside_the_window_is_nobodys_business(rng):
    scores = np.full((3, 100), np.nan, F32)
    scores[:, 20:60] = rng.standard_normal((3, 40))
    for _ in each_isa():
        got = topk(scores, 8, np.full(3, 40), np.full(3, 20))
        np.testing.assert_array_equal(got, 20 + reference.topk(scores[:, 20:60], 8))


def test_short_windows_are_whole_and_ascending(rng):
    """Lengths 0, 1, k - 1, k, k + 1 around k = 2048; what peers do for length <= k."""
    lengths = np.array([0, 1, 2047, 2048, 2049])
    scores = rng.standard_normal((5, 4096)).astype(F32)
    for validate in ("full", "trusted"):
        got = topk(scores, 2048, lengths, validate=validate)
        for row, n in enumerate(lengths[:4]):
            np.testing.assert_array_equal(got[row], np.where(np.arange(2048) < n, np.arange(2048), -1))
        assert len(np.setdiff1d(np.arange(2049), got[4])) == 1


def test_strides_and_out(rng):
    wide = rng.standard_normal((6, 300)).astype(F32)
    out = np.zeros((6, 20), np.int32)[:, :16]
    assert topk(wide[::2, 3:203], 16, out=out[::2]) is not None
    np.testing.assert_array_equal(out[::2], reference.topk(wide[::2, 3:203], 16))
    assert topk(np.empty((0, 5), F32), 3).shape == (0, 3)
    assert (topk(np.empty((2, 0), F32), 3) == -1).all()


def test_row_invariant(rng):
    scores = np.concatenate([long_rows(rng, 9000), long_rows(rng, 9000)])
    assert_row_invariant(lambda i, threads: topk(scores[i], 512, threads=threads), len(scores))


@pytest.mark.peer
def test_equals_torch(rng):
    torch = pytest.importorskip("torch")
    scores = rng.permutation(np.arange(30000, dtype=F32)).reshape(
        3, 10000
    )  # no ties: torch promises nothing about them
    indices = torch.topk(torch.from_numpy(scores), 2048).indices
    np.testing.assert_array_equal(topk(scores, 2048, order="score"), indices.numpy())
    got = topk(torch.from_numpy(scores), 2048)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.int32
    assert torch.equal(got.long(), indices.sort().values)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"scores": np.ones((3, 9))}, TypeError, r"scores has dtype float64, needs float32"),
        ({"scores": np.ones((3, 9), np.float16)}, TypeError, r"scores has dtype float16"),
        ({"scores": np.ones(9, F32)}, ValueError, r"scores has shape \[9\], needs \[T, S\]"),
        ({"scores": np.ones((3, 18), F32)[:, ::2]}, ValueError, r"scores has a strided last axis"),
        ({"k": 0}, ValueError, r"k is 0, needs at least 1"),
        ({"k": -3}, ValueError, r"k is -3, needs at least 1"),
        ({"k": 2**62}, ValueError, r"out overflows 64 bits"),
        ({"lengths": np.array([1, 2, 10])}, ValueError, r"lengths has 10 at row 2, needs 0 <= length <= S - start = 9"),
        ({"lengths": np.array([1, -2, 9])}, ValueError, r"lengths has -2 at row 1"),
        ({"lengths": np.array([1, 2])}, ValueError, r"lengths has shape \[2\], needs \[T\] = \[3\]"),
        ({"lengths": np.ones(3, F32)}, TypeError, r"lengths has dtype float32, needs int32 or int64"),
        ({"row_starts": np.array([0, 0, 10])}, ValueError, r"row_starts has 10 at row 2, needs 0 <= start <= S = 9"),
        ({"row_starts": np.array([0, -1, 0])}, ValueError, r"row_starts has -1 at row 1"),
        ({"lengths": np.full(3, 9), "row_starts": np.array([0, 1, 0])}, ValueError, r"lengths has 9 at row 1, .* = 8"),
        ({"base": "col"}, ValueError, r"base is \"col\", needs \"packed\" or \"row\""),
        ({"nan": "skip"}, ValueError, r"nan is \"skip\", needs \"raise\" or \"lowest\""),
        ({"order": "desc"}, ValueError, r"order is \"desc\", needs \"index\" or \"score\""),
        ({"out": np.zeros((3, 5), np.int32)}, ValueError, r"out has shape \[3, 5\], needs \[T, k\] = \[3, 4\]"),
        ({"out": np.zeros((3, 4), np.int64)}, TypeError, r"out has dtype int64, needs int32"),
        ({"out": np.broadcast_to(np.zeros(4, np.int32), (3, 4))}, ValueError, r"out is read-only"),
    ],
)
def test_refusals(change, error, message):
    with pytest.raises(error, match=r"^topk: " + message):
        topk(**({"scores": np.ones((3, 9), F32), "k": 4} | change))


def test_overlap_is_refused():
    memory = np.zeros((4, 8), F32)
    with pytest.raises(ValueError, match=r"out shares memory with an input"):
        topk(memory, 8, out=memory.view(np.int32))
