"""A whole model: batches, chunks and pages change no bit; pools, prompts and sampling; the router."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import PAGE

from sparsespan import models
from sparsespan.models import KvPool, PagedCaches, PoolFull, route, sample, write_tiny

SMALL = {"index_topk": 16, "n_routed_experts": 4, "vocab_size": 272}
V32 = {**SMALL, "num_hidden_layers": 3, "n_group": 2, "topk_group": 1}
GLM = {**SMALL, "num_hidden_layers": 4, "indexer_types": ["full", "shared", "full", "shared"]}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {
        "v32": write_tiny(folder / "v32", "deepseek_v32", **V32),
        "glm": write_tiny(folder / "glm", "glm_moe_dsa", dtype="bfloat16", **GLM),
        "fp8": write_tiny(folder / "fp8", "deepseek_v32", dtype="float8", **V32),
        "f16": write_tiny(folder / "f16", "deepseek_v32", dtype="float16", tie_word_embeddings=True, **V32),
    }
    return {name: models.load(path) for name, path in paths.items()}


def prompts(rng, lengths):
    return [rng.integers(0, 256, n) for n in lengths]


@pytest.mark.parametrize("name", ["v32", "glm", "fp8", "f16"])
def test_batch_chunks_and_pages_change_no_bit(loaded, rng, name):
    """Logits and tokens of a prompt alone, in a batch, in chunks, with other pages."""
    model = loaded[name]
    batch = prompts(rng, [50, 3, 27])
    pool = model.pool(400, page_size=PAGE)
    requests = [pool.open() for _ in batch]
    together = model.prefill(pool, requests, batch)
    chunked_pool = model.pool(400, page_size=7)
    chunked = model.prefill(chunked_pool, [chunked_pool.open() for _ in batch], batch, chunk=11)
    assert chunked.tobytes() == together.tobytes()
    tokens = model.generate(batch, 6, stop_at_eos=False)
    for b, prompt in enumerate(batch):
        single = model.pool(64)
        assert model.prefill(single, [single.open()], [prompt])[0].tobytes() == together[b].tobytes()
        assert model.generate([prompt], 6, stop_at_eos=False)[0] == tokens[b]
    # A decode step is a prefill of one token.
    step = model.decode(pool, requests, [t[0] for t in tokens])
    longer = [np.append(prompt, t[0]) for prompt, t in zip(batch, tokens)]
    again = model.pool(400)
    assert model.prefill(again, [again.open() for _ in batch], longer).tobytes() == step.tobytes()


def test_fp8_caches_on_a_bfloat16_model(loaded, rng):
    model = loaded["glm"]
    pool = model.pool(256, kv_layout="fp8_656", index_layout="index_132")
    assert pool.caches.bytes_per_token == 4 * 656 + 2 * 132
    tokens = model.generate(prompts(rng, [60]), 4, pool=pool, stop_at_eos=False)
    assert len(tokens[0]) == 4 and pool.free_pages == pool.pages


def test_published_kv_bytes():
    """61 x (656 + 132) for V3.2; 79 x 656 + 22 x 132 for GLM-5.2 with its draft layer."""
    assert PagedCaches(61, 1).bytes_per_token == 48068
    full = [0, 1, 2, *range(6, 75, 4), 78]
    assert PagedCaches(79, 1, index_layers=full).bytes_per_token == 54728


def test_kv_is_what_was_asked_for_and_given_back(loaded, rng):
    model = loaded["v32"]
    pool = model.pool(40, page_size=8)
    a, b = pool.open(), pool.open()
    model.prefill(pool, [a], prompts(rng, [17]))
    before = {layer: cache.copy() for layer, cache in pool.caches.kv.items()}
    with pytest.raises(
        PoolFull, match=r"25 more tokens of 2 requests need 4 pages of 8 tokens, 2 of 5 are free; nothing"
    ):
        model.prefill(pool, [a, b], prompts(rng, [8, 17]))
    assert (pool.free_pages, pool.length(a), pool.length(b)) == (2, 17, 0)
    assert all(before[layer].tobytes() == cache.tobytes() for layer, cache in pool.caches.kv.items())
    model.prefill(pool, [a, b], prompts(rng, [7, 16]))
    assert (pool.free_pages, pool.length(a)) == (0, 24)
    with pytest.raises(PoolFull, match="1 more tokens of 1 requests need 1 pages"):
        model.decode(pool, [b], [3])
    pool.close(a)
    model.decode(pool, [b], [3])
    assert pool.length(b) == 17 and pool.free_pages == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=40))
def test_no_page_is_handed_out_twice(steps):
    pool = KvPool(PagedCaches(0, 12, 4), 12)
    live = []
    for what, n in steps:
        if what == 0:
            live.append(pool.open())
        elif what == 1 and live:
            pool.close(live.pop(n % len(live)))
        elif live:
            request = live[n % len(live)]
            try:
                pool.reserve([request], [n])
                pool.advance([request], [n])
            except PoolFull:
                pass
        table = pool.table(live)
        used = table[table >= 0]
        assert len(set(used.tolist())) == len(used) == pool.pages - pool.free_pages
        assert all(len(row[row >= 0]) * 4 >= n for row, n in zip(table, pool.lengths(live)))


def test_refusals(loaded, rng):
    model = loaded["v32"]
    pool = model.pool(64)
    request = pool.open()
    for call, words in (
        (lambda: model.prefill(pool, [request], [[]]), "request 0: the prompt is empty"),
        (lambda: model.prefill(pool, [request], [[5, 272]]), "token ids lie in 5 to 272, needs 0 to 271"),
        (lambda: model.prefill(pool, [request], [[-1]]), "token ids lie in -1 to -1"),
        (
            lambda: model.prefill(pool, [request], [np.zeros(163841, int)]),
            "needs at most max_position_embeddings = 163840",
        ),
        (lambda: model.prefill(pool, [request, request], [[1], [2]]), "name one twice"),
        (lambda: model.prefill(pool, [request], [[1], [2]]), "2 prompts for 1 requests"),
        (lambda: model.prefill(pool, [7], [[1]]), r"request 7 is not open; open are \[0\]"),
        (lambda: model.prefill(pool, [request], [[1]], chunk=-1), "chunk is -1"),
        (lambda: model.decode(pool, [request], [1, 2]), "2 tokens for 1 requests"),
        (lambda: model.generate([[1]], 0), "max_new_tokens is 0"),
        (lambda: model.pool(0), "tokens is 0"),
        (lambda: models.load("nowhere"), "nowhere: is no folder"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert pool.length(request) == 0


def test_generation_stops_at_eos(loaded, rng):
    model = loaded["v32"]
    prompt = prompts(rng, [9])
    tokens = model.generate(prompt, 8, stop_at_eos=False)[0]
    seen = []
    stopping = models.Model.__new__(models.Model)
    stopping.__dict__.update(model.__dict__)
    from dataclasses import replace

    stopping.config = replace(model.config, eos_token_ids=(tokens[2],))
    got = stopping.generate(prompt, 8, on_token=lambda b, token: seen.append((b, token)))[0]
    assert got == tokens[: tokens.index(tokens[2]) + 1] == [token for _, token in seen]


def test_sampling(loaded, rng):
    model = loaded["v32"]
    batch = prompts(rng, [9, 4])
    drawn = model.generate(batch, 6, temperature=1.0, seed=3, stop_at_eos=False)
    assert drawn == model.generate(batch, 6, temperature=1.0, seed=3, stop_at_eos=False)
    assert drawn != model.generate(batch, 6, temperature=1.0, seed=4, stop_at_eos=False)
    assert drawn[0] == model.generate(batch[:1], 6, temperature=1.0, seed=3, stop_at_eos=False)[0]
    logits = np.log(np.array([[0.5, 0.3, 0.2, 0.0001]], np.float32))
    counts = np.bincount([sample(logits, 1.0, 0, [(0, n)])[0] for n in range(4000)], minlength=4)
    # 4000 draws: standard deviation of a frequency below 0.008, bound at four of them.
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.2, 0.0], atol=0.032)
    assert sample(np.array([[1, 5, 5]], np.float32)) == [1]
    with pytest.raises(ValueError, match=r"temperature is -1"):
        sample(logits, -1.0)
    with pytest.raises(ValueError, match="row 0 of logits holds NaN"):
        sample(logits * np.nan)


def test_route_by_hand():
    """Two groups of two; the bias moves the choice and not the weights."""
    logits = np.array([[2.0, 1.0, 1.5, 1.4]], np.float32)
    options = {"groups": 2, "keep_groups": 1, "experts": 2, "normalise": False, "scale": 1.0}
    chosen, weights = route(logits, np.zeros(4, np.float32), **options)
    # sigmoid: 0.881 + 0.731 against 0.818 + 0.802
    assert chosen.tolist() == [[2, 3]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, 2:])), rtol=1e-6)
    chosen, weights = route(logits, np.array([0, 0.1, 0, 0], np.float32), **options)
    assert chosen.tolist() == [[0, 1]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp(-logits[:, :2])), rtol=1e-6)
    tied, weights = route(np.zeros((1, 6), np.float32), np.zeros(6, np.float32), groups=1, keep_groups=1, experts=3,
                          normalise=True, scale=2.5)  # fmt: skip
    assert tied.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(weights, 2.5 / 3, rtol=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("groups, keep", [(1, 1), (4, 2)])
def test_route_equals_transformers(rng, groups, keep):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32TopkRouter

    config = transformers.DeepseekV32Config(
        n_routed_experts=16, n_group=groups, topk_group=keep, num_experts_per_tok=4, hidden_size=8, num_hidden_layers=4
    )
    router = DeepseekV32TopkRouter(config)
    with torch.no_grad():
        router.weight.normal_()
        router.e_score_correction_bias.normal_(0, 0.3)
        x = torch.randn(200, 8)
        logits, want_weights, want = router(x)
    chosen, weights = route(
        logits.numpy(), router.e_score_correction_bias.numpy(), groups=groups, keep_groups=keep, experts=4,
        normalise=True, scale=2.5,
    )  # fmt: skip
    order = want.argsort(-1)
    np.testing.assert_array_equal(chosen, want.gather(1, order).numpy())
    np.testing.assert_allclose(weights, want_weights.gather(1, order).numpy(), rtol=1e-5)
