"""Every refusal of the cache ops says what is wrong, and leaves the cache as it was."""

import ml_dtypes
import numpy as np
import pytest

from sparsespan.quant import (
    concat_and_cache_mla,
    convert_kv,
    gather_indexer_k,
    indexer_k_quant_and_cache,
    kv_layout,
    read_kv,
)

BF16 = ml_dtypes.bfloat16
E4M3 = ml_dtypes.float8_e4m3fn
F32 = np.float32


def refused(error, match, op, *args, **kwargs):
    """The refusal, and no byte of any array changed."""
    arrays = [a for a in (*args, *kwargs.values()) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    with pytest.raises(error, match=match):
        op(*args, **kwargs)
    assert [a.tobytes() for a in arrays] == before


@pytest.fixture
def rows(rng):
    return rng.standard_normal((40, 512)).astype(F32), rng.standard_normal((40, 64)).astype(F32)


@pytest.fixture
def cache():
    return np.full((6, 8, 656), 0xEE, np.uint8)


@pytest.mark.parametrize("bad", [-2, 48, 2**40, -(2**62)])
def test_slots_outside(rows, cache, bad):
    slots = np.arange(40)
    slots[[35, 38]] = bad
    match = rf"slot_mapping is {bad} in row 35, needs -1 \(skip the row\) or a slot in \[0, 48\)"
    refused(IndexError, match, concat_and_cache_mla, *rows, cache, slots, "fp8_656", 8)
    index = np.full((6, 8, 132), 0xEE, np.uint8)
    refused(IndexError, match, indexer_k_quant_and_cache, rows[0][:, :128], index, slots, 8)


def test_slots_named_twice(rows, cache):
    slots = np.arange(40)[::-1].astype(np.int32)
    slots[[30, 39]] = slots[4]
    slots[[1, 2]] = -1  # more than one -1 is nothing twice
    match = r"slot_mapping names slot 35 in rows 4 and 30, needs each slot once"
    refused(ValueError, match, concat_and_cache_mla, *rows, cache, slots, "fp8_656", 8)
    index = np.full((6, 8, 132), 0xEE, np.uint8)
    refused(ValueError, match, indexer_k_quant_and_cache, rows[0][:, :128], index, slots, 8)
    slots[[6, 7]] = slots[8], slots[5]  # row 7 is the first that repeats an earlier one
    slots[30] = 47
    match = rf"names slot {slots[5]} in rows 5 and 7"
    refused(ValueError, match, concat_and_cache_mla, *rows, cache, slots, "fp8_656", 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_values_without_a_scale(rows, cache, bad, dtype):
    c_kv, k_pe = (r.astype(dtype) for r in rows)
    c_kv[3, 7] = c_kv[37, 511] = bad
    slots = np.arange(40)
    slots[3] = -1
    match = rf"c_kv has {bad} in row 37, column 511, needs finite values"
    refused(ValueError, match, concat_and_cache_mla, c_kv, k_pe, cache, slots, "fp8_656", 8)
    k = np.ascontiguousarray(c_kv[:, 384:])
    index = np.full((6, 8, 132), 0xEE, np.uint8)
    refused(ValueError, rf"k has {bad} in row 37, column 127", indexer_k_quant_and_cache, k, index, slots, 8)
    plain = kv_layout("bf16_576").zeros(6, 8)  # no scale: stored as it comes
    concat_and_cache_mla(c_kv, k_pe, plain, slots, "bf16_576", 8)
    assert not np.isfinite(plain[37 // 8, 37 % 8, 511].astype(F32))


def test_writer_shapes_and_dtypes(rows, cache):
    c_kv, k_pe = rows
    slots = np.arange(40)

    def writer(error, match, c=c_kv, k=k_pe, into=cache, s=slots, layout="fp8_656", page_size=8, rule="official"):
        refused(error, match, concat_and_cache_mla, c, k, into, s, layout, page_size, rule)

    writer(TypeError, r"c_kv has dtype float16, needs float32 or bfloat16", c=c_kv.astype(np.float16))
    writer(TypeError, r"k_pe has dtype float64", k=k_pe.astype(np.float64))
    writer(ValueError, r"c_kv has shape \[40, 511\], needs \[T, 512\] = \[40, 512\]", c=c_kv[:, :511].copy())
    writer(ValueError, r"k_pe has shape \[39, 64\], needs \[T, 64\] = \[40, 64\]", k=k_pe[:39])
    writer(ValueError, r"c_kv has a strided last axis", c=np.zeros((40, 1024), F32)[:, ::2])
    writer(TypeError, r"slot_mapping has dtype float32, needs int32 or int64", s=slots.astype(F32))
    writer(ValueError, r"slot_mapping has shape \[40, 1\], needs \[T\]", s=slots[:, None])
    writer(ValueError, r'layout is "index_132", which holds index keys, needs a layout of latent', layout="index_132")
    writer(ValueError, r'layout is "fp8_584", needs one of f32_576', layout="fp8_584")
    writer(ValueError, r'scale_rule is "deepseek", needs "official", "flashmla", "sglang" or "vllm"', rule="deepseek")
    writer(ValueError, r"page_size is 0, needs at least 1", page_size=0)
    writer(ValueError, r"page_size is -8, needs at least 1", page_size=-8)
    writer(ValueError, r"page_size overflows 64 bits", page_size=2**60)
    writer(ValueError, r"cache has shape \[6, 8, 656\], needs \[pages, 4, 656\]", page_size=4)
    writer(TypeError, r"cache has dtype float32, needs uint8 for layout fp8_656", into=np.zeros((6, 8, 656), F32))
    writer(ValueError, r"cache has tokens that do not lie one behind", into=np.zeros((6, 16, 656), np.uint8)[:, ::2])
    read_only = cache.copy()
    read_only.flags.writeable = False
    writer(ValueError, r"cache is read-only", into=read_only)
    shared = np.zeros((6, 8, 576), F32)
    flat = shared.reshape(48, 576)
    writer(ValueError, r"cache shares memory with an input", c=flat[:40, :512], into=shared, layout="f32_576")


def test_index_writer_shapes_and_dtypes(rng):
    k, slots = rng.standard_normal((3, 128)).astype(F32), np.arange(3)
    cache = np.full((2, 4, 132), 0xEE, np.uint8)

    def writer(error, match, k=k, into=cache, s=slots, page_size=4, **kwargs):
        refused(error, match, indexer_k_quant_and_cache, k, into, s, page_size, **kwargs)

    writer(ValueError, r"k has shape \[3, 64\], needs \[T, 128\]", k=k[:, :64].copy())
    writer(TypeError, r"k has dtype float8_e4m3fn, needs float32 or bfloat16", k=k.astype(E4M3))
    writer(ValueError, r'layout is "fp8_656", which holds latent and rope, needs a layout of index', layout="fp8_656")
    writer(ValueError, r'scale_fmt is "fp32", needs None \(float32 scales\) or "ue8m0"', scale_fmt="fp32")
    writer(ValueError, r"cache has shape \[2, 4, 132\], needs \[pages, 2, 132\]", page_size=2)
    writer(ValueError, r"threads is -1", threads=-1)


def test_read_kv():
    cache = kv_layout("fp8_656").zeros(3, 4)
    good = np.array([0, -1, 11])

    def reader(error, match, slots=good, into=cache, layout="fp8_656", page_size=4, **kwargs):
        refused(error, match, read_kv, into, slots, layout, page_size, **kwargs)

    reader(IndexError, r"slots\[2\] is 12, needs -1 \(a row of zeros\) or a slot in \[0, 12\)", np.array([0, 1, 12]))
    reader(IndexError, r"slots\[1, 0\] is -2", np.array([[0, 1], [-2, 99]], np.int32))
    reader(IndexError, r"slots\[0\] is 0, needs .* \[0, 0\)", into=cache[:0])
    reader(TypeError, r"slots has dtype float64", np.array([0.0]))
    reader(TypeError, r"slots is a list", [0])
    reader(ValueError, r"cache has shape \[3, 4, 656\], needs \[pages, 5, 656\]", page_size=5)
    reader(TypeError, r"cache has dtype uint8, needs bfloat16 for layout bf16_576", layout="bf16_576")
    reader(
        ValueError,
        r"out has shape \[2, 576\], needs \[number of slots, dim\] = \[3, 576\]",
        out=np.zeros((2, 576), BF16),
    )
    reader(TypeError, r"out has dtype float32, needs bfloat16", out=np.zeros((3, 576), F32))
    for bad in (np.nan, np.inf, -1.0):
        cache[2, 3, 520:524] = np.array([bad], F32).view(np.uint8)
        reader(ValueError, rf"cache has a scale of {bad:g} in slot 11, tile 2, needs finite scales >= 0")
        assert read_kv(cache, good, "fp8_656", 4, validate="trusted").shape == (3, 576)
        assert read_kv(cache, good[:2], "fp8_656", 4).shape == (2, 576)  # not asked for: not looked at
    index = kv_layout("index_132").zeros(1, 2)
    index[0, 1, 128:] = 0xFF
    reader(ValueError, r"cache has a scale of -?nan in slot 1, tile 0", np.array([1]), index, "index_132", 2)


def test_gather_indexer_k():
    cache = kv_layout("index_132").zeros(3, 4)
    table, cu = np.array([[0, 9], [2, 1]]), np.array([0, 4, 10])

    def gather(error, match, into=cache, t=table, c=cu, page_size=4, layout="index_132", **kwargs):
        refused(error, match, gather_indexer_k, into, t, c, page_size, layout, **kwargs)

    gather(
        IndexError,
        r"block_table is 9 in row 0, column 1, within the request's length; .* \[0, 3\)",
        c=cu + np.array([0, 1, 1]),
    )
    gather(IndexError, r"block_table is -1 in row 1, column 1", t=np.array([[0, 9], [2, -1]], np.int32))
    gather(ValueError, r"cu_seq_lens starts with 1, needs 0", c=cu + 1)
    gather(ValueError, r"cu_seq_lens falls from 4 to 3 at request 1", c=np.array([0, 4, 3]))
    gather(ValueError, r"cu_seq_lens gives request 1 9 keys, needs at most the 8 that its row", c=np.array([0, 4, 13]))
    gather(ValueError, r"cu_seq_lens has shape \[2\], needs \[B \+ 1\] = \[3\]", c=cu[:2])
    gather(TypeError, r"cu_seq_lens has dtype float32", c=cu.astype(F32))
    gather(ValueError, r"block_table has shape \[2\], needs \[B, max_blocks\]", t=table[0])
    gather(ValueError, r'layout is "fp8_656", which holds latent', layout="fp8_656")
    gather(TypeError, r"cache has dtype uint8, needs bfloat16", layout="index_bf16")
    gather(ValueError, r"page_size is 0", page_size=0)
    k, scale = np.zeros((10, 128), E4M3), np.zeros(10, F32)
    gather(ValueError, r"k has shape \[9, 128\], needs \[S, 128\] = \[10, 128\]", out=(k[:9], scale))
    gather(ValueError, r"scale has shape \[9\], needs \[S\] = \[10\]", out=(k, scale[:9]))
    gather(TypeError, r"out needs a tuple of two arrays", out=k)
    plain = kv_layout("index_bf16").zeros(3, 4)
    out = k.astype(BF16), scale
    gather(
        ValueError, r"scale is given, needs None: layout index_bf16 has no", into=plain, layout="index_bf16", out=out
    )


def test_convert_kv():
    cache = kv_layout("bf16_576").zeros(3, 4)

    def convert(error, match, into=cache, src="bf16_576", dst="fp8_656", **kwargs):
        refused(error, match, convert_kv, into, src, dst, **kwargs)

    convert(ValueError, r'dst is "index_132" while src is "bf16_576", needs both', dst="index_132")
    convert(ValueError, r'src is "bf16", needs one of', src="bf16")
    convert(TypeError, r"cache has dtype bfloat16, needs float32 for layout f32_576", src="f32_576")
    convert(ValueError, r"cache has shape \[3, 5\], needs \[pages, page_size, 576\]", into=np.zeros((3, 5), BF16))
    convert(ValueError, r'scale_rule is "x", needs', scale_rule="x")
    out = kv_layout("fp8_656").zeros(3, 5)
    convert(ValueError, r"out has shape \[3, 5, 656\], needs \[pages, 4, 656\]", out=out)
    convert(ValueError, r"out has 2 pages, needs the 3 of cache", out=kv_layout("fp8_656").zeros(2, 4))
    convert(ValueError, r"out shares memory with an input", dst="bf16_576", out=cache)
