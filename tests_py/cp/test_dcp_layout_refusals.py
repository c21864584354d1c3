"""Refusals of the table ops, capacity and heads of cp.dcp_layout."""

import numpy as np
import pytest

import sparsespan.reference.cp_dcp as reference
from sparsespan.cp import dcp_layout

LAYOUT = dcp_layout(1, 2, 4)


def test_slot_mapping_refusals_are_the_same_on_every_rank():
    table = np.array([[3, -1], [4, 5]], np.int32)
    zero = np.array([0])
    for r in range(2):
        with pytest.raises(IndexError, match=r"positions row 0 is 16, block_table has 2 columns of 8 positions"):
            LAYOUT.slot_mapping(np.array([16]), table, r, zero)
        with pytest.raises(IndexError, match=r"block_table row 0, column 1 is -1, position 9 needs a page there"):
            LAYOUT.slot_mapping(np.array([9]), table, r, zero)
        with pytest.raises(IndexError, match=r"row_to_request row 0 is 2, needs 0 to 1"):
            LAYOUT.slot_mapping(np.array([9]), table, r, np.array([2]))
        with pytest.raises(IndexError, match=r"positions row 0 is -5, needs -1 or at least 0"):
            LAYOUT.slot_mapping(np.array([-5]), table, r, zero)
    out = np.full(2, 77)
    with pytest.raises(IndexError):
        LAYOUT.slot_mapping(np.array([0, 99]), table, 0, np.array([0, 0]), out=out)
    assert out.tolist() == [77, 77]  # nothing is half-written
    with pytest.raises(ValueError, match=r"row_to_request is not given, needs \[T\] because block_table has 2 rows"):
        LAYOUT.slot_mapping(np.array([0]), table, 0)
    with pytest.raises(ValueError, match=r"row_to_request has shape \[2\], needs \[T\] = \[1\]"):
        LAYOUT.slot_mapping(np.array([0]), table, 0, np.array([0, 0]))
    with pytest.raises(IndexError, match=r"rank is 2, needs 0 to 1"):
        LAYOUT.slot_mapping(np.array([0]), table, 2, zero)
    with pytest.raises(ValueError, match=r"block_table has shape \[2\], needs \[R, W\]"):
        LAYOUT.slot_mapping(np.array([0]), table[0], 0)
    with pytest.raises(TypeError, match=r"positions has dtype float64, needs int32 or int64"):
        LAYOUT.slot_mapping(np.array([0.0]), table, 0, zero)
    assert LAYOUT.slot_mapping(np.empty(0, np.int64), table, 0, np.empty(0, np.int64)).shape == (0,)


def test_write_and_chunk_refusals():
    v = np.array([8, 9])
    with pytest.raises(ValueError, match=r'shape is "padded", needs "compacted" or "fixed"'):
        LAYOUT.write_plan(v, 0, shape="padded")
    with pytest.raises(ValueError, match=r"dummy is -2, needs a physical row or -1"):
        LAYOUT.write_plan(v, 0, shape="fixed", dummy=-2)
    with pytest.raises(ValueError, match=r"row 0 is 0, which is the dummy row 0 of this rank; keep virtual page 0 out"):
        LAYOUT.write_plan(np.array([0]), 0, shape="fixed")
    with pytest.raises(IndexError, match=r"locations row 1 is -2, needs -1 or at least 0"):
        LAYOUT.write_plan(np.array([8, -2]), 0)
    with pytest.raises(IndexError, match=r"rank is 2, needs 0 to 1"):
        LAYOUT.write_plan(v, 2)
    with pytest.raises(ValueError, match=r"start is -1"):
        LAYOUT.chunk_rows(v, -1, 0)
    with pytest.raises(IndexError, match=r"locations row 0 is -1, needs at least 0"):
        LAYOUT.chunk_rows(np.array([-1]), 0, 0)
    with pytest.raises(ValueError, match=r"length is -1"):
        LAYOUT.pages_for(-1)


def test_gather_plan_refusals():
    with pytest.raises(ValueError, match=r"lengths row 1 is -1, needs 0 to 1099511627776"):
        LAYOUT.gather_plan(np.array([1, -1]))
    with pytest.raises(ValueError, match=r"starts row 0 is -1"):
        LAYOUT.gather_plan(np.array([1]), np.array([-1]))
    with pytest.raises(ValueError, match=r"starts has shape \[2\], needs \[R\] = \[1\]"):
        LAYOUT.gather_plan(np.array([1]), np.array([0, 0]))
    with pytest.raises(IndexError, match=r"rank is 2"):
        LAYOUT.gather_plan(np.array([1])).rank_rows(2)


def gains(kv, ik, shards=lambda n: 1):
    return [round(dcp_layout(1, n, 64).capacity(0, kv, ik, shards(n)).gain, 2) for n in (2, 4, 8, 16)]


def test_goldens_3_7_capacity_gain_is_not_n():
    assert gains("bf16_576", "index_bf16") == [1.69, 2.59, 3.52, 4.29]
    assert gains("fp8_656", "index_132") == [1.71, 2.66, 3.68, 4.55]
    assert gains("bf16_576", "index_132")[2] == 4.65
    assert gains("bf16_576", "index_bf16", lambda n: n) == [2, 4, 8, 16]  # sharded
    assert gains("bf16_576", None) == [2, 4, 8, 16]  # V3.1: no indexer


def test_capacity_table_counts_whole_pages():
    n, b, memory = 8, 64, 10**9
    layout = dcp_layout(1, n, b)
    for kv, kv_bytes in {"bf16_576": 1152, "fp8_656": 656, "f32_576": 2304, 700: 700}.items():
        for ik, ik_bytes in {"index_bf16": 256, "index_132": 132, "index_f32": 512, 100: 100, None: 0}.items():
            for index_k, shards in {"replicated": 1, "sharded": 8, 1: 1, 2: 2, 4: 4}.items():
                c = layout.capacity(memory, kv, ik, index_k)
                tokens, gain = reference.capacity(memory, kv_bytes, ik_bytes, shards, n, b)
                assert (c.tokens, c.gain) == (tokens, pytest.approx(gain, rel=1e-12))
                assert c.tokens == c.tokens_per_rank * n and c.tokens_per_rank == c.pages * b
                assert c.pages * c.page_bytes <= memory < (c.pages + 1) * c.page_bytes
                # whole pages lose at most one page of either
                assert abs(c.tokens / c.baseline_tokens - gain) < 0.02


def test_goldens_conventions_6_3_bytes_per_token():
    """Pool sizes that engines logged, recomputed from the layouts."""
    one = dcp_layout(1, 1, 1)
    v32 = one.capacity(975_424 * 48_068, "fp8_656", "index_132", kv_layers=61)
    assert v32.page_bytes == 61 * (656 + 132) == 48_068 and v32.tokens == 975_424
    assert round(975_424 * 48_068 / 2**30, 3) == 43.667
    old = one.capacity(0, "fp8_656", None, kv_layers=61).page_bytes
    assert round(1_462_784 * old / 2**30, 3) == 54.515 and round(1_462_784 * 48_068 / 2**30, 3) == 65.484
    glm = one.capacity(0, "fp8_656", "index_132", kv_layers=79, index_layers=22)
    assert glm.page_bytes == 54_728
    assert one.capacity(0, 432, "index_132", kv_layers=79, index_layers=22).page_bytes == 37_032
    shared = one.capacity(0, 576, "index_132", kv_layers=78, index_layers=21).page_bytes
    assert round((78 * 708 / shared - 1) * 100, 2) == 15.77


def test_capacity_reserves_6_3():
    """Peer bug vllm 47779: 164160 to 553984 tokens at DCP 4 is 3.375 times: reserves are named by the caller."""
    layout = dcp_layout(1, 4, 64)
    full = layout.capacity(10**9)
    assert layout.capacity(10**9, reserved_bytes=10**9).tokens == 0
    assert layout.capacity(10**9, reserved_pages=3).pages == full.pages - 3
    assert layout.capacity(10, reserved_pages=3).pages == 0
    less = layout.capacity(10**9, reserved_bytes=10 * full.page_bytes)
    assert full.pages - less.pages == 10


def test_capacity_refusals():
    layout = dcp_layout(1, 8, 64)
    with pytest.raises(ValueError, match=r'kv_layout is "fp8", needs one of "f32_576", "bf16_576", .* or bytes per'):
        layout.capacity(1, "fp8")
    with pytest.raises(ValueError, match=r'index_layout is "bf16_576", needs one of "index_132"'):
        layout.capacity(1, "bf16_576", "bf16_576")
    with pytest.raises(ValueError, match=r'index_k is "shared", needs "replicated", "sharded" or the number'):
        layout.capacity(1, index_k="shared")
    with pytest.raises(ValueError, match=r"index_shards is 3, needs a divisor of world_size = 8; nearest .* 2 or 4"):
        layout.capacity(1, index_k=3)
    with pytest.raises(ValueError, match=r"index_shards is 0, needs a divisor of world_size = 8; nearest valid: 1"):
        layout.capacity(1, index_k=0)
    with pytest.raises(ValueError, match=r"memory_bytes is -1"):
        layout.capacity(-1)
    with pytest.raises(ValueError, match=r"reserved_bytes is 2, needs at most memory_bytes = 1"):
        layout.capacity(1, reserved_bytes=2)
    with pytest.raises(ValueError, match=r"kv_layout is 0, needs at least 1"):
        layout.capacity(1, 0)
    with pytest.raises(ValueError, match=r"overflows 64 bits"):
        layout.capacity(1, 1 << 50, kv_layers=1 << 20)


def test_index_groups_3_7_e():
    assert dcp_layout(1, 8, 64).index_groups(4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match=r"shards is 3, needs a divisor of world_size = 8"):
        dcp_layout(1, 8, 64).index_groups(3)


def test_heads_after_the_gather_10():
    """TP8 x DCP4 has exactly 64 heads, so the SM90 sparse kernel needs no padding."""
    heads = [dcp_layout(1, n, 64).heads(128, 8) for n in (1, 2, 4, 8)]
    assert [(h.local, h.gathered, h.padded) for h in heads] == [
        (16, 16, 64),
        (16, 32, 64),
        (16, 64, 64),
        (16, 128, 128),
    ]
    layout = dcp_layout(1, 4, 64)
    with pytest.raises(ValueError, match=r"tp is 6, needs a divisor of heads = 128; nearest valid tp: 4 or 8"):
        layout.heads(128, 6)
    with pytest.raises(ValueError, match=r"tp is 2, needs a multiple of the DCP size 4 .* nearest valid tp: 4"):
        layout.heads(128, 2)
    with pytest.raises(ValueError, match=r"heads is 0"):
        layout.heads(0, 1)
