import re
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsespan.reference.attention as reference
from sparsespan.attention import dense_mla, sparse_mla
from sparsespan.testing import assert_row_invariant, compare_attn, each_isa

sys.path.insert(0, str(Path(__file__).parent))
from attention_cases import BF16, assert_same_bits, fp8_tokens, scatter

sys.path.pop(0)

GARBAGE = 2147480000  # what FlashMLA's tests put behind a request's last page


def requests(rng, lens, page_size, layout, spare=3):
    """A cache with the requests' tokens on random pages, NaN elsewhere; block_table with garbage past the lengths."""
    pages_of = [-(-length // page_size) for length in lens]
    pages = sum(pages_of) + spare
    table = np.full((len(lens), max([*pages_of, 1]) + 2), GARBAGE, np.int32)
    free = rng.permutation(pages)
    slots = []
    for b, (length, count) in enumerate(zip(lens, pages_of)):
        table[b, :count], free = free[:count], free[count:]
        position = np.arange(length)
        slots.append(table[b, position // page_size] * page_size + position % page_size)
    slots = np.concatenate([*slots, np.zeros(0, np.int64)]).astype(np.int64)
    raw, decoded = fp8_tokens(rng, len(slots))
    if layout == "bf16_576":
        raw = decoded.astype(BF16)
    elif layout == "f32_576":
        raw = decoded
    return scatter(raw, slots, page_size, pages), scatter(decoded, slots, page_size, pages), table


def run(q, cache, rows, lens, table, page_size, layout, **kwargs):
    return dense_mla(q, cache, rows, lens, table, page_size, 0.07, layout, **kwargs)


@pytest.mark.parametrize("heads", [1, 3, 9, 63, 64, 126, 128])
@pytest.mark.parametrize("layout", ["bf16_576", "fp8_656"])
def test_flashmla_decode_shapes(rng, heads, layout):
    lens = np.array([20, 140, 0, 333, 1, 300], np.int32)
    rows = np.array([0, 1, 1, 2, 3, 3, 3, 4, 4, 5], np.int32)  # request 4: two rows, one token; request 2: no token
    cache, decoded, table = requests(rng, lens, 64, layout)
    q = rng.standard_normal((len(rows), heads, 576)).clip(-1, 1).astype(BF16)
    want = reference.dense_mla(q, decoded, rows, lens, table, 64, 0.07)
    assert np.isneginf(want[1][3]).all() and np.isneginf(want[1][7]).all()
    for _ in each_isa():
        got = run(q, cache, rows, lens, table, 64, layout)
        compare_attn(got, want)
        assert np.isfinite(got[0].astype(np.float32)).all()


@pytest.mark.parametrize("page_size", [1, 53, 64])
def test_bitwise_sparse_mla_over_all_keys(rng, page_size):
    lens = np.array([700, 31, 290], np.int64)
    rows = np.array([2, 0, 0, 1, 0, 2, 2])  # requests interleaved; each one's rows in order
    cache, _, table = requests(rng, lens, page_size, "fp8_656")
    q = rng.standard_normal((7, 20, 576)).clip(-1, 1).astype(BF16)
    seen = [288, 698, 699, 31, 700, 289, 290]
    indices = np.full((7, 700), -1, np.int32)
    for t, (b, count) in enumerate(zip(rows, seen)):
        position = np.arange(count)
        indices[t, :count] = table[b, position // page_size] * page_size + position % page_size
    for _ in each_isa():
        want = sparse_mla(q, cache, indices, 0.07, layout="fp8_656", page_size=page_size)[:2]
        for threads in (1, 2, 5):
            assert_same_bits(run(q, cache, rows, lens, table, page_size, "fp8_656", threads=threads), want)
        parts = (np.ascontiguousarray(q[..., :512]), np.ascontiguousarray(q[..., 512:]))
        assert_same_bits(run(parts, cache, rows, lens, table, page_size, "fp8_656"), want)


@pytest.mark.parametrize("layout", ["f32_576", "bf16_576", "fp8_656"])
def test_row_invariant(rng, layout):
    lens = np.array([600, 0, 257, 256, 1000], np.int32)
    cache, _, table = requests(rng, lens, 64, layout)
    q = rng.standard_normal((5, 9, 576)).astype(BF16)

    def op(ids, threads):  # a decode batch: one row per request, in any order
        return run(q[ids], cache, np.arange(len(ids)), lens[ids], table[ids], 64, layout, threads=threads)

    assert_row_invariant(op, 5)


def test_refusals(rng):
    lens = np.array([100, 10], np.int32)
    cache, _, table = requests(rng, lens, 64, "bf16_576")
    q = np.zeros((3, 2, 576), BF16)
    rows = np.array([0, 0, 1])
    good = {"q": q, "kv_cache": cache, "row_to_request": rows, "context_lens": lens, "block_table": table,
            "page_size": 64, "sm_scale": 0.1, "layout": "bf16_576"}  # fmt: skip
    bad_page = table.copy()
    bad_page[0, 1] = 6
    for error, message, changes in [
        (IndexError, "block_table holds 6 at row 0, column 1, needs one of the 6 pages", {"block_table": bad_page}),
        (IndexError, "row_to_request holds 2 at row 1", {"row_to_request": np.array([0, 2, 1])}),
        (IndexError, "row_to_request holds -1 at row 0", {"row_to_request": np.array([-1, 0, 1])}),
        (ValueError, "context_lens is -5 for request 1", {"context_lens": np.array([100, -5])}),
        (ValueError, "context_lens is 257 for request 0, needs 0..256", {"context_lens": np.array([257, 10])}),
        (ValueError, "context_lens has shape [2, 1], needs [B]", {"context_lens": lens[:, None]}),
        (ValueError, "block_table has shape [1, 4], needs [B, pages] = [2, *]", {"block_table": table[:1]}),
        (ValueError, "row_to_request has shape [2], needs [T] = [3]", {"row_to_request": rows[:2]}),
        (TypeError, "block_table has dtype float32", {"block_table": table.astype(np.float32)}),
        (ValueError, "page_size is 0", {"page_size": 0}),
        (ValueError, 'layout is "index_132", needs a KV layout', {"layout": "index_132"}),
        (TypeError, "kv_cache has dtype bfloat16, needs float32 for layout f32_576", {"layout": "f32_576"}),
        (ValueError, "q has 512 values per head", {"q": q[..., :512]}),
        (ValueError, "q is a tuple of 1", {"q": (q,)}),
        (ValueError, "sm_scale is nan", {"sm_scale": float("nan")}),
        (ValueError, "out has shape [3, 2, 576], needs [T, H, d_v] = [3, 2, 512]", {"out": np.zeros_like(q)}),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            dense_mla(**{**good, **changes})
    out, lse = dense_mla(**{**good, "q": q[:0], "row_to_request": rows[:0]})
    assert out.shape == (0, 2, 512) and lse.shape == (0, 2)
