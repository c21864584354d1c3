"""A layer's rows: the same bits in chunks, in decode and in any batch; weights; refusals."""

import functools
import operator

import ml_dtypes
import numpy as np
import pytest
from layer_cases import PAGE, SMALL, cu, hidden_rows, make_caches

from sparsespan import comm, cp, models
from sparsespan.testing import assert_row_invariant, each_isa

LENGTHS = [19, 1, 30]


def one_shot(layer, rng, x, lengths, kind):
    caches = make_caches(rng, lengths, kind=kind)
    plan = cp.split_plan("contiguous", cu(lengths), None, 1)
    out, indices = layer.prefill(x, plan, caches)
    return out, indices, caches


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("model", ["v3.2", "glm-5"])
def test_chunks_and_decode_equal_one_shot(rng, model, kind):
    dims = SMALL[model]
    dtype = np.float32 if kind == "float32" else ml_dtypes.bfloat16
    layer = models.dsa_layer(dims, seed=3, dtype=np.dtype(dtype).name)
    x = hidden_rows(rng, sum(LENGTHS), dims, dtype)
    requests = np.split(x, cu(LENGTHS)[1:-1])
    for _ in each_isa():
        want, want_indices, _ = one_shot(layer, rng, x, LENGTHS, kind)
        caches = make_caches(rng, LENGTHS, kind=kind)
        got, picked = [[] for _ in LENGTHS], [[] for _ in LENGTHS]
        done = np.zeros(3, np.int64)
        for chunk in ([8, 0, 3], [5, 1, 20], [4, 0, 5]):
            rows = np.concatenate([r[d : d + n] for r, d, n in zip(requests, done, chunk)])
            out, indices = layer.prefill(rows, cp.split_plan("contiguous", cu(chunk), done, 1), caches)
            for b, (o, i) in enumerate(zip(np.split(out, cu(chunk)[1:-1]), np.split(indices, cu(chunk)[1:-1]))):
                got[b].append(o)
                picked[b].append(i)
            done += chunk
        # What is left: two single steps of requests 0 and 2, side by side.
        table = caches.block_table
        for _ in range(2):
            caches.block_table = table[[2, 0]]
            rows = np.stack([requests[2][done[2]], requests[0][done[0]]])
            done[[0, 2]] += 1
            out, indices = layer.decode(rows, done[[2, 0]], caches)
            for place, b in enumerate((2, 0)):
                got[b].append(out[place : place + 1])
                picked[b].append(indices[place : place + 1])
        np.testing.assert_array_equal(done, LENGTHS)
        assert np.concatenate(functools.reduce(operator.iadd, picked, [])).tobytes() == want_indices.tobytes()
        assert np.concatenate(functools.reduce(operator.iadd, got, [])).tobytes() == want.tobytes()


def test_verify_rows_equal_single_steps(rng):
    """next_n rows of a speculative batch see one key more each."""
    dims = SMALL["v3.2"]
    layer = models.dsa_layer(dims, seed=3, dtype="float32")
    x = hidden_rows(rng, 20, dims)
    want, want_indices, _ = one_shot(layer, rng, x, [20], "float32")
    caches = make_caches(rng, [20])
    layer.prefill(x[:17], cp.split_plan("contiguous", [0, 17], None, 1), caches)
    out, indices = layer.decode(x[17:], [20], caches, next_n=3)
    np.testing.assert_array_equal(out, want[17:])
    np.testing.assert_array_equal(indices, want_indices[17:])


def test_rows_have_their_own_bits(rng):
    """The batch around a decode step, and threads, change no bit of a row."""
    dims = SMALL["v3.2"]
    layer = models.dsa_layer(dims, seed=1, dtype="bfloat16")
    lengths = np.array([3, 17, 8, 30, 9])
    caches = make_caches(rng, lengths + 1, kind="fp8")
    layer.prefill(
        hidden_rows(rng, lengths.sum(), dims, ml_dtypes.bfloat16),
        cp.split_plan("contiguous", cu(lengths), None, 1),
        caches,
    )
    x, table = hidden_rows(rng, 5, dims, ml_dtypes.bfloat16), caches.block_table

    def step(ids, threads):
        _seen, first = np.unique(ids, return_index=True)  # a request has one row a step
        caches.block_table = table[ids[np.sort(first)]]
        out, picks = layer.decode(x[ids[np.sort(first)]], lengths[ids[np.sort(first)]] + 1, caches, threads=threads)
        place = np.array([np.flatnonzero(ids[np.sort(first)] == i)[0] for i in ids], np.int64)
        return out[place], picks[place]

    assert_row_invariant(step, 5)


def test_shared_layers_take_the_indices_of_the_full_one(rng):
    dims = SMALL["glm-5"]
    full = models.dsa_layer(dims, index=0, seed=2, dtype="float32")
    shared = models.dsa_layer(dims, index=1, seed=2, dtype="float32", shared=True)
    caches = make_caches(rng, [20], layers=2, index_layers=[0])
    assert sorted(caches.index_k) == [0] and sorted(caches.kv) == [0, 1]
    plan = cp.split_plan("contiguous", [0, 19], None, 1)
    x = hidden_rows(rng, 20, dims)
    mid, indices = full.prefill(x[:19], plan, caches)
    _, same = shared.prefill(mid, plan, caches, indices=indices)
    assert same is indices
    mid, indices = full.decode(x[19:], [20], caches)
    out, _ = shared.decode(mid, [20], caches, indices=indices)
    assert out.shape == (1, dims.hidden)
    with pytest.raises(ValueError, match="layer 1: indices is None, needs those of the full layer before it"):
        shared.prefill(mid, cp.split_plan("contiguous", [0, 1], [19], 1), caches)
    with pytest.raises(ValueError, match="indices has 19 rows, needs 1"):
        shared.decode(mid, [20], caches, indices=same)


def test_float8_weights_and_their_cuts(rng):
    """A float8 checkpoint's layer, whole and cut for ranks whose edges cut blocks of 128."""
    dims = models.layer_dims(SMALL["v3.2"], nope=32, v_head=48)
    tensors = models.seeded_tensors(dims, 7, 0)
    plain, packed = dict(tensors), dict(tensors)
    from sparsespan import quant

    for name in [n for n in tensors if n.endswith(("_proj.weight", "q_b_proj.weight"))]:
        w = tensors[name]
        if "weights_proj" in name:
            continue
        scale = np.full([-(-n // 128) for n in w.shape], 2.0**-4, np.float32)
        codes = (w.astype(np.float32) * 16).astype(ml_dtypes.float8_e4m3fn)
        packed[name], packed[name + "_scale_inv"] = codes, scale
        plain[name] = quant.weight_dequant(codes, scale)
    x = hidden_rows(rng, 9, dims, ml_dtypes.bfloat16)
    plan = cp.split_plan("contiguous", [0, 9], None, 1)
    for ranks, o_proj in ((1, "reduce"), (2, "reduce"), (4, "gather")):

        def run(group, ranks=ranks, o_proj=o_proj):
            caches = make_caches(np.random.default_rng(1), [9], kind="bfloat16")
            tp = (group.rank, ranks)
            return [
                models.dsa_layer(dims, tensors=t, tp=tp, o_proj=o_proj).prefill(x, plan, caches, tp=group)[0].tobytes()
                for t in (plain, packed)
            ]

        for one, other in comm.run_ranks(ranks, run):
            assert one == other


def test_seeded_weights_depend_on_seed_index_and_name():
    dims = SMALL["v3.2"]
    a, b = models.seeded_tensors(dims, 1, 0), models.seeded_tensors(dims, 1, 0)
    assert all(a[n].tobytes() == b[n].tobytes() for n in a)
    assert {n: t.shape for n, t in a.items()} == models.layer_tensors(dims)
    other = models.seeded_tensors(dims, 1, 1)
    assert all((a[n] != other[n]).any() for n in a)


def test_published_dims():
    """Figures of the models' config.json files."""
    v32, glm = models.layer_dims("v3.2"), models.layer_dims("glm-5")
    assert models.layer_tensors(v32)["self_attn.q_b_proj.weight"] == (24576, 1536)
    assert models.layer_tensors(glm)["self_attn.kv_b_proj.weight"] == (64 * 448, 512)
    assert (v32.eps, glm.eps, glm.sm_scale) == (1e-6, 1e-5, 0.0625)
    assert round(v32.sm_scale, 10) == 0.1352337789
    assert "self_attn.indexer.wk.weight" not in models.layer_tensors(glm, indexer=False)


def test_refusals(rng):
    dims = SMALL["v3.2"]
    layer = models.dsa_layer(dims, dtype="float32")
    caches = make_caches(rng, [8])
    x = hidden_rows(rng, 8, dims)
    one, two = cp.split_plan("contiguous", [0, 8], None, 1), cp.split_plan("contiguous", [0, 8], None, 2)
    with pytest.raises(ValueError, match="plan has 2 ranks, comm 1"):
        layer.prefill(x, two, caches)
    with pytest.raises(ValueError, match="hidden has 7 rows, needs 8"):
        layer.prefill(x[:7], one, caches)
    with pytest.raises(ValueError, match="position 8 needs block 2, block_table has 2 blocks"):
        layer.decode(x[:1], [9], caches)
    with pytest.raises(ValueError, match="context_lens has 0, needs at least next_n = 1"):
        layer.decode(x[:1], [0], caches)
    with pytest.raises(ValueError, match="hidden has 2 rows, needs 1"):
        layer.decode(x[:2], [8], caches)
    half = models.dsa_layer(dims, dtype="float32", tp=(0, 2))
    with pytest.raises(ValueError, match="layer 0: has 2 of 4 heads and runs on 1 ranks"):
        half.prefill(x, one, caches)
    with pytest.raises(ValueError, match="dcp is given without ranks"):
        layer.decode(x[:1], [8], caches, dcp=models.Dcp(cp.dcp_layout(1, 1, PAGE)))
    with pytest.raises(ValueError, match=r"tp is \(0, 3\), needs a rank below a number that divides 4 heads and 40"):
        models.dsa_layer(dims, tp=(0, 3))
    with pytest.raises(ValueError, match="o_proj is 'both'"):
        models.dsa_layer(dims, o_proj="both")
    with pytest.raises(ValueError, match="kv_lora is 256, needs 512"):
        models.layer_dims("v3.2", kv_lora=256)
    with pytest.raises(ValueError, match="topk is 0, needs at least 1"):
        models.layer_dims("v3.2", topk=0)
    with pytest.raises(ValueError, match=r"'v3\.1', needs 'v3\.2', 'glm-5', 'glm-5\.2': a DSA model"):
        models.layer_dims("v3.1")
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        models.dsa_layer(dims, dtype="float16")
    with pytest.raises(ValueError, match='kv_layout is "index_f32", needs a layout of 576 values'):
        models.PagedCaches(1, 2, kv_layout="index_f32")
