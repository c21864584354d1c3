"""Worked examples, named by the layout they belong to. The figures come from the engines' own tests and docstrings
(vLLM cp_utils and pcp_manager, vllm-ascend test_sfa_cp and pcp_utils, SGLang layers/cp, Transformer Engine THD) or were
worked by hand from their formulas."""

import numpy as np
import pytest

from sparsespan.cp import split_plan


def rows(plan):
    return [plan.rank_rows(r).tolist() for r in range(plan.world_size)]


def lists(metadata, *names):
    return [np.asarray(metadata[name]).tolist() for name in names]


def test_1_1_zigzag_13_over_4():
    for flavor in (None, "sglang"):
        plan = split_plan("zigzag", [0, 13], None, 4, flavor=flavor)
        assert rows(plan) == [[0, 1, 12], [2, 3, 11], [4, 5, 10], [6, 7, 8, 9]]
        assert plan.counts.tolist() == [3, 3, 3, 4]
        want_q = [[2, 1], [2, 1], [2, 1], [2, 2]]
        want_kv = [[2, 13], [4, 12], [6, 11], [8, 10]]
        for r in range(4):
            assert plan.actual_seq_q(r).ravel().tolist() == want_q[r]
            assert plan.actual_seq_kv(r).ravel().tolist() == want_kv[r]
            segments = plan.segments(r)
            assert segments.q_len.tolist() == want_q[r]
            assert segments.kv_len.tolist() == want_kv[r]
            assert segments.part.tolist() == [0, 1]
    metadata = plan.engine_metadata(0)
    assert lists(metadata, "split_list", "cp_reverse_index", "reverse_split_len", "per_rank_logical_token") == [
        [2, 2, 2, 2, 2, 1, 1, 1],
        [0, 2, 4, 6, 7, 5, 3, 1],
        [2, 1, 2, 1, 2, 1, 2, 2],
        [3, 3, 3, 4],
    ]
    # Four local rows at most, aligned to 2N.
    assert plan.padded_len == 8
    assert metadata["max_rank_len"].tolist() == [8] * 4


def test_1_1_zigzag_batch_13_8():
    plan = split_plan("zigzag", [0, 13, 21], None, 4, flavor="sglang")
    assert plan.rank_rows(0).tolist() == [0, 1, 13, 12, 20]
    assert plan.counts.tolist() == [5, 5, 5, 6]
    metadata = plan.engine_metadata(0)
    assert metadata["zigzag_index"].tolist() == [0, 8, 7, 15]
    assert metadata["cp_reverse_index"].tolist() == [0, 4, 8, 12, 14, 10, 6, 2, 1, 5, 9, 13, 15, 11, 7, 3]


def test_1_1_sglang_prefix_enters_lengths_once():
    plan = split_plan("zigzag", [0, 13, 21], [100, 7], 4, flavor="sglang")
    metadata = plan.engine_metadata(1)
    assert metadata["kv_len_prev_list"].tolist() == [104, 9]
    assert metadata["kv_len_next_list"].tolist() == [112, 14]
    assert plan.actual_seq_kv(1).tolist() == [[104, 9], [112, 14]]
    assert plan.actual_seq_q(1).tolist() == [[2, 3], [1, 2]]


def test_1_1_sglang_padding_goes_to_the_last_request():
    plan = split_plan("zigzag", [0, 8, 21], None, 4, pad_to=24, flavor="sglang")
    metadata = plan.engine_metadata(3)
    assert metadata["split_list"].tolist() == [1] * 8 + [2] * 8
    assert metadata["total_seq_lens"] == 24
    assert plan.rank_rows(0).tolist() == [0, 8, 9, 7, -1, -1]
    assert plan.rank_rows(1).tolist() == [1, 10, 11, 6, 20, -1]
    assert plan.row_to_request(0).tolist() == [0, 1, 1, 0, -1, -1]
    # The engine's own length of the last block counts the padding; the plan's never does.
    assert plan.engine_metadata(0)["kv_len_next_list"].tolist() == [8, 16]
    assert plan.actual_seq_kv(0).tolist() == [[1, 2], [8, 0]]


def test_1_2_head_tail_golden_of_vllm_and_vllm_ascend():
    kind = ["decode"] + ["prefill"] * 13
    for flavor in ("vllm", "vllm_ascend"):
        plan = split_plan("zigzag_padded", [0, 1, 6, 14], None, 2, row_kind=kind, flavor=flavor)
        assert plan.positions(0).tolist() == [0, 0, 1, 6, 7, 0, 1, 6, 7]
        assert plan.positions(1).tolist() == [0, 2, 3, 4, 5, 2, 3, 4, 5]
        metadata = plan.engine_metadata(0)
        assert lists(metadata, "pcp_tokens", "num_pcp_pads") == [[1, 4, 4], [1, 3, 0]]
        restore = [0, 9, 1, 2, 10, 11, 12, 13, 3, 4, 5, 6, 14, 15, 16, 17, 7, 8]
        assert metadata["pcp_allgather_restore_idx"].tolist() == restore
        mask = [1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
        assert metadata["pcp_unpad_mask"].tolist() == [bool(m) for m in mask]
        # The plan's own restore index goes straight to the real rows.
        padded = np.array(restore)[np.array(mask, bool)]
        assert plan.restore_index.tolist() == padded.tolist()


def test_1_2_head_tail_13_7_over_4():
    plan = split_plan("zigzag_padded", [0, 13, 20], None, 4, flavor="vllm_ascend")
    assert rows(plan) == [
        [0, 1, -1, -1, 13, -1],
        [2, 3, 12, -1, 14, 19],
        [4, 5, 10, 11, 15, 18],
        [6, 7, 8, 9, 16, 17],
    ]
    assert [plan.positions(r).tolist() for r in range(4)] == [
        [0, 1, 14, 15, 0, 7],
        [2, 3, 12, 13, 1, 6],
        [4, 5, 10, 11, 2, 5],
        [6, 7, 8, 9, 3, 4],
    ]
    want = [0, 1, 6, 7, 12, 13, 18, 19, 20, 21, 14, 15, 8, 9, 2, 3, 4, 10, 16, 22, 23, 17, 11, 5]
    metadata = plan.engine_metadata(1)
    assert metadata["pcp_allgather_restore_idx"].tolist() == want
    assert np.flatnonzero(~metadata["pcp_unpad_mask"]).tolist() == [13, 14, 15, 23]
    assert lists(metadata, "q_head_idx", "q_tail_idx", "q_full_idx") == [[0, 1, 4], [2, 3, 5], [0, 1, 3, 4, 2, 5]]
    assert lists(metadata, "kv_with_q_head_nomask_idx", "kv_with_q_head_mask_idx") == [[0, 1, 16], [2, 3, 17]]
    assert metadata["kv_with_q_tail_mask_idx"].tolist() == [12, 13, 22]
    # m = 2 * chunk: head (m // 2) * (r + 1) + P, tail m * N - (m // 2) * r + P, queries cumulated and halved.
    assert lists(metadata, "head_actual_seq_kv", "tail_actual_seq_kv", "actual_seq_q_half") == [[4, 2], [14, 7], [2, 3]]


def test_1_2_logits_index_uses_only_its_own_pads():
    metadata = split_plan("zigzag_padded", [0, 13, 20], None, 4, flavor="vllm").engine_metadata(0)
    assert metadata["logits_indices"].tolist() == [12, 22]


def test_1_3_ceil_chunk_7_over_2():
    plan = split_plan("ceil_chunk", [0, 7], None, 2)
    assert rows(plan) == [[0, 1, 6], [2, 3, 4, 5]]
    assert plan.restore_index.tolist() == [0, 1, 4, 5, 6, 7, 2]
    gathered = np.concatenate([plan.rank_rows(r, length=plan.padded_len) for r in range(2)])
    assert np.maximum(gathered, 0).tolist() == [0, 1, 6, 0, 2, 3, 4, 5]


def test_1_3_ceil_chunk_13_7_over_4():
    plan = split_plan("ceil_chunk", [0, 13, 20], None, 4)
    assert rows(plan) == [[0, 1, 13], [2, 3, 12, 14, 19], [4, 5, 10, 11, 15, 18], [6, 7, 8, 9, 16, 17]]
    assert plan.counts.tolist() == [3, 5, 6, 6]
    assert plan.segments(1).q_start.tolist() == [0, 2, 3, 4]


def test_1_3_vllm_puts_pieces_that_start_a_sequence_last():
    # As vLLM's own test has it: one prefill of 8 rows over 2 ranks; with a cached prefix nothing moves.
    plan = split_plan("ceil_chunk", [0, 8], None, 2, flavor="vllm")
    assert rows(plan) == [[6, 7, 0, 1], [2, 3, 4, 5]]
    assert plan.engine_metadata(0)["hidden_restore_idx"].tolist() == [2, 3, 4, 5, 6, 7, 0, 1]
    assert plan.segments(0).kv_len.tolist() == [8, 2]
    assert rows(split_plan("ceil_chunk", [0, 8], [16], 2, flavor="vllm"))[0] == [0, 1, 6, 7]


def test_1_3_vllm_replicates_decodes_and_masks_their_writes():
    plan = split_plan("ceil_chunk", [0, 1, 2, 3], [16] * 3, 2, row_kind=["decode"] * 3, pad_to=8, flavor="vllm")
    metadata = plan.engine_metadata(1)
    assert plan.real_counts.tolist() == [3, 3]
    assert metadata["hidden_restore_idx"].tolist() == [0, 1, 2]
    assert metadata["padded_gather_idx"].tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert metadata["gathered_kv_write_mask"].tolist() == [True] * 3 + [False] * 5
    assert plan.gathered_slot_mapping(np.array([50, 60, 70])).tolist() == [50, 60, 70] + [-1] * 5


def test_1_3_a_rank_without_rows_gets_one_empty_row_in_vllm():
    plan = split_plan("ceil_chunk", [0, 1], [5], 4, flavor="vllm")
    assert plan.counts.tolist() == [1, 0, 0, 0]
    metadata = plan.engine_metadata(2)
    assert lists(metadata, "local_to_global_batch_req_idx", "num_scheduled_tokens", "query_start_loc") == [
        [0],
        [0],
        [0, 0],
    ]


def test_1_4_interleave_13_7_over_4():
    for flavor in (None, "sglang"):
        plan = split_plan("interleave", [0, 13, 20], None, 4, flavor=flavor)
        assert rows(plan)[:2] == [[0, 4, 8, 12, 16], [1, 5, 9, 13, 17]]
        assert [plan.request_counts(r).tolist() for r in range(4)] == [[4, 1], [3, 2], [3, 2], [3, 2]]
        assert plan.positions(0).tolist() == [0, 4, 8, 12, 3]
        assert plan.positions(1).tolist() == [1, 5, 9, 0, 4]
        assert plan.context_lens(0).tolist() == [1, 5, 9, 13, 4]
        assert plan.actual_seq_q(0).tolist() == [1, 2, 3, 4, 5]
        assert plan.actual_seq_kv(0).tolist() == [1, 5, 9, 13, 4]
    metadata = plan.engine_metadata(0)
    assert lists(metadata, "bs_idx", "q_lens", "cu_seqlens_q") == [[0, 1], [4, 1], [0, 1, 2, 3, 4, 5]]


def test_1_4_interleave_carry_of_request_counts():
    lengths = np.array([3, 0, 1, 9, 2, 5])
    plan = split_plan("interleave", np.concatenate([[0], np.cumsum(lengths)]), None, 4)
    for r in range(4):
        carry, want = 0, []
        for length in lengths:
            c = length + carry
            want.append(c // 4 + (c % 4 > r))
            carry = c - want[-1] * 4
        assert plan.request_counts(r).tolist() == want


def test_1_5_contiguous():
    assert split_plan("contiguous", [0, 13], None, 4, flavor="sglang").counts.tolist() == [3, 3, 3, 4]
    assert split_plan("contiguous", [0, 7], None, 4).counts.tolist() == [1, 2, 2, 2]
    plan = split_plan("contiguous", [0, 13, 20], [10, 0], 4, flavor="sglang")
    metadata = plan.engine_metadata(2)
    assert metadata["zigzag_index"].tolist() == [2, 6]
    assert metadata["cp_reverse_index"].tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert metadata["kv_len_prev_list"].tolist() == [10 + 13 * 3 // 4, 7 * 3 // 4]
    assert plan.actual_seq_kv(2).tolist() == metadata["kv_len_prev_list"].tolist()


def test_1_6_contiguous_flat_13_7():
    for flavor in (None, "vllm_ascend"):
        plan = split_plan("contiguous_flat", [0, 13, 20], None, 4, flavor=flavor)
        got = [(plan.actual_seq_q(r).tolist(), plan.actual_seq_kv(r).tolist()) for r in range(4)]
        assert got == [([5, 5], [5, 0]), ([5, 5], [10, 0]), ([3, 5], [13, 2]), ([0, 5], [0, 7])]
    plan = split_plan("contiguous_flat", [0, 13, 20], [100, 0], 3, flavor="vllm_ascend")
    for r, (q, k) in enumerate([([7, 7], [107, 0]), ([6, 7], [113, 1]), ([0, 6], [0, 7])]):
        metadata = plan.engine_metadata(r)
        assert plan.actual_seq_q(r).tolist() == metadata["actual_seq_lengths_query"].tolist() == q
        assert plan.actual_seq_kv(r).tolist() == metadata["actual_seq_lengths_key"].tolist() == k


def test_1_6_dsa_cp_golden_of_vllm_ascend():
    plan = split_plan("contiguous_flat", [0, 3, 5], None, 2, flavor="vllm_ascend")
    assert plan.slot_mapping(np.arange(5), 1).tolist() == [3, 4, -1]
    assert plan.actual_seq_q(1).tolist() == [0, 2]
    assert plan.actual_seq_kv(1).tolist() == [0, 2]


def test_1_6_dsa_cp_golden_with_a_cached_prefix():
    plan = split_plan("contiguous_flat", [0, 3, 5], [4, 3], 2, flavor="vllm_ascend")
    assert plan.engine_metadata(1)["actual_seq_lengths_key"].tolist() == [0, 5]


def test_1_7_thd_even():
    plan = split_plan("thd_even", [0, 8, 16], None, 2)
    assert rows(plan) == [[0, 1, 6, 7, 8, 9, 14, 15], [2, 3, 4, 5, 10, 11, 12, 13]]


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32])
def test_1_9_balance_table(n):
    def percent(scheme, length, prefix=0, cost="indexer"):
        return 100 * split_plan(scheme, [0, length], [prefix], n).imbalance(cost)

    contiguous = {2: 50.0, 4: 75.0, 8: 87.5, 16: 93.7, 32: 96.9}[n]
    assert percent("contiguous", 4096) == pytest.approx(contiguous, abs=0.06)
    cached = {2: 25.0, 4: 37.5, 8: 43.7, 16: 46.9, 32: 48.4}[n]
    assert percent("contiguous", 8192, 4096) == pytest.approx(cached, abs=0.06)
    assert percent("zigzag", 4096) == 0.0
    zigzag = {2: 0.05, 4: 0.15, 8: 0.34, 16: 0.73, 32: 1.51}[n]
    assert percent("zigzag", 4096 + n + 1) == pytest.approx(zigzag, abs=0.006)
    assert percent("interleave", 4096) == pytest.approx(100 * (n - 1) / 4097, abs=1e-9)
    assert percent("contiguous", 8192, cost="attention") == pytest.approx(14.3, abs=0.06)
    assert percent("contiguous", 65536, cost="attention") == pytest.approx(1.6, abs=0.06)


def test_8_owner_of_the_last_row():
    cu = np.cumsum([0, 13, 8, 40, 9])
    length = np.diff(cu)
    n = 4
    assert split_plan("zigzag", cu, None, n).last_row_owner.tolist() == [0] * 4
    chunk = (length - 1) // -(-length // (2 * n))
    want = np.where(chunk < n, chunk, 2 * n - 1 - chunk).tolist()
    assert split_plan("zigzag_padded", cu, None, n).last_row_owner.tolist() == want
    assert split_plan("ceil_chunk", cu, None, n).last_row_owner.tolist() == want
    assert split_plan("interleave", cu, None, n).last_row_owner.tolist() == ((cu[1:] - 1) % n).tolist()
    assert split_plan("contiguous", cu, None, n).last_row_owner.tolist() == [n - 1] * 4
    flat = split_plan("contiguous_flat", cu, None, n)
    assert flat.last_row_owner.tolist() == ((cu[1:] - 1) // flat.padded_len).tolist()
