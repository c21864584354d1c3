"""Which rank stands where, and which grids are refused."""

import numpy as np
import pytest

from sparsespan import comm, cp, models
from sparsespan.models import Grid, Ranks, write_tiny

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids")
    return {"v32": write_tiny(folder / "v32", "deepseek_v32", **SMALL, n_group=2, topk_group=1)}


def test_grids_are_refused(paths):
    config = models.Checkpoint(paths["v32"]).config
    for make, words in (
        (lambda: Grid(pp=0), "grid: pp is 0, needs at least 1"),
        (lambda: Grid(pp=5).require(config), "pp is 5, the model has 4 layers; .* pp 1 to 4, nearest PP4"),
        (lambda: Grid(pp=2, stage_layers=(1, 2)).require(config), r"stage_layers is \[1, 2\], needs 2 .* as \[2, 2\]"),
        (lambda: Grid(pp=2, stage_layers=(4, 0)).require(config), r"stage_layers is \[4, 0\]"),
        (lambda: Grid(pp=2, tp=3).require(config), "needs one of 1, 2, 4, 8: nearest is TP2 x PP2"),
        (lambda: Grid(pp=2).place(2), "rank is 2, needs 0 to 1: PP2"),
        (lambda: Grid(pp=2).join(comm.ThreadComm(1)[0]), "PP2 has 2 ranks, the program 1"),
        (lambda: Ranks(stage_layers=(1, 3)), "stage_layers is given without pp"),
        (
            lambda: models.load(paths["v32"], ranks=Ranks(pp=comm.ThreadComm(1)[0]), layers=range(2)),
            "layers is range.* and ranks has stages",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_ranks_are_dealt_stage_by_stage():
    grid = Grid(tp=2, cp=2, pp=2)
    assert (grid.ranks, grid.words) == (8, "TP2 x CP2 zigzag x PP2")
    assert [tuple(grid.place(r).values()) for r in range(8)] == [
        (s, c, t) for s in range(2) for c in range(2) for t in range(2)
    ]
    native = cp.rank_grid(tp=2, cp=2, pp=2)

    def rank(world):
        ranks, groups = grid.join(world)
        assert groups == {"cp": ranks.cp, "tp": ranks.tp, "experts": ranks.experts, "pp": ranks.pp}
        return {name: group.all_gather(np.array([world.rank])).tolist() for name, group in groups.items()}

    for r, found in enumerate(comm.run_ranks(8, rank)):
        experts = list(range(4)) if r < 4 else list(range(4, 8))
        assert found == {**{name: native.group_of(name, r) for name in ("cp", "tp", "pp")}, "experts": experts}


FLAVORS = {
    "sglang": [("sglang", 8, 8, 1, 2), ("sglang", 8, 2, 1, 2), ("sglang", 4, 1, 4, 2), ("sglang", 2, 2, 1, 1)],
    "vllm": [("vllm", 2, 4, 1, 2), ("vllm", 4, 1, 4, 2), ("vllm", None, 1, 2, 1)],
    "native": [("native", None, 1, 4, 1), ("native", 2, 2, 1, 1)],
}


@pytest.mark.parametrize("numbers", [n for flavor in FLAVORS.values() for n in flavor])
def test_engines_numbers_make_their_groups(numbers):
    flavor, tp, cp_, dcp, pp = numbers
    grid, theirs = Grid.of(*numbers), cp.rank_grid(tp, cp_, dcp, pp, flavor=flavor)
    assert grid.ranks == theirs.world_size
    heads = "attn_tp" if flavor == "sglang" else "tp"
    for r in range(grid.ranks):
        at = grid.place(r)
        assert (at["stage"], at["cp"], at["tp"]) == tuple(theirs.rank_in(n, r) for n in ("pp", "cp", heads))
        for group, fixed in (("pp", ("cp", "tp")), ("cp", ("stage", "tp")), (heads, ("stage", "cp"))):
            same = [q for q in range(grid.ranks) if all(grid.place(q)[f] == at[f] for f in fixed)]
            assert same == theirs.group_of(group, r)


def test_sglang_reads_cp_inside_tp():
    assert Grid.of("sglang", 8, 2, 1, 2, page_size=32) == Grid(tp=4, cp=2, pp=2, page_size=32)
    assert Grid.of("sglang", cp=2) == Grid(cp=2)
    for numbers, words in (
        ((8, 3), "tp is 8 and cp 3; .* 1, 2, 4, 8; nearest is --tp 8 --cp 2"),
        ((8, 0), "tp is 8 and cp 0; .* nearest is --tp 8 --cp 1"),
        ((2, 8), "tp is 2 and cp 8; .* nearest is --tp 2 --cp 2"),
        ((8, 2, 2), "shared by tp / cp = 4 ranks, needs dcp = 4 .* nearest is --tp 4 --cp 2 --dcp 2"),
        ((4, 2, 2), "cp is 2 and dcp 2, needs one of them to be 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Grid.of("sglang", *numbers)
    with pytest.raises(ValueError, match=r'flavor is .megatron., needs "native", "vllm" or "sglang"'):
        Grid.of("megatron")
