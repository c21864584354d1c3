"""Bugs of peers that concern splits, static batches, and plans as values."""

import pickle

import numpy as np
import pytest

from sparsespan.cp import PAD, PREFILL, split_plan

SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")


def test_sglang_indexer_split_at_half_of_the_rows_with_batch_above_one():
    """(rows + 1) // 2 is the border between front and back rows for one request only."""
    plan = split_plan("zigzag", [0, 13, 26], None, 4, flavor="sglang")
    front, back = plan.front_back(0)
    assert (plan.counts[0] + 1) // 2 == 3
    assert front.tolist() == [0, 1, 2, 3] and back.tolist() == [4, 5]
    assert plan.engine_metadata(0)["total_q_prev_tokens"] == 4


def test_sglang_20531_tables_and_lengths_are_filtered_by_one_list():
    plan = split_plan("interleave", [0, 1, 2, 3, 9], [5, 6, 7, 8], 4)
    tables = np.arange(4)[:, None] * 10
    for r in range(4):
        kept = plan.kept_requests(r)
        assert len(tables[kept]) == np.count_nonzero(plan.request_counts(r)) == len(np.unique(plan.segments(r).request))
    assert plan.kept_requests(1).tolist() == [1, 3]


def test_sglang_23415_prefix_is_not_inferred_from_padded_lengths():
    """3672 keys, 3671 of them cached, one new row padded to eight: the row has position 3671, not 0 or 3664."""
    for kind, extra in (([PREFILL] + [PAD] * 7, {}), (None, {"pad_to": 8})):
        plan = split_plan("interleave", [0, 8 if kind else 1], [3671], 8, row_kind=kind, **extra)
        assert plan.positions(0)[0] == 3671
        assert plan.context_lens(0).tolist() == [3672]
        assert plan.actual_seq_kv(0).tolist() == [3672]
        assert all(plan.actual_seq_kv(r).size == 0 for r in range(1, 8))


def test_vllm_ascend_12840_13779_no_negative_lengths_from_graph_padding():
    """20 slots of 4 rows over 8 ranks, 9 requests real: request 17 on rank 6 has 0 keys, not -2."""
    kind = [PREFILL] * 36 + [PAD] * 44
    plan = split_plan("contiguous_flat", np.arange(21) * 4, None, 8, row_kind=kind, flavor="vllm_ascend")
    metadata = plan.engine_metadata(6)
    assert metadata["actual_seq_lengths_key"][17] == 0
    for r in range(8):
        assert (plan.engine_metadata(r)["actual_seq_lengths_key"] >= 0).all()
        assert (plan.actual_seq_kv(r) >= 0).all()


def test_minus_one_is_never_the_last_row():
    plan = split_plan("zigzag_padded", [0, 5], None, 2)
    rows, slots = plan.rank_rows(0), plan.slot_mapping(np.array([70, 71, 72, 73, 74]), 0)
    assert rows.tolist() == [0, 1, -1, -1]
    assert slots.tolist() == [70, 71, -1, -1]
    assert (plan.restore_index >= 0).all()


def test_vllm_45425_rows_of_a_verify_batch_are_decode_rows_however_many():
    plan = split_plan("zigzag", [0, 4, 7], [5, 100], 2, row_kind=["decode"] * 4 + ["decode"] * 3)
    for r in range(2):
        assert plan.rank_rows(r).tolist() == list(range(7))
        table = plan.next_n_rows(r, 4)
        assert table.request.tolist() == [0, 1]
        assert table.rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, -1]]
        # Inclusive: a row sees its own key (vllm-ascend 11849 lost it).
        assert table.context_lens.tolist() == [[6, 7, 8, 9], [101, 102, 103, 0]]
    with pytest.raises(ValueError, match="next_n is 3, needs at least 4"):
        plan.next_n_rows(0, 3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_static_batch_pads_with_what_reaches_nothing(scheme):
    plan = split_plan(scheme, [0, 9, 16], [4, 0], 2)
    batch = plan.static_batch(1, 12, requests=5, global_slots=np.arange(16))
    count = plan.counts[1]
    assert {len(getattr(batch, k)) for k in ("rows", "positions", "row_to_request", "ks", "ke", "context_lens")} == {12}
    assert (batch.rows[count:] == -1).all() and (batch.slot_mapping[count:] == -1).all()
    assert not batch.context_lens[count:].any() and not batch.positions[count:].any()
    np.testing.assert_array_equal(batch.rows[:count], plan.rank_rows(1))
    assert batch.actual_seq_q.shape[-1] == (12 if scheme == "interleave" else 5)
    assert batch.actual_seq_q[..., -1].sum() == plan.real_counts[1]
    assert batch.actual_seq_kv[..., -1].sum() == 0
    with pytest.raises(ValueError, match=f"rows is {count - 1}, needs at least {count}"):
        plan.static_batch(1, count - 1)


def test_plans_are_values():
    args = ("zigzag", [0, 13, 20], [7, 0], 4)
    plan = split_plan(*args)
    same = split_plan("zigzag", np.array([0, 13, 20], np.int32), np.array([7, 0], np.int64), 4)
    assert plan == same and hash(plan) == hash(same) and plan.fingerprint == same.fingerprint
    assert pickle.loads(pickle.dumps(plan)) == plan
    decode = split_plan(*args, row_kind=["decode"] * 13 + ["prefill"] * 7, pad_to=32)
    assert pickle.loads(pickle.dumps(decode)) == decode
    others = [
        split_plan("contiguous", *args[1:]),
        split_plan("zigzag", [0, 12, 20], [7, 0], 4),
        split_plan("zigzag", [0, 13, 20], [0, 0], 4),
        split_plan(*args[:3], 2),
        split_plan(*args, pad_to=32),
        decode,
    ]
    assert len({plan.fingerprint, *(o.fingerprint for o in others)}) == 7
    assert plan not in others and plan != "zigzag"
    # Written down: the same in every process and on every machine.
    assert split_plan("zigzag", [0, 13], None, 4).fingerprint == 0x8142CF5F6FDED72E
    with pytest.raises(ValueError, match="read-only"):
        plan.restore_index[0] = 1


def test_picture():
    kinds = ["decode"] * 2 + ["prefill"] * 20 + ["pad"] * 2
    plan = split_plan("interleave", [0, 2, 2, 24], [9, 0, 5], 4, row_kind=kinds)
    lines = str(plan).splitlines()
    assert lines[0].startswith("interleave over 4 ranks: 24 rows of 3 requests, counts 8 8 7 7")
    assert lines[1] == "request 0 (9 cached + 2 rows): every rank"
    assert lines[2] == "request 1 (0 cached + 0 rows): nobody"
    assert lines[3] == "request 2 (5 cached + 20 rows): " + "0123" * 5 + ".."
    assert "N=4 B=3 T=24" in repr(plan)
    long = str(split_plan("contiguous", np.arange(12) * 1000, None, 100))
    assert "and 3 requests more" in long and "+ = a rank above 61" in long


def test_memory_follows_the_rows_and_nothing_else():
    """Four bytes per row and per local row, and a few words per request and rank, even where ranks outnumber rows."""
    for total, requests, n in ((100_000, 1, 32), (100_000, 1000, 32), (5000, 2500, 1024)):
        cu = np.linspace(0, total, requests + 1).astype(np.int64)
        for scheme in ("zigzag", "ceil_chunk", "interleave", "contiguous"):
            plan = split_plan(scheme, cu, None, n)
            assert plan.nbytes <= 8 * total + 64 * requests + 16 * n + 1024
    small = split_plan("zigzag", np.arange(1001) * 100, None, 32).nbytes
    assert split_plan("zigzag", np.arange(10_001) * 100, None, 32).nbytes == pytest.approx(10 * small, rel=0.01)


@pytest.mark.peer
def test_torch_metadata_goes_in_and_slots_come_back_as_torch():
    torch = pytest.importorskip("torch")
    cu, prefix = torch.tensor([0, 13, 20], dtype=torch.int32), torch.tensor([5, 0])
    plan = split_plan("zigzag", cu, prefix, 4)
    assert plan == split_plan("zigzag", [0, 13, 20], [5, 0], 4)
    slots = plan.slot_mapping(torch.arange(20, dtype=torch.int32), 1)
    assert isinstance(slots, torch.Tensor) and slots.tolist() == plan.rank_rows(1).tolist()
