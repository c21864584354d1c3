"""A model on grids of ranks: CP, TP, both, DCP. Logits and tokens are those of one rank, bit for bit where promised."""

import numpy as np
import pytest

from sparsespan import comm, cp, models
from sparsespan.models import Dcp, Ranks, write_tiny

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4}
SHARED = {"indexer_types": ["full", "shared", "full", "shared"]}
STEPS = 5


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    v32 = {**SMALL, "n_group": 2, "topk_group": 1}
    return {
        "v32": write_tiny(folder / "v32", "deepseek_v32", **v32),
        "glm": write_tiny(folder / "glm", "glm_moe_dsa", **SMALL, **SHARED),
        "fp8": write_tiny(folder / "fp8", "deepseek_v32", dtype="float8", **v32),
    }


def answers(model, prompts, chunk=0, pool=None):
    """Logits behind the prompts and behind one more token, then greedy tokens."""
    pool = pool or model.pool(640, 64)
    requests = [pool.open() for _ in prompts]
    first = model.prefill(pool, requests, prompts, chunk=chunk)
    second = model.decode(pool, requests, first.argmax(1))
    return first, second, model.generate(prompts, STEPS, chunk=chunk, stop_at_eos=False)


GRIDS = {
    "tp2": (2, lambda world: Ranks(tp=world)),
    "tp4": (4, lambda world: Ranks(tp=world)),
    **{f"cp3 {s}": (3, lambda world, s=s: Ranks(cp=world, scheme=s))
       for s in ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")},
    "cp2 x tp2": (4, lambda w: Ranks(cp=w.split(w.rank % 2), tp=w.split(w.rank // 2), scheme="interleave")),
}  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["v32", "glm"])
def test_grids_have_the_bits_of_one_rank(paths, rng, name, grid):
    ranks, groups = GRIDS[grid]
    prompts = [rng.integers(0, 256, n) for n in (37, 2, 20)]
    want = answers(models.load(paths[name]), prompts)
    run = lambda world: answers(models.load(paths[name], ranks=groups(world)), prompts, chunk=25)  # noqa: E731
    for first, second, tokens in comm.run_ranks(ranks, run):
        assert first.tobytes() == want[0].tobytes()
        assert second.tobytes() == want[1].tobytes()
        assert tokens == want[2]


def test_float8_on_two_ranks(paths, rng):
    prompts = [rng.integers(0, 256, 30)]
    want = answers(models.load(paths["fp8"]), prompts)
    for first, second, tokens in comm.run_ranks(
        2, lambda world: answers(models.load(paths["fp8"], ranks=Ranks(tp=world)), prompts)
    ):
        assert (first.tobytes(), second.tobytes(), tokens) == (want[0].tobytes(), want[1].tobytes(), want[2])


def test_sums_between_ranks_stay_close(paths, rng):
    prompts = [rng.integers(0, 256, n) for n in (37, 20)]
    want = answers(models.load(paths["v32"]), prompts)
    run = lambda world: answers(models.load(paths["v32"], ranks=Ranks(tp=world, how="reduce")), prompts)  # noqa: E731
    for first, second, tokens in comm.run_ranks(2, run):
        # float32 sums in another order, through four layers
        np.testing.assert_allclose(first, want[0], rtol=0, atol=1e-5 * np.abs(want[0]).max())
        np.testing.assert_allclose(second, want[1], rtol=0, atol=1e-5 * np.abs(want[1]).max())
        assert tokens == want[2]


@pytest.mark.parametrize("index_k", ["replicated", "sharded"])
def test_dcp(paths, rng, index_k):
    """1, 2 and 4 ranks over one shared cache: the same bits; one whole cache: the same but for rounding."""
    prompts = [rng.integers(0, 256, n) for n in (37, 2, 20)]
    plain = answers(models.load(paths["glm"]), prompts)

    def run(world):
        dcp = Dcp(cp.dcp_layout(1, world.size, 4), index_k=index_k)
        model = models.load(paths["glm"], ranks=Ranks(tp=world, dcp=dcp))
        pool = model.pool(128, 4)
        assert pool.page_tokens == 4 * world.size
        return *answers(model, prompts, chunk=25, pool=pool), pool.caches.kv[0].nbytes

    (one,) = comm.run_ranks(1, run)
    np.testing.assert_allclose(one[0], plain[0], rtol=0, atol=1e-4 * np.abs(plain[0]).max())
    assert one[2] == plain[2]
    for ranks in (2, 4):
        for first, second, tokens, held in comm.run_ranks(ranks, run):
            assert first.tobytes() == one[0].tobytes() and second.tobytes() == one[1].tobytes()
            assert tokens == one[2] and held * ranks == one[3]


def test_stages_hand_on_rows_and_indices(paths, rng):
    """Layers 0-2 and 3 of GLM: the second part begins with a shared layer and has no index cache."""
    whole = models.load(paths["glm"])
    parts = [models.load(paths["glm"], layers=layers) for layers in (range(3), range(3, 4))]
    prompt = rng.integers(0, 256, 40)
    pool = whole.pool(64)
    want = whole.prefill(pool, [pool.open()], [prompt])
    plan = cp.split_plan("contiguous", [0, 40], None, 1)
    hidden, indices = parts[0].embed(prompt), None
    for part in parts:
        pool = part.pool(64)
        assert sorted(pool.caches.kv) == [layer.index for layer in part.layers]
        pool.caches.block_table = np.zeros((1, 1), np.int32)
        for layer in part.layers:
            hidden, indices = layer.prefill(hidden, plan, pool.caches, indices=indices)
    assert pool.caches.index_k == {}
    assert parts[1].logits(hidden[-1:]).tobytes() == want.tobytes()
    with pytest.raises(ValueError, match="this part begins with layer 3, needs the one with layer 0"):
        parts[1].embed([1])
    with pytest.raises(ValueError, match="this part ends with layer 2"):
        parts[0].logits(hidden)
    for layers in (range(0), range(3, 5), range(0, 4, 2)):
        with pytest.raises(ValueError, match="needs neighbours among the 4 of the model"):
            models.load(paths["glm"], layers=layers)


def test_refusals(paths):
    def run(world):
        for make, words in (
            (lambda: Ranks(tp=world, how="sum"), "how is 'sum'"),
            (lambda: Ranks(cp=world, tp=world, dcp=Dcp(cp.dcp_layout(1, 3, 4))), "dcp and cp are both given"),
            (lambda: Ranks(dcp=Dcp(cp.dcp_layout(1, 3, 4))), "dcp is given without tp"),
            (
                lambda: models.load(paths["v32"], ranks=Ranks(tp=world)),
                "needs a rank below a number that divides 8 heads",
            ),
        ):
            with pytest.raises(ValueError, match=words):
                make()

    comm.run_ranks(3, run)
    ranks = Ranks(tp=comm.ThreadComm(1)[0], dcp=Dcp(cp.dcp_layout(1, 1, 4)))
    with pytest.raises(ValueError, match="page_size is 64, needs 4, that of the DCP layout"):
        models.load(paths["v32"], ranks=ranks).pool(64)
