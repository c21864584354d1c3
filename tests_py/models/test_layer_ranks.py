"""A layer on ranks: context, tensor and decode-context parallel, against one rank bit by bit."""

import ml_dtypes
import numpy as np
import pytest
from layer_cases import PAGE, SMALL, cu, hidden_rows, make_caches

from sparsespan import comm, cp, models

SCHEMES = ["zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_cp_equals_one_rank(rng, scheme, ranks):
    """Two chunks over every split: rows, indices and the caches of every rank have one rank's bits."""
    dims = SMALL["glm-5"]
    layer = models.dsa_layer(dims, seed=5, dtype="bfloat16")
    chunks = [[8, 16, 0], [16, 8, 24]] if scheme == "thd_even" else [[7, 3, 0], [12, 1, 21]]
    total = np.sum(chunks, axis=0)
    x = hidden_rows(rng, int(total.sum()), dims, ml_dtypes.bfloat16)
    seed = int(rng.integers(1 << 30))

    def run(group):
        caches = make_caches(np.random.default_rng(seed), total, kind="fp8")
        rank = 0 if group is None else group.rank
        done, results, at = np.zeros(3, np.int64), [], 0
        for chunk in chunks:
            # One rank keeps the batch's own order; zigzag would put front blocks first there too.
            kind, size = ("contiguous", 1) if group is None else (scheme, group.size)
            plan = cp.split_plan(kind, cu(chunk), done, size)
            rows = plan.rank_rows(rank)
            local = np.where((rows >= 0)[:, None], x[at + np.maximum(rows, 0)], 0).astype(x.dtype)
            out, indices = layer.prefill(local, plan, caches, group)
            results.append((rows, out, indices))
            done += chunk
            at += sum(chunk)
        return results, caches

    one, one_caches = run(None)
    for results, caches in comm.run_ranks(ranks, run):
        for (_, out, indices), (rows, got, picked) in zip(one, results):
            real = rows >= 0
            assert got[real].tobytes() == out[rows[real]].tobytes()
            np.testing.assert_array_equal(picked[real], indices[rows[real]])
        assert caches.kv[0].tobytes() == one_caches.kv[0].tobytes()
        assert caches.index_k[0].tobytes() == one_caches.index_k[0].tobytes()


@pytest.mark.parametrize("o_proj", ["reduce", "gather"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_tp_equals_one_rank(rng, ranks, o_proj):
    """Prefill and a decode step over ranks that share the heads: the bits of one rank, or sums in another order."""
    dims = SMALL["v3.2"]
    x = hidden_rows(rng, 20, dims)
    plan = cp.split_plan("contiguous", [0, 19], None, 1)
    seed = int(rng.integers(1 << 30))

    def run(group):
        caches = make_caches(np.random.default_rng(seed), [20])
        tp = (0, 1) if group is None else (group.rank, group.size)
        layer = models.dsa_layer(dims, seed=4, dtype="float32", tp=tp, o_proj=o_proj)
        first, _ = layer.prefill(x[:19], plan, caches, tp=group)
        last, _ = layer.decode(x[19:], [20], caches, group)
        return np.concatenate([first, last])

    want = run(None)
    for got in comm.run_ranks(ranks, run):
        if o_proj == "gather":
            assert got.tobytes() == want.tobytes()
        else:
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_cp_times_tp_equals_one_rank(rng):
    """Two CP ranks of two TP ranks each."""
    dims = SMALL["v3.2"]
    x, seed = hidden_rows(rng, 23, dims), int(rng.integers(1 << 30))
    layer = models.dsa_layer(dims, seed=4, dtype="float32")
    caches = make_caches(np.random.default_rng(seed), [23])
    want, _ = layer.prefill(x, cp.split_plan("contiguous", [0, 23], None, 1), caches)
    plan = cp.split_plan("zigzag", [0, 23], None, 2)

    def run(world):
        group, tp = world.split(world.rank % 2), world.split(world.rank // 2)
        part = models.dsa_layer(dims, seed=4, dtype="float32", tp=(tp.rank, 2), o_proj="gather")
        mine = make_caches(np.random.default_rng(seed), [23])
        out, _ = part.prefill(cp.split(x, plan, group.rank), plan, mine, group, tp=tp)
        return plan.rank_rows(group.rank), out, mine.kv[0].tobytes()

    for rows, out, cache in comm.run_ranks(4, run):
        assert out.tobytes() == want[rows].tobytes()
        assert cache == caches.kv[0].tobytes()


@pytest.mark.parametrize("index_k", ["replicated", "sharded"])
@pytest.mark.parametrize("interleave", [1, PAGE])
def test_dcp_has_the_bits_of_one_rank(rng, interleave, index_k):
    """Two ragged prompts and three steps over a shared cache on 1, 2 and 4 ranks; close to the plain layer."""
    dims = SMALL["v3.2"]
    lengths, steps = [13, 26], 3
    total = [n + steps for n in lengths]
    x = [hidden_rows(rng, n, dims) for n in total]
    prompt = np.concatenate([r[:n] for r, n in zip(x, lengths)])

    def steps_of(layer, caches, group, **options):
        prefill = {} if group is None else {"tp": group}
        plan = cp.split_plan("contiguous", cu(lengths), None, 1)
        outs = [layer.prefill(prompt, plan, caches, **prefill, **options)]
        for i in range(steps):
            rows = np.stack([r[n + i] for r, n in zip(x, lengths)])
            outs.append(layer.decode(rows, np.array(lengths) + i + 1, caches, group, **options))
        return np.concatenate([o for o, _ in outs]), np.concatenate([i for _, i in outs])

    def run(group):
        layout = cp.dcp_layout(interleave, group.size, PAGE)
        pages = [-(-n // layout.virtual_page_size) for n in total]
        table = np.zeros((2, max(pages)), np.int32)
        table[0, : pages[0]], table[1, : pages[1]] = np.arange(pages[0]), pages[0] + np.arange(pages[1])
        caches = models.PagedCaches(
            1, sum(pages), PAGE, "f32_576", "index_f32", block_table=table,
            index_pages=sum(pages) * (group.size if index_k == "replicated" else 1),
        )  # fmt: skip
        layer = models.dsa_layer(dims, seed=4, dtype="float32", tp=(group.rank, group.size), o_proj="gather")
        return steps_of(layer, caches, group, dcp=models.Dcp(layout, index_k=index_k))

    plain = steps_of(models.dsa_layer(dims, seed=4, dtype="float32"), make_caches(rng, total), None)
    ((want, want_indices),) = comm.run_ranks(1, run)
    np.testing.assert_array_equal(want_indices, plain[1])
    np.testing.assert_allclose(want, plain[0], rtol=0, atol=1e-5 * np.abs(plain[0]).max())
    for ranks in (2, 4):
        for got, indices in comm.run_ranks(ranks, run):
            assert got.tobytes() == want.tobytes()
            np.testing.assert_array_equal(indices, want_indices)
