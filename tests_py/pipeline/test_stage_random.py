"""Any grid, any chunks, any scheme: the bits of one rank."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan.comm import run_ranks
from sparsespan.pipeline import Stage, chunked_prefill, dummy_run, run_pipeline

sys.path.insert(0, str(Path(__file__).parent))
import stage_model as model

sys.path.pop(0)
pytestmark = pytest.mark.timeout(120)
SCHEMES = ["zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat"]


@settings(deadline=None, max_examples=40)
@given(
    pp=st.integers(1, 4),
    cp=st.integers(1, 3),
    tp=st.integers(1, 3),
    scheme=st.sampled_from(SCHEMES),
    requests=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=2),
    blocking=st.booleans(),
    data=st.data(),
)
def test_any_grid(pp, cp, tp, scheme, requests, blocking, data):
    cp, tp = (cp, 1) if data.draw(st.booleans()) else (1, tp)
    cuts = sorted(data.draw(st.lists(st.integers(0, model.LAYERS), min_size=pp - 1, max_size=pp - 1)))
    splits = np.diff([0, *cuts, model.LAYERS]).tolist()  # a stage may have no layers at all
    inputs = {i: np.arange(sum(chunks)) * 7 % 97 + i for i, chunks in enumerate(requests)}
    schedule = chunked_prefill(pp, requests)

    def rank(comm):
        stage = Stage(comm, pp=pp, cp=cp, tp=tp, scheme=scheme, blocking_sends=blocking)
        program = model.program(splits, scratch=3)
        predicted = dummy_run(stage, program, schedule, collect="all")
        run = run_pipeline(stage, program, schedule, inputs, collect="all")
        assert predicted == run.peak_bytes
        return run

    rows = run_ranks(pp * cp * tp, rank, threads_per_rank=1, timeout=20)[-1].rows
    number = 0
    for i, chunks in enumerate(requests):
        got = np.concatenate([rows[mb] for mb in range(number, number + len(chunks))])
        assert got.tobytes() == model.plain(inputs[i]).tobytes()
        number += len(chunks)
