"""Every generator, every size; then every single mutation of valid schedules: refused, or shown to be harmless."""

import json

import pytest

from sparsespan import pipeline
from sparsespan.cli import main
from sparsespan.pipeline import (
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
    validate,
    zero_bubble,
)
from sparsespan.testing import prove_mutations

TRAINING = {
    "gpipe": gpipe,
    "one_f_one_b": one_f_one_b,
    "interleaved": interleaved,
    "interleaved3": lambda p, m: interleaved(p, m, stages_per_rank=3),
    "h1": zero_bubble,
    "h1x2": lambda p, m: zero_bubble(p, m, stages_per_rank=2),
    "zbv": lambda p, m: zero_bubble(p, m, flavor="v"),
    "dualpipe_v": dualpipe_v,
}
NAMED = {
    "interleaved": "needs a multiple of the",
    "interleaved3": "needs a multiple of the",
    "h1": "needs a multiple of the",
    "h1x2": "needs a multiple of the",
    "dualpipe_v": "needs at least the",
}


@pytest.mark.parametrize("name", TRAINING)
def test_every_size_is_valid_or_refused_by_its_rule(name):
    valid = 0
    for ranks in range(1, 9):
        for m in range(1, 33):
            try:
                schedule = TRAINING[name](ranks, m)
            except ValueError as refusal:
                assert name in NAMED and NAMED[name] in str(refusal)
                continue
            validate(schedule, ranks=ranks, microbatches=m)
            lowered = add_send_recv(schedule)
            validate(lowered, ranks=ranks, microbatches=m)
            validate(add_send_recv(add_fetch_evict(schedule, 2)), max_active_stages=2)
            assert simulate(lowered).makespan == simulate(schedule).makespan
            valid += 1
    sizes = [(p, m) for p in range(1, 9) for m in range(1, 33)]
    rounds = sum(m % max(1, m // p) == 0 for p, m in sizes)
    assert valid == {"gpipe": 256, "one_f_one_b": 256, "zbv": 256, "dualpipe_v": 192}.get(name, rounds)


def test_many_ranks():
    """Tables grow with the messages, not with the square of the ranks."""
    schedule = add_send_recv(chunked_prefill(20_000, [8]))
    validate(schedule)
    assert simulate(schedule).makespan == 20_000


@pytest.mark.parametrize("ranks", range(1, 9))
def test_every_size_of_serving(ranks):
    for n in range(1, 33):
        for schedule in (
            chunked_prefill(ranks, [64] * n),
            chunked_prefill(ranks, [[8] * n, [4]]),
            decode_loop(ranks, n, depth=n % 3),
            mixed_prefill_decode(ranks, [16] * n),
        ):
            validate(schedule)
            validate(add_send_recv(schedule))


CASES = {
    "gpipe": gpipe(3, 3),
    "1f1b": one_f_one_b(3, 4),
    "interleaved": interleaved(2, 4),
    "h1": zero_bubble(3, 6),
    "zbv": zero_bubble(2, 4, flavor="v"),
    "dualpipe_v": dualpipe_v(2, 5),
    "fetching": add_fetch_evict(interleaved(2, 4), 1),
    "prefill": chunked_prefill(3, [[8, 8, 4], [16]]),
    "decode": decode_loop(3, 3),
    "mixed": mixed_prefill_decode(2, [8] * 4),
}


@pytest.mark.parametrize("lowered", [False, True], ids=["compute", "messages"])
@pytest.mark.parametrize("name", CASES)
def test_every_single_mutation_is_refused_or_harmless(name, lowered):
    schedule = add_send_recv(CASES[name]) if lowered else CASES[name]
    counts = prove_mutations(schedule)
    harmless = {what for what, outcome in counts if outcome == "harmless"}
    assert harmless <= {"swap"}  # only a change of order within a rank can be
    assert not any(outcome == "wrong" for _, outcome in counts)
    assert counts["drop", "refused"] == counts["duplicate", "refused"] == schedule.size
    assert counts["swap across ranks", "refused"] > 0
    if lowered and schedule.microbatches > 1:
        assert counts["retarget", "refused"] > 0
    assert (counts["identity", "refused"] > 0) == (schedule.mode == "serve" and name != "mixed")


def test_a_validator_that_accepts_too_much_is_found_out(monkeypatch):
    """Without the validator what is wrong shows: the counts can fail."""
    monkeypatch.setattr(pipeline, "validate", lambda schedule: None)
    counts = prove_mutations(add_send_recv(one_f_one_b(2, 2)))
    assert counts["drop", "wrong"] > 0 and counts["retarget", "wrong"] > 0


def test_the_command_prints_the_counts(capsys):
    assert main(["schedule", "one_f_one_b", "--ranks", "2", "--microbatches", "3", "--messages", "--mutations"]) == 0
    out = capsys.readouterr().out
    assert "mutation" in out and "drop" in out and "retarget" in out and "0 wrong" in out
    assert main(["schedule", "gpipe", "--ranks", "2", "--microbatches", "2", "--mutations", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["mutations"]
    assert counts["drop"] == {"refused": 8, "harmless": 0, "wrong": 0}


def test_the_command_goes_through_all_generators(capsys):
    arguments = ["schedule", "all", "--ranks", "2", "--microbatches", "3", "--chunks", "8,4", "--mutations"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "chunked_prefill" in out and "dualpipe_v: not of this size: dualpipe_v: microbatches is 3" in out
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["total"]["wrong"] == 0 and document["total"]["refused"] > 500
    assert main(["schedule", "all"]) == 1  # without --mutations it is no schedule
    assert "kind is 'all'" in capsys.readouterr().err
