"""torch.distributed.pipelining as the oracle: its generators, its lowering, its CSV, its checker and its dry run."""

import importlib
import warnings
from types import SimpleNamespace

import pytest

from sparsespan.pipeline import (
    Schedule,
    ScheduleError,
    add_fetch_evict,
    add_send_recv,
    dualpipe_v,
    gpipe,
    interleaved,
    merge_backward,
    one_f_one_b,
    validate,
    zero_bubble,
)

pytestmark = pytest.mark.peer
pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("torch.distributed.pipelining.schedules")


def stages(ranks, rank, per_rank, style="loop"):
    """Just enough of a stage for the generators, which read only numbers."""
    count = ranks * per_rank
    indices = [rank + v * ranks for v in range(per_rank)] if style == "loop" else [rank, count - 1 - rank]
    return [
        SimpleNamespace(
            num_stages=count, group_size=ranks, group_rank=rank, stage_index=i, is_first=i == 0, is_last=i == count - 1,
            submod=None, device=None, has_backward=True,
        )
        for i in indices
    ]  # fmt: skip


def torch_order(name, ranks, m, per_rank=2, style="loop"):
    cls = getattr(peer, name)
    made = cls.__new__(cls)
    made.pp_group_size, made._num_stages, made._n_microbatches = ranks, ranks * per_rank, m
    made.num_stages = ranks * per_rank
    made.n_local_stages = per_rank
    made.number_of_rounds = max(1, m // ranks)
    made.microbatches_per_round = m // made.number_of_rounds
    made.pipeline_order = {}
    if not hasattr(cls, "_calculate_single_rank_operations"):
        return cls._get_pipeline_order(made)
    order = {}
    for rank in range(ranks):
        made.rank = rank
        made._stages = stages(ranks, rank, per_rank, style)
        order[rank] = made._calculate_single_rank_operations(rank)
    return order


def compute_text(order):
    """Text of the lists without idle cells and gradient reductions."""
    return [[str(a) for a in order[r] if a is not None and "REDUCE" not in str(a)] for r in sorted(order)]


def our_text(schedule):
    return [[str(a) for a in row if a is not None] for row in schedule.ranks]


def to_torch(schedule):
    return {r: [peer._Action.from_str(str(a)) for a in row] for r, row in enumerate(schedule.ranks)}


CASES = {
    "gpipe": ("ScheduleGPipe", gpipe, 1, "loop"),
    "interleaved": ("ScheduleInterleaved1F1B", interleaved, 2, "loop"),
    "interleaved3": ("ScheduleInterleaved1F1B", lambda p, m: interleaved(p, m, stages_per_rank=3), 3, "loop"),
    "h1": ("ScheduleInterleavedZeroBubble", zero_bubble, 1, "loop"),
    "h1x2": ("ScheduleInterleavedZeroBubble", lambda p, m: zero_bubble(p, m, stages_per_rank=2), 2, "loop"),
    "zbv": ("ScheduleZBVZeroBubble", lambda p, m: zero_bubble(p, m, flavor="v"), 2, "v"),
    "dualpipe_v": ("ScheduleDualPipeV", dualpipe_v, 2, "v"),
}


def sizes():
    return [(p, m) for p in range(1, 9) for m in (1, 2, 3, 4, 7, 8, 10, 12, 16, 17, 24, 32)]


@pytest.mark.parametrize("name", CASES)
def test_generators_write_the_same_lists(name):
    cls, ours, per_rank, style = CASES[name]
    compared = 0
    for ranks, m in sizes():
        try:
            schedule = ours(ranks, m)
        except ValueError:
            continue  # refused by its named rule, which torch's constructor has as well
        assert our_text(schedule) == compute_text(torch_order(cls, ranks, m, per_rank, style)), (ranks, m)
        compared += 1
    assert compared >= 30


def test_1f1b_but_for_two_slips_of_torch():
    """Torch 2.13 counts the last rank's forwards from 1, and lists forwards that do not exist where m < ranks."""
    for ranks, m in sizes():
        theirs = compute_text(torch_order("Schedule1F1B", ranks, m, 1))
        if m >= ranks:
            assert our_text(one_f_one_b(ranks, m))[:-1] == theirs[:-1]
            assert our_text(one_f_one_b(ranks, m))[-1][0::2] == [f"{ranks - 1}F{i}" for i in range(m)]
            assert theirs[-1][0::2] == [f"{ranks - 1}F{i + 1}" for i in range(m)]
    assert "0F6" in compute_text(torch_order("Schedule1F1B", 8, 2, 1))[0]


@pytest.mark.parametrize("name", CASES)
def test_lowering_writes_the_same_lists(name):
    _, ours, per_rank, style = CASES[name]
    mapping = importlib.import_module("torch.distributed.pipelining._utils").generate_stage_to_rank_mapping
    for ranks, m in [(2, 4), (3, 6), (4, 8), (4, 16)]:
        schedule = ours(ranks, m)
        home = mapping(ranks, ranks * per_rank, style=style)
        theirs = peer._add_send_recv(to_torch(schedule), home.__getitem__, ranks * per_rank)
        lowered = add_send_recv(schedule)
        assert our_text(lowered) == compute_text(theirs)
        if name == "dualpipe_v":
            continue  # torch's dry run looks up the stage of a bracket, which is -1
        done = peer._simulate_comms_compute(to_torch(lowered), home.__getitem__, ranks * per_rank)
        assert all(any(row) for row in done.values())


def test_fetch_evict_writes_the_same_lists():
    """Without brackets: there torch counts both parts at once and may hold one stage more than asked."""
    for most in (1, 2, 3):
        for schedule in (interleaved(2, 4, stages_per_rank=4), gpipe(3, 4), zero_bubble(4, 8, flavor="v")):
            theirs = {r: peer._add_unshard_reshard(row, most) for r, row in to_torch(schedule).items()}
            ours = Schedule.from_csv(add_fetch_evict(schedule, most).to_csv(torch=True))
            assert our_text(ours) == our_text(Schedule([[str(a) for a in row] for row in theirs.values()]))


def test_torch_holds_one_stage_too_many_around_brackets():
    schedule = dualpipe_v(3, 8)
    for row in to_torch(schedule).values():
        held, most = 0, 0
        for a in peer._add_unshard_reshard(row, 1):
            held += {"UNSHARD": 1, "RESHARD": -1}.get(a.computation_type.value, 0)
            most = max(most, held)
        assert most == 2
    validate(add_fetch_evict(schedule, 2), max_active_stages=2)


def test_merge_backward():
    for schedule in (zero_bubble(4, 8), zero_bubble(3, 9, flavor="v"), dualpipe_v(3, 6)):
        theirs = {r: peer._merge_bw(row) for r, row in to_torch(schedule).items()}
        assert our_text(merge_backward(schedule)) == compute_text(theirs)


def test_csv_both_ways(tmp_path):
    """Through torch's own reader and writer."""
    runtime = peer.PipelineScheduleMulti.__new__(peer.PipelineScheduleMulti)
    for schedule in (dualpipe_v(4, 10), zero_bubble(3, 6), Schedule([["0F0", None, "0B0"], [None, "1F0", "1B0"]])):
        path = tmp_path / "schedule.csv"
        path.write_text(schedule.to_csv(torch=True))
        runtime.pipeline_order, runtime._stages = {}, []
        runtime.pp_group_size, runtime._num_stages = len(schedule), schedule.stages
        runtime._n_microbatches = schedule.microbatches
        runtime._load_csv(str(path))  # runs torch's checker
        runtime._dump_csv(str(path))
        assert Schedule.from_csv(path.read_text()) == schedule


def test_their_checker_accepts_what_ours_accepts():
    for name, (_, ours, per_rank, _) in CASES.items():
        for ranks, m in [(1, 2), (2, 4), (4, 8)]:
            schedule = ours(ranks, m)
            validate(schedule)
            home = peer._validate_schedule(to_torch(schedule), ranks, ranks * per_rank, m)
            assert len(home) == schedule.stages, name


@pytest.mark.parametrize(
    "rows",
    [
        [["0F0", "0F0", "0B0"]],  # done twice
        [["1F0", "0F0", "0B0", "1B0"]],  # the second stage first
        [["0F0", "0F1", "(0F2;0B0;0B1)OVERLAP_F_B", "0B2"]],  # three in a bracket
        [["0F0", "0B0", "0F1", "0B1"], ["1F1", "1B1", "1F0", "1B0"]],  # deadlock
    ],
)
def test_ours_refuses_more(rows):
    schedule = Schedule(rows)
    peer._validate_schedule(to_torch(schedule), len(rows), schedule.stages, schedule.microbatches)
    with pytest.raises(ScheduleError):
        validate(schedule)
