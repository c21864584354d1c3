"""LayerShard on ranks that are threads: weights, bytes, order, refusals, recovery."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsespan import _core, cp
from sparsespan.comm import RankMismatch, run_ranks
from sparsespan.pipeline import LayerShard
from sparsespan.reference import layer_shard as twin

pytestmark = pytest.mark.timeout(60)


def weight(name, layer, shape=(3, 2)):
    """Known by its value: a weight in the wrong window shows."""
    return np.full(shape, 1000 * (name == "q_b") + layer, np.float32)


def series(layers, names=("o_proj",), rank=None, size=1):
    """All weights; with `rank` only those that it keeps, the others None."""
    return {n: {i: weight(n, i) if rank is None or i % size == rank else None for i in layers} for n in names}


def one_pass(shard, names=("o_proj",)):
    for layer in shard.layers:
        shard.reach(layer)
        got = shard.wait(layer)
        for name in names:
            np.testing.assert_array_equal(got[name], weight(name, layer))


@pytest.mark.parametrize(
    ("start", "end", "ranks", "prefetch"),
    [
        (31, 61, 4, 1),
        (31, 61, 8, 2),
        (0, 61, 3, 0),
        (7, 8, 4, 0),
        (7, 9, 4, 0),
        (7, 10, 2, 1),
        (5, 12, 3, 5),
        (2, 5, 1, 1),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_every_rank_sees_every_weight_pass_after_pass(start, end, ranks, prefetch, fixed):
    def rank(comm):
        own = series(range(start, end), rank=comm.rank, size=comm.size)
        shard = LayerShard(own, comm, prefetch, fixed_addresses=fixed)
        comm._native.reset_trace()
        for _ in range(3):
            one_pass(shard)
        shard.wait_all()
        assert shard.under_way == 0
        return comm.trace().get("broadcast", {"bytes": 0, "calls": 0}), shard.nbytes

    n, w = end - start, weight("o_proj", 0).nbytes
    for r, (trace, held) in enumerate(run_ranks(ranks, rank, timeout=10)):
        owned = sum(i % ranks == r for i in range(start, end))
        windows = twin.fixed_window_count(n, prefetch) if fixed else prefetch + 1
        assert held == (owned + (windows if ranks > 1 else 0)) * w
        # Of n broadcasts in a pass a rank receives those that it does not send.
        assert trace["bytes"] == (3 * (n - owned) * w if ranks > 1 else 0)


def test_bytes_are_those_of_the_closed_formula():
    """All ranks together receive what cp.volume says; the busiest rank receives no more than its bound."""
    dims = dataclasses.replace(
        cp.attention_dims("v3.2"), layers=5, hidden=24, heads=2, q_lora=6, nope=4, rope=2, v_head=4, index_layers=5
    )
    shapes = {"q_b_proj": (6, 2 * 6), "o_proj": (2 * 4, 24)}
    ranks = 3
    told = cp.volume("layer_shard", tokens=1, ranks=ranks, model=dims)

    def rank(comm):
        shard = LayerShard(
            {n: {i: np.zeros(s, ml_dtypes.bfloat16) for i in range(5)} for n, s in shapes.items()}, comm, prefetch=1
        )
        comm._native.reset_trace()
        for layer in shard.layers:
            shard.reach(layer)
            shard.wait(layer)
        shard.wait_all()
        return comm.trace()["broadcast"]

    traces = run_ranks(ranks, rank, timeout=10)
    assert sum(t["bytes"] for t in traces) == told.total
    assert max(t["bytes"] for t in traces) <= told.received
    assert [t["calls"] for t in traces] == [told.primitives["broadcast"]] * ranks


def test_the_order_comes_from_the_names_not_from_the_caller():
    def rank(comm):
        names = ("q_b", "o_proj") if comm.rank % 2 else ("o_proj", "q_b")
        own = series(range(3, 9), names)
        if comm.rank == 2:
            own = {n: dict(reversed(list(own[n].items()))) for n in own}
        shard = LayerShard(own, comm, 2)
        for _ in range(2):
            one_pass(shard, names)
        shard.wait_all()

    run_ranks(4, rank, timeout=10)


def test_series_can_be_waited_for_one_by_one():
    def rank(comm):
        shard = LayerShard(series(range(4), ("q_b", "o_proj")), comm, 1)
        for layer in shard.layers:
            shard.reach(layer)
            np.testing.assert_array_equal(shard.wait(layer, "q_b"), weight("q_b", layer))
            np.testing.assert_array_equal(shard.wait(layer, "o_proj"), weight("o_proj", layer))
        with pytest.raises(ValueError, match=r"LayerShard.wait: name is 'k_proj', needs one of 'o_proj', 'q_b'"):
            shard.wait(3, "k_proj")
        shard.wait_all()

    run_ranks(2, rank, timeout=10)


def test_fixed_addresses_are_fixed_and_rotating_ones_are_not():
    def rank(comm, fixed):
        shard = LayerShard(series(range(7)), comm, 1, fixed_addresses=fixed)
        places = [[], []]
        for at in places:
            for layer in shard.layers:
                shard.reach(layer)
                at.append(shard.wait(layer)["o_proj"].ctypes.data)
        shard.wait_all()
        return places

    for fixed in (True, False):
        for first, second in run_ranks(2, lambda comm, f=fixed: rank(comm, f), timeout=10):
            assert (first == second) == fixed


def test_mtp_layers_are_left_out():
    def rank(comm):
        shard = LayerShard(series([*range(58, 61), 61, 63]), comm, 1, hidden_layers=61)
        one_pass(shard)
        shard.wait_all()
        return list(shard.layers), shard.excluded

    assert run_ranks(2, rank, timeout=10) == [([58, 59, 60], [61, 63])] * 2


def test_only_kept_weights_are_loaded():
    class Loading(dict):
        def __getitem__(self, layer):
            asked.append(layer)
            return weight("o_proj", layer)

    asked = []

    def rank(comm):
        mapping = Loading.fromkeys(range(6)) if comm.rank == 1 else series(range(6))["o_proj"]
        shard = LayerShard({"o_proj": mapping}, comm, 1)
        one_pass(shard)
        shard.wait_all()

    run_ranks(2, rank, timeout=10)
    assert asked == [1, 3, 5]


def test_an_exception_between_reach_and_wait():
    def rank(comm):
        shard = LayerShard(series(range(31, 41)), comm, 2)
        for layer in range(31, 36):
            shard.reach(layer)
        # Nobody waited for anything, and the pass is given up on all ranks.
        shard.reset()
        assert shard.expected == 31 and shard.under_way == 0
        for _ in range(2):
            one_pass(shard)
        shard.wait_all()

    run_ranks(3, rank, timeout=10)


def test_a_rank_that_failed_alone_or_has_no_tokens_stays_in_step():
    def rank(comm):
        shard = LayerShard(series(range(31, 41)), comm, 1)
        if comm.rank == 1:
            shard.reach(31)  # and then an exception
            shard.idle_pass()
        else:
            one_pass(shard)
        if comm.rank == 2:
            shard.idle_pass()
        else:
            one_pass(shard)
        one_pass(shard)
        shard.wait_all()

    run_ranks(3, rank, timeout=10)


@pytest.mark.parametrize("field", ["op", "plan"])
def test_ranks_at_different_layers_are_told(field):
    def rank(comm):
        shard = LayerShard(series(range(8)), comm, 1)
        shard.reach(0)
        if comm.rank == 0:
            shard.reach(1)  # starts layer 2, kept by rank 0 like layer 0: only the layer tells the broadcasts apart
            shard.wait_all()
        elif field == "plan":
            shard.reset()
        else:
            comm.barrier()

    with pytest.raises(RankMismatch) as error:
        run_ranks(2, rank, timeout=5)
    assert error.value.field == field


def test_the_shipped_formula_differs_where_the_layers_do_not_divide_the_start():
    assert twin.shipped_target(31, 31, 30, 1) == 33 and twin.target(31, 31, 30, 1) == 32
    for start in range(80):
        for n in range(1, 40):
            for k in range(min(3, max(0, n - 2) + 1)):
                order = _core.pipeline.ShardOrder(start, n, 1, k, False)
                mine = [order.target(i) for i in range(start, start + n)]
                assert mine == [twin.target(i, start, n, k) for i in range(start, start + n)]
                shipped = [twin.shipped_target(i, start, n, k) for i in range(start, start + n)]
                assert (mine == shipped) == (start % n == 0)


@given(start=st.integers(0, 90), n=st.integers(1, 20), data=st.data())
def test_windows_rotate_as_upstream(start, n, data):
    k = data.draw(st.integers(0, max(0, n - 2)))
    order, model = _core.pipeline.ShardOrder(start, n, 4, k, False), twin.Windows(start, n, k)
    assert order.seed() == [(start + i, i) for i in range(k)]
    for step in range(3 * n):
        layer = start + step % n
        assert order.reach(layer) == model.reach(layer)
        assert model.held[order.window(layer)] == layer


@pytest.mark.peer
def test_torch_weights_come_back_as_torch():
    torch = pytest.importorskip("torch")

    def rank(comm):
        own = {"o_proj": {i: torch.full((2, 2), i, dtype=torch.bfloat16) for i in range(4)}}
        shard = LayerShard(own, comm, 1)
        for layer in shard.layers:
            shard.reach(layer)
            got = shard.wait(layer, "o_proj")
            assert got.dtype is torch.bfloat16 and bool((got == layer).all())
        shard.wait_all()

    run_ranks(2, rank, timeout=10)


def test_two_shards_on_one_communicator_in_one_order():
    """Series of other layers are a shard of their own: the ranks reach both in the same order."""

    def rank(comm):
        attention = LayerShard(series(range(2, 9)), comm, 2)
        experts = LayerShard(series(range(4, 9), ("q_b",)), comm, 1)
        for _ in range(2):
            for layer in attention.layers:
                attention.reach(layer)
                if layer in experts.layers:
                    experts.reach(layer)
                np.testing.assert_array_equal(attention.wait(layer, "o_proj"), weight("o_proj", layer))
                if layer in experts.layers:
                    np.testing.assert_array_equal(experts.wait(layer, "q_b"), weight("q_b", layer))
        attention.wait_all()
        experts.wait_all()

    run_ranks(3, rank, timeout=10)


def test_polling_ends_what_has_come():
    def rank(comm):
        shard = LayerShard(series(range(6)), comm, 2)
        shard.reach(0)
        comm.barrier()
        while shard.under_way:
            shard.poll()
        np.testing.assert_array_equal(shard.wait(0, "o_proj"), weight("o_proj", 0))

    run_ranks(3, rank, timeout=10)
