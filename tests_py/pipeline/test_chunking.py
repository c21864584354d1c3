import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.pipeline as reference
from sparsespan import num_threads
from sparsespan.pipeline import (
    ChunkCost,
    Costs,
    chunk_sizes,
    chunked_prefill,
    fit_chunk_cost,
    logit_tiles,
    simulate,
    sm_waves,
    split_layers,
    threads_for_compute,
)

# DeepSeek-V3.1 on eight H20: expanded-head attention in BF16, the linear part in FP8, both at peak.
V31 = ChunkCost(a=81_920 * 61 / (8 * 148e12), b=2 * 37e9 / (8 * 296e12), c=0.0)


def speed_up(chunks, layers):
    starts = np.cumsum(chunks) - chunks
    run = simulate(chunked_prefill(4, chunks), Costs(prefill=V31, stage_weights=[n / 61 for n in layers]))
    return sum(V31(n, p) for n, p in zip(chunks, starts)) / run.makespan


class TestSectionA3:
    def test_v31_128k_pp4(self):
        sizes = chunk_sizes(131072, 12288, V31, smooth=0.65)
        assert sizes[:4].tolist() == [12288, 8896, 7744, 7104] and sizes[-2:].tolist() == [5056, 192]
        assert len(sizes) == 22
        # Figures of the sheet, to the digits it gives.
        assert round(speed_up(sizes, [15, 15, 15, 16]), 2) == 3.33
        assert round(speed_up(chunk_sizes(131072, 4096, V31, smooth=0), [15, 15, 15, 16]), 2) == 3.45
        assert round(speed_up(chunk_sizes(131072, 4096, V31, smooth=0), [16, 15, 15, 15]), 2) == 3.27
        assert round(speed_up(chunk_sizes(131072, 12288, V31, smooth=0), [15, 15, 15, 16]), 2) == 2.72

    def test_splits_of_the_engines(self):
        assert split_layers(61, 2, "vllm") == [31, 30]
        assert split_layers(61, 4, "vllm") == [15, 15, 16, 15] == split_layers(61, 4, "vllm_ascend")
        assert split_layers(63, 4, "vllm") == [16, 16, 16, 15]
        assert split_layers(61, 4, "sglang") == [15, 15, 15, 16]
        assert split_layers(62, 4, "sglang") == [15, 15, 16, 16]
        assert split_layers(61, 4, "sglang_first") == [16, 15, 15, 15]


@given(
    st.integers(1, 40_000), st.integers(64, 8192), st.floats(1e-12, 1e-3), st.floats(0, 1e-1),
    st.sampled_from([0.0, 0.5, 0.75, 1.0]), st.sampled_from([1, 64, 128]),
)  # fmt: skip
def test_chunk_sizes_equal_the_twin(total, first, a, b, smooth, align):
    ours = chunk_sizes(total, first, ChunkCost(a, b, 7.0), smooth, align)
    theirs = reference.chunk_sizes(total, first, a, b, smooth, align)
    assert ours.sum() == total and (ours > 0).all()
    assert (ours[:-1] % align == 0).all() and (ours[:-1] >= min(align, first // 4)).all()
    # numpy.roots cancels where ours does not: a size at the edge of a unit may fall on its other side, and all that
    # follow shift. Almost always they are equal; where they are not, the first difference is one unit.
    n = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:n] != theirs[:n])
    assert differ.size == 0 or abs(int(ours[differ[0]]) - theirs[differ[0]]) <= align


def test_chunk_limits():
    cost = ChunkCost(1.0, 0.0, 0.0)
    assert chunk_sizes(0, 64, cost).tolist() == []
    assert chunk_sizes(10, 64, cost).tolist() == [10]
    assert chunk_sizes(1000, 100, cost, smooth=1, align=1, floor=90).tolist()[1] == 90
    assert chunk_sizes(1000, 100, cost, smooth=1, align=1, cap=50).max() == 50
    late = chunk_sizes(100, 100, cost, smooth=1, align=1, prefix=10_000)
    assert late[0] == 25 and late.sum() == 100  # first // 4 is the floor
    equal = chunk_sizes(100_000, 10_000, cost, smooth=1, align=1, floor=1)
    starts = np.cumsum(equal) - equal
    costs = [cost(n, p) for n, p in zip(equal[:-1], starts)]
    assert np.allclose(costs, costs[0], rtol=5e-3)  # whole tokens, of which the last chunks have some hundreds


@pytest.mark.parametrize(
    "change, match",
    [
        ({"total": -1}, "total is -1"),
        ({"first": 0}, "first is 0, needs at least 1"),
        ({"align": 0}, "align is 0"),
        ({"floor": 0}, "floor is 0"),
        ({"cap": 0}, "cap is 0"),
        ({"cap": 32}, "cap is 32, needs at least one unit of align, 64"),
        ({"prefix": -5}, "prefix is -5"),
        ({"smooth": 1.5}, "smooth is 1.5"),
        ({"smooth": float("nan")}, "smooth is nan"),
        ({"cost": ChunkCost(0.0, 1.0, 0.0)}, r"cost has a = 0, needs a > 0"),
        ({"cost": ChunkCost(-1.0, 1.0, 0.0)}, r"cost has a = -1"),
        ({"cost": ChunkCost(1.0, -1.0, 0.0)}, r"cost has b = -1"),
        ({"total": 1 << 41}, "needs at most"),
        ({"total": 1 << 40, "first": 1, "align": 1}, "more than 1000000 chunks"),
    ],
)
def test_chunk_refusals(change, match):
    arguments = {"total": 1000, "first": 64, "cost": ChunkCost(1.0, 1.0, 0.0), **change}
    with pytest.raises(ValueError, match=match):
        chunk_sizes(**arguments)


@given(st.floats(1e-12, 1e-6), st.floats(0, 1e-3), st.floats(0, 1.0), st.integers(0, 2**32 - 1))
def test_fit_recovers_the_cost(a, b, c, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.choice(np.arange(256, 16384, 64), 32, replace=False).astype(float)
    prefixes = rng.integers(0, 100_000, 32).astype(float)
    true = ChunkCost(a, b, c)
    seconds = [true(n, p) for n, p in zip(lengths, prefixes)]
    fit = fit_chunk_cost(lengths, prefixes, seconds)
    again = [fit(n, p) for n, p in zip(lengths, prefixes)]
    # Exact samples: what is left is rounding of sums of 32 terms, seen through columns that are nearly parallel.
    np.testing.assert_allclose(again, seconds, rtol=1e-7, atol=1e-9 * max(seconds))
    assert fit_chunk_cost(lengths, prefixes, seconds).a == fit.a  # the same samples, the same bits


def test_fit_equals_lstsq(rng):
    lengths = np.linspace(15360, 512, 60)
    prefixes = np.zeros(60)
    seconds = np.array([V31(n, 0) for n in lengths]) * rng.normal(1, 0.02, 60) + 1e-3
    fit = fit_chunk_cost(lengths, prefixes, seconds)
    np.testing.assert_allclose((fit.a, fit.b, fit.c), reference.fit_chunk_cost(lengths, prefixes, seconds), rtol=1e-6)


def test_fit_refusals():
    c = np.arange(1.0, 11.0)
    with pytest.raises(ValueError, match=r"lengths has 7 samples, needs at least 8"):
        fit_chunk_cost(c[:7], c[:7], c[:7])
    with pytest.raises(ValueError, match=r"seconds has 9 values and prefixes has 10"):
        fit_chunk_cost(c, c, c[:9])
    with pytest.raises(ValueError, match=r"give a = -.*, needs a > 0"):
        fit_chunk_cost(c, 0 * c, 10 * c - c * c)
    with pytest.raises(ValueError, match=r"do not vary enough"):
        fit_chunk_cost(0 * c + 5, 0 * c, c)
    with pytest.raises(ValueError, match=r"sample \(0, 1, 1\) at 0"):
        fit_chunk_cost([0.0] * 8, [1.0] * 8, [1.0] * 8)
    assert fit_chunk_cost(c, 0 * c, c * c - 0.1 * c).b == 0.0  # a negative b is set to 0


@given(st.integers(1, 40), st.integers(1, 5), st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_balance_is_the_best_placement(extra_layers, pp, chunks):
    layers = pp + extra_layers
    ours = split_layers(layers, pp, balance=chunks)
    assert sum(ours) == layers and max(ours) - min(ours) <= 1
    best = min(reference.flow_makespan(chunks, split) for split in placements(layers, pp))
    assert reference.flow_makespan(chunks, ours) <= best * (1 + 1e-9)  # sums in another order


def placements(layers, pp):
    rest = layers % pp
    for mask in range(1 << pp):
        if mask.bit_count() == rest:
            yield [layers // pp + (mask >> s & 1) for s in range(pp)]


def test_balance_prefers_the_heavy_stage_last():
    growing = [float(i) for i in range(1, 20)]
    assert split_layers(61, 4, balance=growing) == [15, 15, 15, 16]
    # An LM head worth four layers takes layers off the last stage.
    with_head = split_layers(61, 4, balance=[1.0] * 64, extra=[0, 0, 0, 4])
    assert sum(with_head) == 61 and with_head[3] + 4 <= max(with_head[:3]) + 1


def test_split_refusals():
    with pytest.raises(ValueError, match="flavor is 'x', needs 'sglang'"):
        split_layers(61, 4, "x")
    with pytest.raises(ValueError, match="num_layers is 3, needs at least one for each of the 4 stages"):
        split_layers(3, 4)
    with pytest.raises(ValueError, match="pp is 0"):
        split_layers(3, 0)
    with pytest.raises(ValueError, match="extra is given, needs balance"):
        split_layers(8, 2, extra=[0, 1])
    with pytest.raises(ValueError, match="extra has 1 values"):
        split_layers(8, 2, balance=[1.0], extra=[1])
    with pytest.raises(ValueError, match="balance holds -1"):
        split_layers(8, 2, balance=[-1.0])
    with pytest.raises(ValueError, match="balance is empty"):
        split_layers(8, 2, balance=[])


class TestSectionA6:
    """Prefix 16384, chunk 8192, round-robin over 8 ranks: 1024 rows of a rank, 78 SMs of which a receive holds one."""

    @pytest.mark.parametrize("rank", range(8))
    def test_the_reported_slow_down(self, rank):
        tiles = logit_tiles(16384 + 8 * np.arange(1024) + rank + 1)
        held = sm_waves(tiles, sms=78, reserved=1)
        assert (len(tiles), held.alone, held.time) == (512, 573, 966)
        assert round(held.slowdown, 3) == 1.686  # reported: 2.211 ms after 1.312 ms, 1.685
        fixed = sm_waves(tiles, sms=78, reserved=1, grid=77)
        assert round(fixed.slowdown, 2) == 1.00
        assert (held.best_grid, held.best_time) == (77, fixed.time)

    @pytest.mark.parametrize("tiles, ratio", [(256, 1.50), (384, 1.60), (512, 1.714), (1024, 1.857), (780, 2.0)])
    def test_equal_tiles(self, tiles, ratio):
        assert round(sm_waves(tiles, 78, 1).slowdown, 3) == ratio

    def test_an_intruder_that_leaves_early(self):
        """max(alone, the earlier of the first free SM and the intruder's end, plus the displaced block)."""
        assert sm_waves(780, 78, 1, reserved_until=3.0).time == 13.0
        assert sm_waves(780, 78, 1, reserved_until=50.0).time == 20.0


@given(
    st.lists(st.integers(0, 9), max_size=60), st.integers(1, 9), st.data()
)  # fmt: skip
def test_waves_equal_the_twin(tiles, sms, data):
    reserved = data.draw(st.integers(0, sms - 1))
    grid = data.draw(st.integers(1, 2 * sms))
    until = data.draw(st.sampled_from([0.0, 3.0, 1e9]))
    ours = sm_waves(tiles, sms, reserved, grid=grid, reserved_until=until)
    assert ours.time == reference.sm_waves(tiles, sms, reserved, grid, until)
    assert ours.alone == reference.sm_waves(tiles, sms)
    assert ours.best_time == min(reference.sm_waves(tiles, sms, reserved, g, until) for g in range(1, sms + 1))


def test_wave_refusals():
    for arguments, match in [
        (dict(tiles=-1, sms=2), "tiles is -1, needs 0 or more"),
        (dict(tiles=4, sms=0), "sms is 0"),
        (dict(tiles=4, sms=2, reserved=2), "reserved is 2, needs 0 to 1: one SM must be left"),
        (dict(tiles=4, sms=2, grid=0), "grid is 0"),
        (dict(tiles=4, sms=2, reserved_until=-1.0), "reserved_until is -1"),
        (dict(tiles=[1.0, -1.0], sms=2), "tiles holds -1 at 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            sm_waves(**arguments)
    with pytest.raises(ValueError, match="rows_per_tile is 0"):
        logit_tiles([1], rows_per_tile=0)
    with pytest.raises(ValueError, match="both need"):
        logit_tiles([1], ks=[0, 0])
    assert logit_tiles([]).shape == (0,)
    assert sm_waves(0, 78, 1).slowdown == 1.0
    assert logit_tiles([300, 600, 100], ks=[100, 0, 200]).tolist() == [3, 0]


def test_threads_for_compute():
    assert [threads_for_compute(r, threads=4) for r in range(6)] == [4, 3, 2, 1, 1, 1]
    assert threads_for_compute(0) == num_threads()
    for arguments in ({"reserve": -1}, {"threads": -1}):
        with pytest.raises(ValueError, match=r"threads_for_compute: reserve is -?1 and threads -?[01], both need 0"):
            threads_for_compute(**arguments)
