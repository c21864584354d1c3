"""Prefill on one grid, decode on another: the bits of one rank, the bytes of the plan, refusals that lose nothing."""

import dataclasses

import numpy as np
import pytest

from sparsespan import comm, cp, models
from sparsespan.models import Dcp, Grid, PdGrid, PoolFull, Ranks
from sparsespan.testing import FaultyComm

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4}
LENGTHS = (37, 2, 70)
STEPS = 5


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shared = ["full", "shared", "full", "shared"]
    return {
        "v32": models.write_tiny(folder / "v32", "deepseek_v32", **SMALL, n_group=2, topk_group=1),
        "glm": models.write_tiny(folder / "glm", "glm_moe_dsa", **SMALL, indexer_types=shared),
    }


@pytest.fixture(scope="module")
def prompts():
    return [np.random.default_rng(n).integers(0, 256, n) for n in LENGTHS]


def decoded(model, pool, requests, logits):
    """Greedy tokens, and the logits behind each of them."""
    seen, tokens = [logits], []
    for _ in range(STEPS):
        tokens.append(seen[-1].argmax(1).tolist())
        seen.append(model.decode(pool, requests, tokens[-1]))
    return tokens, np.stack(seen)


def on_one_rank(path, prompts, page_size, lanes=(False, False), **layouts):
    """``lanes``: prefill, decode by the arithmetic of a shared cache, whose one rank has it all."""
    dcp = Dcp(cp.dcp_layout(1, 1, page_size))
    shares = models.load(path, ranks=Ranks(tp=comm.ThreadComm(1)[0], dcp=dcp))
    prefills, decodes = (shares if on else models.load(path) for on in lanes)
    pool = prefills.pool(512, page_size, **layouts)
    requests = [pool.open() for _ in prompts]
    return decoded(decodes, pool, requests, prefills.prefill(pool, requests, prompts))


def handed_over(grid, path, prompts, **layouts):
    """Findings of every rank: (HandOver, decoded or None, bytes of messages received, pool)."""

    def rank(world):
        here = grid.join(world)
        model = models.load(path, ranks=here.ranks)
        pool = model.pool(1024, here.side.page_size, **layouts)
        pool.open()  # request numbers, and pages, are each pool's own
        pool.reserve([0], [1])
        if not here.prefills:
            came = here.hand_over(model, pool)
            received = here.world.trace()["recv"]["bytes"]
            return came, decoded(model, pool, came.requests, came.logits), received, pool
        requests = [pool.open() for _ in prompts]
        logits = model.prefill(pool, requests, prompts, chunk=50)
        came = here.hand_over(model, pool, requests, logits)
        assert came.requests == tuple(requests) and pool.lengths(requests).tolist() == [len(p) for p in prompts]
        return came, None, 0, pool

    return comm.run_ranks(grid.ranks, rank)


GRIDS = {
    "CP4 -> TP2 x DCP2": PdGrid(Grid(cp=4), Grid(tp=2, dcp=2)),
    "CP2 -> one rank, other pages": PdGrid(Grid(cp=2, page_size=16), Grid(page_size=24)),
    "CP4 interleave -> TP2": PdGrid(Grid(cp=4, scheme="interleave"), Grid(tp=2)),
    "TP2 -> DCP4, small pages": PdGrid(Grid(tp=2, page_size=16), Grid(tp=4, dcp=4, page_size=4)),
    "CP2 x TP2 -> DCP2 sharded keys": PdGrid(Grid(tp=2, cp=2), Grid(tp=2, dcp=2, index_k="sharded", page_size=8)),
    "CP4 x PP2 -> DCP4": PdGrid(Grid(cp=4, pp=2), Grid(tp=4, dcp=4)),
    "PP3 uneven -> TP2 x DCP2 x PP2": PdGrid(Grid(pp=3), Grid(tp=2, dcp=2, pp=2, page_size=16)),
    "DCP2 -> DCP4": PdGrid(Grid(tp=2, dcp=2, page_size=8), Grid(tp=4, dcp=4, page_size=8)),
}


@pytest.mark.parametrize("name", ["v32", "glm"])
@pytest.mark.parametrize("grid", GRIDS)
def test_decode_goes_on_with_the_bits_of_one_rank(paths, prompts, name, grid):
    grid = GRIDS[grid]
    lanes = (grid.prefill.dcp > 1, grid.decode.dcp > 1)
    tokens, logits = on_one_rank(paths[name], prompts, grid.decode.page_size, lanes)
    for _, found, _, _ in handed_over(grid, paths[name], prompts)[grid.prefill.ranks :]:
        assert found[0] == tokens and found[1].tobytes() == logits.tobytes()


@pytest.mark.parametrize("layouts", [{}, {"kv_layout": "fp8_656", "index_layout": "index_132"}])
def test_bytes_are_those_of_the_plan(paths, prompts, layouts):
    grid = PdGrid(Grid(cp=4), Grid(tp=2, dcp=2))
    ranks = handed_over(grid, paths["glm"], prompts, **layouts)
    plan = ranks[0][0].plan
    kv, index = (656, 132) if layouts else (2304, 512)
    # Each decode rank has half of the latent rows of 4 layers and all index keys of the 2 that have an indexer.
    assert plan.total_bytes == sum(LENGTHS) * (4 * kv + 2 * 2 * index)
    reports = [came.report for came, _, _, _ in ranks]
    assert [r.sent for r in reports] == [*plan.sent_bytes(), 0, 0]
    assert [r.received for r in reports] == [0] * 4 + [*plan.received_bytes()]
    assert min(plan.sent_bytes()) > 0  # all four send
    for came, _, received, _ in ranks[4:]:
        assert received == came.report.received + came.report.checksums + came.logits.nbytes
    if layouts:
        assert ranks[-1][1][0] == on_one_rank(paths["glm"], prompts, 64, (False, True), **layouts)[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generate(paths, prompts, temperature):
    options = {"temperature": temperature, "seed": 3, "stop_at_eos": False}
    want = models.load(paths["glm"]).generate(prompts, STEPS, **options)
    for grid in (PdGrid(Grid(cp=2), Grid(tp=2)), PdGrid(Grid(cp=2, pp=2), Grid(pp=2))):

        def rank(world, grid=grid):
            here, told, moved = grid.join(world), [], []
            model = models.load(paths["glm"], ranks=here.ranks)
            pool = model.pool(512, here.side.page_size)
            said = here.generate(
                model, prompts, STEPS, pool=pool, chunk=40, **options, on_hand_over=moved.append,
                on_token=lambda *it: told.append(it),
            )  # fmt: skip
            assert pool.free_pages == pool.pages and here.generate(model, prompts, STEPS, **options) == said
            return said, sorted(told), moved[0].plan.total_bytes

        ranks = comm.run_ranks(grid.ranks, rank)
        told = sorted((b, token) for b, tokens in enumerate(want) for token in tokens)
        assert [said for said, _, _ in ranks] == [None] * grid.prefill.ranks + [want] * grid.decode.ranks
        assert [came for _, came, _ in ranks] == [[]] * grid.prefill.ranks + [told] * grid.decode.ranks
        assert len({moved for _, _, moved in ranks}) == 1
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        comm.run_ranks(2, lambda world: PdGrid(Grid(), Grid()).join(world).generate(None, prompts, 0))


def test_a_full_decode_pool_loses_nothing(paths, prompts):
    """PoolFull on every rank and nothing moved; the prefill side decodes on, or hands fewer requests over."""
    grid = PdGrid(Grid(cp=2), Grid(tp=2, dcp=2, page_size=16))
    want, _ = on_one_rank(paths["v32"], prompts, 16)

    def rank(world):
        here = grid.join(world)
        model = models.load(paths["v32"], ranks=here.ranks)
        # Virtual pages of 32 tokens: 37, 2 and 70 tokens need 2 + 1 + 3. Rank 3 has room for 4, rank 2 for all.
        pool = model.pool(512 if here.prefills else 128 if world.rank == 3 else 256, here.side.page_size)
        requests, logits = [], None
        if here.prefills:
            requests = [pool.open() for _ in prompts]
            logits = model.prefill(pool, requests, prompts)
        free = pool.free_pages
        with pytest.raises(PoolFull, match=r"need 6 pages of 32 tokens on rank 3, 4 are free; nothing was moved"):
            here.hand_over(model, pool, requests, logits)
        assert pool.free_pages == free and "recv" not in world.trace()
        if not here.prefills:
            came = here.hand_over(model, pool)
            return came.requests, decoded(model, pool, came.requests, came.logits)[0]
        here.hand_over(model, pool, requests[:2], logits[:2])
        return requests, decoded(model, pool, requests, logits)[0]

    ranks = comm.run_ranks(4, rank)
    for _, tokens in ranks[:2]:
        assert tokens == want
    for requests, tokens in ranks[2:]:
        assert len(requests) == 2 and tokens == [step[:2] for step in want]


def test_requests_come_while_others_are_decoded(paths, prompts):
    """Two hand-overs; what came first decodes between them, and then all together."""
    grid = PdGrid(Grid(cp=2), Grid(tp=2, page_size=16))
    want, _ = on_one_rank(paths["glm"], prompts, 16)

    def rank(world):
        here = grid.join(world)
        model = models.load(paths["glm"], ranks=here.ranks)
        pool = model.pool(512, here.side.page_size)
        if here.prefills:
            for batch in (prompts[:1], prompts[1:]):
                requests = [pool.open() for _ in batch]
                here.hand_over(model, pool, requests, model.prefill(pool, requests, batch))
                for request in requests:
                    pool.close(request)
            return pool.free_pages == pool.pages
        first = here.hand_over(model, pool)
        tokens, logits = [first.logits.argmax(1)], first.logits
        for _ in range(2):
            logits = model.decode(pool, first.requests, tokens[-1])
            tokens.append(logits.argmax(1))
        second = here.hand_over(model, pool)
        logits = model.decode(pool, first.requests + second.requests, [*tokens[-1], *second.logits.argmax(1)])
        return [t.tolist() for t in tokens], second.logits.argmax(1).tolist(), logits.argmax(1).tolist()

    *done, one, two = comm.run_ranks(4, rank)
    assert done == [True, True] and one == two
    assert one[0] == [step[:1] for step in want[:3]]
    assert one[1] == want[0][1:] and one[2] == [want[3][0], *want[1][1:]]


def test_a_damaged_page_changes_no_pool(paths):
    """A bit that flips between ranks is found on all of them; the same hand-over then goes through."""
    grid = PdGrid(Grid(), Grid())

    def rank(world):
        here = grid.join(world)
        model = models.load(paths["v32"], ranks=here.ranks)
        pool = model.pool(128)
        requests = [pool.open()] if here.prefills else []
        logits = model.prefill(pool, requests, [[1, 2, 3]]) if here.prefills else None
        # Operations of rank 0: two that tell facts, the logits, one that says that all can begin, the first rows.
        spoiled = dataclasses.replace(here, world=FaultyComm(here.world, "corrupt", at=4)) if here.prefills else here
        free = pool.free_pages
        with pytest.raises(comm.ChecksumMismatch, match="request 0"):
            spoiled.hand_over(model, pool, requests, logits)
        assert pool.free_pages == free
        came = here.hand_over(model, pool, requests, logits)
        return came.requests, pool.lengths(came.requests).tolist()

    assert comm.run_ranks(2, rank) == [((0,), [3]), ((1,), [3])]


def test_a_side_that_does_not_come(paths):
    def rank(world):
        here = PdGrid(Grid(), Grid()).join(world)
        model = models.load(paths["v32"], ranks=here.ranks)
        if here.prefills:
            return None
        return here.hand_over(model, model.pool(64), timeout=0.2)

    with pytest.raises(comm.CommError):
        comm.run_ranks(2, rank)


def test_nothing_to_hand_over(paths):
    def rank(world):
        here = PdGrid(Grid(cp=2), Grid()).join(world)
        model = models.load(paths["v32"], ranks=here.ranks)
        came = here.hand_over(model, model.pool(64))
        return came.requests, came.logits, came.plan.total_bytes

    assert comm.run_ranks(3, rank) == [((), None, 0)] * 3
