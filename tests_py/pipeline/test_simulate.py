import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsespan.reference.pipeline as reference
from sparsespan.pipeline import (
    ChunkCost,
    Costs,
    Schedule,
    ScheduleError,
    add_fetch_evict,
    add_send_recv,
    chunked_prefill,
    decode_loop,
    dualpipe_v,
    gpipe,
    interleaved,
    mixed_prefill_decode,
    one_f_one_b,
    simulate,
    zero_bubble,
)

GENERATORS = {
    "gpipe": gpipe,
    "one_f_one_b": one_f_one_b,
    "interleaved": interleaved,
    "h1": zero_bubble,
    "zbv": lambda p, m: zero_bubble(p, m, flavor="v"),
    "dualpipe_v": dualpipe_v,
}


def cost_of(costs):
    def cost(action):
        if action.parts:
            return sum(map(cost, action.parts)) if costs.overlap is None else costs.overlap
        return {"F": costs.F, "B": costs.B, "I": costs.I, "W": costs.W}[action.kind]

    return cost


class TestSectionA2:
    """Published bubbles and peaks."""

    @pytest.mark.parametrize("ranks, m, makespan", [(4, 8, 33), (4, 16, 57), (8, 32, 117)])
    def test_1f1b(self, ranks, m, makespan):
        run = simulate(one_f_one_b(ranks=ranks, microbatches=m), Costs(F=1, B=2))
        assert run.makespan == makespan
        assert run.peak_activations == list(range(ranks, 0, -1))

    def test_gpipe(self):
        run = simulate(gpipe(ranks=4, microbatches=8), Costs(F=1, B=2))
        assert (run.makespan, run.peak_activations) == (33, [8] * 4)
        assert run.bubble == [(4 - 1) * (1 + 2)] * 4

    def test_dualpipe_v(self):
        run = simulate(dualpipe_v(ranks=4, microbatches=10), Costs(F=1, I=1, W=1, B=2, overlap=3))
        assert (run.makespan, run.busy, run.bubble, run.peak_activations) == (66, [60] * 4, [6] * 4, [9] * 4)
        half = simulate(dualpipe_v(ranks=4, microbatches=10), Costs(overlap=2.5))
        assert (half.makespan, half.busy) == (59.0, [55.5, 55.0, 54.5, 54.5])

    @pytest.mark.parametrize("ranks", range(1, 9))
    @pytest.mark.parametrize("extra", [0, 3, 8])
    def test_dualpipe_v_bubble_formula(self, ranks, extra):
        """(S / 2 - 1)(FB + B - 3 W) with B the full backward, S + 1 activations: the DualPipe repository."""
        run = simulate(dualpipe_v(ranks, 2 * ranks + extra), Costs(F=1, I=1, W=1, B=2, overlap=3))
        assert run.bubble == [(ranks - 1) * (3 + 2 - 3)] * ranks
        assert max(run.peak_activations) == 2 * ranks + 1

    @pytest.mark.parametrize("ranks", range(1, 9))
    @pytest.mark.parametrize("f, i, w", [(1, 1, 1), (2, 2, 1), (3, 3, 3)])
    def test_zb_h1_bubble_formula(self, ranks, f, i, w):
        """(P - 1)(F + I - W) and P activations on every rank, from arXiv 2401.10241."""
        run = simulate(zero_bubble(ranks, 4 * ranks), Costs(F=f, I=i, W=w))
        assert run.bubble == [(ranks - 1) * (f + i - w)] * ranks
        assert run.peak_activations == [ranks] * ranks

    @pytest.mark.parametrize("ranks", range(1, 9))
    def test_zbv(self, ranks):
        """With F = I = W only the P - 1 steps are lost in which the first micro-batch reaches the last rank."""
        run = simulate(zero_bubble(ranks, 3 * ranks, flavor="v"))
        assert run.bubble == [ranks - 1] * ranks
        assert max(run.peak_activations) == 2 * ranks

    @pytest.mark.parametrize("ranks", [2, 4, 8])
    @pytest.mark.parametrize("v", [1, 2, 4])
    def test_interleaved_bubble_formula(self, ranks, v):
        """(P - 1)(F + B) in stage units, (P - 1)(F + B) / v of a rank's work; peak of arXiv 2205.05198."""
        run = simulate(interleaved(ranks, 4 * ranks, stages_per_rank=v))
        assert run.bubble == [(ranks - 1) * 3] * ranks
        assert run.peak_activations[0] == min(4 * ranks * v, 2 * (ranks - 1) + (v - 1) * ranks + 1)


class TestSectionA3:
    """Chunked prefill."""

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 6))
    def test_any_chunks(self, chunks, ranks):
        """T = sum t + (P - 1) max t; chunk costs are integers, so sums are exact."""
        run = simulate(chunked_prefill(ranks, chunks), Costs(prefill=lambda length, prefix: length * length))
        t = [n * n for n in chunks]
        assert run.makespan == sum(t) + (ranks - 1) * max(t)

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def test_unequal_stages(self, chunks, weights):
        run = simulate(chunked_prefill(len(weights), chunks), Costs(prefill=lambda n, _: n, stage_weights=weights))
        assert run.makespan == reference.flow_makespan(chunks, weights)

    def test_chunk_cost_is_the_function(self):
        cost = ChunkCost(1e-3, 0.5, 2.0)
        s = chunked_prefill(3, [64, 32, 16], prefixes=[100])
        assert simulate(s, Costs(prefill=cost)).makespan == simulate(s, Costs(prefill=lambda c, h: cost(c, h))).makespan

    def test_kv(self):
        s = chunked_prefill(2, [[10, 10], [30]], prefixes=[5, 0])
        run = simulate(s, Costs(kv_bytes_per_token=[2.0, 3.0]))
        # Request 0 (5 cached + 20) is done before request 1 (30) starts on the rank.
        assert run.peak_kv_bytes == [60.0, 90.0]


class TestSectionA5:
    def test_round_time(self):
        """max(m max t, sum t) for m slots; every slot waits for its own token."""
        for ranks, depth in [(4, 0), (4, 1), (2, 3), (1, 0)]:
            steps = 50
            run = simulate(decode_loop(ranks, steps, depth=depth), Costs(decode=1.0))
            assert run.makespan == steps * max(ranks + depth, ranks) + ranks - 1
        run = simulate(decode_loop(4, 50, depth=0), Costs(decode=1.0, sample=0.5))
        later = simulate(decode_loop(4, 50, depth=1), Costs(decode=1.0, sample=0.5))
        # Sampling takes the last stage's time; a slot more hides what the others would wait.
        assert later.makespan / 5 < run.makespan / 4


@pytest.mark.parametrize("name", GENERATORS)
@given(data=st.data())
def test_equals_the_twin(name, data):
    ranks = data.draw(st.integers(1, 4))
    m = 2 * ranks * data.draw(st.integers(1, 2))
    costs = Costs(*[data.draw(st.integers(0, 9)) for _ in range(4)])
    latency = data.draw(st.integers(0, 5))
    s = GENERATORS[name](ranks, m)
    run = simulate(s, Costs(costs.F, costs.B, costs.I, costs.W, latency=latency))
    makespan, busy, peaks = reference.simulate(s, cost_of(costs), latency=latency)
    assert (run.makespan, run.busy, run.peak_activations) == (makespan, busy, peaks)  # integers: exact
    lowered = simulate(add_send_recv(s), Costs(costs.F, costs.B, costs.I, costs.W, latency=latency))
    assert lowered.makespan == makespan


def test_timeline_is_a_partition():
    s = add_send_recv(add_fetch_evict(interleaved(2, 4, stages_per_rank=3), 2))
    run = simulate(s, Costs(fetch=0.5, latency=0.25))
    by_lane = {}
    for span in run.timeline:
        assert span.start <= span.end <= run.makespan
        by_lane.setdefault((span.rank, span.lane), []).append(span)
    for (rank, lane), spans in by_lane.items():
        if lane != "compute":
            continue
        assert sum(x.end - x.start for x in spans) == run.busy[rank]
        assert all(x.end <= y.start for x, y in itertools.pairwise(spans))


def test_a_fetch_delays_the_first_use():
    s = Schedule([["0FETCH", "0F0", "0EVICT"]], mode="forward")
    assert simulate(s, Costs(fetch=5)).makespan == 6
    late = Schedule([["0FETCH", "0F0", "1FETCH", "1F0", "0EVICT", "1EVICT"]], mode="forward")
    assert simulate(late, Costs(fetch=5)).makespan == 11  # the second fetch starts when the first ends, beside compute
    room = Schedule([["0FETCH", "0F0", "0EVICT", "1FETCH", "1F0", "1EVICT"]], mode="forward")
    assert simulate(room, Costs(fetch=5)).makespan == 12  # no room before the eviction


def test_functions_of_stage_and_microbatch():
    asked = []
    simulate(gpipe(2, 2), Costs(F=lambda stage, m: asked.append((stage, m)) or 1.0))
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_mixed_batches():
    run = simulate(mixed_prefill_decode(2, [64] * 4, batch=3), Costs(prefill=4, decode=lambda n, step: n))
    assert run.makespan == 5 * 7


def test_empty():
    run = simulate(Schedule([[], []]))
    assert (run.makespan, run.busy, run.timeline) == (0.0, [0.0, 0.0], [])
    assert simulate(chunked_prefill(2, [])).makespan == 0.0
    assert simulate(decode_loop(2, 0)).makespan == 0.0


def test_refusals():
    s = gpipe(2, 2)
    with pytest.raises(ValueError, match=r"simulate: a cost is -1, needs a finite number"):
        simulate(s, Costs(F=-1))
    with pytest.raises(ValueError, match=r"simulate: the cost is -3 for 0F0"):
        simulate(s, Costs(F=lambda stage, m: -3))
    with pytest.raises(ValueError, match=r"latency is nan"):
        simulate(s, Costs(latency=np.nan))
    with pytest.raises(ValueError, match=r"overlap is -2"):
        simulate(s, Costs(overlap=-2))
    with pytest.raises(ValueError, match=r"stage_weights has 3 values, needs one for each of the 2 stages"):
        simulate(s, Costs(stage_weights=[1, 2, 3]))
    with pytest.raises(ValueError, match=r"kv_bytes_per_token is -1"):
        simulate(s, Costs(kv_bytes_per_token=-1))
    with pytest.raises(ValueError, match=r"transport is 'x', needs"):
        simulate(s, transport="x")
    with pytest.raises(
        ScheduleError, match=r"1F0\): needs the forward of micro-batch 0 on stage 0, which stands later"
    ):
        simulate(Schedule([["1F0", "0F0"]]))
    with pytest.raises(ZeroDivisionError):
        simulate(s, Costs(F=lambda stage, m: 1 // 0))


def test_a_million_actions_in_linear_time():
    seconds = {}
    for m in (12_500, 125_000):
        s = one_f_one_b(4, m)
        best = []
        for _ in range(3):
            start = time.perf_counter()
            simulate(s)
            best.append(time.perf_counter() - start)
        seconds[s.size] = min(best)
    assert list(seconds) == [100_000, 1_000_000]
    assert seconds[1_000_000] < 3.0
    # Ten times the actions; caches and a busy machine are allowed a factor of 5 more, a quadratic engine needs 100.
    assert seconds[1_000_000] < 50 * max(seconds[100_000], 0.02)
