"""What validate finds, one case each; the section names are those of the facts sheet."""

import pytest

from sparsespan.pipeline import (
    Schedule,
    ScheduleError,
    add_fetch_evict,
    add_send_recv,
    chunked_prefill,
    decode_loop,
    dualpipe_v,
    gpipe,
    interleaved,
    one_f_one_b,
    validate,
)


def refused(rows, match, mark=None, declared=None, **rules):
    schedule = rows if isinstance(rows, Schedule) else Schedule.from_csv("\n".join(rows) + "\n", **(declared or {}))
    with pytest.raises(ScheduleError, match=match) as error:
        validate(schedule, **rules)
    if mark is not None:
        assert f">{mark}<" in str(error.value)
    return str(error.value)


class TestSectionA1:
    """Torch's rules, and what its checker lets through."""

    def test_counts(self):
        refused(gpipe(2, 2), r"the schedule has 2 ranks, needs 3", ranks=3)
        refused(gpipe(2, 2), r"has 2 stages, needs 4", stages=4)
        refused(gpipe(2, 2), r"has 2 micro-batches, needs 1", microbatches=1)
        refused(["0F0,0B0"], r"stage 1 stands on no rank", declared={"stages": 2})
        refused(["0F0,0B0"], r"no forward of micro-batch 1", "here", declared={"microbatches": 2})
        with pytest.raises(ScheduleError, match="has no ranks"):
            validate(Schedule([]))

    def test_ranges(self):
        refused(["0F0,2B0"], r"stage 2 is out of range, the schedule has 1", "2B0", declared={"stages": 1})
        refused(["0F0,0B3"], r"micro-batch 3 is out of range", "0B3", declared={"microbatches": 1})
        # Numbers far beyond the actions cost no memory.
        refused(["0F2000000000"], r"no forward of micro-batch 0, 2000000001 micro-batches")
        refused(["2000000000F0"], r"stage 0 stands on no rank")

    def test_a_stage_has_one_rank(self):
        refused(["0F0,0B0", "0F1,0B1"], r"stage 0 stands on rank 0 and on rank 1", "0F1")

    def test_order_on_a_rank(self):
        refused(["0B0,0F0"], r"needs the forward of micro-batch 0 on stage 0, which stands later, at step 1", "0B0")
        refused(["0F0,0W0,0I0"], r"needs the backward of micro-batch 0 on stage 0, which stands later", "0W0")
        refused(["1F0,0F0"], r"needs the forward of micro-batch 0 on stage 0", "1F0")

    def test_work_done_never(self):
        refused(["0F0,0B0,0F1"], r"no backward of micro-batch 1", "here")
        refused(["0F0,0I0"], r"no weight backward of micro-batch 0")
        refused(["0F0,0W0"], r"no input backward of micro-batch 0")
        refused(["0F0,0F1", "1F0"], r"stage 1 on rank 1 has no forward of micro-batch 1", "here")

    def test_duplicates_pass_torch_but_not_us(self):
        refused(["0F0,0F0,0B0"], r"the forward of micro-batch 0 on stage 0 stands here twice", "0F0")
        refused(["0F0,0B0,0B0"], r"the backward .* twice")
        refused(["0F0,0B0,0I0,0W0"], r"has a full backward B and a half")
        refused(["0F0,0SEND_F0,0SEND_F0", "1RECV_F0,1F0"], r"stands here for the second time", "0SEND_F0")

    def test_containers(self):
        refused(["0F0,(0F1;0B1)OVERLAP_F_B,0B0"], r"both parts belong to micro-batch 1")
        refused(["0F0,0F1,(0F2;0B0;0B1)OVERLAP_F_B,0B2"], r"holds 3 parts, needs a forward and a backward")
        refused(["(0F0;0F1)OVERLAP_F_B,0B0,0B1"], r"holds 2 forwards")
        refused(["(0F0)OVERLAP_F_B,0B0"], r"holds one part, needs two")
        refused(["(0F0;0SEND_F1)OVERLAP_F_B"], r"SEND_F cannot be a part of OVERLAP_F_B", declared={"stages": 2})
        refused(["(0P0@0:0+4;1P1@0:4+4)MIXED"], r"one forward of one stage, but stand on stages 0 and 1")

    def test_kinds_of_another_mode(self):
        refused(
            ["0F0,0B0"], r"the kind B does not belong into a schedule of mode forward", declared={"mode": "forward"}
        )
        refused(["0F0,0P1@0:0+1"], r"the kind F does not belong into a schedule of mode serve")

    def test_reduce_grad(self):
        validate(Schedule([["0F0", "0F1", "0B0", "0B1", "0REDUCE_GRAD"]]))
        refused(["0F0,0B0,0F1,0REDUCE_GRAD,0B1"], r"reduces gradients while 1 micro-batches lack theirs")
        refused(["0F0,0B0,0REDUCE_GRAD,0REDUCE_GRAD"], r"for the second time")

    def test_lockstep(self):
        good = Schedule([["0F0", None, None, "0B0"], [None, "1F0", "1B0"]])
        validate(good, lockstep=True)
        validate(gpipe(2, 1))
        refused(gpipe(2, 1), r"stage 1, which stands at the same step 1 on rank 1", "0B0", lockstep=True)


class TestMessages:
    ROWS = ("0F0,0SEND_F0,0RECV_B0,0B0", "1RECV_F0,1F0,1B0,1SEND_B0")

    def test_good(self):
        validate(Schedule.from_csv("\n".join(self.ROWS)))

    def test_missing(self):
        refused(["0F0,0RECV_B0,0B0", self.ROWS[1]], r"receives what nobody sends: 0SEND_F0 is missing", "1RECV_F0")
        refused([self.ROWS[0], "1F0,1B0,1SEND_B0"], r"needs 1RECV_F0, which stands nowhere", "1F0")
        refused([self.ROWS[0], "1F0,1RECV_F0,1B0,1SEND_B0"], r"needs 1RECV_F0, which stands later", "1F0")
        refused([self.ROWS[0] + ",0SEND_F0", self.ROWS[1]], r"second time")
        both = ["0F0,0SEND_F0,0F1,0SEND_F1", "1F0"]
        refused(both, r"no forward of micro-batch 1")
        extra = ["0P0@0:0+1,0SEND_F0,0SEND_X0", "1RECV_F0,1P0@0:0+1,1S0"]
        refused(extra, r"nobody receives it: rank 1 has no 1RECV_X0", "0SEND_X0")

    def test_ends(self):
        refused(["0F0,0SEND_F0"], r"stage 0 is the last, there is no stage after it", "0SEND_F0")
        refused(["0RECV_F0,0F0"], r"stage 0 is the first")
        refused(["0P0@0:0+1,0SEND_T0", "1P0@0:0+1,1S0"], r"tokens are sent by the last stage only")
        refused(["0P0@0:0+1", "1RECV_T0,1P0@0:0+1,1S0"], r"tokens are received by stage 0 only")

    def test_within_one_rank(self):
        refused(["0F0,0SEND_F0,1RECV_F0,1F0"], r"both stand on rank 0: there is no message between them", "0SEND_F0")

    def test_crossed(self):
        rows = ["0F0,0F1,0SEND_F0,0SEND_F1", "1RECV_F1,1RECV_F0,1F0,1F1"]
        refused(rows, r"crossed messages: this is receive 0 from rank 0 but send 1; send 0 is 0SEND_F0", "1RECV_F1")
        # Two kinds on one channel cross just as well.
        rows = ["0F0,0SEND_F0,0SEND_X0", "1RECV_X0,1RECV_F0,1F0"]
        refused(rows, r"crossed messages", "1RECV_X0", sends="buffered")

    def test_deadlock_names_the_cycle(self):
        rows = ["0RECV_B0,0F0,0SEND_F0,0B0", "1RECV_F0,1F0,1B0,1SEND_B0"]
        text = refused(rows, r"deadlock with buffered sends", "0RECV_B0", sends="buffered")
        assert "rank 0 stands at step 0 (0RECV_B0) and waits for 1SEND_B0 on rank 1" in text
        assert "rank 1 stands at step 0 (1RECV_F0) and waits for 0SEND_F0 on rank 0 - a cycle of 2 ranks" in text

    def test_deadlock_of_compute(self):
        text = refused(["0F0,0B1,0F1,0B0", "1F1,1B1,1F0,1B0"], r"needs the forward of micro-batch 1 on stage 0", "0B1")
        text = refused(["0F0,0B0,0F1,0B1", "1F1,1B1,1F0,1B0"], r"deadlock")
        assert "waits for the forward pass of micro-batch 1 on stage 0 on rank 0 - a cycle of 2 ranks" in text
        assert (
            "rank 0 stands at step 1 (0B0) and waits for the backward pass of micro-batch 0 on stage 1 on rank 1"
            in text
        )

    def test_cycle_of_three(self):
        rows = ["0F0,0B0,0F1,0B1", "1F0,1F1,1B1,1B0", "2F0,2F1,2B1,2B0"]
        assert "a cycle of" in refused(rows, "deadlock")


class TestServing:
    def test_identity(self):
        refused(["0P0@0:0+64", "1P0@0:0+32,1S0"], r"is 0P0@0:0\+64 on stage 0: all stages see one batch", "1P0@0:0+32")
        refused(["0P0@0:0+64", "1D0@0:0+64,1S0"], r"all stages see one batch")

    def test_order(self):
        rows = ["0P0@0:0+8,0P1@1:0+8", "1P1@1:0+8,1S1,1P0@0:0+8,1S0"]
        refused(rows, r"stage 1 runs micro-batch 1 where stage 0 runs micro-batch 0", "1P1@1:0+8")

    def test_prefixes(self):
        refused(["0P0@0:0+64,0P1@0:60+4,0S1"], r"starts at 60, but the chunk before it ends at 64", "0P1@0:60+4")
        refused(["0P1@0:64+4,0P0@0:0+64,0S0"], r"starts at 0, but the chunk before it ends at 68")
        refused(["0P0@0:0+0,0S0"], r"holds 0 tokens, needs at least 1")
        refused(["0D0@0:3+1,0S0,0D1@0:5+1,0S1"], r"slot 0 runs step 5, but its next step is 4")
        refused(["0P0@0:0+4,0S0,0D1@0:0+1,0S1,0P2@0:4+4,0S2"], r"prefilled again after it has been decoded")

    def test_non_final_chunks_do_not_wait_for_tokens(self):
        refused(["0P0@0:0+8,0S0,0P1@0:8+8,0S1"], r"not the last chunk of request 0: it has none to give", "0S0")
        refused(
            ["0P0@0:0+8,0P1@0:8+8"], r"never samples the token of micro-batch 1", "here", declared={"mode": "serve"}
        )
        refused(["0P0@0:0+8,0S0", "1P0@0:0+8"], r"samples on stage 0, only the last stage, 1, has logits", "0S0")

    def test_decode_waits_for_its_token(self):
        validate(decode_loop(3, 4))
        rows = ["0D0@0:0+1,0D1@0:1+1,0S0,0S1"]
        refused(rows, r"needs the sample of micro-batch 0 on stage 0, which stands later", "0D1@0:1+1")
        # After its prefill, the first decode step of a request feeds on the token of the last chunk.
        refused(["0P0@0:0+8,0D1@0:0+1,0S0,0S1"], r"needs the sample of micro-batch 0", "0D1@0:0+1")
        lowered = add_send_recv(Schedule([["0P0@0:0+8", "0D1@0:0+1"], ["1P0@0:0+8", "1S0", "1D1@0:0+1", "1S1"]]))
        assert "1SEND_T0" in str(lowered) and "0RECV_T0" in str(lowered)

    def test_kv_limit(self):
        s = chunked_prefill(2, [[8, 8], [4]], prefixes=[4, 0])
        validate(s, max_kv_tokens=20)
        refused(s, r"holds the KV of 20 tokens \(all its stages\), the limit is 19", "0P1@0:12+8", max_kv_tokens=19)


class TestIndexShare:
    LAYERS = ("full", "shared", "shared", "full")

    def test_handed_over(self):
        s = chunked_prefill(2, [8, 8])
        validate(s, stage_layers=[2, 2], index_layers=self.LAYERS)  # compute-only: nothing to check yet
        plain = add_send_recv(s)
        match = r"stage 1 starts with layer 2, which shares the indexer of the layer below, but no 1RECV_X0"
        refused(plain, match, "1P0@0:0+8", stage_layers=[2, 2], index_layers=self.LAYERS)
        lowered = add_send_recv(s, stage_layers=[2, 2], index_layers=self.LAYERS)
        validate(lowered, stage_layers=[2, 2], index_layers=self.LAYERS)
        assert "1RECV_X1" in str(lowered)
        validate(plain, stage_layers=[3, 1], index_layers=self.LAYERS)

    def test_arguments(self):
        s = chunked_prefill(2, [8])
        with pytest.raises(ValueError, match="stage_layers has 2 stages and 3 layers, needs the 2 stages"):
            validate(s, stage_layers=[2, 1], index_layers=self.LAYERS)
        with pytest.raises(ValueError, match="belong together"):
            validate(s, stage_layers=[2, 2])
        with pytest.raises(ValueError, match="index_layers is 'half' at 0"):
            validate(s, stage_layers=[1, 1], index_layers=["half", "full"])
        with pytest.raises(ValueError, match="start with a shared layer"):
            validate(s, stage_layers=[1, 1], index_layers=["shared", "full"])
        with pytest.raises(ValueError, match="stage_layers has 2 stages and 3 layers"):
            add_send_recv(s, stage_layers=[2, 1], index_layers=self.LAYERS)


class TestMemory:
    def test_activations(self):
        validate(one_f_one_b(4, 8), max_activations=4)
        refused(gpipe(4, 8), r"holds the activations of 5 micro-batches, the limit is 4", "0F4", max_activations=4)

    def test_weights(self):
        s = add_fetch_evict(interleaved(2, 4, stages_per_rank=3), 2)
        validate(s, max_active_stages=2)
        refused(s, r"holds the weights of 2 stages, the limit is 1", "2FETCH", max_active_stages=1)
        refused(interleaved(2, 4), r"holds the weights of 2 stages", max_active_stages=1)
        refused(["0F0,0FETCH,0EVICT"], r"the weights of stage 0 are not here: fetch them first", "0F0")
        refused(["0FETCH,0FETCH,0F0,0EVICT"], r"fetches weights that are held already")
        refused(["0FETCH,0F0,0EVICT,0EVICT"], r"evicts weights that are not held")
        refused(["0FETCH,0F0"], r"the weights of stage 0 are never evicted", "here")

    def test_weight_bytes(self):
        s = add_fetch_evict(interleaved(2, 4, stages_per_rank=3), 3, stage_bytes=[5] * 6, budget=10)
        validate(s, stage_bytes=[5] * 6, weight_budget=10)
        refused(s, r"holds 10 bytes of weights, the budget is 9", stage_bytes=[5] * 6, weight_budget=9)
        with pytest.raises(ValueError, match="stage_bytes has 1 values, needs one for each of the 6 stages"):
            validate(s, stage_bytes=[5], weight_budget=9)
        with pytest.raises(ValueError, match="stage_bytes has 2 values"):
            validate(s, stage_bytes=[5, 5])
        with pytest.raises(ValueError, match=r"add_fetch_evict: budget is too small for 0F0, which needs 1 stages"):
            add_fetch_evict(interleaved(2, 4), stage_bytes=[5] * 4, budget=4)
        with pytest.raises(ValueError, match=r"max_active is too small for \(0F3;3B1\)OVERLAP_F_B, which needs 2"):
            add_fetch_evict(dualpipe_v(2, 4), 1)
        with pytest.raises(ValueError, match="max_active is 0"):
            add_fetch_evict(gpipe(2, 2), 0)
        with pytest.raises(ValueError, match="fetches and evicts already"):
            add_fetch_evict(s)
        with pytest.raises(ValueError, match="stage_bytes has 0 values"):
            add_fetch_evict(gpipe(2, 2), budget=4.0)


def test_the_grid_of_a_large_schedule_is_cut():
    rows = one_f_one_b(40, 200).ranks
    rows[20][100] = rows[20][101]
    with pytest.raises(ScheduleError) as error:
        validate(Schedule(rows))
    lines = str(error.value).splitlines()
    assert 10 < len(lines) < 20 and any(">" in line for line in lines[1:])


def test_lowering_refuses():
    with pytest.raises(ValueError, match="has messages already"):
        add_send_recv(add_send_recv(gpipe(2, 2)))
    with pytest.raises(ScheduleError, match="needs the forward"):
        add_send_recv(Schedule([["0B0", "0F0"]]))
