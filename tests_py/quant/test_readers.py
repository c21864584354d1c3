import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.quant as reference
from sparsespan.quant import (
    concat_and_cache_mla,
    convert_kv,
    gather_indexer_k,
    indexer_k_quant_and_cache,
    kv_layout,
    kv_layout_names,
    read_kv,
)
from sparsespan.testing import assert_row_invariant, each_isa

BF16 = ml_dtypes.bfloat16
F32 = np.float32
RULES = ["official", "flashmla", "sglang", "vllm"]
KV = ["f32_576", "bf16_576", "fp8_656"]
INDEX = ["index_132", "index_bf16", "index_f32"]


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def filled(rng, layout, pages, page_size, pad=0):
    """A cache with every slot written, of magnitudes all over the place; `pad` tokens of NaN bytes behind each page."""
    info = kv_layout(layout)
    whole = np.full((pages, page_size + pad, info.width), 0xFF if info.dtype == np.uint8 else np.nan, info.dtype)
    cache = whole[:, :page_size]
    slots = np.arange(pages * page_size)
    x = (rng.standard_normal((slots.size, info.dim)) * 2.0 ** rng.integers(-12, 8, (slots.size, 1))).astype(F32)
    if layout in INDEX:
        indexer_k_quant_and_cache(x, cache, slots, page_size, layout, None)
    else:
        concat_and_cache_mla(x[:, :512], x[:, 512:], cache, slots, layout, page_size, "vllm")
    return cache


@pytest.mark.parametrize("page_size", [1, 2, 53, 61, 64, 256])
@pytest.mark.parametrize("layout", KV + INDEX)
def test_read_equals_reference(rng, layout, page_size):
    pages = -(-80 // page_size)
    cache = filled(rng, layout, pages, page_size, pad=1)
    slots = rng.integers(-1, pages * page_size, (5, 9)).astype(np.int32)
    slots[0, 0], slots[4, 8] = -1, pages * page_size - 1
    for _ in each_isa():
        got = read_kv(cache, slots, layout, page_size)
        assert got.shape == (5, 9, kv_layout(layout).dim) and got.dtype == kv_layout(layout).decoded
        np.testing.assert_array_equal(bits(got), bits(reference.read_kv(cache, slots, layout, page_size)))
    assert not got[slots == -1].astype(F32).any()


@given(st.integers(0, 2**32 - 1))
def test_any_codes_and_any_scale(seed):
    """Every code (but NaN) times every finite scale, not only those that a writer makes."""
    rng = np.random.default_rng(seed)
    cache = rng.integers(0, 256, (2, 3, 656), dtype=np.uint8)
    cache[..., :512][(cache[..., :512] & 0x7F) == 0x7F] = 0
    scale = rng.integers(0, 0x7F800000, (2, 3, 4), dtype=np.uint32).view(F32)
    cache[..., 512:528] = scale.view(np.uint8)
    rope = cache[..., 528:].view(BF16)
    rope[np.isnan(rope.astype(F32))] = 0
    with np.errstate(over="ignore"):  # 448 times a large scale is beyond float32: infinity, here as there
        expected = reference.read_kv(cache, np.arange(6), "fp8_656", 3)
    np.testing.assert_array_equal(bits(read_kv(cache, np.arange(6), "fp8_656", 3)), bits(expected))


@pytest.mark.parametrize("page_size", [1, 2, 53, 64])
@pytest.mark.parametrize("layout", INDEX)
def test_gather_equals_reference(rng, layout, page_size):
    cache = filled(rng, layout, 12, page_size, pad=1)
    lengths = [0, 2 * page_size, max(1, page_size // 2), 3 * page_size, 0]  # whole, partial last page, empty
    table = np.full((5, 3), 2**31 - 1, np.int32)  # garbage wherever nothing may be read
    for b, length in enumerate(lengths):
        used = -(-length // page_size)
        table[b, :used] = rng.choice(12, used, replace=False)
    table[3, 1] = table[1, 0]  # a page that two requests share
    cu = np.concatenate([[0], np.cumsum(lengths)])
    for _ in each_isa():
        k, scale = gather_indexer_k(cache, table, cu, page_size, layout)
        expected_k, expected_scale = reference.gather_indexer_k(cache, table, cu, page_size, layout)
        assert k.dtype == kv_layout(layout).fields[0].dtype and k.shape == (cu[-1], 128)
        np.testing.assert_array_equal(bits(k), bits(expected_k))
        if layout == "index_132":
            np.testing.assert_array_equal(scale, expected_scale)
        else:
            assert scale is None


def test_gather_into_out_and_empty(rng):
    cache = filled(rng, "index_132", 3, 4)
    out = np.empty((6, 128), ml_dtypes.float8_e4m3fn), np.empty(6, F32)
    k, scale = gather_indexer_k(cache, np.array([[2, 0]]), np.array([0, 6]), 4, out=out)
    assert k is out[0] and scale is out[1]
    k, scale = gather_indexer_k(cache, np.empty((0, 3), np.int32), np.array([0]), 4)
    assert k.shape == (0, 128) and scale.shape == (0,)
    k, scale = gather_indexer_k(kv_layout("index_132").zeros(0, 4), np.empty((2, 0), int), np.zeros(3, int), 4)
    assert k.shape == (0, 128)
    plain = filled(rng, "index_bf16", 3, 4)
    out = np.empty((6, 128), BF16), None
    assert gather_indexer_k(plain, np.array([[2, 0]]), np.array([0, 6]), 4, "index_bf16", out=out)[0] is out[0]


@pytest.mark.parametrize("src", KV + INDEX)
def test_convert_equals_reference(rng, src):
    for page_size in (1, 3, 64):
        cache = filled(rng, src, 2, page_size, pad=1)
        for dst in KV if src in KV else INDEX:
            for rule in RULES if dst in ("fp8_656", "index_132") else RULES[:1]:
                got = convert_kv(cache, src, dst, scale_rule=rule)
                assert got.shape == (2, page_size, kv_layout(dst).width) and got.dtype == kv_layout(dst).dtype
                np.testing.assert_array_equal(bits(got), bits(reference.convert_kv(cache, src, dst, rule)))


def test_convert_is_read_then_write(rng):
    cache = filled(rng, "fp8_656", 3, 5)
    slots = np.arange(15)
    for dst in ("bf16_576", "f32_576"):
        got = read_kv(convert_kv(cache, "fp8_656", dst), slots, dst, 5)
        np.testing.assert_array_equal(got.astype(F32), read_kv(cache, slots, "fp8_656", 5).astype(F32))
    np.testing.assert_array_equal(convert_kv(cache, "fp8_656", "fp8_656"), cache)
    # With power-of-two scales the way out and back keeps every value (codes and scale may move by a power of two).
    once = convert_kv(convert_kv(cache, "fp8_656", "bf16_576"), "bf16_576", "fp8_656")
    twice = convert_kv(convert_kv(once, "fp8_656", "f32_576"), "f32_576", "fp8_656")
    for layout in (once, twice):
        assert (np.frexp(layout[..., 512:528].view(F32))[0] == 0.5).all()
    np.testing.assert_array_equal(*(bits(read_kv(c, slots, "fp8_656", 5)) for c in (once, twice)))
    index = filled(rng, "index_132", 3, 5)
    np.testing.assert_array_equal(
        convert_kv(index, "index_132", "index_f32").reshape(15, 128), read_kv(index, slots, "index_132", 5)
    )


def test_convert_takes_unwritten_memory(rng):
    """A page pool holds anything where nothing was written: neither refused nor allowed to look like a number."""
    cache = np.full((1, 2, 576), np.nan, F32)
    cache[0, 0] = 1
    cache[0, 1, 128:] = 2
    cache[0, 1, 300] = np.inf
    got = convert_kv(cache, "f32_576", "fp8_656")
    latent = read_kv(got, np.arange(2), "fp8_656", 2)[:, :512].astype(F32).reshape(2, 4, 128)
    assert (latent[0] == 1).all() and (latent[1, [1, 3]] == 2).all() and np.isnan(latent[1, [0, 2]]).all()
    wild = np.full((2, 2, 656), 0xFF, np.uint8)
    assert np.isnan(convert_kv(wild, "fp8_656", "f32_576")).all()


def test_convert_out_shapes_and_empty(rng):
    cache = filled(rng, "bf16_576", 3, 4)
    expected = convert_kv(cache, "bf16_576", "fp8_656")
    padded = np.full((3, 5, 656), 0xEE, np.uint8)
    out = padded[:, :4]
    assert convert_kv(cache, "bf16_576", "fp8_656", out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert (padded[:, 4] == 0xEE).all()
    for same in (cache[:, :, None], cache.reshape(3, 4 * 576)):
        np.testing.assert_array_equal(convert_kv(same, "bf16_576", "fp8_656"), expected)
    assert convert_kv(cache[:0], "bf16_576", "f32_576").shape == (0, 4, 576)


@pytest.mark.parametrize("layout", kv_layout_names())
def test_row_invariant(rng, layout):
    cache = filled(rng, layout, 7, 9)
    slots = rng.integers(-1, 63, 60)
    assert_row_invariant(lambda ids, threads: read_kv(cache, slots[ids], layout, 9, threads=threads), 60)
    if layout in INDEX:
        table = rng.permutation(7)

        def gather(ids, threads):  # each row a request of one key
            blocks, cu = table[ids % 7][:, None], np.arange(len(ids) + 1)
            k, scale = gather_indexer_k(cache, blocks, cu, 9, layout, threads=threads)
            return k if scale is None else (k, scale)

        assert_row_invariant(gather, 30)
    dst = "fp8_656" if layout in KV else "index_132"
    assert_row_invariant(lambda ids, threads: convert_kv(cache[ids], layout, dst, threads=threads), 7)


def test_read_into_out_any_shape_and_empty(rng):
    cache = filled(rng, "fp8_656", 3, 4)
    out = np.empty((2, 3, 4, 576), BF16)
    slots = rng.integers(-1, 12, (2, 3, 4))
    assert read_kv(cache, slots, "fp8_656", 4, out=out) is out
    np.testing.assert_array_equal(bits(out), bits(reference.read_kv(cache, slots, "fp8_656", 4)))
    np.testing.assert_array_equal(bits(read_kv(cache, slots[0, 0, ::2], "fp8_656", 4)), bits(out[0, 0, ::2]))
    for shape in ((0,), (0, 3), (3, 0), (2, 0, 3)):
        assert read_kv(cache, np.empty(shape, np.int32), "fp8_656", 4).shape == (*shape, 576)
    assert not read_kv(cache[:0], np.array([-1]), "fp8_656", 4).astype(F32).any()
