"""Every generator, every size; then every single mutation of valid schedules: refused, or shown to be harmless."""

import collections

import pytest

from sparsespan.pipeline import (
    Action,
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
    validate,
    zero_bubble,
)

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


def mutations(schedule):
    """(what, mutated schedule): drop, duplicate, swap within and across ranks, retarget a message, turn an identity."""
    rows = [[str(a) for a in row] for row in schedule.ranks]

    def rebuilt(changed):
        return Schedule(changed, stages=schedule.stages, microbatches=schedule.microbatches, mode=schedule.mode)

    def with_row(rank, row):
        return rebuilt([row if r == rank else old for r, old in enumerate(rows)])

    for rank, row in enumerate(rows):
        for i, text in enumerate(row):
            yield "drop", with_row(rank, row[:i] + row[i + 1 :])
            yield "duplicate", with_row(rank, row[: i + 1] + row[i:])
            if i + 1 < len(row):
                yield "swap", with_row(rank, [*row[:i], row[i + 1], row[i], *row[i + 2 :]])
            if rank + 1 < len(rows) and i < len(rows[rank + 1]):
                other = rows[rank + 1]
                changed = list(rows)
                changed[rank] = [*row[:i], other[i], *row[i + 1 :]]
                changed[rank + 1] = [*other[:i], text, *other[i + 1 :]]
                yield "swap across ranks", rebuilt(changed)
            action = Action(text)
            if action.kind.startswith(("SEND", "RECV")):
                for m in range(schedule.microbatches):
                    if m != action.microbatch:
                        yield "retarget", with_row(rank, [*row[:i], f"{action.stage}{action.kind}{m}", *row[i + 1 :]])
            if action.kind in ("P", "D"):
                yield "identity", with_row(rank, [*row[:i], text + "1", *row[i + 1 :]])


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
    counts = collections.Counter()
    for what, mutated in mutations(schedule):
        try:
            validate(mutated)
        except ScheduleError:
            counts[what, "refused"] += 1
            continue
        # Harmless: only a change of order can be, all work is still done once, and it runs to its end.
        assert what in ("swap", "swap across ranks"), (what, str(mutated))
        assert work(mutated) == work(schedule)
        for transport in ("overlapped", "buffered", "blocking"):
            simulate(mutated, transport=transport)
        counts[what, "harmless"] += 1
    assert counts["drop", "refused"] == counts["duplicate", "refused"] == schedule.size
    assert counts["swap across ranks", "harmless"] == 0
    if lowered and schedule.microbatches > 1:
        assert counts["retarget", "refused"] > 0
    print(name, dict(counts))  # shown with -s


def work(schedule):
    return sorted(str(a) for row in schedule.ranks for a in row)
