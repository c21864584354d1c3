"""The engines' own metadata, used as the engines use it: split, gather and restore must come out as the plan says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsespan.cp import DECODE, PREFILL, split_plan


def plan_and_x(scheme, flavor, n, lengths, kinds=None, pad_to=None):
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    prefix = np.arange(len(lengths)) * 7
    plan = split_plan(scheme, cu, prefix, n, kinds, pad_to, flavor)
    return plan, np.arange(plan.num_rows) + 0.5


@pytest.mark.parametrize("scheme", ["zigzag", "contiguous"])
@given(n=st.integers(2, 6), extra=st.lists(st.integers(0, 40), min_size=1, max_size=4), pads=st.integers(0, 9))
def test_sglang_pieces(scheme, n, extra, pads):
    """Split by split_list, take zigzag_index; gather, split by reverse_split_len, take cp_reverse_index."""
    lengths = [2 * n + e for e in extra]
    plan, x = plan_and_x(scheme, "sglang", n, lengths, pad_to=sum(lengths) + pads)
    x = np.append(x, np.full(pads, -0.5))
    stream = []
    for r in range(n):
        meta = plan.engine_metadata(r)
        chunks = np.split(x, np.cumsum(meta["split_list"])[:-1])
        local = np.concatenate([chunks[i] for i in meta["zigzag_index"]])
        rows = plan.rank_rows(r)
        np.testing.assert_array_equal(local, np.where(rows >= 0, rows + 0.5, -0.5))
        assert meta["per_rank_logical_token"][r] == len(local) <= meta["per_rank_actual_token"][r]
        assert meta["per_rank_actual_token"][r] % (2 * n if scheme == "zigzag" else n) == 0
        stream.append(local)
        front = meta["total_q_prev_tokens"]
        assert front + meta["total_q_next_tokens"] == len(local)
        for s in range(len(lengths) - 1):  # the last request has the padding in its lengths
            q = [meta["actual_seq_q_prev_list"][s], *meta["actual_seq_q_next_list"][s : s + 1]]
            assert sum(q) == plan.request_counts(r)[s]
            assert meta["kv_len_prev_list"][s] == np.atleast_2d(plan.actual_seq_kv(r))[0, s]
    pieces = np.split(np.concatenate(stream), np.cumsum(meta["reverse_split_len"])[:-1])
    np.testing.assert_array_equal(np.concatenate([pieces[i] for i in meta["cp_reverse_index"]]), x)


@given(n=st.integers(1, 6), lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), decodes=st.integers(0, 3))
def test_head_tail_stream(n, lengths, decodes):
    """gathered[restore][unpad_mask] is the batch; head and tail rows together are the local prefill rows."""
    kinds = [DECODE] * decodes + [PREFILL] * sum(lengths)
    plan, x = plan_and_x("zigzag_padded", "vllm_ascend", n, [1] * decodes + lengths, kinds)
    x = np.append(x, -0.5)
    gathered = np.concatenate([x[plan.rank_rows(r)] for r in range(n)])
    for r in range(n):
        meta = plan.engine_metadata(r)
        padded = gathered[meta["pcp_allgather_restore_idx"]]
        np.testing.assert_array_equal(padded[meta["pcp_unpad_mask"]], x[:-1])
        there = np.diff(plan.cu_seqlens) > 0
        np.testing.assert_array_equal(padded[meta["logits_indices"][there]], x[plan.cu_seqlens[1:][there] - 1])
        prefill_kv = padded[decodes * n :]
        local = x[plan.rank_rows(r)][decodes:]
        halves = np.concatenate([local[meta["q_head_idx"]], local[meta["q_tail_idx"]]])
        np.testing.assert_array_equal(halves[meta["q_full_idx"]], local)
        np.testing.assert_array_equal(prefill_kv[meta["kv_with_q_head_mask_idx"]], local[meta["q_head_idx"]])
        np.testing.assert_array_equal(prefill_kv[meta["kv_with_q_tail_mask_idx"]], local[meta["q_tail_idx"]])
        # Where a piece has real rows only, its key length is the plan's own.
        kv = plan.actual_seq_kv(r)[:, decodes:]
        whole = np.array([length % (2 * n) == 0 and length > 0 for length in lengths])
        np.testing.assert_array_equal(meta["head_actual_seq_kv"][whole], kv[0, whole])
        np.testing.assert_array_equal(meta["tail_actual_seq_kv"][whole], kv[1, whole])


@given(n=st.integers(1, 6), lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), decodes=st.integers(0, 3))
def test_ceil_chunk_gather(n, lengths, decodes):
    kinds = [DECODE] * decodes + [PREFILL] * sum(lengths)
    plan, x = plan_and_x("ceil_chunk", "vllm", n, [1] * decodes + lengths, kinds)
    for r in range(n):
        meta = plan.engine_metadata(r)
        assert meta["query_start_loc"][-1] == plan.counts[r]
        np.testing.assert_array_equal(meta["num_scheduled_tokens"] > 0, plan.counts[r] > 0)
        # Pieces that start a sequence stand behind all others.
        starts = (meta["num_computed_tokens"] == 0) & (meta["local_to_global_batch_req_idx"] >= decodes)
        assert (np.diff(starts.astype(int)) >= 0).all()
        if len(x):
            gathered = x[meta["padded_gather_idx"]]
            np.testing.assert_array_equal(gathered[meta["hidden_restore_idx"]], x)
            written = np.sort(meta["padded_gather_idx"][meta["gathered_kv_write_mask"]])
            np.testing.assert_array_equal(written, np.arange(len(x)))


@given(n=st.integers(2, 8), lengths=st.lists(st.integers(0, 40), max_size=5), pads=st.integers(0, 20))
def test_dsa_cp_lengths(n, lengths, pads):
    plan, _ = plan_and_x("contiguous_flat", "vllm_ascend", n, lengths, pad_to=sum(lengths) + pads)
    for r in range(n):
        meta = plan.engine_metadata(r)
        np.testing.assert_array_equal(meta["actual_seq_lengths_query"], plan.actual_seq_q(r))
        np.testing.assert_array_equal(meta["actual_seq_lengths_key"], plan.actual_seq_kv(r))
        rows = plan.rank_rows(r)
        assert len(rows) == meta["local_end_with_pad"] - meta["local_start"]
        assert (rows >= 0).sum() == max(meta["local_end"] - meta["local_start"], 0)
