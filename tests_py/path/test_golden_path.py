"""The whole way of one layer's DSA: two requests with ks > 0, select -> to_slots -> sparse_mla, paged equals packed."""

import ml_dtypes
import numpy as np
import pytest

from sparsespan import attention, indexer, quant
from sparsespan.testing import each_isa

BF16 = ml_dtypes.bfloat16
PAGE = 16
LENGTHS = (45, 83)
TOPK = 24
SCALE = 0.1352337789


def build(rng, layout):
    """Two requests packed one behind the other; the same keys in a paged cache with shuffled pages."""
    total = sum(LENGTHS)
    starts = np.array([0, LENGTHS[0]])
    latent = rng.standard_normal((total, 512)).astype(BF16)
    rope = rng.standard_normal((total, 64)).astype(BF16)
    index_k = rng.standard_normal((total, 128)).astype(BF16)
    pages_each = [-(-n // PAGE) for n in LENGTHS]
    order = rng.permutation(sum(pages_each) + 3)
    table = np.full((2, max(pages_each)), 2147480000, np.int32)  # garbage past each length
    table[0, : pages_each[0]] = order[: pages_each[0]]
    table[1, : pages_each[1]] = order[pages_each[0] : sum(pages_each)]
    slots = np.concatenate(
        [table[b, np.arange(n) // PAGE].astype(np.int64) * PAGE + np.arange(n) % PAGE for b, n in enumerate(LENGTHS)]
    )
    shape = {"fp8_656": (np.uint8, 656), "bf16_576": (BF16, 576), "f32_576": (np.float32, 576)}[layout]
    kv = np.zeros((len(order), PAGE, shape[1]), shape[0])
    quant.concat_and_cache_mla(latent, rope, kv, slots, layout, PAGE)
    index_cache = np.zeros((len(order), PAGE, 132), np.uint8)
    quant.indexer_k_quant_and_cache(index_k, index_cache, slots, PAGE, "index_132")
    return starts, table, slots, kv, index_cache


@pytest.mark.parametrize("layout", ["fp8_656", "bf16_576", "f32_576"])
def test_paged_path_equals_packed_path(rng, layout):
    starts, table, slots, kv, index_cache = build(rng, layout)
    rows = np.repeat([0, 1], LENGTHS)
    position = np.concatenate([np.arange(n) for n in LENGTHS])
    ks = starts[rows].astype(np.int32)
    ke = (starts[rows] + position + 1).astype(np.int32)
    q, q_scale = quant.act_quant(rng.standard_normal((len(rows), 64, 128)).astype(BF16), scale_fmt="ue8m0")
    weights = (rng.standard_normal((len(rows), 64)) * q_scale.reshape(len(rows), 64)).astype(np.float32)
    heads = rng.standard_normal((len(rows), 8, 576)).astype(BF16)
    cu = np.array([0, LENGTHS[0], sum(LENGTHS)])
    for _ in each_isa():
        k, k_scale = quant.gather_indexer_k(index_cache, table, cu, PAGE, "index_132")
        packed = indexer.select(q, k, weights, ks, ke, k_scale=k_scale, topk=TOPK)
        assert ((packed[rows == 1] == -1) | (packed[rows == 1] >= LENGTHS[0])).all()
        in_slots = indexer.to_slots(packed, rows, table, PAGE, ks=ks)
        paged = attention.sparse_mla(heads, kv, in_slots, SCALE, layout=layout, page_size=PAGE)
        flat = quant.read_kv(kv, slots, layout, PAGE)
        expected = attention.sparse_mla(heads, flat.astype(BF16) if layout != "f32_576" else flat, packed, SCALE)
        for got, want in zip(paged, expected):
            assert np.ascontiguousarray(got).tobytes() == np.ascontiguousarray(want).tobytes()


def test_decode_sees_what_prefill_saw(rng):
    """The last row of a prompt, decoded: paged_select's logical indices are select's packed ones minus ks."""
    starts, table, _, _, index_cache = build(rng, "fp8_656")
    q, q_scale = quant.act_quant(rng.standard_normal((2, 64, 128)).astype(BF16), scale_fmt="ue8m0")
    weights = (rng.standard_normal((2, 64)) * q_scale.reshape(2, 64)).astype(np.float32)
    k, k_scale = quant.gather_indexer_k(index_cache, table, np.array([0, LENGTHS[0], sum(LENGTHS)]), PAGE, "index_132")
    ks = starts.astype(np.int32)
    ke = (starts + np.array(LENGTHS)).astype(np.int32)
    for _ in each_isa():
        packed = indexer.select(q, k, weights, ks, ke, k_scale=k_scale, topk=TOPK)
        logical = indexer.paged_select(
            q[:, None], index_cache, weights, np.array(LENGTHS, np.int32), table, PAGE, topk=TOPK, layout="index_132"
        )
        np.testing.assert_array_equal(logical, np.where(packed >= 0, packed - ks[:, None], -1))
        rows = np.arange(2)
        np.testing.assert_array_equal(
            indexer.to_slots(logical, rows, table, PAGE), indexer.to_slots(packed, rows, table, PAGE, ks=ks)
        )
