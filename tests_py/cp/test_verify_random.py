"""Random batches, grids and designs: N ranks keep their contract against one, to the byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan import verification

pytestmark = pytest.mark.timeout(120)
LENGTHS = st.sampled_from([0, 1, 2, 5, 16, 63, 64, 65, 90])
REQUESTS = st.lists(st.tuples(LENGTHS, LENGTHS, st.booleans()), min_size=1, max_size=4)
MODELS = st.builds(
    verification.Model,
    name=st.sampled_from(["v3.2", "glm-5"]),
    heads=st.just(24),
    topk=st.sampled_from([None, 1, 64, 300]),
    layout=st.sampled_from(["fp8_656", "bf16_576"]),
    page_size=st.sampled_from([16, 48, 64]),
)


@settings(max_examples=15)
@given(
    st.sampled_from(["prefill", "prefill", "layer", "o_proj"]),
    REQUESTS,
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from(verification.SCHEMES),
    st.sampled_from(verification.O_PROJS),
    MODELS,
)
def test_prefill(part, requests, ranks, scheme, o_proj, model):
    lens, prefix, decode = zip(*requests)
    batch = verification.Batch("random", lens, prefix, decode)
    verification.check(verification.Case(part, batch, cp=ranks, scheme=scheme, o_proj=o_proj, model=model))


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([4, 5, 16, 63, 64, 65, 200]), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(1, 1), (2, 2), (2, 4), (3, 3), (4, 4), (4, 8), (6, 6), (8, 8)]),
    st.sampled_from([1, 2, 16]),
    st.sampled_from(verification.COMBINES),
    st.sampled_from(verification.INDEX_KS),
    st.sampled_from(["fp32", "fp32", "bf16"]),
    st.booleans(),
    MODELS,
)
def test_decode(lens, next_n, grid, interleave, combine, index_k, payload, replicate_q, model):
    batch = verification.batch("random", lens, next_n=next_n, part="decode")
    dcp, tp = grid
    case = verification.Case(
        "decode", batch, dcp=dcp, tp=tp, interleave=interleave, combine=combine, index_k=index_k, payload=payload,
        replicate_q=replicate_q, model=model,
    )  # fmt: skip
    verification.check(case)
