"""Each engine's constraints on a rank grid, refused in words with the nearest valid numbers."""

import pytest

from sparsespan.cp import rank_grid


def refuses(match, flavor="native", **sizes):
    with pytest.raises(ValueError, match=match):
        rank_grid(flavor=flavor, **sizes)


def test_sizes():
    for name in ("cp", "dcp", "pp", "dp", "ep", "kv_heads"):
        refuses(f"rank_grid: {name} is 0, needs at least 1", **{name: 0})
    refuses(r"tp is 0, needs at least 1, or None for attention TP = dcp", tp=0)
    refuses(r"tp is -1, needs at least 1", tp=-1)
    refuses(r"heads is 0, needs at least 1, or None", heads=0)
    refuses(r"heads is -8, needs at least 1, or None", heads=-8)
    refuses(r"world size is 131072, needs at most 65536", tp=256, cp=512)
    refuses(r"overflows 64 bits", tp=1 << 40, cp=1 << 40)
    refuses(r'flavor is "trtllm", needs "native", "sglang", "vllm" or "vllm_ascend"', flavor="trtllm")
    refuses(r'moe_dp is 2, needs flavor "sglang", has "native"', moe_dp=2)
    refuses(r'dcp_axis is "pcp", needs flavor "vllm", has "sglang"', flavor="sglang", dcp_axis="pcp")
    refuses(r'dcp_axis is "ep", needs "tp" or "pcp"', dcp_axis="ep")
    refuses(r'cp_strategy needs flavor "sglang", has "vllm"', flavor="vllm", cp_strategy="zigzag")


def test_native():
    refuses(r"dcp is 3, needs a divisor of tp = 8 .* nearest valid dcp: 2 or 4; nearest valid tp: 6 or 9", tp=8, dcp=3)
    refuses(r"dcp is 16, needs a divisor of tp = 8 .* nearest valid dcp: 8; nearest valid tp: 16", tp=8, dcp=16)
    refuses(r"ep is 6, needs a divisor of dp \* cp \* tp = 16; nearest valid ep: 4 or 8", tp=8, cp=2, ep=6)
    refuses(r"heads is 128, needs a multiple of attention TP = 12; nearest .*: 8 or 16", tp=12, heads=128)


def test_sglang():
    refuses(r"dp is 3, needs a divisor of tp = 8 .* valid dp: 2 or 4; nearest valid tp: 6 or 9", "sglang", tp=8, dp=3)
    refuses(r"cp is 8, needs a divisor of tp / dp = 4 .* valid cp: 4; nearest valid tp: 16", "sglang", tp=8, dp=2, cp=8)
    refuses(r"cp is 3, needs a divisor of tp / dp = 8 .*attn_tp = tp / dp / cp", "sglang", tp=8, cp=3)
    refuses(r"dcp is 3, needs a divisor of tp = 8 \(sglang: DCP groups are contiguous", "sglang", tp=8, dcp=3)
    refuses(r"ep is 3, needs a divisor of tp = 8 .*nearest valid ep: 2 or 4", "sglang", tp=8, ep=3)
    refuses(r"moe_dp is 4, needs a divisor of tp / ep = 2 .* nearest valid moe_dp: 2", "sglang", tp=8, ep=4, moe_dp=4)
    refuses(r"heads is 12, needs a multiple of attention TP = 8", "sglang", tp=16, cp=2, heads=12)


def test_bug_sglang_tp8_dp4_dcp4_doubled_the_heads():
    """attn_tp is 2, so a DCP group of 4 would gather heads of another DP rank."""
    refuses(
        r"dcp is 4, needs a divisor of attn_tp = tp / dp / cp = 2 .* nearest valid dcp: 2; nearest valid tp: 16",
        "sglang", tp=8, dp=4, dcp=4,
    )  # fmt: skip
    assert rank_grid(tp=16, dp=4, dcp=4, flavor="sglang").attn_tp == 4


def test_sglang_strategies():
    refuses(r"ep is 1, needs ep = tp = 8 \(sglang: zigzag CP", "sglang", tp=8, cp=2, cp_strategy="zigzag")
    rank_grid(tp=8, cp=2, ep=8, flavor="sglang", cp_strategy="zigzag")
    rank_grid(tp=8, cp=2, flavor="sglang", cp_strategy="interleave")
    rank_grid(tp=8, cp=2, flavor="sglang", cp_strategy="contiguous")
    refuses(r'in-seq-split is now called "zigzag"', "sglang", tp=8, cp=2, cp_strategy="in-seq-split")
    refuses(r'round-robin-split is now called "interleave"', "sglang", tp=8, cp=2, cp_strategy="round-robin-split")
    refuses(r'cp_strategy is "ring", needs "zigzag", "interleave" or "contiguous"$', "sglang", tp=8, cp_strategy="ring")


def test_vllm():
    refuses(r"dcp is 3, needs a divisor of tp = 8 \(vllm: DCP reuses the ranks of TP\)", "vllm", tp=8, dcp=3)
    refuses(r"dp is 2, needs 1 with cp = 2 .*no data parallelism yet\); or cp 1", "vllm", tp=8, cp=2, dp=2)
    refuses(r"ep is 4, needs 1 \(off\) or dp \* cp \* tp = 8", "vllm", tp=8, ep=4)
    refuses(
        r"dcp is 4, needs 1, cp = 2 or tp \* cp = 16 .*whole TP x PCP block",
        "vllm", tp=8, cp=2, dcp=4, dcp_axis="pcp",
    )  # fmt: skip
    refuses(r"dcp is 3, needs a divisor of tp = 8", "vllm", tp=8, dcp=3, dcp_axis="pcp")


def test_vllm_attention_cp():
    refuses(r"attn_cp is 3, needs a divisor of tp = 4; nearest valid attn_cp: 2 or 4; .* tp: 3 or 6", "vllm", tp=4,
            attn_cp=3)  # fmt: skip
    refuses(r"attn_cp is 2, needs 1 with cp = 2 and dcp = 1 .*cannot be combined", "vllm", tp=4, cp=2, attn_cp=2)
    refuses(r"attn_cp is 2, needs 1 with cp = 1 and dcp = 2 .*cannot be combined", "vllm", tp=4, dcp=2, attn_cp=2)
    refuses(r'attn_cp is 2, needs flavor "vllm", has "sglang"; in sglang cp is that axis', "sglang", tp=4, attn_cp=2)
    refuses(r"heads is 12, needs a multiple of attention TP = 8", "vllm", tp=16, attn_cp=2, heads=12)
    refuses(r"attn_cp is 0, needs at least 1", "vllm", attn_cp=0)


@pytest.mark.parametrize("flavor", ["vllm", "vllm_ascend"])
def test_grouped_query_attention(flavor):
    more = {"sparse": False} if flavor == "vllm_ascend" else {}
    rank_grid(tp=8, dcp=2, heads=32, kv_heads=4, flavor=flavor, **more)
    refuses(
        r"tp is 4, needs more than kv_heads = 8 for DCP .* valid tp: 16, or dcp 1",
        flavor,
        tp=4,
        dcp=2,
        kv_heads=8,
        **more,
    )
    refuses(r"dcp is 4, needs at most tp / kv_heads = 2 .* valid dcp: 2; nearest valid tp: 16", flavor, tp=8, dcp=4,
            kv_heads=4, **more)  # fmt: skip
    refuses(r"dcp is 4, needs a divisor of heads / kv_heads = 6 .* nearest valid dcp: 3 or 6", flavor, tp=12, dcp=4,
            heads=12, kv_heads=2, **more)  # fmt: skip


def test_vllm_ascend():
    refuses(r"dcp is 4, needs 1 or tp = 8 .*takes the whole TP group\); sparse=False", "vllm_ascend", tp=8, dcp=4)
    rank_grid(tp=8, dcp=4, flavor="vllm_ascend", sparse=False)
    grid = rank_grid(tp=8, dcp=8, flavor="vllm_ascend")
    assert grid.groups("dcp") == grid.groups("tp") == grid.groups("dsa_cp")
    refuses(r"dcp is 2, needs 1 with cp = 2 .*not supported at once", "vllm_ascend", tp=2, cp=2, dcp=2)
    refuses(r"pp is 2, needs 1 with cp = 2 .*Mooncake", "vllm_ascend", tp=2, cp=2, pp=2)
    refuses(r"dp is 2, needs 1 with cp = 2", "vllm_ascend", tp=2, cp=2, dp=2)


def test_questions_to_a_grid():
    grid = rank_grid(tp=4, cp=2)
    with pytest.raises(ValueError, match=r'name is "attn_tp", this native grid has tp, dcp, cp, cp_dcp, pp, dp, ep'):
        grid.groups("attn_tp")
    with pytest.raises(IndexError, match=r"rank is 8, needs 0 to 7"):
        grid.rank_in("tp", 8)
    with pytest.raises(IndexError, match=r"rank is -1, needs 0 to 7"):
        grid.group_of("tp", -1)
    with pytest.raises(ValueError, match=r"ranks_per_node is 0"):
        grid.nodes("tp", 0)
