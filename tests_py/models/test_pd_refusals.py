"""What two grids cannot do is said in the same words on every rank, before anything moves."""

import pytest

from sparsespan import comm, models
from sparsespan.models import Grid, PdGrid

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shared = ["full", "shared", "full", "shared"]
    return {
        "v32": models.write_tiny(folder / "v32", "deepseek_v32", **SMALL, n_group=2, topk_group=1),
        "glm": models.write_tiny(folder / "glm", "glm_moe_dsa", **SMALL, indexer_types=shared),
    }


def refused(paths, words, change, grid=None, other=None):
    """Every rank says the same words, and the ranks can go on."""
    grid = grid or PdGrid(Grid(cp=2), Grid())

    def rank(world):
        here = grid.join(world)
        path = paths[other if other and not here.prefills else "v32"]
        model = models.load(path, ranks=here.ranks)
        pool = model.pool(128, here.side.page_size)
        requests = [pool.open()] if here.prefills else []
        logits = model.prefill(pool, requests, [[1, 2, 3]]) if here.prefills else None
        given = change(world.rank, model, pool, requests, logits)
        with pytest.raises(ValueError, match=words):
            here.hand_over(model, *given)
        world.barrier()

    comm.run_ranks(grid.ranks, rank)


def test_refusals_in_the_same_words_on_every_rank(paths):
    same = lambda rank, model, pool, requests, logits: (pool, requests, logits)  # noqa: E731
    on = lambda at, given: (  # noqa: E731
        lambda rank, *args: given(*args) if rank == at else same(rank, *args)
    )
    refused(paths, "rank 1: KvPool: request 7 is not open", on(1, lambda m, pool, r, x: (pool, [7], x)))
    refused(paths, r"rank 1: logits has shape \(1, 5\), needs \(1, 272\)", on(1, lambda m, p, r, x: (p, r, x[:, :5])))
    refused(paths, "rank 2: has requests or logits on a decode rank", on(2, lambda m, p, r, x: (p, [p.open()], x)))
    refused(paths, "rank 2 has pages of 32 tokens, its grid 64", on(2, lambda m, p, r, x: (m.pool(64, 32), r, x)))
    refused(
        paths, "rank 2 has kv_layout fp8_656, rank 0 f32_576; needs the same",
        on(2, lambda m, p, r, x: (m.pool(64, kv_layout="fp8_656"), r, x)),
    )  # fmt: skip

    def longer(model, pool, requests, logits):
        pool.reserve(requests, [1])
        pool.advance(requests, [1])
        return pool, requests, logits

    refused(paths, r"rank 1 has requests of \[4\] tokens, rank 0 of \[3\]; needs the same", on(1, longer))
    stages = PdGrid(Grid(pp=2), Grid())

    def misplaced(rank, model, pool, requests, logits):
        if rank == 0:
            pool.caches.layers = pool.caches.layers[:1]
        return pool, requests, logits

    refused(paths, r"the prefill ranks hold the layers \(first, number\) .*, needs stages in order", misplaced, stages)
    refused(paths, r"rank 2 has indexer_types \['full', 'shared'", same, other="glm")


def test_grids_that_cannot_be(paths):
    with pytest.raises(ValueError, match="the decode side has cp = 2, needs 1"):
        PdGrid(Grid(), Grid(cp=2))
    grid = PdGrid(Grid(cp=2), Grid(tp=3))
    assert grid.ranks == 5 and grid.words == "CP2 zigzag -> TP3"
    with pytest.raises(ValueError, match="tp is 3, which does not divide num_attention_heads = 8"):
        grid.require(models.load(paths["v32"]).config)
    with pytest.raises(ValueError, match="CP2 zigzag -> TP3 has 5 ranks, the program 1; needs the same"):
        grid.join(comm.ThreadComm(1)[0])
