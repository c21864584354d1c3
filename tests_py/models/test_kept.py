"""o_proj (and q_b) of which a rank of cp keeps a part: cut and gathered, cut and exchanged, lent layer by layer."""

import collections
import threading

import ml_dtypes
import numpy as np
import pytest

from sparsespan import comm, cp, models
from sparsespan.models import Grid, Ranks, load, write_tiny
from sparsespan.models._kept import CutLinear, Kept
from sparsespan.models._linear import Linear

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4, "n_group": 1, "topk_group": 1}
MODES = ("full", "gather_weight", "a2a_rs", "broadcast")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    shared = {"indexer_types": ["full", "shared", "full", "shared"]}
    blocks = {"hidden_size": 256, "q_lora_rank": 128, "v_head_dim": 32}  # cut by two, float8 keeps its blocks
    return {
        "glm": write_tiny(folder / "glm", "glm_moe_dsa", **SMALL, **shared),
        "fp8": write_tiny(folder / "fp8", "deepseek_v32", dtype="float8", **SMALL, **blocks),
        "odd": write_tiny(folder / "odd", "deepseek_v32", dtype="float8", **SMALL),
    }


def answers(model, prompts):
    """A prefill of two requests, a mixed pass (a token each, and a new prompt), a decode step."""
    pool = model.pool(640)
    requests = [pool.open() for _ in prompts]
    first = model.prefill(pool, requests[:2], prompts[:2])
    tokens = [[t] for t in first.argmax(1)]
    mixed = model.prefill(pool, requests, [*tokens, *prompts[2:]])
    return first, mixed, model.decode(pool, requests, mixed.argmax(1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "tp", "parts", "scheme"), [
    ("glm", 1, 4, "contiguous_flat"), ("glm", 2, 2, "interleave"), ("fp8", 1, 2, "contiguous_flat"),
    ("odd", 1, 2, "zigzag"), ("odd", 2, 2, "contiguous_flat"),
])  # fmt: skip
def test_mixed_batches_have_the_bits_of_one_rank(paths, rng, mode, name, tp, parts, scheme):
    prompts = [rng.integers(0, 256, n) for n in (21, 3, 18, 1)]
    want = answers(load(paths[name]), prompts)
    grid = Grid(tp=tp, cp=parts, scheme=scheme, o_proj=mode)
    for first, mixed, step in comm.run_ranks(
        grid.ranks, lambda world: answers(load(paths[name], ranks=grid.join(world)[0]), prompts)
    ):
        assert first.tobytes() == want[0].tobytes() and mixed.tobytes() == want[1].tobytes()
        if mode == "a2a_rs":  # parts of a sum in float32, rounded to the model's dtype in four layers
            grain = 1e-5 if name == "glm" else 2e-2
            np.testing.assert_allclose(step, want[2], rtol=0, atol=grain * np.abs(want[2]).max())
        else:
            assert step.tobytes() == want[2].tobytes()


@pytest.mark.parametrize("mode", MODES[1:])
def test_on_stages(paths, rng, mode):
    """Two stages of two ranks; the second one's layers begin at 2, and no weight is on its way between stages."""
    prompts = [rng.integers(0, 256, n) for n in (21, 3, 18)]
    want = answers(load(paths["glm"]), prompts)
    grid = Grid(cp=2, pp=2, scheme="contiguous_flat", o_proj=mode)
    for found in comm.run_ranks(4, lambda world: answers(load(paths["glm"], ranks=grid.join(world)[0]), prompts)):
        for one, other in zip(found, want):
            np.testing.assert_allclose(one, other, rtol=0, atol=(mode == "a2a_rs") * 1e-5 * np.abs(other).max())


def test_decode_rows_are_shared_where_heads_travel(paths, rng):
    """Five requests, a token each: on two ranks three rows and two (and one of padding)."""
    prompts = [rng.integers(0, 256, n) for n in (4, 3, 5, 2, 6)]

    def run(world):
        model = load(paths["glm"], ranks=Ranks(world, o_proj="a2a_rs"))
        pool, rows = model.pool(640), set()
        requests = [pool.open() for _ in prompts]
        logits = model.prefill(pool, requests, prompts)
        with models.Tap(lambda layer, positions, request, values: rows.add(tuple(request))):
            model.decode(pool, requests, logits.argmax(1))
        return rows

    assert comm.run_ranks(2, run) == [{(0, 1, 2)}, {(3, 4, -1)}]


def test_how_ranks_join_may_add_here_too(paths, rng):
    """tp ranks that add their products have columns of o_proj, of which cp ranks keep parts."""
    prompts = [rng.integers(0, 256, n) for n in (21, 3, 18)]
    want = answers(load(paths["glm"]), prompts)
    for mode in MODES:

        def run(world, mode=mode):
            groups = world.split(world.rank % 2), world.split(world.rank // 2)
            return answers(load(paths["glm"], ranks=Ranks(groups[0], tp=groups[1], how="reduce", o_proj=mode)), prompts)

        for found in comm.run_ranks(4, run):
            for one, other in zip(found, want):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_rank_keeps_its_part(paths, mode, monkeypatch):
    read, here = collections.defaultdict(set), threading.local()
    plain = models.Checkpoint.__getitem__

    def noted(self, name):
        read[here.rank].add(name)
        return plain(self, name)

    monkeypatch.setattr(models.Checkpoint, "__getitem__", noted)

    def run(world):
        here.rank = world.rank
        model = load(paths["fp8"], ranks=Ranks(world, o_proj=mode))
        weights = [layer.attention.weights for layer in model.layers]
        if mode == "broadcast":
            return weights[0].lender.nbytes, weights[0].lender.layer_bytes
        return sum(w.o.nbytes for w in weights), sum(256 * 256 + 4 * 4 for w in weights)

    held = comm.run_ranks(2, run)
    if mode != "broadcast":
        assert all(mine * 2 == whole for mine, whole in held)
        return
    for rank, (mine, layer) in enumerate(held):
        assert mine == layer * (4 // 2 + 2)  # two layers, two windows
        for part in ("o_proj", "q_b_proj"):
            seen = {int(n.split(".")[2]) for n in read[rank] if part in n}
            assert seen == {rank, rank + 2}


BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize("lengths", [[5, 4], [1, 1, 1], [9], [1]])
@pytest.mark.parametrize("mode", ["gather_weight", "a2a_rs"])
def test_bytes_that_move(rng, mode, lengths):
    ranks, hidden, width = 2, 6, 8
    w = rng.integers(-3, 4, (hidden, width)).astype(BF16)  # small integers: every order of summation is exact
    x = rng.integers(-3, 4, (sum(lengths), width)).astype(BF16)
    plan = cp.split_plan("contiguous_flat", np.concatenate([[0], np.cumsum(lengths)]), None, ranks)

    def run(world):
        kept = Kept(world, mode)
        rows, columns = kept.cut((0, hidden), (0, width))
        part = CutLinear(kept, Linear(w[slice(*rows), slice(*columns)]), columns)
        mine = cp.split(x, plan, world.rank)
        part.travel(plan)
        y = part(mine)
        moved = {name: op["bytes"] for name, op in world.trace().items()}
        world.reset_trace()
        np.testing.assert_array_equal(y, Linear(w)(mine))
        same = part(x)  # all ranks with the same rows
        np.testing.assert_array_equal(same, Linear(w)(x))
        return moved, {name: op["bytes"] for name, op in world.trace().items()}

    t, one_each = int(plan.padded_len), set(lengths) == {1}
    for moved, same in comm.run_ranks(ranks, run):
        if mode == "a2a_rs" and one_each:
            assert moved == {"all_to_all": t * width // 2 * 2, "reduce_scatter": t * hidden * 4}
        else:
            assert moved == {"all_gather": hidden * width // 2 * 2}
        if mode == "gather_weight":
            assert same == {"all_gather": len(x) * hidden // 2 * 2}
        else:
            assert set(same) == {"all_reduce"}


@pytest.mark.parametrize("mode", MODES)
def test_a_pass_that_fails_half_way_leaves_no_trace(paths, rng, mode):
    """With weights on their way: the next pass, of any kind, goes through."""
    prompts = [rng.integers(0, 256, n) for n in (9, 3, 4)]
    want = answers(load(paths["glm"]), prompts)

    def run(world):
        model = load(paths["glm"], ranks=Ranks(world, o_proj=mode))
        pool = model.pool(640)
        request = pool.open()
        token = model.prefill(pool, [request], prompts[:1]).argmax(1)
        third = model.layers[2].attention
        plain = third._attend

        def failing(*args, **kwargs):
            raise ArithmeticError("as asked")

        third._attend = failing
        with pytest.raises(ArithmeticError):
            answers(model, prompts)
        third._attend = plain
        step = model.decode(pool, [request], token)
        return step, answers(model, prompts)

    model = load(paths["glm"])
    pool = model.pool(640)
    request = pool.open()
    step = model.decode(pool, [request], model.prefill(pool, [request], prompts[:1]).argmax(1))
    for found, rest in comm.run_ranks(2, run):
        for one, other in zip((found, *rest), (step, *want)):
            np.testing.assert_allclose(one, other, rtol=0, atol=(mode == "a2a_rs") * 1e-5 * np.abs(other).max())


@pytest.mark.parametrize("layers", [1, 2])
def test_few_layers_and_more_ranks_than_layers(tmp_path, rng, layers):
    small = {**SMALL, "num_hidden_layers": layers}
    path = write_tiny(tmp_path / "few", "deepseek_v32", dtype="float8", **small)
    prompts = [rng.integers(0, 256, n) for n in (9, 3, 4)]
    want = [found.tobytes() for found in answers(load(path), prompts)]
    run = lambda w: [a.tobytes() for a in answers(load(path, ranks=Ranks(w, o_proj="broadcast")), prompts)]  # noqa: E731
    assert comm.run_ranks(3, run) == [want] * 3


def test_refusals(paths):
    with pytest.raises(ValueError, match="o_proj is 'sum', needs one of 'full', 'gather_weight'"):
        Ranks(o_proj="sum")
    with pytest.raises(ValueError, match="o_proj is 'a2a_rs' without cp"):
        Ranks(o_proj="a2a_rs")
    with pytest.raises(ValueError, match="o_proj is 'sum'"):
        Kept(None, "sum")
    with pytest.raises(ValueError, match="without ranks that share rows"):
        Kept(None, "broadcast")
    with pytest.raises(ValueError, match="grid: o_proj is 'gather_weight' and cp 1"):
        Grid(o_proj="gather_weight")
    with pytest.raises(ValueError, match="grid: o_proj is 'whole'"):
        Grid(cp=2, o_proj="whole")
    config = load(paths["glm"]).config
    with pytest.raises(ValueError, match=r"grid: 'gather_weight' cuts 64 rows of o_proj over 3 ranks .* cp 1, 2, 4"):
        Grid(cp=3, o_proj="gather_weight").require(config)
    with pytest.raises(ValueError, match=r"grid: 'a2a_rs' cuts 256 columns of o_proj over 3 ranks"):
        Grid(cp=3, o_proj="a2a_rs").require(config)
    Grid(cp=3, o_proj="broadcast").require(config)

    def run(world):
        for mode, words in (("gather_weight", "3 ranks of cp do not divide 64 rows"), ("a2a_rs", "divide 256 columns")):
            with pytest.raises(ValueError, match=words):
                load(paths["glm"], ranks=Ranks(world, o_proj=mode))

    comm.run_ranks(3, run)


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_prefill_grid_may_keep_parts(paths, rng, mode):
    """Prefill on two ranks that share o_proj, decode on two that share heads."""
    prompts = [rng.integers(0, 256, n) for n in (21, 3)]
    want = load(paths["glm"]).generate(prompts, 3, stop_at_eos=False)
    grid = models.PdGrid(Grid(cp=2, o_proj=mode), Grid(tp=2))

    def run(world):
        here = grid.join(world)
        return here.generate(load(paths["glm"], ranks=here.ranks), prompts, 3, stop_at_eos=False)

    assert comm.run_ranks(4, run) == [None, None, want, want]
