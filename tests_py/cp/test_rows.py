"""split, gather_rows and gather_kv_and_cache: identities, counted bytes, refusals, faults."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsespan.reference.cp_rows as reference
import sparsespan.reference.cp_split as reference_split
from sparsespan import cp
from sparsespan.comm import CommError, RankMismatch, ThreadComm, run_ranks
from sparsespan.testing import FaultyComm

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import BF16, PAGE, SCHEMES, Batch, even, same_bits

sys.path.pop(0)

DTYPES = [np.float32, BF16, ml_dtypes.float8_e4m3fn, np.int32, np.int64, np.uint8, np.float64, np.bool_]


def rows_of(rng, total, width, dtype):
    raw = rng.integers(0, 2 if dtype is np.bool_ else 120, (total, *width), np.uint8)
    return raw.astype(dtype)


@settings(max_examples=40)
@given(data=st.data())
def test_gathering_what_was_split_is_the_batch(data):
    draw = data.draw
    scheme, ranks = draw(st.sampled_from(SCHEMES)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    requests = draw(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=5))
    lengths = even([n for n, _ in requests], scheme, ranks, [d for _, d in requests])
    kinds = np.repeat([cp.DECODE if d else cp.PREFILL for _, d in requests], lengths).astype(int)
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pad_to = draw(st.sampled_from([None, int(cu[-1]) + 5]))
    plan = cp.split_plan(scheme, cu, np.zeros(len(lengths), int), ranks, row_kind=kinds, pad_to=pad_to)
    twin = reference_split.split_plan(scheme, cu, np.zeros(len(lengths), int), ranks, row_kind=kinds, pad_to=pad_to)
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    x = rows_of(rng, int(cu[-1]), draw(st.sampled_from([(), (3,), (2, 5), (0,)])), draw(st.sampled_from(DTYPES)))

    def rank(comm):
        mine = cp.split(x, plan, comm.rank)
        return mine, cp.gather_rows(comm, mine, plan), cp.gather_rows(comm, mine, plan, "last")

    last = np.zeros((len(lengths), *x.shape[1:]), x.dtype)
    for s, n in enumerate(lengths):
        if n:
            last[s] = x[cu[s + 1] - 1]
    results = run_ranks(ranks, rank)
    locals_ = [reference.split(x, twin.rank_rows(r)) for r in range(ranks)]
    assert same_bits(reference.gather_rows(locals_, [twin.rank_rows(r) for r in range(ranks)], len(x)), x)
    for (mine, whole, final), want in zip(results, locals_):
        assert same_bits(mine, want) and same_bits(whole, x) and same_bits(final, last)


def test_of_replicated_rows_rank_0s_copy_counts():
    plan = cp.split_plan("zigzag", [0, 2, 6], [0, 0], 2, row_kind=[1, 1, 0, 0, 0, 0])
    got = run_ranks(2, lambda comm: cp.gather_rows(comm, np.full(len(plan.rank_rows(comm.rank)), comm.rank), plan))
    for whole in got:
        assert whole[:2].tolist() == [0, 0]
    last = run_ranks(2, lambda comm: cp.gather_rows(comm, np.full(plan.counts[comm.rank], comm.rank), plan, "last"))
    assert last[1][0] == 0


def test_padding_that_travels_is_zeros_and_out_is_given_back():
    plan = cp.split_plan("zigzag_padded", [0, 3], [0], 2)
    x, out = np.arange(6).reshape(3, 2), np.full((2, 2), 9)
    assert cp.split(x, plan, 1, out=out) is out
    assert out.tolist() == [[2, 3], [4, 5]] and cp.split(x, plan, 0).tolist() == [[0, 1], [0, 0]]
    strided = np.arange(12).reshape(3, 4)[:, 1:3]
    assert cp.split(strided, plan, 1).tolist() == strided[1:3].tolist()
    wide = cp.split_plan("zigzag", [0, 4], [0], 1, pad_to=6)
    assert cp.split(np.arange(6), wide, 0)[:4].tolist() == [0, 1, 2, 3]

    def rank(comm):
        into = np.zeros((3, 2), int)
        work = cp.igather_rows(comm, cp.split(x, plan, comm.rank), plan, out=into)
        assert work.wait() is into and work.test() and work.wait() is into
        return into

    for whole in run_ranks(2, rank):
        assert whole.tolist() == x.tolist()


HIDDEN = 24
LENGTHS = {"single": (37,), "ragged": (5, 3, 23, 1, 12), "short": (1, 0, 2)}
MODEL = cp.AttentionDims(
    name="test", layers=1, index_layers=1, hidden=HIDDEN, heads=2, q_lora=8, kv_lora=512, rope=64, nope=8, v_head=8,
    index_dim=128, topk=4,
)  # fmt: skip
CACHES = {"bf16": ("bf16_576", "index_bf16", 1408, 1152), "fp8": ("fp8_656", "index_132", 788, 656)}


def count(comm, batch, plan):
    """Bytes received by each of the ops of a layer and of the LM head."""
    mine = [cp.split(v, plan, comm.rank) for v in (batch.c_kv, batch.k_pe, batch.k_index)]
    hidden = np.zeros((plan.counts[comm.rank], HIDDEN), BF16)
    full, shared = batch.caches(), batch.caches(index=False)
    steps = (
        lambda: cp.gather_kv_and_cache(comm, *mine, full, plan, batch.slots).wait(),
        lambda: cp.gather_kv_and_cache(comm, *mine[:2], None, shared, plan, batch.slots).wait(),
        lambda: cp.gather_rows(comm, hidden, plan),
        lambda: cp.gather_rows(comm, hidden, plan, "last"),
    )
    counted = []
    for step in steps:
        comm.reset_trace()
        step()
        assert list(comm.trace()) == ["all_gather"] and comm.trace()["all_gather"]["calls"] == 1
        counted.append(comm.trace()["all_gather"]["bytes"])
    return counted


def check_bytes(batch, plan, cache, formula):
    """`formula(restore)` gives the volume of the step."""
    rows = {r.what: r for restore in ("all", "last") for r in formula(restore).rows}
    layer, shared, hidden, last = zip(*run_ranks(plan.world_size, lambda comm: count(comm, batch, plan)))
    latent, index = rows["latent KV"].received, rows["index-K"].received
    both, alone = CACHES[cache][2:]
    away = (plan.world_size - 1) * plan.padded_len
    assert set(layer) == {latent + index} == {away * both}
    assert set(shared) == {latent} == {away * alone}
    assert set(hidden) == {rows["hidden rows for the LM head"].received}
    final = rows["last rows for the LM head"]
    assert final.primitive == "all_gather" and max(last) == final.received and sum(last) == final.total


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_counted_bytes_are_the_formulas(scheme, ranks, name, cache):
    lengths = even(LENGTHS[name], scheme, ranks)
    batch = Batch(lengths, (0,) * len(lengths), (), *CACHES[cache][:2])
    options = {"tokens": list(lengths), "ranks": ranks, "model": MODEL, "cache": cache}
    check_bytes(batch, batch.plan(scheme, ranks), cache, lambda restore: cp.volume(scheme, restore=restore, **options))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_plan_knows_the_bytes_of_decode_rows_and_padding(scheme, ranks):
    decode = (True, False, True, False)
    batch = Batch(even((2, 9, 1, 6), scheme, ranks, decode), (3, 0, 7, 2), decode)
    plan = batch.plan(scheme, ranks, pad_to=sum(batch.lengths) + 5)
    check_bytes(batch, plan, "fp8", lambda restore: cp.volume(plan, restore=restore, model=MODEL, cache="fp8"))
    with pytest.raises(ValueError, match="the plan has its own"):
        cp.volume(plan, tokens=[3])
    with pytest.raises(TypeError, match="volume: ranks is None"):
        cp.volume("zigzag", tokens=[3])


@pytest.fixture
def plan():
    return cp.split_plan("interleave", [0, 5, 8], [0, 0], 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c, p: cp.split(np.zeros(7), p, 0), ValueError, "split: x has 7 rows, needs the plan's 8"),
        (lambda c, p: cp.split(np.zeros(8), p, 2), IndexError, "rank is 2, needs 0 to 1"),
        (lambda c, p: cp.split(np.array(3.0), p, 0), (TypeError, ValueError), "split: x"),
        (lambda c, p: cp.split(np.zeros((8, 4))[:, ::2], p, 0), ValueError, "rows that do not lie in one piece"),
        (lambda c, p: cp.split(np.zeros(8, "S3"), p, 0), TypeError, "x has a dtype that ranks cannot exchange"),
        (
            lambda c, p: cp.split(np.zeros(8), p, 0, out=np.zeros(4, np.float32)),
            TypeError,
            "out is float32, needs float64",
        ),
        (lambda c, p: cp.split(np.zeros(8), p, 0, out=np.zeros(5)), ValueError, r"out has shape \[5\], needs \[4\]"),
        (lambda c, p: cp.split(x := np.zeros(8), p, 0, out=x[:4]), ValueError, "split: out"),
        (lambda c, p: cp.split(np.zeros(8), "zigzag", 0), TypeError, "split: plan is a str, needs a CpPlan"),
        (
            lambda c, p: cp.gather_rows(c, np.zeros(3), p),
            ValueError,
            r"x_local has shape \[3\], needs the 4 local rows",
        ),
        (lambda c, p: cp.gather_rows(c, np.zeros(4), p, "some"), ValueError, "rows is 'some', needs 'all' or 'last'"),
        (
            lambda c, p: cp.gather_rows(c, np.zeros(4), p, out=np.zeros(7)),
            ValueError,
            r"out has shape \[7\], needs \[8\]",
        ),
        (lambda c, p: cp.gather_rows(c, np.zeros(4), p, "last", out=np.zeros(8)), ValueError, r"needs \[2\]"),
        (lambda c, p: cp.gather_rows(c, np.zeros(4), p, timeout=0.0), ValueError, "timeout"),
        (lambda c, p: cp.gather_rows(c, [1, 2], p), TypeError, "x_local is a list"),
        (
            lambda c, p: cp.gather_rows("mpi", np.zeros(4), p),
            TypeError,
            "comm is a str, needs a Communicator",
        ),
        (lambda c, p: cp.gather_rows(c, np.zeros(4), None), TypeError, "plan is a NoneType, needs a CpPlan"),
        (
            lambda c, p: cp.gather_rows(ThreadComm(3)[0], np.zeros(4), p),
            ValueError,
            "comm has 3 ranks, needs the plan's 2",
        ),
    ],
)
def test_refusals_of_rows(plan, call, error, words):
    with pytest.raises(error, match=words):
        call(ThreadComm(2)[0], plan)


def gather_kv(comm, batch, plan, caches, slots=None, changes=()):
    given = {name: cp.split(getattr(batch, name), plan, comm.rank) for name in ("c_kv", "k_pe", "k_index")}
    given |= {"caches": caches, "plan": plan, "slot_mapping": batch.slots if slots is None else slots, **dict(changes)}
    return cp.gather_kv_and_cache(comm, **given)


BATCH = Batch((9, 4), (5, 0), ())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"c_kv": np.zeros((3, 512), BF16)}, ValueError, r"c_kv has shape \[3, 512\], needs the 7 local rows that the"),
        ({"c_kv": np.zeros((7, 511), BF16)}, ValueError, "c_kv has shape"),
        ({"c_kv": np.zeros((7, 512), np.float64)}, TypeError, "c_kv"),
        ({"k_pe": np.zeros((6, 64), BF16)}, ValueError, "k_pe has shape"),
        ({"k_index": np.zeros((7, 64), BF16)}, ValueError, "k_index has shape"),
        ({"k_index": None}, ValueError, "k_index is None, needs the layer's index keys"),
        ({"c_kv": np.full((7, 512), np.nan, BF16)}, ValueError, "c_kv has nan in row 0, column 0"),
        ({"k_index": np.full((7, 128), np.inf, BF16)}, ValueError, "k_index has inf in row 0"),
        (
            {"slot_mapping": BATCH.slots[:5]},
            ValueError,
            "slot_mapping has 5 entries, needs one for each",
        ),
        ({"slot_mapping": BATCH.slots.astype(float)}, TypeError, "slot_mapping"),
        (
            {"slot_mapping": np.where(np.arange(13) == 2, 10**6, BATCH.slots)},
            IndexError,
            "slot_mapping is 1000000 in row 2",
        ),
        ({"slot_mapping": np.where(np.arange(13) == 2, -2, BATCH.slots)}, IndexError, "is -2 in row 2"),
        ({"slot_mapping": np.zeros(13, int)}, ValueError, "names slot 0 in rows 0 and 1"),
        ({"caches": ()}, TypeError, "caches is a tuple, needs a cp.LayerCache"),
        ({"validate": "maybe"}, ValueError, "validate"),
        ({"plan": cp.split_plan("zigzag", [0, 13], [0], 3)}, ValueError, "comm has 2 ranks, needs the plan's 3"),
    ],
)
def test_refusals_of_the_kv_gather(changes, error, words):
    caches = BATCH.caches()
    before = caches.kv.copy()
    with pytest.raises(error, match=words):
        gather_kv(ThreadComm(2)[0], BATCH, BATCH.plan("contiguous_flat", 2), caches, changes=changes)
    assert caches.kv.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"index": None}, ValueError, "caches.index is None, needs the layer's index cache"),
        ({"layout": "index_132"}, ValueError, "caches.layout"),
        ({"index_layout": "fp8_656"}, ValueError, "caches.index_layout"),
        ({"layout": "fp8"}, ValueError, "caches.layout"),
        ({"page_size": 3}, ValueError, "caches.kv has shape"),
        ({"scale_rule": "best"}, ValueError, "caches.scale_rule"),
        ({"scale_fmt": "fp32"}, ValueError, "caches.scale_fmt"),
        ({"kv": np.zeros((9, PAGE, 656), np.float32)}, TypeError, "caches.kv has dtype float32"),
    ],
)
def test_refusals_of_caches(fields, error, words):
    caches = BATCH.caches()
    given = {name: fields.get(name, getattr(caches, name)) for name in caches.__dataclass_fields__}
    with pytest.raises(error, match=words):
        gather_kv(ThreadComm(2)[0], BATCH, BATCH.plan("contiguous_flat", 2), cp.LayerCache(**given))


def run_both(step):
    """How each of two ranks ended."""
    words = {}

    def rank(comm):
        try:
            step(comm)
        except Exception as error:
            words[comm.rank] = error

    run_ranks(2, rank, timeout=0.7)
    return words


OTHER = Batch((9, 4), (6, 0), ())  # the same rows behind another prefix


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", ["plan", "layout", "rule", "skipped rows"])
def test_ranks_that_mean_different_things_are_told(what):
    every = [BATCH.caches(), BATCH.caches()]
    before = [c.kv.copy() for c in every]

    def step(comm):
        caches, slots, source = every[comm.rank], BATCH.slots.copy(), BATCH
        fields = {name: getattr(caches, name) for name in caches.__dataclass_fields__}
        if comm.rank == 1:
            if what == "plan":
                source = OTHER
            elif what == "layout":
                fields |= {"index": np.zeros((8, PAGE, 128), BF16), "index_layout": "index_bf16"}
            elif what == "rule":
                fields["scale_rule"] = "flashmla"
            else:
                slots[3] = -1
        gather_kv(comm, BATCH, source.plan("zigzag", 2), cp.LayerCache(**fields), slots).wait()

    words = run_both(step)
    assert words.keys() == {0, 1}
    for error in words.values():
        assert isinstance(error, RankMismatch)
        assert error.field == ("shape" if what == "layout" else "plan")
    assert all(c.kv.tobytes() == b.tobytes() for c, b in zip(every, before))


def test_ranks_may_page_differently_and_skip_rows():
    """Each rank has its own page ids; row 3 is skipped by all, and a NaN in it is not even read."""
    batches = [Batch((9, 4), (5, 0), (), seed=0), Batch((9, 4), (5, 0), (), seed=0)]
    order = np.random.default_rng(5).permutation(batches[1].pages)
    batches[1].table = np.where(
        batches[1].table < 10**6, order[np.minimum(batches[1].table, len(order) - 1)], 2147480000
    )
    batches[1].slots = batches[1].slots_of(batches[1].request, batches[1].position)
    for batch in batches:
        batch.slots[3] = -1
        batch.c_kv = batch.c_kv.copy()
        batch.c_kv[3] = np.nan
    plan = batches[0].plan("zigzag", 2)
    every = [batch.caches() for batch in batches]
    run_ranks(2, lambda comm: gather_kv(comm, batches[comm.rank], plan, every[comm.rank]).wait())
    for batch, caches in zip(batches, every):
        want = batch.caches()
        batch.write(want.kv, want.index, (batch.c_kv, batch.k_pe, batch.k_index), batch.slots)
        assert same_bits(caches.kv, want.kv) and same_bits(caches.index, want.index)
    assert every[0].kv.tobytes() != every[1].kv.tobytes()


def test_the_caches_wait_for_the_end():
    """Started is not written; test() finishes too; the twin writes the same bytes."""
    every = [BATCH.caches(), BATCH.caches()]
    before = every[0].kv.tobytes()

    def rank(comm):
        caches = every[comm.rank]
        work = gather_kv(comm, BATCH, BATCH.plan("ceil_chunk", 2), caches)
        assert caches.kv.tobytes() == before
        comm.barrier()  # both have started
        while not work.test():
            pass
        assert caches.kv.tobytes() != before
        work.wait()

    run_ranks(2, rank)
    want = BATCH.caches()
    reference.write_all(BATCH.c_kv, BATCH.k_pe, BATCH.k_index, want, BATCH.slots)
    assert all(same_bits(c.kv, want.kv) and same_bits(c.index, want.index) for c in every)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", ["raise", "skip", "delay", "mismatch"])
def test_faults_leave_the_caches_alone(fault):
    every = [BATCH.caches(), BATCH.caches()]
    before = [c.kv.tobytes() for c in every]

    def step(comm):
        if comm.rank == 1:
            comm = FaultyComm(comm, fault, at=0, seconds=1.5)
        gather_kv(comm, BATCH, BATCH.plan("zigzag", 2), every[comm.rank]).wait()

    words = run_both(step)
    assert isinstance(words[0], CommError)
    if fault != "skip":  # then rank 1 believes that it is done, and stores what it has: only rank 0 can tell
        assert isinstance(words[1], CommError)
        assert every[1].kv.tobytes() == before[1]
    assert every[0].kv.tobytes() == before[0]


def test_torch_tensors_go_in_and_come_back():
    torch = pytest.importorskip("torch")
    plan = cp.split_plan("zigzag", [0, 8], [0], 2)
    x = torch.arange(16, dtype=torch.bfloat16).reshape(8, 2)
    got = run_ranks(2, lambda comm: cp.gather_rows(comm, cp.split(x, plan, comm.rank), plan))
    assert all(torch.equal(whole, x) for whole in got)
