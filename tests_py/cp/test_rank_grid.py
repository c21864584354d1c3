"""cp.rank_grid: goldens of section 6 and of the named deployments, properties, refusals with their mends."""

import copy
import itertools
import pickle

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import sparsespan.reference.cp_dcp as reference_dcp
import sparsespan.reference.cp_grid as reference
from sparsespan.cp import KvSide, rank_grid


def test_golden_sglang_tp8_cp2():
    grid = rank_grid(tp=8, cp=2, flavor="sglang")
    assert grid.world_size == 8 and grid.attn_tp == 4
    assert grid.groups("tp") == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert grid.groups("cp") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert grid.groups("attn_tp") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grid.groups("moe_dp") == grid.groups("cp")  # cp > moe_dp: the CP partners share tokens before the experts


def test_golden_sglang_tp8_ep4_moe_dp2():
    grid = rank_grid(tp=8, ep=4, moe_dp=2, flavor="sglang")
    assert grid.groups("ep") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grid.groups("moe_dp") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert grid.groups("moe_tp") == [[r] for r in range(8)]


def test_golden_glm5_pp2_tp8_cp8():
    """Attention TP is 1 here: code that takes the attention TP group for the CP group breaks (sglang 24560)."""
    grid = rank_grid(tp=8, cp=8, pp=2, ep=8, flavor="sglang", cp_strategy="zigzag")
    assert grid.world_size == 16 and grid.attn_tp == 1
    assert grid.groups("cp") == [list(range(8)), list(range(8, 16))]
    assert grid.groups("attn_tp") == [[r] for r in range(16)]
    assert grid.groups("pp") == [[r, r + 8] for r in range(8)]
    assert grid.groups("ep") == grid.groups("tp") == grid.groups("cp")


def test_golden_prefill_8cp_2tp_to_decode_16tp():
    prefill = rank_grid(tp=16, cp=8, flavor="sglang")
    decode = rank_grid(tp=16, flavor="sglang")
    assert prefill.attn_tp == 2 and decode.attn_tp == 16 and prefill.world_size == decode.world_size == 16
    assert prefill.groups("attn_tp") == [[2 * i, 2 * i + 1] for i in range(8)]
    assert prefill.groups("cp") == [list(range(0, 16, 2)), list(range(1, 16, 2))]
    assert decode.groups("attn_tp") == [list(range(16))] and decode.groups("cp") == [[r] for r in range(16)]
    native = rank_grid(tp=2, cp=8)  # natively tp is attention TP, and the same ranks talk to each other
    assert native.groups("tp") == prefill.groups("attn_tp") and native.groups("cp") == prefill.groups("cp")


def test_golden_32cp_over_two_nodes():
    grid = rank_grid(tp=32, cp=32, flavor="sglang")
    assert grid.groups("cp") == [list(range(32))] and grid.attn_tp == 1
    assert grid.nodes("cp", 16) == [2] and grid.nodes("attn_tp", 16) == [1] * 32
    hybrid = rank_grid(tp=32, cp=16, flavor="sglang")
    assert hybrid.nodes("cp", 16) == [2, 2] and hybrid.nodes("attn_tp", 16) == [1] * 16


def test_golden_vllm_tp4_pcp2_pp2_dcp2():
    grid = rank_grid(tp=4, cp=2, pp=2, dcp=2, flavor="vllm")
    assert grid.world_size == 16
    assert grid.groups("tp") == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert grid.groups("dcp") == [[2 * i, 2 * i + 1] for i in range(8)]
    assert grid.groups("cp")[:4] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert grid.groups("cp")[4:] == [[8, 12], [9, 13], [10, 14], [11, 15]]
    # the PP axis is swapped with TP, so TP is the slowest of the rest: the engine's order, not the natural one
    assert grid.groups("pp") == [[0, 8], [4, 12], [1, 9], [5, 13], [2, 10], [6, 14], [3, 11], [7, 15]]
    newer = rank_grid(tp=4, cp=2, pp=2, dcp=2, flavor="vllm", dcp_axis="pcp")
    assert newer.groups("dcp") == newer.groups("cp") and newer != grid and newer.fingerprint != grid.fingerprint
    whole = rank_grid(tp=4, cp=2, dcp=8, flavor="vllm", dcp_axis="pcp")
    assert whole.groups("dcp") == [[0, 4, 1, 5, 2, 6, 3, 7]]


def test_golden_vllm_attention_cp_inside_tp():
    grid = rank_grid(tp=4, attn_cp=2, flavor="vllm")
    assert grid.attn_tp == 2 and grid.world_size == 4
    assert grid.groups("attn_tp") == [[0, 1], [2, 3]] and grid.groups("attn_cp") == [[0, 2], [1, 3]]
    grid = rank_grid(tp=4, dp=2, pp=2, attn_cp=2, flavor="vllm")
    assert grid.groups("attn_tp") == [[2 * i, 2 * i + 1] for i in range(8)]
    assert grid.groups("attn_cp") == [[4 * i + j, 4 * i + j + 2] for i in range(4) for j in range(2)]
    expected = reference.rank_groups(4, dp=2, pp=2, attn_cp=2, flavor="vllm")
    assert {name: grid.groups(name) for name in grid.names} == expected
    assert eval(repr(grid)) == grid != rank_grid(tp=4, dp=2, pp=2, flavor="vllm")


def test_a_grid_is_a_side_of_a_transfer_plan():
    """Prefill 8CP x 2TP to decode 16TP: the plan reads the attention TP, not SGLang's tp."""
    side = KvSide.of_grid(rank_grid(tp=16, cp=8, flavor="sglang"))
    assert (side.tp, side.cp, side.pp, side.dcp) == (2, 8, 1, 1)
    assert KvSide.of_grid(rank_grid(tp=2, cp=8)) == side
    assert KvSide.of_grid(rank_grid(tp=16, flavor="sglang")).tp == 16


def test_golden_vllm_dcp_is_not_multiplied():
    assert rank_grid(tp=8, dcp=8, flavor="vllm").world_size == 8
    assert rank_grid(tp=2, dp=2, pp=2, ep=4, flavor="vllm").groups("ep") == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_native_defaults_and_axes():
    assert rank_grid(cp=4).world_size == 4 and rank_grid(cp=4).tp == 1
    assert rank_grid(dcp=4, cp=2, pp=2).tp == 4  # tp defaults to dcp
    assert rank_grid(dcp=4, cp=2, dp=3, flavor="sglang").tp == 24  # which holds dp and cp: attention TP = dcp
    grid = rank_grid(tp=4, cp=2, dcp=2, pp=2)
    assert grid.world_size == 16 == 2 * 2 * 4
    assert grid.groups("dcp")[:3] == [[0, 1], [2, 3], [4, 5]]
    assert grid.groups("cp")[:2] == [[0, 4], [1, 5]]
    assert grid.groups("cp_dcp")[:2] == [[0, 1, 4, 5], [2, 3, 6, 7]]  # index = cp_rank * dcp + dcp_rank
    assert grid.groups("pp")[:2] == [[0, 8], [1, 9]]
    r = 13  # stage 1, cp rank 1, tp rank 1
    coords = grid.coords(r)
    assert (coords["pp"], coords["cp"], coords["tp"], coords["dcp"]) == (1, 1, 1, 1)
    assert grid.group_of("cp", r) == [9, 13] and grid.rank_in("cp", r) == 1
    assert coords["cp_dcp"] == coords["cp"] * 2 + coords["dcp"]


DIVISORS = st.sampled_from([1, 1, 2, 2, 3])


def sizes_of(flavor, tp, cp, dcp, pp, dp, ep, moe_dp):
    """Valid sizes of a flavor from free factors."""
    if flavor == "native":
        return {"tp": tp * dcp, "cp": cp, "dcp": dcp, "pp": pp, "dp": dp, "ep": cp * dcp}
    if flavor == "sglang":
        return {"tp": tp * dcp * dp * cp * ep * moe_dp, "cp": cp, "dcp": dcp, "pp": pp, "dp": dp, "ep": ep,
                "moe_dp": moe_dp}  # fmt: skip
    if flavor == "vllm":
        dp = 1 if cp > 1 else dp
        return {"tp": tp * dcp, "cp": cp, "dcp": dcp, "pp": pp, "dp": dp, "ep": dp * cp * tp * dcp}
    if cp > 1:
        return {"tp": tp, "cp": cp, "ep": 1}
    return {"tp": dcp, "dcp": dcp, "pp": pp, "dp": dp, "ep": dp * dcp}


@pytest.mark.parametrize("flavor", ["native", "sglang", "vllm", "vllm_ascend"])
@given(factors=st.tuples(*[DIVISORS] * 7))
def test_groups_equal_reference_and_partition_the_world(flavor, factors):
    sizes = sizes_of(flavor, *factors)
    assume(sizes.get("tp", 1) * sizes.get("cp", 1) * sizes.get("pp", 1) <= 512)
    grid = rank_grid(**sizes, flavor=flavor)
    expected = reference.rank_groups(**sizes, flavor=flavor)
    assert grid.names == list(expected) or set(grid.names) == set(expected)
    for name in grid.names:
        groups = grid.groups(name)
        assert groups == expected[name]
        assert sorted(itertools.chain(*groups)) == list(range(grid.world_size))
        for number in (0, len(groups) // 2, len(groups) - 1):
            for index, rank in enumerate(groups[number]):
                assert grid.group_of(name, rank) == groups[number] and grid.rank_in(name, rank) == index
    for name, inside in (("dcp", "tp"), ("attn_tp", "tp"), ("cp_dcp", "dcp")):
        if name in grid.names:
            outer, inner = (name, inside) if name == "cp_dcp" else (inside, name)
            for group in grid.groups(inner):
                assert set(group) <= set(grid.group_of(outer, group[0]))


def test_dcp_axis_pcp_equals_reference():
    for tp, cp in ((4, 2), (2, 4), (3, 3)):
        for dcp in (1, cp, tp * cp):
            grid = rank_grid(tp=tp, cp=cp, dcp=dcp, pp=2, flavor="vllm", dcp_axis="pcp")
            expected = reference.rank_groups(tp, cp, dcp, 2, flavor="vllm", dcp_axis="pcp")
            assert all(grid.groups(name) == expected[name] for name in grid.names)


def test_print_compare_fingerprint_pickle():
    grid = rank_grid(tp=8, cp=2, flavor="sglang")
    assert repr(grid) == "rank_grid(tp=8, cp=2, dcp=1, pp=1, dp=1, ep=1, flavor='sglang')"
    assert eval(repr(grid)) == grid == copy.deepcopy(grid) == pickle.loads(pickle.dumps(grid))
    assert hash(grid) == hash(eval(repr(grid)))
    assert grid.fingerprint == reference_dcp.fingerprint(repr(grid)) == "2a7128fd115ad547"
    others = [rank_grid(tp=8, cp=2), rank_grid(tp=8, flavor="sglang"), rank_grid(tp=8, cp=2, moe_dp=2, flavor="sglang")]
    assert len({g.fingerprint for g in [grid, *others]}) == 4 and all(g != grid for g in others)
    assert eval(repr(others[2])) == others[2]
    text = str(grid).splitlines()
    assert text[0] == repr(grid) + ": 8 ranks" and "  cp          4 x 2    [0,4] [1,5] [2,6] [3,7]" in text
    assert "... (16 groups)" in str(rank_grid(tp=16))
    assert rank_grid(dcp=4) == rank_grid(tp=4, dcp=4)  # the default is filled in
    # what was only checked does not tell grids apart
    assert rank_grid(tp=8, heads=128) == rank_grid(tp=8)
