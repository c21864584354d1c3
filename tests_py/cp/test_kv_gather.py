"""gather_kv_and_cache: when the caches are written, refusals, faults."""

import sys
from pathlib import Path

import numpy as np
import pytest

import sparsespan.reference.cp_rows as reference
from sparsespan import cp, quant
from sparsespan.comm import CommError, RankMismatch, ThreadComm, run_ranks
from sparsespan.testing import FaultyComm

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import BF16, PAGE, Batch, same_bits

sys.path.pop(0)


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


@pytest.mark.parametrize("rule", ["official", "flashmla", "sglang", "vllm"])
@pytest.mark.parametrize(
    ("layout", "index_layout", "scale_fmt"),
    [
        ("fp8_656", "index_132", None),
        ("fp8_656", "index_bf16", "ue8m0"),
        ("bf16_576", "index_132", "ue8m0"),
        ("f32_576", "index_f32", "ue8m0"),
    ],
)
@pytest.mark.parametrize("dtype", [BF16, np.float32])
def test_every_layout_and_rule_gives_the_writers_bytes(layout, index_layout, scale_fmt, rule, dtype):
    """Quantised by the owner, moved as bytes: what one rank's writers give, head axes and trusted input included."""
    batch = Batch((7, 5), (2, 0), (), layout, index_layout)
    batch.c_kv, batch.k_pe, batch.k_index = (x.astype(dtype) for x in (batch.c_kv, batch.k_pe, batch.k_index))
    batch.c_kv[3, :128] = 0  # a tile of zeros has a scale, too
    plan, full = batch.plan("interleave", 3), batch.caches()
    every = [batch.caches() for _ in range(3)]

    def settings(caches):
        return cp.LayerCache(caches.kv, caches.index, layout, index_layout, PAGE, rule, scale_fmt)

    quant.concat_and_cache_mla(batch.c_kv, batch.k_pe, full.kv, batch.slots, layout, PAGE, rule)
    quant.indexer_k_quant_and_cache(batch.k_index, full.index, batch.slots, PAGE, index_layout, scale_fmt)

    def rank(comm):
        changes = {"k_pe": cp.split(batch.k_pe[:, None], plan, comm.rank), "validate": "trusted"}
        gather_kv(comm, batch, plan, settings(every[comm.rank]), changes=changes).wait()

    run_ranks(3, rank)
    assert all(same_bits(c.kv, full.kv) and same_bits(c.index, full.index) for c in every)


@pytest.mark.timeout(30)
def test_a_work_that_is_dropped_writes_nothing():
    """The rank that does not wait keeps its caches; nobody crashes, and the peers end in one of the three ways."""
    every = [BATCH.caches(), BATCH.caches()]
    before = every[1].kv.tobytes()

    def step(comm):
        work = gather_kv(comm, BATCH, BATCH.plan("zigzag", 2), every[comm.rank])
        if comm.rank == 0:
            work.wait()
        del work

    words = run_both(step)
    assert every[1].kv.tobytes() == before
    assert all(isinstance(error, CommError) for error in words.values())
