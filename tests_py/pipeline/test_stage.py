"""Stages that run: bitwise equal to one rank, overlapping, in the memory that was predicted."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sparsespan import cp
from sparsespan.comm import run_ranks
from sparsespan.pipeline import (
    LayerShard,
    Schedule,
    ScheduleError,
    Stage,
    Trace,
    chunked_prefill,
    decode_loop,
    dummy_run,
    mixed_prefill_decode,
    run_pipeline,
)

sys.path.insert(0, str(Path(__file__).parent))
import stage_model as model

sys.path.pop(0)
pytestmark = pytest.mark.timeout(90)

TOKENS = np.random.default_rng(5).integers(0, 97, 41)
CHUNKS = [16, 12, 8, 5]
ENDS = np.cumsum(CHUNKS)


@pytest.fixture(scope="module")
def expected():
    return model.plain(TOKENS)


@pytest.mark.parametrize(
    ("pp", "ranks", "splits"),
    [(1, 1, [5]), (2, 1, [3, 2]), (2, 4, [2, 3]), (4, 2, [1, 2, 1, 1]), (2, 2, [4, 1]), (3, 1, [1, 1, 3])],
)
@pytest.mark.parametrize("scheme", ["zigzag", "interleave", "contiguous_flat", "zigzag_padded"])
def test_chunked_prefill_has_the_bits_of_one_rank(pp, ranks, splits, scheme, expected):
    schedule = chunked_prefill(pp, CHUNKS)
    runs = model.on_ranks(pp, ranks, schedule, {0: TOKENS}, splits, scheme=scheme, collect="all")
    for run in runs[-ranks:]:
        got = np.concatenate([run.rows[mb] for mb in sorted(run.rows)])
        assert got.tobytes() == expected.tobytes()
        assert run.tokens[len(CHUNKS) - 1].tolist() == model.sample(expected[-1:], None).tolist()
    assert all(not run.rows for run in runs[:-ranks])


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(("pp", "tp"), [(2, 2), (2, 3), (4, 2)])
def test_slices_are_sent_and_gathered_under_tp(pp, tp, blocking, expected):
    splits = {2: [3, 2], 4: [1, 2, 1, 1]}[pp]

    def rank(comm):
        stage = Stage(comm, pp=pp, tp=tp, blocking_sends=blocking)
        run = run_pipeline(stage, model.program(splits), chunked_prefill(pp, CHUNKS), {0: TOKENS}, collect="all")
        return run, stage.lines.trace()

    ends = run_ranks(pp * tp, rank, threads_per_rank=1, timeout=20)
    for run, _ in ends[-tp:]:
        assert np.concatenate([run.rows[mb] for mb in range(len(CHUNKS))]).tobytes() == expected.tobytes()
    # Rank i of stage 1 received its slice of every chunk, and a header with each.
    for i in range(tp):
        mine = sum(max(0, min(-(-n // tp), n - i * -(-n // tp))) for n in CHUNKS)
        assert ends[tp + i][1]["recv"]["bytes"] == mine * model.WIDTH * 4 + len(CHUNKS) * 128


def test_under_cp_a_rank_sends_its_own_rows_and_nothing_is_gathered_on_the_way():
    def rank(comm):
        stage = Stage(comm, pp=3, cp=2)
        program = model.program([0, 0, 0])
        program.forward = lambda x: np.array(x.hidden)  # no layers: every collective is the runtime's own
        run_pipeline(stage, program, chunked_prefill(3, CHUNKS), {0: TOKENS}, collect=None)
        return stage.lines.trace()["recv"]["bytes"] if comm.rank > 1 else None, stage.comm.trace()

    ends = run_ranks(6, rank, timeout=20)
    for r, (received, inside) in enumerate(ends):
        if r >= 2:
            rows = sum(int(cp.split_plan("zigzag", [0, n], None, 2).counts[r % 2]) for n in CHUNKS)
            assert received == rows * model.WIDTH * 4 + len(CHUNKS) * 128
        # Only the last stage brings the last row of the last chunk together.
        assert set(inside) == ({"all_gather"} if r >= 4 else set())


@pytest.mark.parametrize(("pp", "ranks"), [(1, 1), (2, 2), (3, 1), (4, 2)])
@pytest.mark.parametrize("blocking", [False, True])
def test_decode_runs_pp_plus_one_slots(pp, ranks, blocking):
    splits = {1: [5], 2: [3, 2], 3: [2, 2, 1], 4: [1, 1, 1, 2]}[pp]
    steps, batch = 3, 2
    firsts = {slot: np.array([7 * slot + 1, 3 * slot + 2]) for slot in range(pp + 1)}
    schedule = decode_loop(pp, steps, depth=1, batch=batch)
    for run in model.on_ranks(pp, ranks, schedule, firsts, splits, blocking=blocking)[-ranks:]:
        for slot in range(pp + 1):
            mine = [run.tokens[mb] for mb in sorted(run.tokens) if mb % (pp + 1) == slot]
            assert np.stack(mine, axis=1).tolist() == model.plain_decode(firsts[slot], steps).tolist()


def test_a_schedule_that_ends_only_with_buffered_sends():
    """Stage 0 sends a whole round before it takes the first token: more messages are on their way than two."""
    slots, first, last = 12, [], []
    for step in range(2):
        for slot in range(slots):
            mb = step * slots + slot
            if step:
                first.append(f"0RECV_T{slot}")
            first += [f"0D{mb}@{slot}:{step}+1", f"0SEND_F{mb}"]
            last += [f"1RECV_F{mb}", f"1D{mb}@{slot}:{step}+1", f"1S{mb}", *([] if step else [f"1SEND_T{mb}"])]
    schedule = Schedule([first, last])
    inputs = {slot: np.array([slot]) for slot in range(slots)}
    runs = model.on_ranks(2, 1, schedule, inputs, [3, 2])
    got = [[runs[1].tokens[slot + slots * step][0] for step in range(2)] for slot in range(slots)]
    assert got == model.plain_decode(range(slots), 2).tolist()
    with pytest.raises(ScheduleError, match="deadlock"):
        model.on_ranks(2, 1, schedule, inputs, [3, 2], blocking=True)


def test_prefill_and_decode_in_one_pass(expected):
    schedule = mixed_prefill_decode(2, CHUNKS, depth=0, batch=1)
    inputs = {0: TOKENS, 1: np.array([5]), 2: np.array([6])}
    for run in model.on_ranks(2, 2, schedule, inputs, [3, 2], collect="all")[-2:]:
        prefill = [mb for mb in sorted(run.rows) if len(run.rows[mb]) in CHUNKS and mb % 2 == 0]
        assert np.concatenate([run.rows[mb] for mb in prefill]).tobytes() == expected.tobytes()
        assert [run.tokens[mb].tolist() for mb in (1, 5)] == [[t] for t in model.plain_decode([5], 2)[0].tolist()]


def test_chunks_shorter_than_the_ranks(expected):
    """Ranks without rows still take part."""
    runs = model.on_ranks(2, 4, chunked_prefill(2, [2, 1, 3]), {0: TOKENS[:6]}, [3, 2], collect="all")
    assert np.concatenate([runs[-1].rows[mb] for mb in range(3)]).tobytes() == expected[:6].tobytes()


def test_two_requests_and_a_prefix_of_no_chunk():
    schedule = chunked_prefill(2, [[8, 4], [6]])
    inputs = {0: TOKENS[:12], 1: TOKENS[20:26]}
    runs = model.on_ranks(2, 2, schedule, inputs, [3, 2])
    assert runs[-1].rows[1].tobytes() == model.plain(TOKENS[:12])[-1:].tobytes()
    assert runs[-1].rows[2].tobytes() == model.plain(TOKENS[20:26])[-1:].tobytes()
    assert 0 not in runs[-1].rows  # a chunk that is not the last is not waited for


# ---- memory ----------------------------------------------------------------------------------------------------------


def peaks(pp, ranks, tp, scheme):
    """(predicted, counted, messages of the dummy run) of every rank."""
    splits = {2: [3, 2], 4: [1, 2, 1, 1]}[pp]

    def rank(comm):
        stage = Stage(comm, pp=pp, cp=ranks, tp=tp, scheme=scheme)
        program = model.program(splits, scratch=32)
        schedule = chunked_prefill(pp, CHUNKS)
        predicted = dummy_run(stage, program, schedule)
        messages = stage.lines.trace().get("send", {"calls": 0})["calls"]
        return predicted, run_pipeline(stage, program, schedule, {0: TOKENS}).peak_bytes, messages

    return run_ranks(pp * ranks * tp, rank, threads_per_rank=1, timeout=20)


@pytest.mark.parametrize(("pp", "ranks", "tp"), [(2, 1, 1), (2, 4, 1), (4, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("scheme", ["zigzag", "contiguous_flat"])
def test_the_dummy_run_predicts_the_peak(pp, ranks, tp, scheme):
    ends = peaks(pp, ranks, tp, scheme)
    assert [p for p, _, _ in ends] == [r for _, r, _ in ends]
    assert all(m == 0 for _, _, m in ends)
    if ranks == 4:  # slices are what is allocated: with all rows on every rank it would be more
        assert ends[-1][1] < peaks(pp, 1, 1, scheme)[-1][1]


# ---- order -----------------------------------------------------------------------------------------------------------


def test_no_weight_is_on_its_way_when_a_message_starts(expected):
    splits = [3, 2]

    def check(layer, weights):
        assert float(weights["o_proj"][0]) == layer

    def rank(comm):
        stage = Stage(comm, pp=2, cp=2)
        layers = model.layers_of(splits, stage.index)
        shard = LayerShard({"o_proj": {i: np.full(4, i, np.float32) for i in layers}}, stage.comm, len(layers) - 2)
        stage.lines.reset_trace(), stage.comm.reset_trace()
        program = model.program(splits, shard=shard, shard_check=check)
        run = run_pipeline(stage, program, chunked_prefill(2, CHUNKS), {0: TOKENS}, collect="all", trace=True)
        return run, stage.lines.timeline(), stage.comm.timeline()

    ends = run_ranks(4, rank, threads_per_rank=1, timeout=20)
    assert np.concatenate([ends[-1][0].rows[mb] for mb in range(4)]).tobytes() == expected.tobytes()
    for _, outside, inside in ends:
        broadcasts = [(e["start"], e["end"]) for e in inside if e["op"] == "broadcast"]
        assert broadcasts
        for e in outside:
            if e["op"] in ("send", "recv"):
                assert not any(a < e["start"] < b for a, b in broadcasts)
    trace = Trace.from_json(ends[0][0].trace.to_json())
    names = [a.name for a in trace.arrows]
    assert names.count("message") == 2 * len(CHUNKS) and names.count("prefetch") > 0
    assert {s.lane for s in trace.spans} == {"compute", "comm", "prefetch"}


def test_the_trace_of_a_run_nests_and_matches():
    runs = model.on_ranks(2, 2, chunked_prefill(2, CHUNKS), {0: TOKENS}, [3, 2], trace=True)
    text = runs[0].trace.to_json()
    assert all(run.trace.to_json() == text for run in runs)
    trace = Trace.from_json(text)
    assert trace.ranks == 4 and len(trace.arrows) == 2 * len(CHUNKS)
    chunks = [s for s in trace.spans if s.args.get("kind") == "P"]
    assert len(chunks) == 4 * len(CHUNKS)
    layers = [s for s in trace.spans if s.name.startswith("layer ")]
    assert len(layers) == 2 * len(CHUNKS) * model.LAYERS
    assert {s.value for s in trace.samples if s.time == max(t.time for t in trace.samples)} == {0.0}
