import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.indexer as reference
from sparsespan.indexer import mqa_logits, select, topk
from sparsespan.testing import assert_row_invariant, compare_topk, each_isa

sys.path.insert(0, str(Path(__file__).parent))
from indexer_cases import DTYPES, FP8, WINDOWS, causal, inputs, packed

sys.path.pop(0)


def two_steps(q, k, weights, ks, ke, scale, n, **options):
    lengths = np.maximum(np.asarray(ke, np.int64) - ks, 0)
    return topk(mqa_logits(q, k, weights, ks, ke, scale), n, lengths, ks, **options)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("n", [1, 7, 32, 2048])
def test_equals_topk_of_logits(rng, name, n):
    ks, ke, keys = WINDOWS[name]
    q, k, weights, scale = inputs(rng, len(ks), keys)
    lengths = np.maximum(np.asarray(ke, np.int64) - ks, 0)
    scores = reference.mqa_logits(q, k, weights, ks, ke, scale)
    for _ in each_isa():
        got = select(q, k, weights, ks, ke, scale, n)
        np.testing.assert_array_equal(got, two_steps(q, k, weights, ks, ke, scale, n))
        # float32 sums of 8 x 128 products against float64: 1e-5 of the scores' scale.
        compare_topk(got, scores, n, lengths, ks, rtol=1e-5, atol=1e-5 * float(np.abs(scores[scores > -np.inf]).max()))


@given(st.data())
def test_properties(data):
    rows, keys = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 400))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from(DTYPES))
    q, k, weights, scale = inputs(rng, rows, keys, data.draw(st.integers(1, 5)), 32, dtype, dtype)
    if data.draw(st.booleans()):  # ties everywhere, signed zeros among them
        weights = np.where(rng.random(weights.shape) < 0.8, -0.0, weights).astype(np.float32)
    ks, ke = rng.integers(0, keys + 1, (2, rows))
    n = data.draw(st.sampled_from([1, 2, 5, 30, 100, 500]))
    threads = data.draw(st.sampled_from([1, 2, 3]))
    for _ in each_isa():
        expected = two_steps(q, k, weights, ks, ke, scale, n)
        np.testing.assert_array_equal(select(q, k, weights, ks, ke, scale, n, threads=threads), expected)
        trusted = select(q, k, weights, ks, ke, scale, n, threads=threads, validate="trusted")
        np.testing.assert_array_equal(trusted, expected)


@pytest.mark.parametrize("kind", ["random", "rising", "falling", "equal", "hot"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_long_rows_in_segments(rng, kind, rows):
    """Few long rows are cut into segments; the order in which scores come must not matter."""
    keys, n = 30000, 512
    q, k, weights = np.ones((rows, 1, 32), FP8), np.zeros((keys, 32), np.float32), np.ones((rows, 1), np.float32)
    position = np.arange(keys)
    k[:, 0] = {
        "random": rng.standard_normal(keys) + 5,
        "rising": position,
        "falling": keys - position,
        "equal": np.ones(keys),
        "hot": np.where(position < 3000, 4, 1) * np.abs(rng.standard_normal(keys)),
    }[kind]
    ks, ke = causal(rows, keys)
    ks = ks + np.arange(rows)
    for _ in each_isa():
        expected = two_steps(q, k, weights, ks, ke, None, n)
        for threads in (1, 2, 3, 8):
            np.testing.assert_array_equal(select(q, k, weights, ks, ke, None, n, threads=threads), expected)


def test_segments_of_windows_that_lie_apart(rng):
    """Where a group is cut depends on its rows' windows and on the threads; what is chosen does not."""
    keys, n = 40000, 300
    ks = np.array([30000, 5, 0, 11, 20000, 39000])
    ke = np.array([36000, 5, 40000, 9000, 20001, 40000])
    q, k, weights, scale = inputs(rng, len(ks), keys, 2, 32)
    for _ in each_isa():
        expected = two_steps(q, k, weights, ks, ke, scale, n)
        for threads in (1, 2, 3, 8):
            np.testing.assert_array_equal(select(q, k, weights, ks, ke, scale, n, threads=threads), expected)


def test_boundary_lengths(rng):
    """Ends as vLLM tests them: 0, 1, 31, ..., around k = 2048; and starts that are not 0."""
    ends = np.array([0, 1, 31, 127, 1024, 2047, 2048, 2049, 2050, 3000])
    q, k, weights, scale = inputs(rng, len(ends), 3400, 2, 32)
    for start in (0, 333):
        ks, ke = np.full(len(ends), start), ends + start
        for _ in each_isa():
            got = select(q, k, weights, ks, ke, scale)
            np.testing.assert_array_equal(got, two_steps(q, k, weights, ks, ke, scale, 2048))
            for row, n in enumerate(ends[:7]):
                np.testing.assert_array_equal(got[row, :n], start + np.arange(n))
                assert (got[row, n:] == -1).all()


def test_packed_indices_are_logical_plus_ks(rng):
    ks, ke, keys = packed([40, 70], gap=9)
    q, k, weights, scale = inputs(rng, len(ks), keys)
    got = select(q, k, weights, ks, ke, scale, 16)
    alone = select(q[40:], k[49:], weights[40:], ks[40:] - 49, ke[40:] - 49, scale[49:], 16)
    np.testing.assert_array_equal(np.where(got[40:] < 0, -1, got[40:] - 49), alone)


def test_row_invariant(rng):
    ks, ke, keys = packed([5, 17, 40, 300])
    q, k, weights, scale = inputs(rng, len(ks), keys, 3, 64)
    assert_row_invariant(
        lambda i, threads: select(q[i], k, weights[i], ks[i], ke[i], scale, 24, threads=threads), len(ks)
    )


def test_nan(rng):
    ks, ke = causal(30, 400)
    q, k, weights, _ = inputs(rng, 30, 400, 2, 32, np.float32, np.float32)
    k[390] = np.nan  # visible from row 20 on
    k[395] = np.nan
    for _ in each_isa():
        for n in (8, 500):
            for threads in (1, 2):
                out = np.full((30, n), 5, np.int32)
                with pytest.raises(ValueError, match=r"^select: .* NaN score at row 20, column 390, inside"):
                    select(q, k, weights, ks, ke, None, n, out=out, threads=threads)
                assert (out == -1).all()
            got = select(q, k, weights, ks, ke, None, n, nan="lowest")
            np.testing.assert_array_equal(got, two_steps(q, k, weights, ks, ke, None, n, nan="lowest"))
        select(q, k, weights, ks, np.minimum(ke, 390), None, 8)


def test_empty_and_out(rng):
    q, k, weights, scale = inputs(rng, 4, 50)
    ks, ke = causal(4, 50)
    assert select(q[:0], k, weights[:0], ks[:0], ke[:0], scale, 3).shape == (0, 3)
    assert (select(q, k[:0], weights, ks, ks, scale[:0], 3) == -1).all()
    out = np.zeros((4, 9), np.int32)[:, :6]
    assert select(q, k, weights, ks, ke, scale, 6, out=out) is out
    np.testing.assert_array_equal(out, select(q, k, weights, ks, ke, scale, 6))


MEMORY = """
import resource, sys
import numpy as np
from sparsespan.indexer import select
rows, keys, heads, dim = 4096, 131072, 1, 32
rng = np.random.default_rng(0)
q = rng.standard_normal((rows, heads, dim), np.float32)
k = rng.standard_normal((keys, dim), np.float32)
weights = np.ones((rows, heads), np.float32)
ks, ke = np.zeros(rows, np.int32), np.arange(keys - rows, keys, dtype=np.int32) + 1
out = np.zeros((rows, 2048), np.int32)
select(q[:8], k, weights[:8], ks[:8], ke[:8], out=out[:8])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
select(q, k, weights, ks, ke, out=out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_stays_small():
    """T = 4096, S = 131072: the scores would be 2 GB. One head of 32 keeps it short; staging grows by 4 KB per head."""
    import os
    import subprocess

    if "SPARSESPAN_SANITIZED" in os.environ:
        pytest.skip("measures a plain process")
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"topk": 0}, ValueError, r"topk is 0, needs at least 1"),
        ({"topk": -1}, ValueError, r"topk is -1, needs at least 1"),
        ({"topk": 2**62}, ValueError, r"out overflows 64 bits"),
        ({"nan": "no"}, ValueError, r"nan is \"no\", needs \"raise\" or \"lowest\""),
        ({"q": np.ones((4, 8, 128), np.float16)}, TypeError, r"q has dtype float16"),
        ({"ke": np.array([50, 51, 1, 1])}, ValueError, r"ke has 51 at row 1, needs 0 <= ke <= S = 50"),
        ({"k_scale": np.full(50, np.nan, np.float32)}, ValueError, r"k_scale has nan at key 0"),
        ({"k_scale": np.full(50, -2, np.float32)}, ValueError, r"k_scale has -2 at key 0"),
        ({"out": np.zeros((4, 8), np.int64)}, TypeError, r"out has dtype int64, needs int32"),
        ({"out": np.zeros((4, 7), np.int32)}, ValueError, r"out has shape \[4, 7\], needs \[T, topk\] = \[4, 8\]"),
        ({"validate": "off"}, ValueError, r"validate is \"off\""),
    ],
)
def test_refusals(rng, change, error, message):
    q, k, weights, scale = inputs(rng, 4, 50)
    ks, ke = causal(4, 50)
    good = {"q": q, "k": k, "weights": weights, "ks": ks, "ke": ke, "k_scale": scale, "topk": 8}
    with pytest.raises(error, match=r"^select: " + message):
        select(**(good | change))
