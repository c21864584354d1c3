"""Worked examples of the engines, and every refusal."""

import numpy as np
import pytest

from sparsespan import cp

V32 = {"num_layers": 61, "kv_bytes": 1152, "index_bytes": 256}


def test_eight_cp_by_two_tp_to_sixteen_tp():
    """sglang#12207's set-up: 16 full copies, 16 receivers: a perfect matching, every rank busy."""
    plan = cp.transfer_plan(cp.KvSide(cp=8, tp=2), cp.KvSide(tp=16), [65536], **V32)
    whole = 65536 * 61 * 1408
    assert plan.sent_bytes().tolist() == [whole] * 16
    assert plan.received_bytes().tolist() == [whole] * 16
    assert (np.count_nonzero(plan.traffic(), axis=0) == 1).all()
    assert plan.fingerprint == "34901424a4d23328"


def test_thirty_two_cp_to_sixteen_tp():
    plan = cp.transfer_plan(cp.KvSide(cp=32), cp.KvSide(tp=16), [65536], **V32)
    assert set(plan.sent_bytes().tolist()) == {65536 * 61 * 1408 // 2}


def test_rank_zero_is_the_bottleneck_of_the_default_spread():
    """sglang#31182: with one sender per request, rank 0 sends all copies; by request the load goes round."""
    sides = cp.KvSide(cp=4), cp.KvSide(tp=2)
    first = cp.transfer_plan(*sides, [640] * 4, **V32, spread="first")
    assert np.count_nonzero(first.sent_bytes()) == 1
    by_request = cp.transfer_plan(*sides, [640] * 4, **V32, spread="request")
    assert len(set(by_request.sent_bytes().tolist())) == 1
    assert first.total_bytes == by_request.total_bytes


@pytest.mark.parametrize("pages", [0, 1, 3, 8, 11])
@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
def test_positional_slices_follow_the_published_rule(pages, ranks):
    """Rank r: start = r*(n//N) + min(r, n%N), length n//N + (r < n%N), in places of the page list."""
    plan = cp.transfer_plan(cp.KvSide(cp=ranks), cp.KvSide(), [64 * pages], num_layers=1, kv_bytes=1, index_bytes=0,
                            spread="pages")  # fmt: skip
    got = {t.src: (t.src_page_begin, t.src_page_end) for t in plan}
    want = {}
    for r in range(ranks):
        start = r * (pages // ranks) + min(r, pages % ranks)
        length = pages // ranks + (r < pages % ranks)
        if length:
            want[r] = (start, start + length)
    assert got == want


@pytest.mark.parametrize(
    ("p_cp", "d_cp", "p_block", "d_block"), [(4, 2, 16, 16), (8, 2, 16, 32), (8, 4, 16, 32), (6, 3, 8, 8)]
)
def test_shard_map_of_the_mooncake_connector(p_cp, d_cp, p_block, d_block):
    """Page interleave on both sides: prefill rank q feeds decode rank (q // rb) % D, rb = max(1, B_d / B_p), and holds
    nb // P + (q < nb % P) blocks; the last block lies with (nb % P + P - 1) % P."""
    rb = max(1, d_block // p_block)
    length = 7 * p_cp * p_block + 3 * p_block + 5  # a partial last block
    plan = cp.transfer_plan(cp.KvSide(cp=p_cp, kv="interleave", interleave=p_block, page_size=p_block),
                            cp.KvSide(tp=d_cp, dcp=d_cp, interleave=d_block, page_size=d_block), [length],
                            num_layers=1, kv_bytes=1, index_bytes=0)  # fmt: skip
    blocks = -(-length // p_block)
    assert {(t.src, t.dst) for t in plan} == {(q, q // rb % d_cp) for q in range(p_cp)}
    for q in range(p_cp):
        mine = [t for t in plan if t.src == q]
        assert max(t.src_page_end for t in mine) == blocks // p_cp + (q < blocks % p_cp)
    last = [t.src for i, t in enumerate(plan) if length - 1 in plan.positions(i)]
    assert last == [(blocks % p_cp + p_cp - 1) % p_cp]


def test_layer_split_prefill_to_dcp_decode():
    """The pair that sglang#40117 asks for: layer owners become token owners."""
    plan = cp.transfer_plan(cp.KvSide(cp=4, kv="layer_split"), cp.KvSide(tp=4, dcp=4), [1024], **V32)
    assert {(t.src, t.layer_begin, t.layer_end) for t in plan} == {(0, 0, 16), (1, 16, 31), (2, 31, 46), (3, 46, 61)}
    assert set(plan.received_bytes().tolist()) == {1024 // 4 * 61 * 1408}
    assert len(plan) == 4 * 4 * 2


def test_replicated_index_goes_whole_to_every_decode_rank():
    plan = cp.transfer_plan(cp.KvSide(cp=2), cp.KvSide(tp=4, dcp=4, index_k="replicated"), [4096], **V32)
    assert set(plan.received_bytes().tolist()) == {61 * (4096 // 4 * 1152 + 4096 * 256)}


def test_prefix_hit_and_partial_last_page():
    plan = cp.transfer_plan(cp.KvSide(), cp.KvSide(), [200, 64, 10], num_layers=2, kv_bytes=10, index_bytes=0,
                            present=[128, 64, 0])  # fmt: skip
    lines = [(t.request, t.start, t.stop, t.dst_page_begin, t.dst_page_end, t.bytes) for t in plan]
    assert lines == [(0, 128, 200, 2, 4, 1440), (2, 0, 10, 0, 1, 200)]


def test_pages_need_not_be_consecutive():
    """Older senders filtered by the range of page ids and lost pages; slices here go by place."""
    plan = cp.transfer_plan(cp.KvSide(cp=2, page_size=2), cp.KvSide(page_size=2), [7], num_layers=1, kv_bytes=1,
                            index_bytes=0)  # fmt: skip
    read, written = zip(*(plan.slots(i, [9, 0, 5, 2], [1, 8, 3, 4]) for i in range(len(plan))))
    assert np.concatenate(read).tolist() == [18, 19, 0, 1, 10, 11, 4]
    assert np.concatenate(written).tolist() == [2, 3, 16, 17, 6, 7, 8]


def test_models_without_an_indexer_and_with_a_shared_one():
    dense = cp.transfer_plan({"cp": 2}, {"tp": 1}, 128, num_layers=61, kv_bytes=1152, index_bytes=0)
    assert {t.part for t in dense} == {"kv"}
    shared = cp.transfer_plan({"cp": 1}, {"tp": 1}, 128, **V32, index_layers=[0, 1, 2, 6, 10])
    assert [(t.layer_begin, t.layer_end) for t in shared if t.part == "index"] == [(0, 3), (6, 7), (10, 11)]


def test_stages_are_input_or_even():
    plan = cp.transfer_plan(
        cp.KvSide(pp=4), cp.KvSide(pp=2, stages=(31, 30)), 64, num_layers=61, kv_bytes=1, index_bytes=0
    )
    assert plan.prefill.stages == (16, 15, 15, 15)
    assert [(t.src, t.dst, t.layer_begin, t.layer_end) for t in plan] == [
        (0, 0, 0, 16), (1, 0, 16, 31), (2, 1, 31, 46), (3, 1, 46, 61)]  # fmt: skip


def test_rank_grids_of_every_flavor_are_accepted():
    """SGLang counts cp inside tp; the ranks of the plan are that engine's own ranks."""
    decode = cp.rank_grid(tp=16, dcp=4)
    plans = [
        cp.transfer_plan(prefill, decode, [4096], **V32)
        for prefill in (cp.rank_grid(tp=2, cp=8), cp.rank_grid(tp=16, cp=8, flavor="sglang"), {"tp": 2, "cp": 8})
    ]
    assert plans[0] == plans[1] == plans[2]
    assert plans[0].decode == cp.KvSide(tp=16, dcp=4).with_stages(61)
    side = cp.KvSide.of_grid(decode, interleave=64, index_k="replicated")
    assert (side.dcp, side.interleave, side.index_k) == (4, 64, "replicated")
    with pytest.raises(ValueError, match=r"grid has dp = 2, needs 1"):
        cp.transfer_plan(cp.rank_grid(tp=2, dp=2), decode, [1], **V32)


def test_short_requests_rotate_over_the_senders():
    """One page each: without rotation rank 0 would send every one of them."""
    plan = cp.transfer_plan(cp.KvSide(cp=8), cp.KvSide(), [64] * 16, **V32)
    assert set(plan.sent_bytes().tolist()) == {2 * 64 * 61 * 1408}


def test_chunked_prefill_hands_over_chunk_by_chunk():
    sides = cp.KvSide(cp=4), cp.KvSide(tp=4, dcp=2)
    whole = cp.transfer_plan(*sides, [1000], **V32)
    chunks = [cp.transfer_plan(*sides, [b], present=[a], **V32) for a, b in ((0, 256), (256, 900), (900, 1000))]
    assert sum(c.received_bytes() for c in chunks).tolist() == whole.received_bytes().tolist()
    for dst in range(4):
        seen = [p for c in chunks for i, t in enumerate(c) if t.dst == dst and t.part == "kv" for p in c.positions(i)]
        assert sorted(seen) == list(range(dst % 2, 1000, 2))


def test_a_million_tokens_in_ten_thousand_requests():
    lengths = [105] * 10000
    plan = cp.transfer_plan(cp.KvSide(cp=8, tp=2, page_size=16), cp.KvSide(tp=16, dcp=4, page_size=16), lengths, **V32)
    assert plan.total_bytes == 16 // 4 * 10000 * 105 * 61 * 1408
    sent = plan.sent_bytes()
    assert sent.max() <= 1.3 * sent.mean()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"prefill": cp.KvSide(tp=0)}, ValueError, r"prefill.tp is 0, needs at least 1"),
        ({"prefill": cp.KvSide(tp=1 << 21)}, ValueError, r"prefill.tp is 2097152, needs at most 1048576"),
        ({"prefill": cp.KvSide(tp=1 << 15, cp=1 << 15)}, ValueError, r"prefill has more than 1048576 ranks"),
        ({"decode": cp.KvSide(tp=8, dcp=3)}, ValueError, r"decode.dcp is 3, needs a divisor of tp = 8"),
        ({"decode": cp.KvSide(tp=8, cp=2)}, ValueError, r"decode.cp is 2, needs 1.*use dcp = 2"),
        ({"decode": cp.KvSide(kv="layer_split")}, ValueError, r"decode.kv is not 'full'"),
        ({"prefill": cp.KvSide(kv="ring")}, ValueError, r"prefill.kv is 'ring', needs 'full', 'layer_split' or"),
        ({"prefill": cp.KvSide(tp=2, dcp=2)}, ValueError, r"prefill.dcp is 2, needs 1 unless prefill.kv is"),
        ({"prefill": cp.KvSide(page_size=0)}, ValueError, r"prefill.page_size is 0, needs at least 1"),
        ({"decode": cp.KvSide(interleave=0)}, ValueError, r"decode.interleave is 0, needs at least 1"),
        ({"decode": cp.KvSide(interleave=3)}, ValueError, r"decode.interleave is 3, needs a divisor of page_size = 64"),
        ({"decode": cp.KvSide(interleave=128)}, ValueError, r"decode.interleave is 128, needs a divisor"),
        ({"prefill": cp.KvSide(pp=2, stages=(61,))}, ValueError, r"prefill.stages has 1 entries, needs one for"),
        ({"prefill": cp.KvSide(pp=2, stages=(30, 30))}, ValueError, r"prefill.stages sums to 60, needs num_lay"),
        ({"prefill": cp.KvSide(pp=2, stages=(62, -1))}, ValueError, r"prefill.stages holds more layers than"),
        ({"prefill": cp.KvSide(pp=2, stages=(-1, 62))}, ValueError, r"prefill.stages has -1 at \[0\]"),
        ({"num_layers": -1}, ValueError, r"num_layers is -1, needs >= 0"),
        ({"kv_bytes": -1}, ValueError, r"kv_bytes is -1, needs 0 .."),
        ({"index_bytes": -1}, ValueError, r"index_bytes is -1, needs 0 .."),
        ({"lengths": [5, -1]}, ValueError, r"lengths has -1 at \[1\], needs >= 0"),
        ({"lengths": [2**62]}, ValueError, r"lengths overflows 64 bits"),
        ({"lengths": [1.5]}, TypeError, r"lengths has dtype float64, needs integers"),
        ({"lengths": [[1, 2]]}, ValueError, r"lengths has shape \[1, 2\], needs one number for each request"),
        ({"present": [11]}, ValueError, r"present has 11 at \[0\], needs 0 .. lengths\[0\] = 10 \(tokens, not pages\)"),
        ({"present": [1, 1]}, ValueError, r"present has 2 entries, needs one for each of 1 requests"),
        ({"index_layers": [61]}, IndexError, r"index_layers has 61 at \[0\], needs 0 .. 60"),
        ({"index_layers": [3, 3]}, ValueError, r"index_layers has 3 at \[1\] after 3, needs ascending"),
        ({"spread": "even"}, ValueError, r"spread is 'even', needs 'balanced', 'pages', 'request' or 'first'"),
        ({"prefill": {"tq": 2}}, ValueError, r"prefill has the key 'tq', needs cp, dcp"),
        ({"prefill": 8}, TypeError, r"prefill is a int, needs a KvSide, a rank grid or a mapping"),
    ],
)  # fmt: skip
def test_refusals(change, error, words):
    arguments = {"prefill": cp.KvSide(), "decode": cp.KvSide(), "lengths": [10], **V32, **change}
    with pytest.raises(error, match=words):
        cp.transfer_plan(**arguments)


def test_refusals_of_sides_and_slots():
    with pytest.raises(TypeError, match="tp is a str, needs an int"):
        cp.KvSide(tp="8")
    with pytest.raises(ValueError, match="index_k is 'halved', needs 'sharded' or 'replicated'"):
        cp.KvSide(index_k="halved")
    plan = cp.transfer_plan(
        cp.KvSide(page_size=4), cp.KvSide(page_size=4), [10], num_layers=1, kv_bytes=1, index_bytes=0
    )
    with pytest.raises(IndexError, match=r"table has 2 pages, position 9 lies in page 2 of this rank"):
        plan.slots(0, [0, 1], [0, 1, 2])
    with pytest.raises(IndexError, match=r"table holds -1 at \[1\], needs a page id >= 0"):
        plan.slots(0, [0, 1, 2], [0, -1, 2])
    with pytest.raises(TypeError, match="table has dtype float64"):
        plan.slots(0, [0.0, 1.0, 2.0], [0, 1, 2])
