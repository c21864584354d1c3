"""Experts spread over ranks: bits of one rank, every pair computed once, own tensors alone read, bytes as counted."""

import collections
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan import comm, models
from sparsespan.models import Grid, Ranks, load, write_tiny
from sparsespan.models._experts import ExpertRanks

E, K, HIDDEN = 6, 3, 5
BF16 = ml_dtypes.bfloat16


class Experts:
    """Expert e turns and scales a row, in the row's dtype; who said what to how many rows is counted."""

    def __init__(self):
        self.asked, self._lock = collections.Counter(), threading.Lock()

    def of(self, rank):
        def expert(e, rows):
            with self._lock:
                self.asked[rank, e] += len(rows)
            return (np.roll(rows, e, axis=1).astype(np.float32) * np.float32(1 / (e + 3))).astype(rows.dtype)

        return expert


def a_batch(rng, rows, dtype=np.float32, experts=E):
    chosen = np.sort(np.argsort(rng.random((rows, experts)), axis=1)[:, :K], axis=1)
    x = rng.standard_normal((rows, HIDDEN)).astype(dtype)
    return x, chosen, rng.standard_normal((rows, K)).astype(np.float32)


def spread(world, tp, batches, split, experts):
    """What rank r says of the rows of its part; tp ranks side by side have one part."""
    heads = world.split(world.rank // tp)
    x, chosen, weights = batches[world.rank // tp if split else 0]
    said = ExpertRanks(world, heads).apply(x, chosen, weights, experts.of(world.rank), split)
    return said, world.trace(), heads.trace()


def alone(batch):
    return ExpertRanks(None, None).apply(*batch, Experts().of(0), False)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize(("tp", "lengths"), [
    (1, [7, 3]), (1, [5, 0, 9, 1]), (2, [4, 9]), (2, [0, 3]), (4, [11]), (1, [0, 0, 0]), (2, [1, 1, 2]), (1, [40]),
])  # fmt: skip
def test_the_bits_of_one_rank_and_no_work_twice(rng, tp, lengths, dtype, split):
    batches, experts = [a_batch(rng, n, dtype) for n in lengths], Experts()
    ranks = tp * len(lengths)
    found = comm.run_ranks(ranks, lambda world: spread(world, tp, batches, split, experts))
    for rank, (said, _, _) in enumerate(found):
        want = alone(batches[rank // tp if split else 0])
        assert said.dtype == dtype and said.tobytes() == want.tobytes()
    wanted = collections.Counter()
    for _, chosen, _ in batches if split else batches[:1]:
        wanted.update((e % ranks, e) for e in chosen.reshape(-1).tolist())
    assert experts.asked == wanted


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_rows_on_any_ranks(data):
    tp, parts = data.draw(st.sampled_from([(1, 2), (1, 3), (2, 2), (3, 1)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    batches = [a_batch(rng, data.draw(st.integers(0, 6)), BF16) for _ in range(parts)]
    split = data.draw(st.booleans())
    found = comm.run_ranks(tp * parts, lambda world: spread(world, tp, batches, split, Experts()))
    for rank, (said, _, _) in enumerate(found):
        assert said.tobytes() == alone(batches[rank // tp if split else 0]).tobytes()


@pytest.mark.parametrize("split", [True, False])
def test_an_expert_that_nobody_wants_and_one_that_all_want(rng, split):
    x, chosen, weights = a_batch(rng, 8)
    chosen[:] = [0, 2, 5]  # rank 1 of 4 has experts 1 and 5, rank 3 has expert 3: nobody asks it
    experts = Experts()
    found = comm.run_ranks(4, lambda world: spread(world, 1, [(x, chosen, weights)] * 4, split, experts))
    for said, _, _ in found:
        assert said.tobytes() == alone((x, chosen, weights)).tobytes()
    assert {rank for rank, _ in experts.asked} == {0, 1, 2}


def test_bytes_are_those_of_the_pairs(rng):
    """A row goes once to each rank that has an expert of it, an answer once back; copies need no rows."""
    batches, ranks = [a_batch(rng, n, BF16) for n in (7, 0, 12, 4)], 4
    found = comm.run_ranks(ranks, lambda world: spread(world, 1, batches, True, Experts()))
    row = HIDDEN * 2
    for r, (_, trace, _) in enumerate(found):
        counts, rows, pairs, answers = (ranks - 1) * 16, 0, 0, 0
        for q, (_, chosen, _) in enumerate(batches):
            mine = chosen % ranks == r
            if q != r:
                rows, pairs = rows + mine.any(1).sum() * row, pairs + mine.sum() * 8
            else:
                answers = (chosen % ranks != r).sum() * row
        assert trace["all_to_all"]["bytes"] == counts + rows + pairs + answers
        assert trace["all_to_all"]["calls"] == 4 and "all_gather" not in trace
    (x, chosen, _) = batches[2]
    for r, (_, trace, _) in enumerate(comm.run_ranks(ranks, lambda w: spread(w, 1, batches[2:3], False, Experts()))):
        assert trace["all_to_all"]["bytes"] == (chosen[r::ranks] % ranks != r).sum() * row
        assert trace["all_gather"]["bytes"] == (len(x) - len(x[r::ranks])) * row
        assert trace["all_to_all"]["calls"] == trace["all_gather"]["calls"] == 1


# ---- in a model ----------------------------------------------------------------------------------------------------

SMALL = {"index_topk": 16, "n_routed_experts": 6, "num_hidden_layers": 4, "num_experts_per_tok": 3}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    shared = {"indexer_types": ["full", "shared", "full", "shared"]}
    return write_tiny(tmp_path_factory.mktemp("experts") / "glm", "glm_moe_dsa", dtype="bfloat16", **SMALL, **shared)


def answers(model, prompts):
    pool = model.pool(640, 64)
    requests = [pool.open() for _ in prompts]
    first = model.prefill(pool, requests, prompts, chunk=17)
    return first.tobytes(), model.decode(pool, requests, first.argmax(1)).tobytes()


@pytest.mark.parametrize("grid", [Grid(cp=2), Grid(cp=4, scheme="interleave"), Grid(tp=2, cp=2), Grid(tp=2)])
@pytest.mark.parametrize("lengths", [[23, 2, 9], [1]])
def test_a_model_reads_its_own_experts_and_has_the_bits_of_one_rank(path, rng, monkeypatch, grid, lengths):
    """One token on four ranks leaves three without rows. All that is read of a checkpoint comes from one call."""
    prompts = [rng.integers(0, 256, n) for n in lengths]
    want = answers(load(path), prompts)
    read, here = collections.defaultdict(set), threading.local()
    plain = models.Checkpoint.__getitem__

    def noted(self, name):
        read[here.rank].add(name)
        return plain(self, name)

    monkeypatch.setattr(models.Checkpoint, "__getitem__", noted)

    def rank(world):
        here.rank = world.rank
        return answers(load(path, ranks=grid.join(world)[0]), prompts)

    assert comm.run_ranks(grid.ranks, rank) == [want] * grid.ranks
    for r in range(grid.ranks):
        seen = {int(name.split(".experts.")[1].split(".")[0]) for name in read[r] if ".experts." in name}
        assert seen == set(range(r, SMALL["n_routed_experts"], grid.ranks))


def test_refusals():
    def run(world):
        pair = world.split(world.rank // 2)
        with pytest.raises(ValueError, match=r"experts is rank \d of 4, needs rank \d of 2: cp rank 0 of 1"):
            Ranks(tp=pair, experts=world)
        if world.rank:
            with pytest.raises(ValueError, match=f"is rank {world.rank} of 4, needs rank {world.rank % 2} of 2"):
                Ranks(cp=pair, experts=world)
        crossed = world.split(world.rank % 2)
        if crossed.rank != world.rank % 2:
            with pytest.raises(ValueError, match="needs groups of tp side by side"):
                ExpertRanks(world, crossed)

    comm.run_ranks(4, run)
