# ruff: noqa: E501
import re

import ml_dtypes
import numpy as np
import pytest

from sparsespan.attention import sparse_mla

BF16 = ml_dtypes.bfloat16


def case(**changes):
    args = {
        "q": np.zeros((2, 3, 576), BF16),
        "kv": np.zeros((5, 576), BF16),
        "indices": np.zeros((2, 4), np.int32),
        "sm_scale": 0.1,
    }
    args.update(changes)
    return sparse_mla(**args)


def at(row, column, value, dtype=np.int32):
    indices = np.zeros((2, 4), dtype)
    indices[row, column] = value
    return indices


PAGED = {"kv": np.zeros((2, 8, 656), np.uint8), "layout": "fp8_656", "page_size": 8}
READ_ONLY = np.zeros((2, 3, 512), BF16)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (IndexError, "indices holds 5 at row 1, column 2, needs -1 or one of the 5 packed rows of kv", {"indices": at(1, 2, 5)}),
        (IndexError, "indices holds -2 at row 0, column 3", {"indices": at(0, 3, -2)}),
        (IndexError, "indices holds 2147483647 at row 0, column 0", {"indices": at(0, 0, 2**31 - 1)}),
        (IndexError, "indices holds 16 at row 1, column 0, needs -1 or one of the 16 slots", {**PAGED, "indices": at(1, 0, 16)}),
        (TypeError, "q has dtype float16, needs float32 or bfloat16", {"q": np.zeros((2, 3, 576), np.float16)}),
        (TypeError, "kv has dtype float16", {"kv": np.zeros((5, 576), np.float16)}),
        (TypeError, "kv has dtype float8_e4m3fnuz, needs uint8 for layout fp8_656", {**PAGED, "kv": PAGED["kv"].view(ml_dtypes.float8_e4m3fnuz)}),
        (TypeError, "indices has dtype float32, needs int32 or int64", {"indices": at(0, 0, 0, np.float32)}),
        (TypeError, "q[1] has dtype float32, needs bfloat16", {"q": (np.zeros((2, 3, 512), BF16), np.zeros((2, 3, 64), np.float32))}),
        (ValueError, "q[1] has shape [2, 4, 64]", {"q": (np.zeros((2, 3, 512), BF16), np.zeros((2, 4, 64), BF16))}),
        (ValueError, "q is a tuple of 3", {"q": (1, 2, 3)}),
        (ValueError, "q has shape [2, 576], needs [T, H, Dqk]", {"q": np.zeros((2, 576), BF16)}),
        (ValueError, "kv has shape [5, 512], needs [S, Dqk] = [*, 576]", {"kv": np.zeros((5, 512), BF16)}),
        (ValueError, "kv has shape [5, 2, 576], needs [S, 1, Dqk]", {"kv": np.zeros((5, 2, 576), BF16)}),
        (ValueError, "indices has shape [3, 4], needs [T, K] = [2, *]", {"indices": np.zeros((3, 4), np.int32)}),
        (ValueError, "indices has shape [2, 2, 4]", {"indices": np.zeros((2, 2, 4), np.int32)}),
        (ValueError, "q has a strided last axis", {"q": np.zeros((2, 3, 1152), BF16)[..., ::2]}),
        (ValueError, "kv has a strided last axis", {"kv": np.zeros((5, 1152), BF16)[..., ::2]}),
        (ValueError, "topk_length is 5 at row 1, needs 0..4", {"topk_length": np.array([4, 5])}),
        (ValueError, "topk_length is -1 at row 0", {"topk_length": np.array([-1, 0])}),
        (ValueError, "topk_length has shape [3]", {"topk_length": np.array([1, 1, 1])}),
        (TypeError, "topk_length has dtype float32", {"topk_length": np.ones(2, np.float32)}),
        (ValueError, "attn_sink is NaN at head 1", {"attn_sink": np.array([0, np.nan, 0], np.float32)}),
        (ValueError, "attn_sink has shape [2], needs [H] = [3]", {"attn_sink": np.zeros(2, np.float32)}),
        (TypeError, "attn_sink has dtype float64, needs float32", {"attn_sink": np.zeros(3)}),
        (ValueError, "d_v is 577, needs 1..576", {"d_v": 577}),
        (ValueError, "d_v is 0", {"d_v": 0}),
        (ValueError, "sm_scale is nan", {"sm_scale": float("nan")}),
        (ValueError, "sm_scale is inf", {"sm_scale": float("inf")}),
        (ValueError, "extra is given, needs None", {"extra": np.zeros(1)}),
        (ValueError, 'layout is "fp9", needs one of f32_576', {**PAGED, "layout": "fp9"}),
        (ValueError, 'layout is "index_bf16", needs a KV layout', {**PAGED, "layout": "index_bf16"}),
        (ValueError, "page_size is None", {**PAGED, "page_size": None}),
        (ValueError, "page_size is 0, needs at least 1", {**PAGED, "page_size": 0}),
        (ValueError, "page_size is given without layout", {"page_size": 64}),
        (ValueError, "kv has shape [2, 8, 656], needs [pages, 4, 656]", {**PAGED, "page_size": 4}),
        (ValueError, "q has 512 values per head, needs 576", {**PAGED, "q": np.zeros((2, 3, 512), BF16)}),
        (IndexError, "lane_of holds 8 at row 1, column 1, needs a lane in 0..7", {"lane_of": at(1, 1, 8)}),
        (ValueError, "lane_of has shape [2, 3]", {"lane_of": np.zeros((2, 3), np.int32)}),
        (ValueError, "out is read-only", {"out": READ_ONLY}),
        (ValueError, "out has shape [2, 3, 500]", {"out": np.zeros((2, 3, 500), BF16)}),
        (TypeError, "lse has dtype float64, needs float32", {"out": (None, np.zeros((2, 3)))}),
        (ValueError, "out has 4 entries", {"out": (None,) * 4}),
        (ValueError, 'out_dtype is "half"', {"out_dtype": "half"}),
        (ValueError, 'validate is "no"', {"validate": "no"}),
        (ValueError, "threads is -1", {"threads": -1}),
    ],
)  # fmt: skip
def test_refuses(error, message, changes):
    with pytest.raises(error, match=re.escape(message)):
        case(**changes)


def test_refuses_a_missing_scale():
    with pytest.raises(TypeError, match="sm_scale"):
        sparse_mla(np.zeros((1, 1, 576), BF16), np.zeros((1, 576), BF16), np.zeros((1, 1), np.int32))


def test_refuses_overlap_and_writes_nothing():
    q = np.zeros((2, 3, 576), np.float32)
    kv = np.zeros((5, 576), np.float32)
    with pytest.raises(ValueError, match="out shares memory with an input"):
        case(q=q, kv=kv, out=q[..., :512])
    shared = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="max_logits shares memory"):
        case(out=(None, shared[:2], shared[1:3]))
    out = np.full((2, 3, 512), 7, BF16)
    with pytest.raises(IndexError):
        case(indices=at(1, 3, 99), out=out)
    assert (out == 7).all()


def test_the_lowest_row_is_named_whatever_the_threads():
    indices = np.zeros((500, 40), np.int32)
    indices[[77, 78, 300], [3, 0, 0]] = 9
    for threads in (1, 2, 3):
        for _ in range(5):
            with pytest.raises(IndexError, match="row 77, column 3"):
                case(q=np.zeros((500, 3, 576), BF16), indices=indices, threads=threads)


def test_trusted_skips_the_scan_and_empty_inputs_are_legal():
    case(validate="trusted")
    out, lse, top = case(q=np.zeros((0, 3, 576), BF16), indices=np.zeros((0, 4), np.int32))
    assert out.shape == (0, 3, 512) and lse.shape == top.shape == (0, 3)
    out, lse, _ = case(kv=np.zeros((0, 576), BF16), indices=np.full((2, 4), -1, np.int32))
    assert not out.any() and np.isneginf(lse).all()
    out, lse, _ = case(indices=np.zeros((2, 0), np.int32))
    assert not out.any() and np.isneginf(lse).all()


def test_out_tuple_and_dtype():
    out, lse, top = np.ones((2, 3, 512), np.float32), np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    got = case(out=(out, lse, top), out_dtype="float32")
    assert got[0] is out and got[1] is lse and got[2] is top
    assert not out.any() and (lse == np.float32(np.log(4))).all() and not top.any()
    assert case(out_dtype="float32")[0].dtype == np.float32
    assert case(q=np.zeros((2, 3, 576), np.float32), out_dtype="bfloat16")[0].dtype == BF16
