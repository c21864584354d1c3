"""What split_plan and its plans refuse, and in which words."""

import numpy as np
import pytest

from sparsespan.cp import split_plan


def refusals():
    pre, dec = ["prefill"], ["decode"]
    return [
        (("zig", [0, 1], None, 2), {}, r'scheme is "zig", needs one of zigzag, zigzag_padded'),
        (("zigzag", [0, 1], None, 2), {"flavor": "trt"}, r'flavor is "trt", needs one of native, sglang'),
        (("zigzag", [0, 1], None, 0), {}, r"world_size is 0, needs 1 to"),
        (("zigzag", [], None, 2), {}, r"cu_seqlens has 0 entries, needs B \+ 1"),
        (("zigzag", [1, 2], None, 2), {}, r"cu_seqlens has 1 at entry 0, needs 0"),
        (("zigzag", [0, 5, 3], None, 2), {}, r"cu_seqlens has 3 at entry 2, needs at least 5"),
        (("zigzag", [0, 2**40], None, 2), {}, r"cu_seqlens counts 1099511627776 rows, needs at most"),
        (("zigzag", [0, 5], [-1], 2), {}, r"prefix_lens has -1 for request 0, needs 0 to"),
        (("zigzag", [0, 5], [1, 2], 2), {}, r"prefix_lens has shape \[2\]"),
        (("zigzag", [0, 2, 3], None, 2), {"row_kind": [0, 1]}, r"row_kind has 2 entries, needs .* 3 rows; np.repeat"),
        (("zigzag", [0, 2], None, 2), {"row_kind": [0, 3]}, r"row_kind has 3 at row 1, needs 0 \(prefill\)"),
        (("zigzag", [0, 2], None, 2), {"row_kind": ["prefill", "mixed"]}, r"row_kind has 'mixed', needs"),
        (("zigzag", [0, 2], None, 2), {"row_kind": [0, 1]}, r"changes to 1 at row 1 inside request 0"),
        (("zigzag", [0, 2], None, 2), {"row_kind": [2, 0]}, r"changes to 0 at row 1 inside request 0"),
        (("zigzag", [0, 5], None, 2), {"pad_to": 4}, r"pad_to is 4, needs 5"),
        (("thd_even", [0, 8, 15], None, 2), {}, r"request 1 7 rows, needs a multiple of 2 \* world_size = 4.*zigzag"),
        (("zigzag", [0, 8, 15], None, 4), {"flavor": "sglang"}, r"request 1 7 new rows, needs .* = 8.*interleave"),
        (("contiguous", [0, 8, 11], None, 4), {"flavor": "sglang"}, r"request 1 3 new rows, needs .* world_size = 4"),
        (("interleave", [0, 3], None, 4), {"flavor": "sglang"}, r"counts 3 rows, needs at least world_size = 4"),
        (("zigzag", [0, 9], None, 1), {"flavor": "sglang"}, r"world_size is 1, needs at least 2: SGLang"),
        (("zigzag", [0, 1, 9], None, 4), {"flavor": "sglang", "row_kind": dec + pre * 8}, r"a decode request: SGLang"),
        (("zigzag", [0, 9], None, 2), {"flavor": "vllm"}, r"vLLM has no zigzag split: it has zigzag_padded and ceil"),
        (("thd_even", [0, 8], None, 2), {"flavor": "vllm_ascend"}, r"vllm-ascend has no thd_even split"),
        (
            ("zigzag_padded", [0, 8, 9], None, 2),
            {"flavor": "vllm", "row_kind": pre * 8 + dec},
            r"decode requests",
        ),
        (("ceil_chunk", [0, 2], None, 2), {"flavor": "vllm", "row_kind": dec * 2}, r"no speculative decoding"),
        (("contiguous_flat", [0, 2], None, 1), {"flavor": "vllm_ascend"}, r"world_size is 1.*DSA-CP"),
    ]


@pytest.mark.parametrize("args, kwargs, message", refusals())
def test_refuses(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        split_plan(*args, **kwargs)


def test_refuses_types_and_ranks():
    with pytest.raises(TypeError, match="cu_seqlens"):
        split_plan("zigzag", np.array([0.0, 4.0]), None, 2)
    with pytest.raises(TypeError, match="prefix_lens has entries that are no integers"):
        split_plan("zigzag", [0, 4], [0.5], 2)
    plan = split_plan("zigzag", [0, 4], None, 2)
    for call in (plan.rank_rows, plan.segments, plan.actual_seq_q, plan.kept_requests):
        for r in (-1, 2):
            with pytest.raises(IndexError, match=f"rank is {r}, needs 0 to 1"):
                call(r)
    with pytest.raises(ValueError, match="length is 1, needs at least the 2 local rows of rank 0"):
        plan.rank_rows(0, length=1)
    with pytest.raises(ValueError, match="global_slots has 3 entries, needs one for each of the plan's 4 rows"):
        plan.slot_mapping(np.arange(3), 0)
    with pytest.raises(ValueError, match='cost is "time"'):
        plan.imbalance("time")
    with pytest.raises(ValueError, match="the plan has flavor None"):
        plan.engine_metadata(0)
    flavored = split_plan("zigzag", [0, 8], None, 2, flavor="sglang")
    with pytest.raises(IndexError, match="r is 2, needs 0 to 1"):
        flavored.engine_metadata(2)
