"""A hand-over carried out: the decode caches are byte for byte what the prefill caches say; faults store nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsespan.reference.cp_transfer as reference
from sparsespan import cp
from sparsespan.comm import ChecksumMismatch, CommError, RankMismatch, run_ranks
from sparsespan.quant import kv_layout
from sparsespan.testing import FaultyComm

LAYOUT, INDEX_LAYOUT = "fp8_656", "index_132"
OPTIONS = {"layout": LAYOUT, "index_layout": INDEX_LAYOUT}


def pages_of(rng, side, decode, part, rank, lengths):
    """Shuffled page ids of each request on a rank, and how many pages the rank has."""
    block, shards = side.shards(part, decode)
    need = [-(-(-(-n // (block * shards)) * block) // side.page_size) for n in lengths]
    ids = rng.permutation(sum(need) + 2)
    ends = np.cumsum(need)
    return [ids[end - n : end] for end, n in zip(ends, need)], len(ids)


def caches_of(rng, plan, decode):
    """Caches of every rank of one side: random bytes on the prefill side, one value on the decode side."""
    side, ranks = (plan.decode if decode else plan.prefill), []
    for rank in range(side.world_size):
        stage = rank // (side.tp * side.cp)
        layers = range(sum(side.stages[:stage]), sum(side.stages[: stage + 1]))
        pages, count = pages_of(rng, side, decode, "kv", rank, plan.lengths)
        index_pages, index_count = pages_of(rng, side, decode, "index", rank, plan.lengths)
        one = {
            "kv": {layer: kv_layout(LAYOUT).zeros(count, side.page_size) for layer in layers},
            "index": {layer: kv_layout(INDEX_LAYOUT).zeros(index_count, side.page_size) for layer in layers},
        }
        for array in [*one["kv"].values(), *one["index"].values()]:
            array[...] = 0xEE if decode else rng.integers(0, 256, array.shape, np.uint8)
        ranks.append(cp.TransferCaches(pages=pages, index_pages=index_pages, **one))
    return ranks


def copies(ranks):
    return [
        cp.TransferCaches(
            {k: v.copy() for k, v in c.kv.items()}, c.pages, {k: v.copy() for k, v in c.index.items()}, c.index_pages
        )
        for c in ranks
    ]


def agree(sources, plan):
    """Prefill ranks that hold one row hold one value: each row is taken from the first rank that has it."""
    info = {"kv": kv_layout(LAYOUT), "index": kv_layout(INDEX_LAYOUT)}
    first = {}
    for rank, caches in enumerate(sources):
        for part in ("kv", "index"):
            for layer, cache in getattr(caches, part).items():
                for s, length in enumerate(plan.lengths):
                    for p in range(length):
                        if not reference.holds(plan.prefill, False, plan.num_layers, part, rank, layer, p):
                            continue
                        pages = (caches.pages if part == "kv" else caches.index_pages)[s]
                        shards = plan.prefill.shards(part, False)
                        slot = reference._slot(pages, plan.prefill.page_size, shards, p)
                        mine = reference.token_fields(cache, slot, info[part], plan.prefill.page_size)
                        theirs = first.setdefault((part, layer, s, p), mine)
                        for a, b in zip(mine, theirs):
                            a[:] = b


def same(a, b):
    return all(x[layer].tobytes() == y[layer].tobytes() for x, y in ((a.kv, b.kv), (a.index, b.index)) for layer in x)


def run(plan, sources, dests, wrap=lambda comm: comm, **options):
    senders = plan.prefill.world_size

    def rank(comm):
        mine = {"source": sources[comm.rank]} if comm.rank < senders else {"dest": dests[comm.rank - senders]}
        comm.reset_trace()
        report = cp.run_transfer(wrap(comm), plan, **mine, **OPTIONS, timeout=20, **options)
        return report, comm.trace()

    return run_ranks(senders + plan.decode.world_size, rank, timeout=20)


SIDES = {
    "one to one": ({}, {}),
    "cp to dcp": ({"cp": 4}, {"tp": 4, "dcp": 4, "interleave": 2}),
    "layer split over stages": ({"cp": 2, "pp": 2, "kv": "layer_split"}, {"tp": 2, "dcp": 2, "index_k": "replicated"}),
    "shards to shards": ({"cp": 2, "tp": 2, "dcp": 2, "kv": "interleave", "interleave": 2}, {"tp": 2, "dcp": 2}),
    "replicated index": ({"cp": 2, "kv": "interleave", "index_k": "replicated"}, {"pp": 2}),
}


def plan_of(prefill, decode, lengths=(13, 0, 6), present=0, layers=3, **options):
    prefill, decode = {"page_size": 4, **prefill}, {"page_size": 4, **decode}
    return cp.transfer_plan(
        cp.KvSide(**prefill), cp.KvSide(**decode), list(lengths), num_layers=layers, kv_bytes=656, index_bytes=132,
        present=present, **options,
    )  # fmt: skip


def check(plan, rng):
    sources, dests = caches_of(rng, plan, False), caches_of(rng, plan, True)
    agree(sources, plan)
    before, expected = copies(sources), copies(dests)
    reference.run_transfer(plan, sources, expected, LAYOUT, INDEX_LAYOUT)
    results = run(plan, sources, dests)
    assert all(same(a, b) for a, b in zip(dests, expected))
    assert all(same(a, b) for a, b in zip(sources, before))
    senders = plan.prefill.world_size
    assert [r.sent for r, _ in results[:senders]] == plan.sent_bytes().tolist()
    assert [r.received for r, _ in results[senders:]] == plan.received_bytes().tolist()
    for report, trace in results:
        assert trace.get("recv", {"bytes": 0})["bytes"] == report.received + report.checksums
        assert report.checksums == 8 * report.pages


@pytest.mark.parametrize("spread", ["balanced", "pages", "request", "first"])
@pytest.mark.parametrize("name", SIDES)
def test_decode_caches_are_the_prefill_caches(rng, name, spread):
    check(plan_of(*SIDES[name], spread=spread), rng)


@settings(max_examples=15)
@given(data=st.data())
def test_any_hand_over(data):
    sizes = st.sampled_from([1, 2])
    draw = data.draw
    dcp = draw(sizes)
    prefill = {"cp": draw(sizes), "pp": draw(sizes), "page_size": draw(st.sampled_from([2, 4, 6])), "interleave": 2}
    prefill["kv"] = draw(st.sampled_from(["full", "layer_split", "interleave"]))
    decode = {"tp": dcp * draw(sizes), "dcp": dcp, "pp": draw(sizes), "page_size": draw(st.sampled_from([2, 3, 8]))}
    lengths = draw(st.lists(st.integers(0, 30), min_size=1, max_size=3))
    present = [draw(st.integers(0, n)) for n in lengths]
    index_layers = draw(st.sampled_from([None, (0,), (0, 2)]))
    plan = plan_of(prefill, decode, lengths, present, index_layers=index_layers)
    check(plan, np.random.default_rng(draw(st.integers(0, 1000))))


def test_one_rank_in_both_roles(rng):
    """Two ranks are both sides: what a rank gives itself is copied, and only the rest is counted as received."""
    plan = plan_of({"cp": 2}, {"tp": 2, "dcp": 2})
    sources, dests = caches_of(rng, plan, False), caches_of(rng, plan, True)
    agree(sources, plan)
    expected = copies(dests)
    reference.run_transfer(plan, sources, expected, LAYOUT, INDEX_LAYOUT)
    both = [0, 1]
    reports = run_ranks(
        2,
        lambda comm: cp.run_transfer(
            comm, plan, sources[comm.rank], dests[comm.rank], **OPTIONS, prefill_ranks=both, decode_ranks=both
        ),
    )
    assert all(same(a, b) for a, b in zip(dests, expected))
    assert sum(r.local + r.received for r in reports) == plan.total_bytes
    assert [r.local for r in reports] == np.diag(plan.traffic()).tolist()


def ends(plan, sources, dests, wrap):
    """How each rank ended, and that no cache changed."""
    before = copies(dests)
    words = {}

    def rank(comm):
        mine = {"source": sources[0]} if comm.rank == 0 else {"dest": dests[comm.rank - 1]}
        try:
            cp.run_transfer(wrap(comm), plan, **mine, **OPTIONS, timeout=0.7)
        except (CommError, ValueError, IndexError) as error:
            words[comm.rank] = error

    run_ranks(3, rank, timeout=0.7)
    assert all(same(a, b) for a, b in zip(dests, before))
    return words


@pytest.fixture
def small(rng):
    plan = plan_of({}, {"tp": 2}, lengths=(9, 6), layers=2)
    return plan, caches_of(rng, plan, False), caches_of(rng, plan, True)


@pytest.mark.timeout(30)
def test_a_corrupted_page_is_told_everywhere(small):
    # Operation 0 is the exchange of who is ready; 1 is rank 0's first message.
    words = ends(*small, lambda comm: FaultyComm(comm, "corrupt", at=1) if comm.rank == 0 else comm)
    assert words.keys() == {0, 1, 2}
    for error in words.values():
        assert isinstance(error, ChecksumMismatch)
        assert error.ranks == (0, 1) and error.field == "checksum"
        assert "of request 0, layer" in str(error) and "nothing has been stored" in str(error)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("fault", ["raise", "skip", "delay", "mismatch"])
@pytest.mark.parametrize("at", [0, 2])
def test_faults_leave_the_caches_alone(small, fault, at):
    words = ends(*small, lambda comm: FaultyComm(comm, fault, at=at, seconds=1.5) if comm.rank == 0 else comm)
    assert {1, 2} <= words.keys()
    assert all(isinstance(error, CommError) for error in words.values())


@pytest.mark.timeout(30)
def test_a_plan_of_another_batch_is_refused(small):
    plan, sources, dests = small
    other = plan_of({}, {"tp": 2}, lengths=(9, 5), layers=2)

    def rank(comm):
        mine = {"source": sources[0]} if comm.rank == 0 else {"dest": dests[comm.rank - 1]}
        with pytest.raises(RankMismatch, match="plan differs"):
            cp.run_transfer(comm, other if comm.rank == 2 else plan, **mine, **OPTIONS)

    run_ranks(3, rank, timeout=5)


def change(caches, **fields):
    return cp.TransferCaches(**{name: fields.get(name, getattr(caches, name)) for name in caches.__dataclass_fields__})


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (lambda c: None, "dest is None, but the plan gives this rank a part in request 0"),
        (lambda c: change(c, pages=c.pages[:1]), r"dest.pages\[1\] is missing"),
        (lambda c: change(c, index_pages=[None, c.index_pages[1]]), r"dest.index_pages\[0\] is missing"),
        (lambda c: change(c, kv={0: c.kv[0]}), r"dest.kv\[1\] is missing, needs this layer's cache"),
        (lambda c: change(c, kv=[c.kv[0], None]), r"dest.kv\[1\] is missing"),
        (lambda c: change(c, index={0: c.index[0], 1: c.index[1][:, :2]}), r"dest.index\[1\] has shape"),
        (lambda c: change(c, kv={0: c.kv[0], 1: read_only(c.kv[1])}), r"dest.kv\[1\] is read-only"),
        (lambda c: change(c, kv={0: c.kv[0][:2], 1: c.kv[1]}), r"dest.pages\[\d\] names page \d, needs one of the 2"),
        (lambda c: change(c, pages=[c.pages[0], c.pages[0]]), "gives slot .* to requests 0 and 1"),
        (lambda c: change(c, pages=[c.pages[0][:1], c.pages[1]]), "has 1 pages, position 8 lies in page 2"),
    ],
)
def test_refusals_reach_every_rank_before_anything_moves(small, bend, words):
    plan, sources, dests = small
    bent = bend(dests[0])
    seen = {}

    def rank(comm):
        mine = {"source": sources[0]} if comm.rank == 0 else {"dest": bent if comm.rank == 1 else dests[1]}
        try:
            cp.run_transfer(comm, plan, **mine, **OPTIONS)
        except Exception as error:
            seen[comm.rank] = error
        return comm.trace().get("recv", {"bytes": 0})["bytes"]

    before = copies(dests)
    assert run_ranks(3, rank, timeout=5) == [0, 0, 0]
    assert all(same(a, b) for a, b in zip(dests, before))
    with pytest.raises((ValueError, IndexError), match=words):
        raise seen[1]
    for r in (0, 2):
        assert type(seen[r]) is CommError and seen[r].ranks == (1,)
        assert "rank 1 refused what it was given; nothing has moved" in str(seen[r])


def test_refusals_of_the_call(small):
    plan, sources, dests = small
    comm_options = {"layout": LAYOUT, "index_layout": INDEX_LAYOUT}

    def refused(match, error=ValueError, **options):
        def rank(comm):
            mine = {"source": sources[0]} if comm.rank == 0 else {"dest": dests[comm.rank - 1]}
            with pytest.raises(error, match=match):
                cp.run_transfer(comm, **{"plan": plan, **mine, **comm_options, **options})

        run_ranks(3, rank, timeout=5)

    refused('layout is "bf16_576" of 1152 bytes per token, needs the plan\'s 656', layout="bf16_576")
    refused("index_layout is", index_layout="index_bf16")
    refused("decode_ranks has 1 ranks, needs one for each", decode_ranks=[1])
    refused("decode_ranks has 3, needs ranks of comm", decode_ranks=[1, 3])
    refused("decode_ranks has 1 twice", decode_ranks=[1, 1])
    refused("plan is a list, needs a TransferPlan", TypeError, plan=[])
    refused("source is a tuple, needs a cp.TransferCaches", TypeError, source=())
    with pytest.raises(TypeError, match="run_transfer: comm is a int, needs a Communicator"):
        cp.run_transfer(3, plan)


def test_page_ids_are_integers():
    with pytest.raises(TypeError, match="pages has dtype float64, needs integers"):
        cp.TransferCaches([], pages=[[0.7]])._core_form()
