"""prefill_attention step by step: order, shared layers, chunks, padding, the float64 twin, refusals, faults."""

import sys
from pathlib import Path

import numpy as np
import pytest

import sparsespan.reference.cp_rows as reference
from sparsespan import cp
from sparsespan.comm import CommError, ThreadComm, run_ranks
from sparsespan.testing import FaultyComm
from sparsespan.transform import apply_rope, yarn_cos_sin

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import PAGE, SCALE, TOPK, Batch, same_bits

sys.path.pop(0)

RAGGED = Batch((9, 0, 14, 3), (5, 0, 0, 11))
FIXED = {"sm_scale": SCALE, "topk": TOPK}


def cut(batch, plan, rank, *names):
    return tuple(cp.split(getattr(batch, name), plan, rank) for name in names)


def attend(comm, batch, plan, caches, queries=None, **options):
    keys = cut(batch, plan, comm.rank, "c_kv", "k_pe", "k_index")
    queries = queries or cut(batch, plan, comm.rank, "q", "index_q", "weights")
    return cp.prefill_attention(comm, plan, caches, *keys, queries, **{**FIXED, "block_table": batch.table, **options})


def test_the_twin_in_float64():
    batch = Batch((9, 0, 14, 3), (5, 0, 0, 11), (), "bf16_576", "index_bf16")
    caches, out, lse, indices = batch.one_rank()
    want = reference.prefill_attention(
        batch.q, batch.index_q, batch.weights, caches, batch.table, batch.request, batch.position, TOPK, SCALE
    )
    np.testing.assert_array_equal(indices, want[2])  # scores of normal data differ by far more than float32 rounds
    # bfloat16 keys and values are exact in both; one rounding of the output (2^-9 of values up to 4), float32 sums.
    np.testing.assert_allclose(out.astype(float), want[0], atol=4 * 2.0**-9)
    np.testing.assert_allclose(lse, want[1], atol=1e-4)


def test_the_gather_is_under_way_while_queries_are_made():
    """The collective is issued before the callback and the caches are written after it."""
    plan, every = RAGGED.plan("zigzag", 2), [RAGGED.caches(), RAGGED.caches()]

    def rank(comm):
        caches, seen = every[comm.rank], []
        before = caches.kv.tobytes()

        def queries(positions):
            seen.append((comm.issued, caches.kv.tobytes() == before))
            np.testing.assert_array_equal(positions, plan.positions(comm.rank))
            return cut(RAGGED, plan, comm.rank, "q", "index_q", "weights")

        attend(comm, RAGGED, plan, caches, queries)
        assert seen == [(1, True)]
        assert caches.kv.tobytes() != before

    run_ranks(2, lambda comm: rank(Issued(comm)))


class Issued(FaultyComm):
    """Counts what was issued; never fails."""

    def __init__(self, comm):
        super().__init__(comm, "skip", at=10**9)

    @property
    def issued(self):
        return self._native.issued


@pytest.mark.parametrize("scheme", ["zigzag", "interleave", "zigzag_padded"])
def test_rope_turns_local_keys_with_local_positions(scheme):
    """Rotated before the gather on N ranks, the cache is that of one rank that rotates all rows."""
    table, batch = yarn_cos_sin(64, 64), Batch((9, 6), (5, 0), (), "bf16_576", "index_bf16")
    plan = batch.plan(scheme, 4)

    def rope(k_pe, k_index, positions):
        turned = k_index.copy()
        turned[:, :64] = apply_rope(k_index[:, :64], positions, table, interleaved=False)
        return apply_rope(k_pe, positions, table, interleaved=True), turned

    want = batch.caches()
    k_pe, k_index = rope(batch.k_pe, batch.k_index, batch.position)
    batch.write(want.kv, want.index, (batch.c_kv, k_pe, k_index), batch.slots)
    every = [batch.caches() for _ in range(4)]
    run_ranks(4, lambda comm: attend(comm, batch, plan, every[comm.rank], rope=rope))
    assert all(same_bits(c.kv, want.kv) and same_bits(c.index, want.index) for c in every)


def test_a_layer_that_shares_the_top_k():
    """k_index None: 656 bytes per token travel, and the indices of the layer before are attended to."""
    plan = RAGGED.plan("ceil_chunk", 3)
    _, out, lse, indices = RAGGED.one_rank()

    def rank(comm):
        shared = RAGGED.caches(index=False)
        c_kv, k_pe, q, chosen = (cp.split(x, plan, comm.rank) for x in (RAGGED.c_kv, RAGGED.k_pe, RAGGED.q, indices))
        chosen[plan.row_to_request(comm.rank) < 0] = -1
        comm.reset_trace()
        result = cp.prefill_attention(
            comm, plan, shared, c_kv, k_pe, None, lambda _: (q, None, None), block_table=RAGGED.table, indices=chosen,
            **FIXED,
        )  # fmt: skip
        assert comm.trace()["all_gather"]["bytes"] == 2 * plan.padded_len * 656
        return cp.gather_rows(comm, result.out, plan), cp.gather_rows(comm, result.lse, plan)

    for got in run_ranks(3, rank):
        assert same_bits(got[0], out) and same_bits(got[1], lse)


@pytest.mark.parametrize("scheme", ["zigzag", "interleave", "contiguous_flat"])
def test_chunks_one_after_the_other_are_the_whole(scheme):
    """A prompt of 30 in chunks of 11: each chunk's prefix is what the chunks before have cached."""
    batch = Batch((30,), (0,))
    _, *want = batch.one_rank()
    every = [batch.caches() for _ in range(2)]
    rows = [slice(start, min(start + 11, 30)) for start in range(0, 30, 11)]
    got = []
    for r in rows:
        plan = cp.split_plan(scheme, [0, r.stop - r.start], [r.start], 2)
        chunk = Batch((30,), (0,))
        for name in ("c_kv", "k_pe", "k_index", "q", "index_q", "weights"):
            setattr(chunk, name, getattr(batch, name)[r])

        def rank(comm, plan=plan, chunk=chunk):
            result = attend(comm, chunk, plan, every[comm.rank])
            return [cp.gather_rows(comm, x, plan) for x in result]

        got.append(run_ranks(2, rank)[0])
    for parts, whole in zip(zip(*got), want):
        assert same_bits(np.concatenate(parts), whole)


def test_pad_rows_of_an_engine_reach_nothing():
    """Rows of kind PAD inside requests and behind the batch: not cached, not selected, not attended."""
    batch = Batch((8, 6), (4, 0))
    kinds = [0] * 5 + [2] * 3 + [0] * 6
    plan = cp.split_plan("zigzag", [0, 8, 14], [4, 0], 2, row_kind=kinds, pad_to=17)
    real = np.array(kinds) == 0
    small = Batch((5, 6), (4, 0))
    for name in ("c_kv", "k_pe", "k_index", "q", "index_q", "weights"):
        value = getattr(batch, name).copy()
        value[~real] = np.nan
        setattr(batch, name, value)
        setattr(small, name, value[real])
    small.table, small.pages, small.old = batch.table, batch.pages, batch.old
    small.slots = small.slots_of(small.request, small.position)
    want_caches, *want = small.one_rank()
    every = [batch.caches(), batch.caches()]
    for result, caches in zip(run_ranks(2, lambda c: gathered(c, batch, plan, every[c.rank])), every):
        assert same_bits(caches.kv, want_caches.kv) and same_bits(caches.index, want_caches.index)
        for got, expected in zip(result, want):
            assert same_bits(got[real], expected)
        assert (result[2][~real] == -1).all() and (result[0][~real] == 0).all()
    np.testing.assert_array_equal(cp.prefill_slots(plan, batch.table, PAGE)[~real], -1)


def gathered(comm, batch, plan, caches):
    return [cp.gather_rows(comm, x, plan) for x in attend(comm, batch, plan, caches)]


COMM, PLAN = ThreadComm(2)[0], RAGGED.plan("zigzag", 2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"indices": np.zeros((13, 7), np.int32)}, ValueError, "k_index and indices are both given, needs one"),
        ({"k_index": None}, ValueError, "neither k_index nor indices is given, needs one"),
        (
            {"k_index": None, "indices": np.full((13, 2), 9)},
            IndexError,
            "indices is 9 in row 0, column 0, needs -1 or a logical position below the 6 that the row sees",
        ),
        ({"k_index": None, "indices": np.full((13, 2), -2)}, IndexError, "indices is -2 in row 0"),
        (
            {"k_index": None, "indices": np.zeros((5, 2), int)},
            ValueError,
            r"indices has shape \[5, 2\], needs \[13, K\]",
        ),
        ({"comm": ThreadComm(3)[0]}, ValueError, "comm has 3 ranks, needs the plan's 2"),
        ({"comm": None}, TypeError, "prefill_attention: comm is a NoneType, needs a Communicator"),
        ({"plan": 5}, TypeError, "prefill_attention: plan is a int, needs a CpPlan"),
        ({"caches": RAGGED.caches().kv}, TypeError, "caches is a ndarray, needs a cp.LayerCache"),
        ({"block_table": RAGGED.table[:2]}, ValueError, r"block_table has shape \[2, 4\], needs \[4, pages\]"),
        (
            {"block_table": RAGGED.table[:, :2]},
            ValueError,
            "block_table has 2 pages of 4 for request 0, needs room for",
        ),
        ({"block_table": np.full_like(RAGGED.table, -1)}, IndexError, "block_table is -1 in row 0, column 0, within"),
        ({"block_table": RAGGED.table.astype(np.float32)}, TypeError, "block_table has dtype float32, needs int32"),
        ({"topk": 0}, ValueError, "topk is 0, needs at least 1"),
        ({"by": "rows"}, ValueError, "by is 'rows', needs 'packed' or 'paged'"),
        ({"slot_mapping": np.arange(3)}, ValueError, "slot_mapping has 3 entries"),
    ],
)
def test_refusals(options, error, words):
    caches = RAGGED.caches()
    before = caches.kv.tobytes()
    keys = dict(zip(("c_kv", "k_pe", "k_index"), cut(RAGGED, PLAN, 0, "c_kv", "k_pe", "k_index")))
    queries = cut(RAGGED, PLAN, 0, "q", "index_q", "weights")
    given = {"comm": COMM, "plan": PLAN, "caches": caches, **keys, "queries": queries, "block_table": RAGGED.table}
    with pytest.raises(error, match=words):
        cp.prefill_attention(**{**given, **FIXED, **options})
    assert caches.kv.tobytes() == before


@pytest.mark.timeout(30)
def test_a_failing_projection_leaves_every_cache_alone():
    every = [RAGGED.caches() for _ in range(4)]
    before, seen = [c.kv.tobytes() for c in every], {}

    def rank(comm):
        def queries(_):
            raise ArithmeticError("q_b")

        try:
            attend(comm, RAGGED, RAGGED.plan("zigzag", 4), every[comm.rank], queries if comm.rank == 2 else None)
        except CommError as error:
            seen[comm.rank] = error
            raise

    with pytest.raises(ArithmeticError, match="q_b"):
        run_ranks(4, rank, timeout=5)
    # Peers that had the data before the failure have finished the gather, wholly; the others have not touched theirs.
    for r, caches in enumerate(every):
        assert caches.kv.tobytes() == before[r] or r not in seen
    assert every[2].kv.tobytes() == before[2]
