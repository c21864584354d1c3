"""What cp.dcp_decode, cp.dcp_select, cp.global_topk and the writers refuse: in words, before anything moves."""

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from sparsespan import comm, cp

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import BF16, SCALE, Batch, IndexBatch

sys.path.pop(0)
pytestmark = pytest.mark.timeout(120)


def decode(**changes):
    """One call on one rank of a layout of one, with some arguments exchanged."""
    layout = changes.pop("layout", cp.dcp_layout(1, 1, 4))
    arguments = {
        "q": np.zeros((2, 4, 576), np.float32),
        "kv_cache": np.zeros((3, 4, 576), np.float32),
        "indices": np.array([[0, 5], [3, -1]]),
        "block_table": np.array([[0, 1], [2, -1]]),
        "sm_scale": SCALE,
        "row_to_request": np.array([0, 1]),
        "kv_layout": "f32_576",
        "threads": 1,
    } | changes
    group = arguments.pop("comm", comm.ThreadComm(1)[0])
    return cp.dcp_decode(group, layout=layout, **arguments)


def test_the_plain_call_works():
    out, lse = decode()
    assert out.shape == (2, 4, 512) and not out.any()
    np.testing.assert_allclose(lse, np.log([[2] * 4, [1] * 4]), atol=1e-6)


BAD = [
    ({"indices": np.array([[0, 8], [3, -1]])}, IndexError, r"indices holds 8 at row 0, column 1, needs -1 or a logical "
     r"position below 8 \(what its request's pages hold on all ranks\)"),
    ({"indices": np.array([[0, -2], [3, -1]])}, IndexError, r"indices holds -2 at row 0, column 1"),
    ({"indices": np.array([[0, 5], [4, -1]])}, IndexError, r"block_table is -1 at request 1, column 1, position 4 of "
     r"row 1 needs a page in 0 to 2"),
    ({"block_table": np.array([[0, 1], [3, -1]])}, IndexError, r"block_table is 3 at request 1, column 0"),
    ({"context_lens": np.array([5, 9])}, IndexError, r"indices holds 5 at row 0, column 1, needs -1 or a logical "
     r"position below 5 \(the row's context"),
    ({"context_lens": np.array([6, -1])}, ValueError, r"context_lens is -1 at row 1, needs at least 0"),
    ({"topk_length": np.array([3, 0])}, ValueError, r"topk_length is 3 at row 0, needs 0 to K = 2"),
    ({"row_to_request": np.array([0, 2])}, IndexError, r"row_to_request is 2 at row 1, needs -1 or a row of"),
    ({"row_to_request": None}, ValueError, r"row_to_request is None, block_table has 2 rows, needs the request"),
    ({"indices": np.zeros((3, 2), np.int32)}, ValueError, r"indices has shape \[3, 2\], needs \[T, K\]"),
    ({"indices": np.zeros((2, 2))}, TypeError, r"indices has dtype float64"),
    ({"layout": cp.dcp_layout(1, 2, 4)}, ValueError, r"comm has 1 ranks, needs 2 as dcp_layout\(interleave=1, "
     r"world_size=2, page_size=4\) has"),
    ({"layout": "dcp"}, TypeError, r"layout is a str, needs a DcpLayout from cp.dcp_layout"),
    ({"layout": cp.dcp_layout(1, 1, 5)}, ValueError, r"kv_cache"),
    ({"kv_layout": "index_132"}, ValueError, r"layout is \"index_132\", needs a KV layout"),
    ({"kv_layout": "fp8"}, ValueError, r"kv_layout is \"fp8\""),
    ({"kv_cache": np.zeros((3, 4, 576), BF16)}, TypeError, r"kv_cache"),
    ({"q": np.zeros((2, 4, 512), np.float32)}, ValueError, r"q has 512 values per head, needs 576"),
    ({"q": (np.zeros((2, 4, 64), np.float32), np.zeros((2, 4, 512), np.float32))}, ValueError, r"the latent part"),
    ({"q": (1, 2, 3)}, ValueError, r"q is a tuple of 3, needs \(q_nope, q_pe\) or one array"),
    ({"q": np.zeros((2, 4, 576), np.float64)}, TypeError, r"q has dtype float64"),
    ({"combine": "sum"}, ValueError, r'combine is "sum", needs "ag_rs", "a2a" or "ar"'),
    ({"payload": "fp8"}, ValueError, r'payload is "fp8", needs "fp32" or "bf16"'),
    ({"head_pad": 0}, ValueError, r"head_pad is 0, needs at least 1"),
    ({"d_v": 577}, ValueError, r"d_v"),
    ({"sm_scale": float("nan")}, ValueError, r"sm_scale is nan, needs a finite number"),
    ({"attn_sink": np.zeros(5, np.float32)}, ValueError, r"attn_sink has shape \[5\], needs \[H\]"),
    ({"out": np.zeros((2, 4, 511), np.float32)}, ValueError, r"out has shape \[2, 4, 511\]"),
    ({"out": (None, None, None)}, ValueError, r"out has 3 entries, needs \(out, lse\)"),
    ({"out_dtype": "float16"}, ValueError, r'out_dtype is "float16"'),
    ({"replicate_q": 1}, TypeError, r"replicate_q is 1, needs True or False"),
    ({"timeout": 0}, ValueError, r"timeout is 0, needs seconds above 0"),
    ({"comm": 3}, TypeError, r"as_comm: x is a int"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "words"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_decode_refuses(changes, error, words):
    with pytest.raises(error, match=words):
        decode(**changes)


def on_two(fn):
    """What each of two ranks refuses, and that the group still works afterwards."""

    def rank(c):
        try:
            fn(c)
        except (ValueError, TypeError, IndexError) as error:
            c.barrier()
            return str(error)

    return comm.run_ranks(2, rank, timeout=20)


def test_refusals_come_before_anything_moves_and_on_every_rank_alike():
    layout = cp.dcp_layout(1, 2, 4)
    base = {
        "kv_cache": np.zeros((1, 4, 576), np.float32), "block_table": np.array([[0]]), "sm_scale": 1.0,
        "kv_layout": "f32_576", "layout": layout, "indices": np.array([[1]]),
    }  # fmt: skip
    q = np.zeros((1, 3, 576), np.float32)
    for changes, words in [
        ({"indices": np.array([[8]])}, "indices holds 8 at row 0, column 0, needs -1 or a logical position below 8"),
        ({"block_table": np.array([[1]])}, "block_table is 1 at request 0, column 0"),
        ({"replicate_q": True}, "q has 3 heads, needs a multiple of the 2 ranks"),
    ]:
        told = on_two(lambda c, a=changes: cp.dcp_decode(c, q, **(base | a)))
        assert told[0] == told[1] and words in told[0]
    three = cp.dcp_layout(1, 3, 4)
    with pytest.raises(ValueError, match=r"lanes is True with 3 ranks, needs 1, 2, 4 or 8"):
        comm.run_ranks(3, lambda c: cp.dcp_decode(c, q, **(base | {"layout": three, "lanes": True})), timeout=20)
    with pytest.raises(ValueError, match=r"partial_out has 3 heads, needs a multiple of the 2 ranks"):
        comm.run_ranks(
            2, lambda c: cp.dcp_combine(c, np.zeros((1, 3, 4), np.float32), np.zeros((1, 3), np.float32)), timeout=20
        )
    with pytest.raises(ValueError, match=r"page_size is 4, needs a multiple of interleave = 3"):
        cp.dcp_layout(3, 2, 4)


@pytest.mark.parametrize(
    ("mine", "yours"),
    [
        ({"interleave": 1}, {"interleave": 2}),
        ({"combine": "ag_rs"}, {"combine": "a2a"}),
        ({"lanes": True}, {"lanes": False}),
        ({"payload": "fp32"}, {"payload": "bf16"}),
    ],
)
def test_ranks_that_follow_different_plans_are_told(mine, yours):
    batch = Batch([40], heads=2)

    def rank(c):
        options = dict(yours if c.rank else mine)
        batch.decode(c, cp.dcp_layout(options.pop("interleave", 1), 2, 4), **options)

    with pytest.raises(comm.RankMismatch, match=r"plan"):
        comm.run_ranks(2, rank, timeout=20)


def test_ranks_with_different_scales_are_told():
    batch, layout = Batch([40], heads=2), cp.dcp_layout(1, 2, 4)

    def rank(c):
        cp.dcp_decode(
            c, batch.q_of(c.rank, 2), batch.cache(layout, c.rank), batch.indices, layout, batch.table(layout)[0],
            [0.1352, 0.0625][c.rank], kv_layout="f32_576",
        )  # fmt: skip

    with pytest.raises(comm.RankMismatch, match=r"plan"):
        comm.run_ranks(2, rank, timeout=20)


def test_ranks_that_choose_by_different_designs_are_told():
    batch = IndexBatch([40])
    with pytest.raises(comm.RankMismatch):
        comm.run_ranks(
            2,
            lambda c: batch.select(c, cp.dcp_layout(1, 2, 4), 8, ["sharded", "sharded_routed"][c.rank]),
            timeout=20,
        )


def select(**changes):
    arguments = {
        "q": np.zeros((2, 1, 4, 128), np.float32),
        "index_cache": np.zeros((3, 4, 128), np.float32),
        "weights": np.zeros((2, 4), np.float32),
        "context_lens": np.array([5, 3]),
        "block_table": np.array([[0, 1], [2, -1]]),
        "layout": cp.dcp_layout(1, 1, 4),
        "topk": 3,
        "index_layout": "index_f32",
    } | changes
    return cp.dcp_select(comm.ThreadComm(1)[0], **arguments)


BAD_SELECT = [
    ({"context_lens": np.array([9, 3])}, ValueError, r"context_lens has 9 at request 0, needs 0 <= length <= 8"),
    ({"context_lens": np.array([5, -1])}, ValueError, r"context_lens has -1 at request 1"),
    ({"context_lens": np.array([5, 5])}, IndexError, r"block_table has -1 at request 1, column 1, inside the request's "
     r"context of 5; needs 0 <= page < 3"),
    ({"context_lens": np.zeros((2, 2), int)}, ValueError, r"context_lens has shape"),
    ({"q": np.zeros((3, 4, 128), np.float32), "weights": np.zeros((3, 4), np.float32)}, ValueError, r"B \* next_n"),
    ({"q": np.zeros((2, 4, 64), np.float32)}, ValueError, r"q has D = 64, needs 128 for layout index_f32"),
    ({"weights": np.zeros((2, 5), np.float32)}, ValueError, r"weights has shape \[2, 5\]"),
    ({"index_cache": np.zeros((3, 4, 132), np.uint8)}, TypeError, r"index_cache"),
    ({"index_layout": "f32_576"}, ValueError, r'index_layout is "f32_576", needs index_132, index_bf16 or index_f32'),
    ({"index_k": "shared"}, ValueError, r'index_k is "shared", needs "replicated", "sharded"'),
    ({"topk": 0}, ValueError, r"topk is 0, needs at least 1"),
    ({"nan": "ignore"}, ValueError, r'nan is "ignore", needs "raise" or "lowest"'),
    ({"out": np.zeros((2, 4), np.int32)}, ValueError, r"out has shape \[2, 4\]"),
    ({"layout": cp.dcp_layout(1, 2, 4)}, ValueError, r"comm has 1 ranks, needs 2 as dcp_layout"),
    ({"layout": None}, TypeError, r"layout is a NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "words"), BAD_SELECT, ids=[str(i) for i in range(len(BAD_SELECT))])
def test_select_refuses(changes, error, words):
    assert select().tolist() == [[0, 1, 2]] * 2
    with pytest.raises(error, match=words):
        select(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"k": 0}, ValueError, r"k is 0, needs at least 1"),
        ({"context_lens": np.array([6])}, ValueError, r"scores has 5 columns, needs 6, rank 0's share of the"),
        ({"context_lens": np.array([-1])}, ValueError, r"context_lens is -1 at row 0"),
        ({"context_lens": np.array([1, 2])}, ValueError, r"context_lens has shape \[2\]"),
        ({"scores": np.zeros((1, 5))}, TypeError, r"scores has dtype float64"),
        ({"exchange": "a2a"}, ValueError, r'exchange is "a2a", needs "sharded" or "sharded_routed"'),
        ({"layout": cp.dcp_layout(1, 2, 4)}, ValueError, r"comm has 1 ranks, needs 2 as dcp_layout"),
    ],
)  # fmt: skip
def test_global_topk_refuses(changes, error, words):
    arguments = {"scores": np.zeros((1, 5), np.float32), "k": 2, "layout": cp.dcp_layout(1, 1, 4)} | changes
    with pytest.raises(error, match=words):
        cp.global_topk(comm.ThreadComm(1)[0], **arguments)


def test_writers_refuse_on_every_rank_alike():
    layout = cp.dcp_layout(1, 2, 4)
    rows = np.zeros((1, 512), np.float32), np.zeros((1, 64), np.float32)
    for rank in range(2):
        with pytest.raises(IndexError, match=r"positions row 0 is 8, block_table has 1 columns of 8 positions"):
            cp.dcp_write_kv(
                *rows, np.zeros((1, 4, 576), ml_dtypes.bfloat16), np.array([8]), np.array([[0]]), layout, rank
            )


@pytest.mark.timeout(20)
def test_global_topk_tells_ranks_with_different_contexts():
    layout = cp.dcp_layout(1, 2, 4)

    def rank(c):
        cp.global_topk(c, np.zeros((1, 8), np.float32), 2, layout, np.array([9 + c.rank]))

    with pytest.raises(comm.RankMismatch, match="plan"):
        comm.run_ranks(2, rank, timeout=5)
