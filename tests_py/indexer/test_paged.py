import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.indexer as reference
from sparsespan.indexer import mqa_logits, paged_mqa_logits, paged_select, select, to_slots, topk
from sparsespan.testing import assert_row_invariant, each_isa

sys.path.insert(0, str(Path(__file__).parent))
from indexer_cases import BF16, DTYPES, FP8, calc_diff

sys.path.pop(0)

LAYOUTS = {"index_132": FP8, "index_bf16": BF16, "index_f32": np.float32}


def pool(rng, pages, page_size, layout):
    """A cache full of keys; what index_132 keeps at the page's tail is a scale per token."""
    values = rng.standard_normal((pages, page_size, 128)).astype(LAYOUTS[layout])
    if layout != "index_132":
        return values
    scales = np.exp2(rng.integers(-6, 3, (pages, page_size))).astype(np.float32)
    halves = [values.view(np.uint8).reshape(pages, -1), scales.view(np.uint8).reshape(pages, -1)]
    return np.concatenate(halves, axis=1).reshape(pages, page_size, 132)


def tables(rng, lengths, page_size, pages, blocks=None, dtype=np.int32):
    """Random distinct pages per request, garbage past each length."""
    needed = [-(-int(n) // page_size) for n in lengths]
    blocks = blocks or max([*needed, 1]) + 2
    order = rng.permutation(pages)
    garbage = np.array([-1, -(2**31), 2**31 - 1, pages, 123456])
    table = rng.choice(garbage, (len(lengths), blocks))
    used = 0
    for b, n in enumerate(needed):
        table[b, :n] = order[used : used + n]
        used += n
    return table.astype(dtype)


def problem(rng, lengths, next_n=1, heads=4, page_size=64, layout="index_132", q_dtype=FP8, dtype=np.int32):
    pages = sum(-(-int(n) // page_size) for n in lengths) + 3
    q = rng.standard_normal((len(lengths), next_n, heads, 128)).astype(q_dtype)
    weights = rng.standard_normal((len(lengths) * next_n, heads)).astype(np.float32)
    table = tables(rng, lengths, page_size, pages, dtype=dtype)
    return q, pool(rng, pages, page_size, layout), weights, np.array(lengths, dtype), table, page_size


def agree(got, expected):
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
    assert calc_diff(got, expected) < 5e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("page_size", [1, 2, 32, 64, 61, 256])
@pytest.mark.parametrize("next_n", [1, 2, 6])
def test_layouts_pages_and_rows_per_request(rng, layout, page_size, next_n):
    lengths = [0, 65, 191, 7, 3]
    args = problem(rng, lengths, next_n, page_size=page_size, layout=layout)
    expected = reference.paged_mqa_logits(*args, 200, layout)
    for _ in each_isa():
        agree(paged_mqa_logits(*args, 200, layout), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_sglang_case(rng, dtype):
    """Lengths 0, 65, 191; two requests share page 2."""
    q, cache, weights, lens, table, size = problem(rng, [0, 65, 191], dtype=dtype)
    table[1, 0] = table[2, 1] = 2
    expected = reference.paged_mqa_logits(q, cache, weights, lens, table, size, 191)
    for _ in each_isa():
        agree(paged_mqa_logits(q, cache, weights, lens, table, size, 191), expected)


def test_lengths_by_request_and_by_row(rng):
    q, cache, weights, lens, table, size = problem(rng, [100, 2, 70, 0], next_n=4)
    stairs = np.maximum(lens[:, None] - 4 + np.arange(4) + 1, 0)
    for _ in each_isa():
        by_request = paged_mqa_logits(q, cache, weights, lens, table, size, 100)
        np.testing.assert_array_equal(paged_mqa_logits(q, cache, weights, stairs, table, size, 100), by_request)
        flat = paged_mqa_logits(q.reshape(16, 4, 128), cache, weights, lens, table, size, 100)
        np.testing.assert_array_equal(flat, by_request)
        free = np.array([[3, 100, 0, 64], [2, 1, 0, 2], [70, 70, 1, 2], [0, 0, 0, 0]])
        got = paged_mqa_logits(q, cache, weights, free, table, size, 100)
        agree(got, reference.paged_mqa_logits(q, cache, weights, free, table, size, 100))


def test_equals_the_packed_op_bit_for_bit(rng):
    lengths = [300, 40, 129]
    q, cache, weights, lens, table, size = problem(rng, lengths, next_n=3)
    for _ in each_isa():
        got = paged_mqa_logits(q, cache, weights, lens, table, size, 300)
        for b, n in enumerate(lengths):
            k, scale = reference.read_index_cache(cache, table[b], n, size, "index_132")
            ke = np.arange(n - 2, n + 1)
            rows = slice(3 * b, 3 * b + 3)
            packed = mqa_logits(q[b], k, weights[rows], np.zeros(3, np.int32), ke, scale)
            np.testing.assert_array_equal(got[rows, :n], packed)


def test_cache_shapes(rng):
    """The peers' head axis, flat pages, signed bytes, padded pages."""
    q, cache, weights, lens, table, size = problem(rng, [65, 191])
    expected = paged_mqa_logits(q, cache, weights, lens, table, size, 191)
    padded = np.zeros((len(cache), 64 * 132 + 52), np.uint8)
    padded[:, : 64 * 132] = cache.reshape(len(cache), -1)
    for other in (cache[:, :, None], cache.reshape(len(cache), -1), cache.view(np.int8), padded[:, : 64 * 132]):
        got = paged_mqa_logits(q, other, weights, lens, table, size, 191)
        np.testing.assert_array_equal(got, expected)


def test_one_row_per_request_of_a_longer_array(rng):
    q, cache, weights, lens, table, size = problem(rng, [65, 191], next_n=3)
    expected = paged_mqa_logits(q[:, :1].copy(), cache, weights[::3], lens, table, size, 191)
    np.testing.assert_array_equal(paged_mqa_logits(q[:, :1], cache, weights[::3], lens, table, size, 191), expected)


def test_nan_in_unused_cache_never_leaks(rng):
    q, cache, weights, lens, table, size = problem(rng, [65, 191], layout="index_f32")
    expected = paged_mqa_logits(q, cache, weights, lens, table, size, 191, "index_f32")
    used = set(table[0, :2]) | set(table[1, :3])
    for page in set(range(len(cache))) - used:
        cache[page] = np.nan
    cache[table[0, 1], 1:] = cache[table[1, 2], 63:] = np.nan
    for isa in each_isa():
        got = paged_mqa_logits(q, cache, weights, lens, table, size, 191, "index_f32")
        assert np.isfinite(got[~np.isneginf(got)]).all(), isa
    np.testing.assert_array_equal(got, expected)
    raw = problem(rng, [3])
    raw[1].reshape(len(raw[1]), -1)[:, 64 * 128 + 3 * 4 :] = 0xFF  # NaN scales behind the length
    raw[1].reshape(len(raw[1]), -1)[:, 3 * 128 : 64 * 128] = 0xFF
    assert np.isfinite(paged_mqa_logits(*raw, 3)).all()


def test_unclean_leaves_the_rest_alone(rng):
    args = problem(rng, [65, 0, 191])
    for _ in each_isa():
        clean = paged_mqa_logits(*args, 200)
        out = np.full_like(clean, 7.5)
        assert paged_mqa_logits(*args, 200, clean_logits=False, out=out) is out
        np.testing.assert_array_equal(out, np.where(np.isneginf(clean), 7.5, clean))


@given(st.data())
def test_select_equals_topk_of_logits(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths = data.draw(st.lists(st.integers(0, 300), max_size=5))
    next_n = data.draw(st.integers(1, 3))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    args = problem(
        rng, lengths, next_n, 2, data.draw(st.sampled_from([1, 16, 64])), layout, data.draw(st.sampled_from(DTYPES))
    )
    n = data.draw(st.sampled_from([1, 8, 64, 400]))
    rows = reference.row_lengths(args[3], next_n)
    for _ in each_isa():
        expected = topk(paged_mqa_logits(*args, 300, layout), n, rows)
        for validate in ("full", "trusted"):
            np.testing.assert_array_equal(paged_select(*args, n, layout, validate=validate), expected)


def test_long_decode_in_segments(rng):
    args = problem(rng, [20000], next_n=2, heads=2)
    rows = reference.row_lengths(args[3], 2)
    for _ in each_isa():
        expected = topk(paged_mqa_logits(*args, 20000), 256, rows)
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(paged_select(*args, 256, threads=threads), expected)


def test_row_invariant(rng):
    q, cache, weights, lens, table, size = problem(rng, [0, 65, 191, 7, 300, 128])
    for op, last in ((paged_mqa_logits, 300), (paged_select, 32)):
        assert_row_invariant(
            lambda i, threads, op=op, last=last: op(
                q[i], cache, weights[i], lens[i], table[i], size, last, threads=threads
            ),
            6,
        )


def test_two_requests_through_slots(rng):
    """Packed (ks > 0) and paged selection name the same tokens."""
    lengths, size = [150, 333], 64
    q, cache, weights, lens, table, size = problem(rng, lengths, next_n=2)
    kept = [reference.read_index_cache(cache, table[b], n, size, "index_132") for b, n in enumerate(lengths)]
    k, scale = (np.concatenate(parts) for parts in zip(*kept))
    ks, ke = np.array([0, 0, 150, 150]), np.array([149, 150, 482, 483])
    requests = np.array([0, 0, 1, 1])
    for _ in each_isa():
        packed = select(q.reshape(4, 4, 128), k, weights, ks, ke, scale, 200)
        logical = paged_select(q, cache, weights, lens, table, size, 200)
        slots = to_slots(logical, requests, table, size)
        np.testing.assert_array_equal(to_slots(packed, requests, table, size, ks), slots)
        np.testing.assert_array_equal(slots, reference.to_slots(packed, requests, table, size, ks))


def test_empty():
    cache, table = np.zeros((2, 64, 132), np.uint8), np.zeros((0, 3), np.int32)
    q, weights, lens = np.zeros((0, 2, 4, 128), FP8), np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    assert paged_mqa_logits(q, cache, weights, lens, table, 64, 10).shape == (0, 10)
    assert paged_select(q, cache, weights, lens, table, 64, 10).shape == (0, 10)
    q, weights, lens, table = np.zeros((1, 0, 4, 128), FP8), weights, np.zeros(1, np.int32), np.zeros((1, 3), np.int32)
    assert paged_mqa_logits(q, cache, weights, lens, table, 64, 10).shape == (0, 10)
    q, weights = np.zeros((1, 1, 4, 128), FP8), np.zeros((1, 4), np.float32)
    assert (paged_select(q, cache[:0], weights, lens, table[:, :0], 64, 3) == -1).all()


def cache_with_scale(value):
    cache = np.zeros((9, 64, 132), np.uint8)
    cache.reshape(9, -1)[:, 64 * 128 :].view(np.float32)[:, 5] = value
    return cache


REFUSED = [
    ({"layout": "index_133"}, ValueError, r"layout is \"index_133\", needs one of"),
    ({"layout": "bf16_576"}, ValueError, r"layout is \"bf16_576\", needs an index layout"),
    ({"layout": "index_f32"}, TypeError, r"kv_cache has dtype uint8, needs float32 for layout index_f32"),
    ({"page_size": 0}, ValueError, r"page_size is 0, needs at least 1"),
    ({"page_size": -64}, ValueError, r"page_size is -64"),
    ({"page_size": 32}, ValueError, r"kv_cache has shape \[9, 64, 132\], needs \[pages, 32, 132\]"),
    ({"page_size": 2**62}, ValueError, r"page_size overflows 64 bits"),
    ({"q": np.zeros((2, 4, 64), FP8)}, ValueError, r"q has D = 64, needs 128 for layout index_132"),
    (
        {"q": np.zeros((3, 4, 128), FP8), "weights": np.zeros((3, 4), np.float32)},
        ValueError,
        r"q has 3 rows, needs a multiple of B = 2",
    ),
    ({"q": np.zeros((1, 2, 4, 128), FP8)}, ValueError, r"q has shape \[1, 2, 4, 128\], needs \[B, next_n, Hi, D\]"),
    ({"q": np.zeros((2, 4, 128), np.float16)}, TypeError, r"q has dtype float16"),
    ({"q": np.zeros((2, 128), FP8)}, ValueError, r"q has shape \[2, 128\], needs \[T, Hi, D\] or \[B, next_n"),
    ({"q": np.zeros((2, 3, 4, 128), FP8)[:, :2]}, ValueError, r"q has leading axes that do not lie one behind"),
    ({"weights": np.zeros((2, 3), np.float32)}, ValueError, r"weights has shape \[2, 3\], needs \[T, Hi\]"),
    ({"context_lens": np.array([5, -1])}, ValueError, r"context_lens has -1 at request 1, needs 0 <= length <= 192"),
    ({"context_lens": np.array([193, 1])}, ValueError, r"context_lens has 193 at request 0, .*3 pages of 64"),
    ({"context_lens": np.array([1.0, 2.0])}, TypeError, r"context_lens has dtype float64"),
    ({"context_lens": np.array([1])}, ValueError, r"context_lens has shape \[1\], needs \[B\] or \[B, next_n\]"),
    ({"context_lens": np.ones((2, 2), int)}, ValueError, r"context_lens has shape \[2, 2\], needs \[B, next_n\]"),
    (
        {"block_table": np.array([[0, 9, 2], [3, 4, 5]])},
        IndexError,
        r"block_table has 9 at request 0, block 1, inside the request's length of 100; needs 0 <= page < 9",
    ),
    ({"block_table": np.array([[0, 1, 2], [-1, 4, 5]])}, IndexError, r"block_table has -1 at request 1, block 0"),
    ({"block_table": np.zeros((2, 3))}, TypeError, r"block_table has dtype float64"),
    ({"block_table": np.zeros(2, int)}, ValueError, r"block_table has shape \[2\], needs \[B, max_blocks\]"),
    ({"kv_cache": cache_with_scale(np.nan)}, ValueError, r"kv_cache has a scale of nan at request 0, position 5"),
    ({"kv_cache": cache_with_scale(-1)}, ValueError, r"kv_cache has a scale of -1 at request 0, position 5"),
]


@pytest.mark.parametrize("change, error, message", REFUSED, ids=[r[2][:40] for r in REFUSED])
@pytest.mark.parametrize("op, last", [(paged_mqa_logits, "max_context_len"), (paged_select, "topk")])
def test_refusals(op, last, change, error, message):
    good = {
        "q": np.zeros((2, 4, 128), FP8),
        "kv_cache": np.zeros((9, 64, 132), np.uint8),
        "weights": np.zeros((2, 4), np.float32),
        "context_lens": np.array([100, 20]),
        "block_table": np.array([[0, 1, 77], [2, -5, 99]]),
        "page_size": 64,
        last: 100,
    }
    out = np.full((2, 100), 7, np.float32 if op is paged_mqa_logits else np.int32)
    op(**good)
    with pytest.raises(error, match=rf"^{op.__name__}: " + message):
        op(**(good | change), out=out)
    assert (out == 7).all()
    op(**(good | {"kv_cache": cache_with_scale(-1)}), validate="trusted")


def test_the_longest_row_must_fit(rng):
    args = problem(rng, [65, 191])
    with pytest.raises(ValueError, match=r"max_context_len is 190, needs at least 191, the longest row"):
        paged_mqa_logits(*args, 190)
    with pytest.raises(ValueError, match=r"max_context_len is -1"):
        paged_mqa_logits(*args, -1)
    with pytest.raises(ValueError, match=r"out overflows 64 bits"):
        paged_mqa_logits(*args, 2**62)
