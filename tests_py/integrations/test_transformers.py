"""transformers models with our attention give what they give with their own."""

import os

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
]

TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "index_topk": 8,
    "index_head_dim": 32,
    "index_n_heads": 32,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 256,
    "pad_token_id": None,  # its embedding would be zero, and with it all scores of that token's row: ties
    "bos_token_id": 1,
    "eos_token_id": None,
}


def make(family):
    from sparsespan.integrations.transformers import register

    register()
    if family == "deepseek_v32":
        from transformers import DeepseekV32Config as Config
        from transformers import DeepseekV32ForCausalLM as Model

        more = {}
    else:
        from transformers import GlmMoeDsaConfig as Config
        from transformers import GlmMoeDsaForCausalLM as Model

        more = {"indexer_types": ["full", "shared", "full", "shared"]}
    torch.manual_seed(5)
    # The default of 0.02 leaves activations so small that scores nearly tie.
    model = Model(Config(**TINY, **more, initializer_range=0.15)).eval()
    return model


@pytest.fixture(params=["deepseek_v32", "glm_moe_dsa"])
def model(request):
    return make(request.param)


def logits(model, name, **inputs):
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(**inputs).logits


def close(ours, theirs):
    # Both sum in float32, in another order: 1e-5 of the largest logit.
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("length", [5, 8, 61])
def test_prefill_gives_the_logits_of_eager(model, length):
    ids = torch.randint(2, 97, (2, length))
    close(logits(model, "sparsespan", input_ids=ids), logits(model, "eager", input_ids=ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_unequal_lengths(model, side):
    ids = torch.randint(2, 97, (3, 40))
    real = torch.ones_like(ids)
    for b, pads in enumerate([0, 7, 23]):
        real[b, slice(0, pads) if side == "left" else slice(40 - pads, 40)] = 0
    ours = logits(model, "sparsespan", input_ids=ids, attention_mask=real)
    theirs = logits(model, "eager", input_ids=ids, attention_mask=real)
    close(ours[real.bool()], theirs[real.bool()])


def test_a_mask_with_holes(model):
    ids = torch.randint(2, 97, (2, 40))
    real = torch.ones_like(ids)
    real[0, 11:15] = 0
    real[1, 30] = 0
    ours = logits(model, "sparsespan", input_ids=ids, attention_mask=real)
    theirs = logits(model, "eager", input_ids=ids, attention_mask=real)
    close(ours[real.bool()], theirs[real.bool()])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_gives_the_tokens_of_eager(model, cache):
    ids = torch.randint(2, 97, (2, 19))
    real = torch.ones_like(ids)
    real[1, :6] = 0
    told = {"input_ids": ids, "attention_mask": real, "max_new_tokens": 24, "do_sample": False}
    told |= {"output_logits": True, "return_dict_in_generate": True, "cache_implementation": cache}
    made = {}
    for name in ("eager", "sparsespan"):
        model.set_attn_implementation(name)
        made[name] = model.generate(**told, disable_compile=True)
    assert made["sparsespan"].sequences.tolist() == made["eager"].sequences.tolist()
    for ours, theirs in zip(made["sparsespan"].logits, made["eager"].logits, strict=True):
        close(ours, theirs)


def test_scores_are_never_written_out(model):
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as theirs

    seen = []
    real = theirs.F.relu
    try:
        theirs.F.relu = lambda x: seen.append(x.shape) or real(x)
        logits(model, "sparsespan", input_ids=torch.randint(2, 97, (1, 20)))
    finally:
        theirs.F.relu = real
    assert seen == []


def test_bfloat16_stays_bfloat16(model, monkeypatch):
    """transformers' indexer widens its queries and keys; ours and attention take them as they are."""
    from sparsespan.integrations import transformers as ours

    dtypes = {}
    for name in ("select", "sparse_mha"):
        real = getattr(ours.ops, name)

        def look(*given, name=name, real=real):
            dtypes[name] = [x.dtype for x in given[:3]]
            return real(*given)

        monkeypatch.setattr(ours.ops, name, look)
    ids = torch.randint(2, 97, (1, 20))
    got = logits(model.to(torch.bfloat16), "sparsespan", input_ids=ids)
    assert dtypes["select"] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert dtypes["sparse_mha"] == [torch.bfloat16] * 3
    assert got.isfinite().all()


def test_the_mask_is_one_range_per_row():
    from sparsespan.integrations.transformers import mask

    padding = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    ranges = mask(3, 2, 5, q_offset=3, attention_mask=padding)
    assert ranges.dtype == torch.int32
    assert ranges[:, 0].tolist() == [[[0, 4], [0, 5]], [[2, 4], [2, 5]], [[0, 3], [0, 3]]]
    holes = mask(1, 2, 5, q_offset=3, attention_mask=torch.tensor([[1, 0, 1, 1, 1]]))
    assert holes.dtype == torch.bool
    assert holes[0, 0].tolist() == [[True, False, True, True, False], [True, False, True, True, True]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indices": None}, "needs indices from an indexer"),
        ({"dropout": 0.1}, "no dropout"),
        ({"scaling": None}, "needs scaling"),
    ],
)
def test_refusals(change, words):
    from sparsespan.integrations.transformers import attention

    x = torch.zeros(1, 2, 3, 8)
    told = {"scaling": 1.0, "indices": torch.zeros(1, 3, 1, dtype=torch.int32)} | change
    with pytest.raises(ValueError, match=words):
        attention(None, x, x, x, None, **told)


def test_picks_outside_of_the_mask_are_left_out(rng):
    from sparsespan.integrations.transformers import attention

    torch.manual_seed(1)
    q, k, v = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 4)
    picks = torch.tensor([[[0, 3, 5], [1, 4, -1], [5, 2, 0]]], dtype=torch.int32)
    seen = torch.tensor([[[[0, 3], [1, 4], [2, 6]]]], dtype=torch.int32)
    dense = torch.zeros(1, 1, 3, 6, dtype=torch.bool)
    for row, (first, end) in enumerate(seen[0, 0].tolist()):
        dense[0, 0, row, first:end] = True
    ours, _ = attention(None, q, k, v, seen, scaling=0.3, indices=picks)
    assert torch.equal(ours, attention(None, q, k, v, dense, scaling=0.3, indices=picks)[0])
    kept = torch.zeros(1, 1, 3, 6, dtype=torch.bool)
    for row, keys in enumerate([[0], [1], [5, 2]]):
        kept[0, 0, row, keys] = True
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, kept, scale=0.3)
    assert torch.allclose(ours.transpose(1, 2), exact, atol=1e-6)
