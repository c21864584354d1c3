import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.quant as reference
from sparsespan.quant import (
    act_quant,
    concat_and_cache_mla,
    gather_indexer_k,
    indexer_k_quant_and_cache,
    kv_layout,
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


def rows_of(rng, rows, dim, dtype=F32):
    """Tiles at scales of their own, some of them zero."""
    x = rng.standard_normal((rows, dim // 64, 64)) * 2.0 ** rng.integers(-40, 20, (rows, dim // 64, 1))
    x *= rng.random((rows, dim // 64, 1)) < 0.9
    return x.reshape(rows, dim).astype(dtype)


@pytest.mark.parametrize("page_size", [1, 2, 53, 61, 64, 256])
@pytest.mark.parametrize("layout", KV)
def test_kv_bytes_and_values_equal_the_reference(rng, layout, page_size):
    pages, rows = 5, 40
    pages = max(pages, -(-rows // page_size) + 1)
    c_kv, k_pe = rows_of(rng, rows, 512), rows_of(rng, rows, 64)
    slots = rng.choice(pages * page_size, rows, replace=False)
    slots[3] = -1
    for rule in RULES if layout == "fp8_656" else RULES[:1]:
        for dtype in (F32, BF16):
            for _ in each_isa():
                cache, expected = kv_layout(layout).zeros(pages, page_size), kv_layout(layout).zeros(pages, page_size)
                concat_and_cache_mla(c_kv.astype(dtype), k_pe.astype(dtype), cache, slots, layout, page_size, rule)
                reference.concat_and_cache_mla(
                    c_kv.astype(dtype), k_pe.astype(dtype), expected, slots, layout, page_size, rule
                )
                np.testing.assert_array_equal(bits(cache), bits(expected))
                got = read_kv(cache, slots, layout, page_size)
                np.testing.assert_array_equal(bits(got), bits(reference.read_kv(expected, slots, layout, page_size)))


@pytest.mark.parametrize("page_size", [1, 2, 53, 64])
@pytest.mark.parametrize("layout", INDEX)
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_index_bytes_equal_the_reference(rng, layout, page_size, scale_fmt):
    k = rows_of(rng, 30, 128)
    slots = rng.choice(90 // page_size * page_size, 30, replace=False).astype(np.int32)
    slots[[4, 11]] = -1
    cache, expected = (kv_layout(layout).zeros(90 // page_size, page_size) for _ in range(2))
    indexer_k_quant_and_cache(k, cache, slots, page_size, layout, scale_fmt)
    reference.indexer_k_quant_and_cache(k, expected, slots, page_size, layout, scale_fmt)
    np.testing.assert_array_equal(bits(cache), bits(expected))


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_index_132_holds_act_quant(rng, scale_fmt):
    k = rows_of(rng, 100, 128, BF16)
    cache = kv_layout("index_132").zeros(2, 64)
    indexer_k_quant_and_cache(k, cache, np.arange(100), 64, scale_fmt=scale_fmt)
    got, scale = gather_indexer_k(cache, np.array([[0, 1]]), np.array([0, 100]), 64)
    y, s = act_quant(k, 128, scale_fmt)
    np.testing.assert_array_equal(bits(got), bits(y))
    np.testing.assert_array_equal(scale, s[:, 0])


@pytest.mark.parametrize("rule", RULES)
def test_a_zero_tile_gives_zeros_and_a_finite_scale(rule):
    c_kv = np.zeros((1, 512), F32)
    c_kv[0, 128:256] = np.finfo(F32).smallest_subnormal  # amax / 448 underflows to 0
    cache = kv_layout("fp8_656").zeros(1, 1)
    concat_and_cache_mla(c_kv, np.zeros((1, 64), F32), cache, np.array([0]), "fp8_656", 1, rule)
    scale = cache[0, 0, 512:528].view(F32)
    expected = {"official": 2.0**-22, "flashmla": 2.0**-13, "sglang": 2.0**-126, "vllm": 2.0**-126}[rule]
    assert scale.tolist() == [expected] * 4
    assert not read_kv(cache, np.array([0]), "fp8_656", 1).astype(F32).any()


@pytest.mark.parametrize("k", [-9, 0, 9])
def test_scale_rules_around_a_power_of_two(k):
    on = F32(448 * 2.0**k)
    for amax, step in ((on, 0), (np.nextafter(on, F32(1e9)), 1), (np.nextafter(on, F32(0)), 0)):
        c_kv = np.full((1, 512), amax, F32)
        for rule in RULES:
            cache = kv_layout("fp8_656").zeros(1, 1)
            concat_and_cache_mla(c_kv, np.zeros((1, 64), F32), cache, np.array([0]), "fp8_656", 1, rule)
            power_of_two = rule in ("official", "flashmla")
            expected = 2.0 ** (k + step) if power_of_two else float(amax / F32(448))
            assert cache[0, 0, 512:528].view(F32).tolist() == [expected] * 4
            code = 0x76 if power_of_two and step else 0x7E  # 224 or 448
            assert (cache[0, 0, :512] == code).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(RULES))
def test_any_finite_bits_and_error_bound(seed, rule):
    rng = np.random.default_rng(seed)
    u = rng.integers(0, 2**32, (2, 512), dtype=np.uint32)
    u = np.where(rng.random((2, 4, 1)) < 0.5, u.reshape(2, 4, 128) & 0x807FFFFF, u.reshape(2, 4, 128)).reshape(2, 512)
    c_kv = np.where((u & 0x7F800000) == 0x7F800000, 0, u).astype(np.uint32).view(F32)
    k_pe = np.zeros((2, 64), F32)
    cache, expected = kv_layout("fp8_656").zeros(2, 2), kv_layout("fp8_656").zeros(2, 2)
    concat_and_cache_mla(c_kv, k_pe, cache, np.array([2, 1]), "fp8_656", 2, rule)
    reference.concat_and_cache_mla(c_kv, k_pe, expected, np.array([2, 1]), "fp8_656", 2, rule)
    np.testing.assert_array_equal(cache, expected)


@pytest.mark.parametrize("rule", RULES)
def test_round_trip_error(rng, rule):
    c_kv = (rng.standard_normal((64, 512)) * 3).astype(F32)
    k_pe = rng.standard_normal((64, 64)).astype(F32)
    for layout in KV:
        cache = kv_layout(layout).zeros(1, 64)
        concat_and_cache_mla(c_kv, k_pe, cache, np.arange(64), layout, 64, rule)
        got = read_kv(cache, np.arange(64), layout, 64).astype(np.float64)
        # Half a step is 2^-8 of the value in bfloat16. In e4m3 it is 2^-4, or 2^-10 of a scale that is at most twice
        # amax / 448; bfloat16's rounding comes on top (2^-12: the product of the two).
        np.testing.assert_allclose(got[:, 512:], k_pe, rtol=0 if layout == "f32_576" else 2.0**-8)
        amax = np.abs(c_kv.reshape(64, 4, 128)).max(-1).repeat(128, -1)
        rtol, atol = {"f32_576": (0, 0), "bf16_576": (2.0**-8, 0)}.get(
            layout, (2.0**-4 + 2.0**-8 + 2.0**-12, 2.0**-9 / 448)
        )
        assert (np.abs(got[:, :512] - c_kv) <= np.abs(c_kv) * rtol + amax * atol).all()


def test_row_invariant(rng):
    c_kv, k_pe = rows_of(rng, 70, 512, BF16), rows_of(rng, 70, 64, BF16)

    def op(ids, threads):
        cache = kv_layout("fp8_656").zeros(40, 4)
        slots = np.arange(len(ids))[::-1].copy()
        concat_and_cache_mla(c_kv[ids], k_pe[ids], cache, slots, "fp8_656", 4, "vllm", threads=threads)
        index = kv_layout("index_132").zeros(40, 4)
        indexer_k_quant_and_cache(c_kv[ids, :128], index, slots, 4, threads=threads)
        return cache.reshape(160, 656)[slots], read_kv(index, slots, "index_132", 4, threads=threads)

    assert_row_invariant(op, 70)


def test_minus_one_rows_are_skipped_and_not_read(rng):
    c_kv, k_pe = rows_of(rng, 6, 512), rows_of(rng, 6, 64)
    c_kv[[1, 5]] = np.nan
    cache = np.full((2, 4, 656), 0xEE, np.uint8)
    concat_and_cache_mla(c_kv, k_pe, cache, np.array([0, -1, 3, 4, 6, -1]), "fp8_656", 4)
    untouched = cache.reshape(8, 656)[[1, 2, 5, 7]]  # 7: the last row, where -1 would wrap to
    assert (untouched == 0xEE).all()
    k = np.full((2, 128), np.nan, F32)
    index = np.full((1, 4, 132), 0xEE, np.uint8)
    indexer_k_quant_and_cache(k, index, np.array([-1, -1]), 4)
    assert (index == 0xEE).all()


def test_rows_of_any_leading_shape_and_empty(rng):
    c_kv, k_pe = rows_of(rng, 6, 512), rows_of(rng, 6, 64)
    caches = [kv_layout("fp8_656").zeros(2, 4) for _ in range(2)]
    concat_and_cache_mla(c_kv, k_pe, caches[0], np.arange(6), "fp8_656", 4)
    concat_and_cache_mla(c_kv.reshape(2, 3, 512), k_pe[:, None], caches[1], np.arange(6), "fp8_656", 4)
    np.testing.assert_array_equal(*caches)
    wide = np.zeros((6, 576), F32)
    wide[:, :512], wide[:, 512:] = c_kv, k_pe
    concat_and_cache_mla(wide[:, :512], wide[:, 512:], caches[1], np.arange(6)[::1], "fp8_656", 4)
    np.testing.assert_array_equal(*caches)
    for pages in (0, 2):
        cache = kv_layout("bf16_576").zeros(pages, 4)
        concat_and_cache_mla(c_kv[:0], k_pe[:0], cache, np.empty(0, np.int64), "bf16_576", 4)
        indexer_k_quant_and_cache(np.empty((0, 128), F32), kv_layout("index_132").zeros(pages, 4), np.empty(0, int), 4)
        assert not cache.astype(F32).any()


def test_trusted_skips_the_data_only(rng):
    c_kv, k_pe = rows_of(rng, 2, 512), rows_of(rng, 2, 64)
    c_kv[1, 130] = np.inf
    cache = kv_layout("fp8_656").zeros(1, 2)
    concat_and_cache_mla(c_kv, k_pe, cache, np.arange(2), "fp8_656", 2, validate="trusted")
    assert (cache[0, 1, 128:256] == 0x7F).all() and cache[0, 1, 512:528].view(F32)[1] == 1
    with pytest.raises(ValueError, match=r"k_pe has shape \[1, 64\]"):
        concat_and_cache_mla(c_kv, k_pe[:1], cache, np.arange(2), "fp8_656", 2, validate="trusted")
    again = kv_layout("fp8_656").zeros(1, 2)
    reference.concat_and_cache_mla(c_kv, k_pe, again, np.arange(2), "fp8_656", 2)
    np.testing.assert_array_equal(cache, again)


@pytest.mark.peer
@pytest.mark.parametrize("rule", ["official", "flashmla", "sglang", "vllm"])
def test_scale_rules_equal_their_torch_expressions(rng, rule):
    torch = pytest.importorskip("torch")
    c_kv = torch.from_numpy(
        rng.standard_normal((20, 512)).astype(F32) * 2.0 ** rng.integers(-20, 8, (20, 1))
    ).bfloat16()
    k_pe = torch.from_numpy(rng.standard_normal((20, 64)).astype(F32)).bfloat16()
    cache = torch.zeros(5, 4, 656, dtype=torch.uint8)
    concat_and_cache_mla(c_kv, k_pe, cache, torch.arange(20), "fp8_656", 4, rule)
    tiles = c_kv.float().view(20, 4, 128)
    amax = tiles.abs().amax(-1)
    scale = {
        "official": lambda: (amax.clamp_min(1e-4) / 448).log2().ceil().exp2(),
        "flashmla": lambda: (amax / 448).clamp_min(1e-4).log2().ceil().exp2(),
        "sglang": lambda: amax / 448,
        "vllm": lambda: (amax / 448).clamp_min(torch.finfo(torch.float32).tiny),
    }[rule]()
    codes = (tiles / scale[..., None]).clamp(-448, 448).to(torch.float8_e4m3fn).view(20, 512)
    tokens = cache.view(20, 656)
    assert torch.equal(tokens[:, 512:528].contiguous().view(torch.float32), scale)
    assert torch.equal(tokens[:, :512], codes.view(torch.uint8))
    assert torch.equal(tokens[:, 528:].contiguous().view(torch.bfloat16), k_pe)
    expected = (codes.float().view(20, 4, 128) * scale[..., None]).bfloat16().view(20, 512)
    got = read_kv(cache, torch.arange(20), "fp8_656", 4)
    assert got.dtype == torch.bfloat16 and torch.equal(got[:, :512], expected) and torch.equal(got[:, 512:], k_pe)
