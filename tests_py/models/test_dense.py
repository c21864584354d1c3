"""Rows that see few keys take them all: the same indices, the same bits, per row; nothing is scored for them."""

import numpy as np
import pytest

from sparsespan import attention, comm, cp, models
from sparsespan.models import Dcp, Grid, Ranks, Tap, load, write_tiny
from sparsespan.models._attending import attend
from sparsespan.testing import assert_row_invariant

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 4, "n_group": 1, "topk_group": 1}
LENGTHS = (30, 2, 16, 9)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    shared = {"indexer_types": ["full", "shared", "full", "shared"]}
    return {
        "glm": write_tiny(folder / "glm", "glm_moe_dsa", **SMALL, **shared),
        "v32": write_tiny(folder / "v32", "deepseek_v32", dtype="bfloat16", **SMALL),
        "fp8": write_tiny(folder / "fp8", "deepseek_v32", dtype="float8", **SMALL),
    }


def prompts(rng):
    return [rng.integers(0, 256, n) for n in LENGTHS]


def answers(model, texts, chunk=0, layouts=(None, None), page=64):
    """Logits behind prompts and behind three more tokens (one request crosses the bound), and every row's indices."""
    pool = model.pool(640, page, *layouts)
    requests, indices = [pool.open() for _ in texts], {}

    def see(layer, positions, request, values):
        for p, r, row in zip(positions, request, values.get("indices", ())):
            if r >= 0:
                indices[layer, int(r), int(p)] = row.copy()

    with Tap(see):
        said = [model.prefill(pool, requests, texts, chunk=chunk)]
        indices = {} if chunk else indices  # a chunk numbers its own requests
        for _ in range(3):
            said.append(model.decode(pool, requests, said[-1].argmax(1)))
    return [s.tobytes() for s in said], indices


@pytest.mark.parametrize(("name", "layouts"), [
    ("glm", (None, None)), ("v32", (None, None)), ("v32", ("fp8_656", "index_132")), ("fp8", (None, None)),
])  # fmt: skip
def test_nothing_changes(paths, rng, name, layouts):
    texts = prompts(rng)
    want, chose = answers(load(paths[name]), texts, layouts=layouts)
    for bound in (1, 9, 16):
        model = load(paths[name], dense_until=bound)
        said, indices = answers(model, texts, layouts=layouts)
        # The dense op has the bits of the sparse one over the same keys in the same order.
        assert said == want
        assert indices.keys() == chose.keys() and all((indices[at] == chose[at]).all() for at in chose)
        assert answers(model, texts, chunk=7, layouts=layouts, page=5)[0] == want


def test_rows_within_the_bound_are_not_scored(paths, rng, monkeypatch):
    asked, dense = [], []
    plain, op = models._layer.index_queries, attention.dense_mla

    def queries(x, qr, positions, *rest):
        asked.extend(positions.tolist())
        return plain(x, qr, positions, *rest)

    def mla(q, cache, run, lens, *rest, **options):
        dense.append((len(run), lens.tolist()))
        return op(q, cache, run, lens, *rest, **options)

    monkeypatch.setattr(models._layer, "index_queries", queries)
    monkeypatch.setattr(attention, "dense_mla", mla)
    model, texts = load(paths["glm"], dense_until=12), prompts(rng)
    pool = model.pool(640)
    model.prefill(pool, [pool.open() for _ in texts], texts)
    # Two layers have an indexer, four attend.
    assert asked == 2 * [*range(12, 30), *range(12, 16)]
    assert dense == 4 * [(12 + 2 + 12 + 9, [12, 2, 12, 9])]
    asked.clear()
    pool = model.pool(640)
    model.prefill(pool, [pool.open()], [texts[3]])
    assert asked == []


GRIDS = {
    "tp2": Grid(tp=2),
    "cp2 x tp2": Grid(tp=2, cp=2, scheme="zigzag_padded"),
    "cp3 interleave": Grid(cp=3, scheme="interleave"),
    "cp4 contiguous_flat": Grid(cp=4, scheme="contiguous_flat"),
    "cp2 x pp2": Grid(cp=2, pp=2),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_ranks_change_nothing(paths, rng, grid):
    texts = prompts(rng)
    want, _ = answers(load(paths["glm"]), texts)
    run = lambda world: answers(load(paths["glm"], ranks=GRIDS[grid].join(world)[0], dense_until=11), texts)[0]  # noqa: E731
    assert comm.run_ranks(GRIDS[grid].ranks, run) == [want] * GRIDS[grid].ranks


@pytest.mark.parametrize("index_k", ["replicated", "sharded"])
def test_over_a_shared_cache_the_choice_alone_is_left_out(paths, rng, index_k):
    texts = prompts(rng)

    def run(world, bound):
        ranks = Ranks(tp=world, dcp=Dcp(cp.dcp_layout(1, world.size, 4), index_k=index_k))
        return answers(load(paths["glm"], ranks=ranks, dense_until=bound), texts, page=4)[0]

    (want,) = comm.run_ranks(1, lambda world: run(world, 0))
    for ranks in (1, 2):
        assert comm.run_ranks(ranks, lambda world: run(world, 12)) == [want] * ranks


def test_several_rows_a_request_in_one_step(rng):
    """next_n = 3 over the bound: one request below it, one across, one above."""
    dims = models.layer_dims("v3.2", hidden=40, heads=4, q_lora=24, nope=16, v_head=12, index_heads=4, topk=7)
    lens = np.array([4, 8, 20])
    table = np.array([[0, -1, -1], [1, 2, -1], [3, 4, 5]], np.int32)
    table[table < 0] = 2147480000
    x = rng.standard_normal((9, 40)).astype(np.float32)
    found = []
    for bound in (0, 5, 7):
        layer = models.dsa_layer(dims, dtype="float32", dense_until=bound)
        caches = models.PagedCaches(1, 6, 8, "f32_576", "index_f32", block_table=table)
        old = np.random.default_rng(1).standard_normal((23, 40)).astype(np.float32)
        plan = cp.split_plan("contiguous", np.concatenate([[0], np.cumsum(lens - 3)]), None, 1)
        first, _ = layer.prefill(old[: plan.num_rows], plan, caches)
        out, indices = layer.decode(x, lens, caches, next_n=3)
        found.append((first.tobytes(), out.tobytes(), indices.tobytes()))
    assert found[0] == found[1] == found[2]


def test_refusals(paths):
    for bound in (17, -1):
        with pytest.raises(ValueError, match=f"dense_until is {bound}, needs 0 to index_topk = 16"):
            load(paths["glm"], dense_until=bound)


@pytest.mark.parametrize("by", ["packed", "paged"])
def test_some_rows_of_a_rank_are_chosen_for(rng, by):
    """What is asked for some rows is what all rows were told; requests without rows among them are not read."""
    plan = cp.split_plan("interleave", [0, 9, 9, 20], [3, 4, 0], 2)
    lens = plan.prefix_lens + plan.real_lens
    cache = np.full((7, 4, 128), np.nan, np.float32)
    cache[:6] = rng.standard_normal((6, 4, 128))
    table = np.array([[3, 1, 0], [6, -1, -1], [2, 5, 4]], np.int32)
    caches = models.PagedCaches(1, 7, 4, "f32_576", "index_f32").layer(0)
    caches.index[:] = cache
    n = int(plan.counts[1])
    q, weights = rng.standard_normal((n, 2, 128)).astype(np.float32), rng.standard_normal((n, 2)).astype(np.float32)
    whole = cp.prefill_select(plan, 1, q, weights, caches, table, 5, by=by)
    assert lens.tolist() == [12, 4, 11] and (whole >= 0).any()
    for rows in ([], [0], [1, 4, 7], [n - 1], range(n)):
        rows = np.array(rows, np.int64)
        some = cp.prefill_select(plan, 1, q[rows], weights[rows], caches, table, 5, by=by, rows=rows)
        np.testing.assert_array_equal(some, whole[rows])


@pytest.mark.parametrize("kv", ["f32_576", "bf16_576", "fp8_656"])
def test_a_row_has_its_own_bits(rng, kv):
    """Alone, in batches, in other orders, for 1 to 3 threads: rows on both sides of the bound, and padding."""
    caches = models.PagedCaches(1, 6, 8, kv, "index_f32", block_table=np.array([[4, 0, 2], [5, 1, 3]], np.int32))
    keys = rng.standard_normal((48, 576)).astype(np.float32)
    caches.write(0, (keys[:, :512], keys[:, 512:], None), np.arange(48))
    positions, request = np.array([3, 4, 5, 17, 18, 0, 1, 9, 23, 0]), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, -1])
    indices = np.full((10, 8), -1, np.int32)
    for row, (p, r) in enumerate(zip(positions, request)):
        if r >= 0:
            n = min(8, p + 1)
            indices[row, :n] = np.sort(rng.permutation(p + 1)[:n])
    q = rng.standard_normal((10, 3, 512)).astype(np.float32), rng.standard_normal((10, 3, 64)).astype(np.float32)

    def op(bound):
        def rows(ids, threads):
            part = tuple(np.ascontiguousarray(x[ids]) for x in q)
            return attend(part, indices[ids], positions[ids], request[ids], bound, caches, 0, 0.05, threads)

        return rows

    assert_row_invariant(op(8), 10)
    every = np.arange(10)
    for bound in (3, 8):
        for one, other in zip(op(bound)(every, 1), op(0)(every, 1)):
            np.testing.assert_array_equal(one, other)
    assert (op(8)(every, 1)[0][9] == 0).all()
