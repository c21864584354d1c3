"""Closed formulas against buffers that really go round a ring, and against the published figures."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsespan import cp
from sparsespan.reference import cp_volume as reference

SPLITS = ["zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat"]
OTHERS = ["thd_even", "tp", "dsa_cp_prefill", "dsa_cp_decode", "layer_shard", "dcp", "block_gather", "block_regather"]


@st.composite
def cases(draw):
    """A small model, a batch and every option."""
    scheme = draw(st.sampled_from(SPLITS + OTHERS))
    ranks, tp = draw(st.integers(1, 5)), 1
    lengths = draw(st.lists(st.integers(0, 25), max_size=3))
    if scheme == "thd_even":
        lengths = [length * 2 * ranks for length in lengths]
    heads = draw(st.integers(1, 3)) * ranks
    if scheme == "dcp":
        tp = ranks * draw(st.integers(1, 2))
        heads = tp * draw(st.integers(1, 2))
    elif scheme in SPLITS:
        tp = draw(st.integers(1, 3))
    index_layers = draw(st.integers(0, 2))
    dims = cp.AttentionDims("small", 2, draw(st.integers(1, 9)), heads, 3, 128, 2, 2, 4, index_layers, 2,
                            128 if index_layers else 0, 5)  # fmt: skip
    designs = ["replicated", "sharded", "sharded_routed", "union", "gathered"] if index_layers else ["none"]
    options = {
        "tp": tp, "cache": draw(st.sampled_from(["bf16", "fp8"])), "weights": draw(st.sampled_from(["bf16", "int8"])),
        "restore": draw(st.sampled_from(["last", "all", "none"])), "replicated_state": draw(st.booleans()),
        "combine": draw(st.sampled_from(["ag_rs", "a2a", "ar"])), "payload": draw(st.sampled_from(["fp32", "bf16"])),
        "replicate_q": draw(st.booleans()), "page_size": draw(st.integers(1, 4)),
        "interleave": draw(st.integers(1, 3)), "context": [draw(st.integers(0, 30)) for _ in lengths],
        "index_k": draw(st.sampled_from(designs)) if scheme == "dcp" else None,
        "o_proj": draw(st.sampled_from([None, "none", "gather_weight", "a2a_rs"])),
    }  # fmt: skip
    return scheme, dims, ranks, lengths, options


@settings(max_examples=400)
@given(cases())
def test_equals_buffers_that_go_round_a_ring(case):
    scheme, dims, ranks, lengths, options = case
    got = cp.volume(scheme, model=dims, tokens=lengths, ranks=ranks, **options)
    kv_bytes, index_bytes = dims.cache_bytes(options["cache"])
    simulated = {
        "kv_bytes": kv_bytes, "index_bytes": index_bytes, "tp": options["tp"], "cp": ranks,
        "weight_bytes": {"int8": 1, "bf16": 2}[options["weights"]],
        "payload_bytes": {"fp32": 4, "bf16": 2}[options["payload"]],
        "page_size": options["page_size"], "interleave": options["interleave"], "contexts": options["context"],
        "replicated_state": options["replicated_state"],
    }  # fmt: skip
    if scheme == "thd_even":  # the same rows as the padded layout when 2N divides every length
        scheme = "zigzag_padded"
    for row in got.rows:
        ring = reference.count(scheme, row.what, row.primitive, row.group, dims, lengths, simulated)
        assert ring.received.max(initial=0) == row.received, row
        assert ring.sent.max(initial=0) == row.sent, row
        assert ring.received.sum() == ring.sent.sum() == row.total, row
    assert got.received == sum(row.received * row.times for row in got.rows)


def test_ring_collectives_compute_what_they_say(rng):
    ring = reference.Ring(3)
    parts = [rng.integers(0, 9, (2, 4)) for _ in range(3)]
    for whole in ring.all_gather(parts):
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    buffers = [rng.integers(0, 9, (6, 2)) for _ in range(3)]
    for r, piece in enumerate(ring.reduce_scatter(buffers)):
        np.testing.assert_array_equal(piece, sum(buffers).reshape(-1)[4 * r : 4 * r + 4])
    odd = [rng.integers(0, 9, 7) for _ in range(3)]
    for whole in ring.all_reduce(odd):
        np.testing.assert_array_equal(whole, sum(odd))
    pieces = [[rng.integers(0, 9, 2) for _ in range(3)] for _ in range(3)]
    assert all((ring.all_to_all(pieces)[d][s] == pieces[s][d]).all() for s in range(3) for d in range(3))
    assert all((x == parts[1]).all() for x in ring.broadcast(parts[1], 1))


@pytest.mark.parametrize("scheme", SPLITS)
@settings(max_examples=60)
@given(lengths=st.lists(st.integers(0, 40), max_size=4), n=st.integers(1, 6))
def test_simulated_splits_cover_each_row_once(scheme, lengths, n):
    rows = [i for rank in reference.split_rows(scheme, lengths, n) for i in rank if i >= 0]
    assert sorted(rows) == list(range(sum(lengths)))


def layer_rows(scheme, **options):
    return {row.what: row.received for row in cp.volume(scheme, **options).rows}


def test_published_table_of_prefill():
    """Per token, layer and rank, DeepSeek-V3.2, N = 8 (specification sheet, section 10)."""
    options = {"tokens": 8192, "ranks": 8}
    assert cp.volume("tp", **options).per_token_layer == 25088
    for scheme in ("zigzag", "interleave", "contiguous_flat", "ceil_chunk"):
        assert cp.volume(scheme, **options).per_token_layer == 1232
        assert cp.volume(scheme, **options, cache="fp8").per_token_layer == 689.5  # the sheet rounds to 690
    assert layer_rows("zigzag", **options, restore="all")["hidden rows for the LM head"] == 12544 * 8192
    gathered = layer_rows("dsa_cp_prefill", **options, weights="int8", replicated_state=True)
    assert gathered["o_proj weights"] == 102760448 and gathered["hidden states"] == 12544 * 8192
    assert layer_rows("dsa_cp_prefill", **options)["o_proj weights"] == 2 * 102760448
    shard = cp.volume("layer_shard", **options, weights="int8")
    assert shard.layer_received == 37748736 + 117440512


def test_published_table_of_decode():
    decode = layer_rows("dsa_cp_decode", tokens=[1] * 64, ranks=8)
    assert decode["attention output"] == 3584 * 64 and decode["o_proj output"] == 12544 * 64
    summed = layer_rows("dsa_cp_decode", tokens=[1] * 64, ranks=8, replicated_state=True)
    assert summed["o_proj output"] == 2 * 12544 * 64
    dcp = layer_rows("dcp", tokens=1, ranks=8, tp=8, payload="bf16", index_k="sharded")
    assert dcp == {"query heads": 129024, "lse": 3584, "partial out": 114688, "top-k (score, id)": 114688}
    assert layer_rows("dcp", tokens=1, ranks=8, tp=8)["partial out"] == 229376
    packed = layer_rows("dcp", tokens=1, ranks=8, tp=8, payload="bf16", combine="a2a")
    assert packed["partial out | lse"] == 115136
    routed = layer_rows("dcp", tokens=[1] * 8, ranks=8, tp=8, index_k="sharded_routed")
    assert routed["top-k (score, id)"] + routed["top-k ids"] == 21504 * 8
    assert layer_rows("dcp", tokens=1, ranks=8, tp=8, combine="ar")["partial out"] == 2 * 229376
    assert "top-k (score, id)" not in layer_rows("dcp", tokens=1, ranks=8, tp=8, index_k="union")
    assert "query heads" not in layer_rows("dcp", tokens=1, ranks=8, tp=8, replicate_q=True)


@pytest.mark.parametrize(
    ("tp", "dcp", "query", "lse", "out"),
    [(8, 2, 18432, 128, 16384), (8, 4, 55296, 768, 49152), (16, 16, 138240, 7680, 122880)],
)
def test_published_dcp_sizes(tp, dcp, query, lse, out):
    rows = layer_rows("dcp", tokens=1, ranks=dcp, tp=tp, payload="bf16")
    assert (rows["query heads"], rows["lse"], rows["partial out"]) == (query, lse, out)
    if dcp == 16:
        assert layer_rows("dcp", tokens=1, ranks=16, tp=16, index_k="sharded")["top-k (score, id)"] == 245760


def test_context_gathers():
    pages = layer_rows("block_regather", tokens=4, context=65536, ranks=8, page_size=128)
    assert sum(pages.values()) == 7 * 65536 // 8 * 1408
    assert layer_rows("block_gather", tokens=4, context=65536, ranks=8)["cached latent pages"] == 7 * 65536 // 8 * 1152
    rows = layer_rows("dcp", tokens=1, ranks=4, tp=4, index_k="gathered", context=[10], interleave=2)
    assert rows["index-K"] == 3 * 4 * 256  # two runs of 2 on the busiest rank


def test_dense_model_and_shared_indexers():
    assert set(layer_rows("zigzag", model="v3.1", tokens=64, ranks=2)) == {"latent KV", "last rows for the LM head"}
    assert set(layer_rows("dcp", model="v3.1", tokens=1, ranks=2, tp=2)) == {"query heads", "lse", "partial out"}
    rows = {row.what: row.times for row in cp.volume("zigzag", model="glm-5.2", tokens=64, ranks=2).rows}
    assert rows["latent KV"] == 78 and rows["index-K"] == 21
    assert cp.attention_dims("glm-5").cache_bytes("fp8") == (656, 132)


def test_break_even():
    assert cp.o_proj_break_even("v3.2", ranks=8, weights="int8").all_reduce == 4096
    assert cp.o_proj_break_even("v3.2", ranks=32).all_reduce == 8192
    for ranks in (2, 8, 16):
        point = cp.o_proj_break_even("v3.2", ranks=ranks).a2a_rs
        at, before = -(-point // ranks) * ranks, point // ranks * ranks - ranks
        weights = layer_rows("dsa_cp_prefill", tokens=at, ranks=ranks)["o_proj weights"]
        for tokens, pays in ((at, True), (before, False)):
            rows = layer_rows("dsa_cp_decode", tokens=tokens, ranks=ranks)
            assert (rows["attention output"] + rows["o_proj output"] >= weights) == pays
    with pytest.raises(ValueError, match="ranks is 0, needs at least 1"):
        cp.o_proj_break_even(ranks=0)
    with pytest.raises(ValueError, match="weights is 'int4', needs one of 'bf16', 'fp8', 'int8'"):
        cp.o_proj_break_even(ranks=1, weights="int4")


def test_prints_and_goes_to_json():
    v = cp.volume("dcp", tokens=[1, 1], ranks=2, tp=8)
    assert "modelled" in str(v) and json.loads(json.dumps(v.to_dict()))["figures"] == "modelled"
    assert v.primitives == {"all_gather": 122, "reduce_scatter": 61}
    assert cp.volume("zigzag", tokens=[], ranks=4, restore="none").received == 0


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"scheme": "ring"}, ValueError, r"scheme is 'ring', needs one of 'zigzag'"),
        ({"ranks": 0}, ValueError, r"ranks is 0, needs 1 .. 1048576"),
        ({"tp": 0}, ValueError, r"tp is 0, needs 1"),
        ({"tokens": -5}, ValueError, r"tokens has -5 at \[0\], needs >= 0"),
        ({"tokens": 1 << 41}, ValueError, r"tokens sums to more than"),
        ({"tokens": [1.5]}, TypeError, r"tokens has dtype float64, needs integers"),
        ({"context": [-1]}, ValueError, r"context has -1 at \[0\]"),
        ({"context": [1 << 41]}, ValueError, r"context sums to more than"),
        ({"scheme": "thd_even", "tokens": 100}, ValueError, r"'thd_even' needs a multiple of 2 \* ranks"),
        ({"model": "v9"}, ValueError, r"model is 'v9', needs 'v3.1', 'v3.2', 'glm-5', 'glm-5.2' or AttentionDims"),
        ({"cache": "nvfp4"}, ValueError, r"cache is 'nvfp4', needs 'bf16' or 'fp8'"),
        ({"weights": "fp4"}, ValueError, r"weights is 'fp4', needs one of"),
        ({"payload": "fp16"}, ValueError, r"payload is 'fp16', needs one of"),
        ({"restore": "some"}, ValueError, r"restore is 'some', needs one of 'none', 'last', 'all'"),
        ({"scheme": "dcp", "ranks": 3, "tp": 8}, ValueError, r"ranks is 3, needs a divisor of tp = 8"),
        ({"scheme": "dcp", "ranks": 3, "tp": 3}, ValueError, r"tp is 3, needs a divisor of the model's 128 heads"),
        ({"scheme": "dcp", "tp": 8, "combine": "ring"}, ValueError, r"combine is 'ring', needs one of 'ag_rs'"),
        ({"scheme": "dcp", "tp": 8, "index_k": "half"}, ValueError, r"index_k is 'half', needs one of"),
        ({"scheme": "dcp", "tp": 8, "index_k": "none"}, ValueError, r"index_k is 'none', but the model has an indexer"),
        ({"scheme": "dcp", "tp": 8, "model": "v3.1", "index_k": "union"}, ValueError, r"the model has no indexer"),
        ({"scheme": "dcp", "tp": 8, "index_k": "gathered"}, ValueError, r"context is missing: 'dcp' gathers"),
        ({"scheme": "block_gather"}, ValueError, r"context is missing"),
        ({"scheme": "dsa_cp_prefill", "tp": 2}, ValueError, r"tp is 2, 'dsa_cp_prefill' needs 1"),
        ({"scheme": "dsa_cp_prefill", "ranks": 3}, ValueError, r"ranks is 3, o_proj='gather_weight' needs a divisor"),
        ({"scheme": "dsa_cp_prefill", "o_proj": "x"}, ValueError, r"o_proj is 'x', needs one of"),
        ({"page_size": 0}, ValueError, r"page_size is 0, needs 1"),
        ({"interleave": 0}, ValueError, r"interleave is 0, needs 1"),
        ({"tokens": 1 << 40, "ranks": 1 << 20}, ValueError, r"bytes of a collective overflows 64 bits"),
    ],
)  # fmt: skip
def test_refusals(change, error, words):
    with pytest.raises(error, match=words):
        cp.volume(**{"scheme": "zigzag", "tokens": 64, "ranks": 8, **change})


def test_refusals_of_models():
    bad = cp.AttentionDims("bad", 1, 8, 8, 8, 128, 8, 8, 8, index_layers=2)
    with pytest.raises(ValueError, match=r"model.index_layers is 2, needs at most layers = 1"):
        cp.volume("tp", model=bad, tokens=1, ranks=1)
    with pytest.raises(ValueError, match=r"model.hidden is -1, needs 0"):
        cp.volume("tp", model=cp.AttentionDims("bad", 1, -1, 8, 8, 128, 8, 8, 8), tokens=1, ranks=1)
