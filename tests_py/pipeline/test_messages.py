"""What comes to a stage boundary and is not what the schedule has there."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparsespan.comm import CommTimeout, RankMismatch, run_ranks
from sparsespan.pipeline import (
    LayerShard,
    MessageError,
    Schedule,
    ScheduleError,
    Stage,
    StageProgram,
    chunked_prefill,
    decode_loop,
    gpipe,
    run_pipeline,
)
from sparsespan.pipeline._messages import Envelope, Outbox, Parcel

sys.path.insert(0, str(Path(__file__).parent))
import stage_model as model

sys.path.pop(0)
pytestmark = pytest.mark.timeout(60)

RIGHT = Envelope("hidden_states", 3, 0, 1, "prefill 0 64+32", "float32", (4, 6))


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"kind": "tokens"}, "type is 'tokens', needs 'hidden_states'"),
        ({"microbatch": 4}, "micro-batch is 4, needs 3"),
        ({"source": 2}, "source stage is 2, needs 0"),
        ({"target": 2}, "target stage is 2, needs 1"),
        ({"batch": "prefill 0 64+31"}, "its batch is another one"),
        ({"dtype": "float64"}, "dtype is float64, needs float32"),
        ({"shape": (4, 5)}, r"shape is [4, 5], needs [4, 6]"),
        ({"shape": (4, 6, 1)}, r"shape is [4, 6, 1], needs [4, 6]"),
    ],
)
def test_a_wrong_message_is_refused_before_its_data_come_in(sent, words):
    wrong = RIGHT._replace(**sent)
    place = np.full((4, 6), 7.0, np.float32)

    def rank(comm):
        if comm.rank == 0:
            out = Outbox(comm)
            out.reserve(wrong.kind, (100,), np.dtype(wrong.dtype))
            out.post(1, wrong, np.zeros(wrong.shape, wrong.dtype), lambda a, b: None)
            out.flush()
        else:
            Parcel(comm, 0, RIGHT, lambda: place).wait()

    with pytest.raises(MessageError) as error:
        run_ranks(2, rank, timeout=5)
    assert str(error.value).startswith("stage 1: message of micro-batch 3 from stage 0: ") and words in str(error.value)
    assert (place == 7).all()


def test_what_is_no_message_is_refused():
    with pytest.raises(MessageError, match="is no message of a pipeline"):
        RIGHT.check(np.zeros(16, np.int64))
    RIGHT.check(RIGHT.words())
    with pytest.raises(TypeError, match="hidden_states: dtype is complex64"):
        RIGHT._replace(dtype="complex64").words()
    with pytest.raises(ValueError, match="has 5 axes, needs at most 4"):
        RIGHT._replace(shape=(1,) * 5).words()


def run(comm, schedule, inputs=None, *, program=None, pp=2, **options):
    stage = Stage(comm, pp=pp, cp=comm.size // pp)
    return run_pipeline(stage, program or model.program([3, 2]), schedule, inputs or {0: np.arange(12)}, **options)


def test_stages_of_another_type_meet_in_words(monkeypatch):
    """The whole way: stage 0 says residual where stage 1 needs hidden states."""

    def rank(comm):
        program = model.program([3, 2])
        if comm.rank == 0:
            program = StageProgram(
                lambda x: {"hidden_states": x.hidden, "residual": x.residual}, model.WIDTH, "float32",
                embed=model.embed, residual=True,
            )  # fmt: skip
        return run(comm, chunked_prefill(2, [8, 4]), program=program)

    with pytest.raises(RankMismatch) as error:  # before the first message: the ranks compare what they mean to do
        run_ranks(2, rank, timeout=5)
    assert error.value.field == "plan"


def test_ranks_with_other_lengths_are_told_before_the_first_message():
    with pytest.raises(RankMismatch):
        run_ranks(2, lambda comm: run(comm, chunked_prefill(2, [8, 4] if comm.rank else [8, 3])), timeout=5)

    def other_contexts(comm):
        inputs = {slot: np.array([1]) for slot in range(3)}
        return run(comm, decode_loop(2, 2), inputs, contexts={0: [comm.rank]})

    with pytest.raises(RankMismatch):
        run_ranks(2, other_contexts, timeout=5)


def refusal(fn, ranks=2, kind=ValueError):
    words = [""] * ranks

    def rank(comm):
        try:
            fn(comm)
        except kind as error:
            words[comm.rank] = str(error)
            raise

    with pytest.raises(kind):
        run_ranks(ranks, rank, timeout=5)
    return words


def test_what_a_run_refuses():
    said = refusal(lambda comm: run(comm, gpipe(2, 2)))
    assert "schedule has 0F0 on rank 0, needs prefill, decode and sample actions" in said[0]
    crossed = Schedule([["1P0@0:0+4"], ["0P0@0:0+4"]], stages=2, microbatches=1)
    assert "with stage r on rank r" in refusal(lambda comm: run(comm, crossed))[0]
    said = refusal(lambda comm: run(comm, chunked_prefill(2, [8, 8])))
    assert said[0] == "run_pipeline: inputs[0] has 12 rows, needs 16" and "rank 0 refused its inputs" in said[1]
    said = refusal(lambda comm: run(comm, chunked_prefill(2, [[8], [4]])))
    assert "inputs has no 1" in said[0]
    assert "collect is 'some'" in refusal(lambda comm: run(comm, chunked_prefill(2, [8]), collect="some"))[0]
    decode = {"inputs": {s: np.array([1]) for s in range(3)}}
    said = refusal(lambda comm: run(comm, decode_loop(2, 2), **decode, contexts={0: [1, 2]}))
    assert "contexts[0] has 2 lengths, needs 1" in said[0]
    program = model.program([3, 2])
    program.sample = None
    assert "program.sample is None" in refusal(lambda c: run(c, decode_loop(2, 2), **decode, program=program))[0]
    shared = {"stage_layers": [1, 1], "index_layers": ["full", "shared"]}
    said = refusal(lambda comm: run(comm, chunked_prefill(2, [8]), **shared))
    assert "program.topk is 0, needs the width" in said[0]
    said = refusal(lambda comm: run(comm, chunked_prefill(2, [8]), [np.arange(8)]))
    assert "inputs is a list, needs a mapping" in said[0] and "rank 0 refused its inputs" in said[1]
    assert "schedule is a list" in refusal(lambda comm: run(comm, [["0P0@0:0+4"]]), kind=TypeError)[0]
    assert "program is a str" in refusal(lambda comm: run(comm, crossed, program="x"), kind=TypeError)[1]
    bad = Schedule([["0P0@0:0+4", "0P1@0:5+4"], ["1P0@0:0+4", "1P1@0:5+4", "1S1"]], stages=2, microbatches=2)
    assert refusal(lambda comm: run(comm, bad), kind=ScheduleError)[0].startswith("validate: ")


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda x: x.hidden.astype(np.float64), "of micro-batch 0 on stage 0 is float64 [8, 6], needs float32"),
        (lambda x: x.hidden[:3], "is float32 [3, 6], needs float32 [8, 6]"),
        (lambda x: None, "is NoneType, needs"),
        (lambda x: {"hidden": x.hidden}, "gives ['hidden'] on stage 0, needs ['hidden_states']"),
    ],
)  # fmt: skip
def test_what_forward_gives_is_checked(forward, words):
    program = StageProgram(forward, model.WIDTH, "float32", embed=model.embed)
    assert words in refusal(lambda comm: run(comm, chunked_prefill(2, [8]), program=program))[0]


def test_a_stage_that_owes_indices_is_told():
    program = StageProgram(lambda x: np.array(x.hidden), model.WIDTH, "float32", embed=model.embed, topk=4)
    shared = {"stage_layers": [1, 1], "index_layers": ["full", "shared"]}
    said = refusal(lambda comm: run(comm, chunked_prefill(2, [8]), program=program, **shared))
    assert "stage 0 gave no indices for micro-batch 0" in said[0]


def with_indices_and_residual(grid):
    """Two stages, two chunks: (rows of the last rank, batches that the second stage saw). The residual is one more than
    the hidden state, of the same shape and dtype: swapped they would pass for each other."""
    seen = []

    def forward(x):
        if x.stage.first:
            indices = np.repeat(x.positions[:, None].astype(np.int32), 4, axis=1)
            return {"hidden_states": x.hidden + 1, "residual": x.hidden + 2}, indices
        assert x.indices[:, 3].tolist() == x.positions.tolist()
        np.testing.assert_array_equal(x.residual, x.hidden + 1)
        seen.append(x.batch.microbatch)
        return {"hidden_states": x.hidden + x.residual, "residual": x.residual}

    def rank(comm):
        program = StageProgram(forward, 2, "float32", topk=4, residual=True)
        options = {"stage_layers": [1, 1], "index_layers": ["full", "shared"], "collect": "all"}
        stage = Stage(comm, pp=2, **grid)
        return run_pipeline(
            stage, program, chunked_prefill(2, [5, 3]), {0: np.zeros((8, 2), np.float32)}, **options
        ).rows

    return run_ranks(4, rank, timeout=5)[-1], sorted(seen)


@pytest.mark.parametrize("grid", [{"cp": 2}, {"tp": 2}])
def test_indices_and_residual_travel(grid):
    rows, seen = with_indices_and_residual(grid)
    assert seen == [0, 0, 1, 1]
    assert all((r == 3).all() for r in rows.values())


@pytest.mark.parametrize("grid", [{"cp": 2}, {"tp": 2}])
def test_messages_that_come_between_two_looks_keep_their_order(grid, monkeypatch):
    """Nobody has come when the first message is looked at, both have when the second one is."""
    look, looked = Parcel.test, []

    def late(parcel):
        if parcel.envelope.kind == "hidden_states" and not any(parcel is other for other in looked):
            looked.append(parcel)
            time.sleep(0.05)
            return False
        return look(parcel)

    monkeypatch.setattr(Parcel, "test", late)
    rows, seen = with_indices_and_residual(grid)
    assert looked and seen == [0, 0, 1, 1]
    assert all((r == 3).all() for r in rows.values())


def test_a_forward_that_raises_ends_the_run_on_all_ranks():
    ended = [""] * 4

    def forward(x):
        if x.stage.world.rank == 3 and x.batch.microbatch == 1:
            raise KeyError("boom")
        return np.array(x.hidden)

    def rank(comm):
        try:
            run(comm, chunked_prefill(2, [4, 4, 4]), program=StageProgram(forward, 6, "float32", embed=model.embed))
        except Exception as error:
            ended[comm.rank] = type(error).__name__
            raise

    with pytest.raises(KeyError, match="boom"):
        run_ranks(4, rank, timeout=5)
    # Stage 0 may have been through; rank 2 wanted to gather the last row with rank 3.
    assert ended[2:] == ["CommAborted", "KeyError"] and set(ended[:2]) <= {"", "CommAborted"}


def test_a_stage_that_never_sends_is_waited_for_in_time_only():
    def forward(x):
        if x.stage.first and x.batch.microbatch == 1:
            time.sleep(1)
        return np.array(x.hidden)

    def rank(comm):
        run(comm, chunked_prefill(2, [4, 4]), {0: np.arange(8)},
            program=StageProgram(forward, 6, "float32", embed=model.embed))  # fmt: skip

    with pytest.raises(CommTimeout) as error:
        run_ranks(2, rank, timeout=0.3)
    assert error.value.op == "recv" and error.value.ranks == (0,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pp": 3}, "pp * cp * tp is 3, needs 2"),
        ({"pp": 0}, "pp is 0, needs at least 1"),
        ({"pp": 1, "cp": 2, "tp": 2}, "cp is 2 and tp 2, needs one of them 1"),
    ],
)
def test_grids_that_are_none(arguments, words):
    assert words in refusal(lambda comm: Stage(comm, **arguments))[0]


def test_what_is_no_number_and_no_program():
    assert "pp is 2.0, needs an integer" in refusal(lambda comm: Stage(comm, pp=2.0), kind=TypeError)[0]
    with pytest.raises(ValueError, match="StageProgram: width is 0, needs at least 1"):
        StageProgram(lambda x: x.hidden, 0)
    with pytest.raises(TypeError, match="StageProgram: dtype is 'bfloat17', needs the name of one"):
        StageProgram(lambda x: x.hidden, 4, "bfloat17")


def test_a_shard_of_other_ranks_than_the_stage_is_refused():
    """Stages reach their own layers: a shard over both would wait for ranks that never come."""

    def rank(comm):
        shard = LayerShard({"o_proj": {i: np.full(4, i, np.float32) for i in range(5)}}, comm, 1)
        run(comm, chunked_prefill(2, [8, 4]), program=model.program([3, 2], shard=shard))

    assert "program.shard is over 2 ranks, needs the 1 of stage.comm" in refusal(rank)[0]
