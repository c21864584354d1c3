"""The byte maps, written down by hand once more."""

import ml_dtypes
import numpy as np
import pytest

from sparsespan.quant import (
    concat_and_cache_mla,
    indexer_k_quant_and_cache,
    kv_layout,
    kv_layout_names,
    read_kv,
)

BF16 = ml_dtypes.bfloat16
F32 = np.float32

# name: (bytes per token, dtype, width, dim, decoded, fields (name, dtype, count, offset, page_tail))
EXPECTED = {
    "f32_576": (2304, "float32", 576, 576, "float32",
                [("latent", "float32", 512, 0, False), ("rope", "float32", 64, 2048, False)]),
    "bf16_576": (1152, "bfloat16", 576, 576, "bfloat16",
                 [("latent", "bfloat16", 512, 0, False), ("rope", "bfloat16", 64, 1024, False)]),
    "fp8_656": (656, "uint8", 656, 576, "bfloat16",
                [("latent", "float8_e4m3fn", 512, 0, False), ("scale", "float32", 4, 512, False),
                 ("rope", "bfloat16", 64, 528, False)]),
    "index_132": (132, "uint8", 132, 128, "float32",
                  [("key", "float8_e4m3fn", 128, 0, False), ("scale", "float32", 1, 0, True)]),
    "index_bf16": (256, "bfloat16", 128, 128, "bfloat16", [("key", "bfloat16", 128, 0, False)]),
    "index_f32": (512, "float32", 128, 128, "float32", [("key", "float32", 128, 0, False)]),
}  # fmt: skip


def test_the_table():
    assert set(kv_layout_names()) == set(EXPECTED)
    for name, (nbytes, dtype, width, dim, decoded, fields) in EXPECTED.items():
        layout = kv_layout(name)
        assert (layout.name, layout.bytes_per_token, layout.width, layout.dim) == (name, nbytes, width, dim)
        assert (layout.dtype.name, layout.decoded.name) == (dtype, decoded)
        assert [(f.name, f.dtype.name, f.count, f.offset, f.page_tail) for f in layout.fields] == fields
        assert sum(f.nbytes for f in layout.fields) == nbytes == layout.width * layout.dtype.itemsize
        assert layout.zeros(3, 5).shape == (3, 5, width) and layout.zeros(3, 5).dtype == layout.dtype
        assert layout == kv_layout(name)


def test_repr_is_the_byte_map():
    text = repr(kv_layout("index_132"))
    assert "132 bytes per token in uint8 [pages, page_size, 132], decodes to 128 float32" in text
    assert "key: 128 float8_e4m3fn at 0..128" in text
    assert "scale: 1 float32 at page_size * token_stride + 4 * offset_in_page" in text
    assert kv_layout("index_132").token_stride == 128


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r'name is "fp8_657", needs one of f32_576, bf16_576, fp8_656, index_132'):
        kv_layout("fp8_657")


def token():
    """Values whose fp8 codes are easy to write down: 448 in each tile makes the scale a power of two."""
    latent = np.zeros((1, 512), F32)
    latent[0, [0, 1, 2, 3]] = [448, -1, 2.0**-9, 3 * 2.0**-9]
    latent[0, [128, 129]] = [448 * 8, 8]
    latent[0, 384] = 448 * 2.0**-13
    rope = np.arange(64, dtype=F32)[None] - 7
    return latent, rope


@pytest.mark.parametrize("page_size, slot", [(1, 2), (2, 3), (61, 100)])
def test_fp8_656_bytes(page_size, slot):
    latent, rope = token()
    cache = np.full((4, page_size, 656), 0xEE, np.uint8)
    concat_and_cache_mla(latent, rope, cache, np.array([slot]), "fp8_656", page_size)
    expected = np.full((4 * page_size, 656), 0xEE, np.uint8)
    expected[slot, :512] = 0
    expected[slot, [0, 1, 2, 3]] = [0x7E, 0xB8, 0x01, 0x03]
    expected[slot, [128, 129]] = [0x7E, 0x38]
    expected[slot, 384] = 0x7E
    expected[slot, 512:528] = np.array([1, 8, 2.0**-22, 2.0**-13], "<f4").view(np.uint8)  # tile 2 is zero: the floor
    expected[slot, 528:] = (np.ascontiguousarray(rope[0]).view("<u4") >> 16).astype("<u2").view(np.uint8)
    np.testing.assert_array_equal(cache.reshape(-1, 656), expected)


@pytest.mark.parametrize("page_size, slot", [(1, 2), (2, 3), (61, 100)])
def test_index_132_bytes(page_size, slot):
    k = np.zeros((1, 128), F32)
    k[0, [0, 1, 127]] = [448 * 4, -4, 12]
    cache = np.full((4, page_size, 132), 0xEE, np.uint8)
    indexer_k_quant_and_cache(k, cache, np.array([slot]), page_size)
    page, offset = divmod(slot, page_size)
    expected = np.full((4, page_size * 132), 0xEE, np.uint8)
    expected[page, offset * 128 : offset * 128 + 128] = 0
    expected[page, offset * 128 + np.array([0, 1, 127])] = [0x7E, 0xB8, 0x44]
    tail = page_size * 128 + offset * 4
    expected[page, tail : tail + 4] = np.array([4], "<f4").view(np.uint8)
    np.testing.assert_array_equal(cache.reshape(4, -1), expected)


@pytest.mark.parametrize("name", ["f32_576", "bf16_576"])
def test_plain_kv_bytes(name):
    latent, rope = token()
    cache = np.full((2, 3, 576), 9, kv_layout(name).dtype)
    concat_and_cache_mla(latent.astype(BF16), rope, cache, np.array([4]), name, 3)
    expected = np.full((6, 576), 9, kv_layout(name).dtype)
    expected[4] = np.concatenate([latent[0].astype(BF16).astype(F32), rope[0]])
    np.testing.assert_array_equal(cache.reshape(6, 576), expected)


@pytest.mark.parametrize("name", ["index_f32", "index_bf16"])
def test_plain_index_bytes(name):
    k = np.linspace(-3, 3, 128, dtype=F32)[None]
    cache = np.full((2, 3, 128), 9, kv_layout(name).dtype)
    indexer_k_quant_and_cache(k, cache, np.array([1]), 3, name)
    expected = np.full((6, 128), 9, kv_layout(name).dtype)
    expected[1] = k[0]
    np.testing.assert_array_equal(cache.reshape(6, 128), expected)


@pytest.mark.parametrize("name", EXPECTED)
def test_cache_shapes_and_byte_views(rng, name):
    """[pages, page_size, width], a head axis of 1, both axes in one, padded pages, int8 and fp8 views: one memory."""
    layout = kv_layout(name)
    padded = np.zeros((4, 6, layout.width), layout.dtype)
    cache = padded[:, :5]
    values = rng.standard_normal((3, layout.dim)).astype(F32)
    slots = np.array([19, 0, 7])
    if layout.dim == 128:
        indexer_k_quant_and_cache(values, cache, slots, 5, name)
    else:
        concat_and_cache_mla(values[:, :512], values[:, 512:], cache, slots, name, 5)
    assert not padded[:, 5].view(np.uint8).any()
    expected = read_kv(cache, slots, name, 5).astype(F32)
    assert np.abs(expected - values).max() < 0.3
    views = [cache[:, :, None], padded.reshape(4, -1)[:, : 5 * layout.width], cache.copy()]
    if layout.dtype == np.uint8:
        views += [padded.view(np.int8)[:, :5], padded.view(ml_dtypes.float8_e4m3fn)[:, :5]]
    for view in views:
        np.testing.assert_array_equal(read_kv(view, slots, name, 5).astype(F32), expected)
