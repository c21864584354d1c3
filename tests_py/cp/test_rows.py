"""split and gather_rows: identities and refusals."""

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
from sparsespan.comm import ThreadComm, run_ranks

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import BF16, SCHEMES, even, same_bits

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


def test_torch_tensors_go_in_and_come_back():
    torch = pytest.importorskip("torch")
    plan = cp.split_plan("zigzag", [0, 8], [0], 2)
    x = torch.arange(16, dtype=torch.bfloat16).reshape(8, 2)
    got = run_ranks(2, lambda comm: cp.gather_rows(comm, cp.split(x, plan, comm.rank), plan))
    assert all(torch.equal(whole, x) for whole in got)
