"""config.json: the published fields, both spellings, refusals by name."""

import pytest

from sparsespan.models import CheckpointError, parse_config, tiny_config

# The published config.json of DeepSeek-V3.2, as far as it is read.
V32 = {
    "model_type": "deepseek_v32", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "index_n_heads": 64, "index_head_dim": 128,
    "index_topk": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3,
    "moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hidden_act": "silu",
    "rms_norm_eps": 1e-06, "rope_theta": 10000, "max_position_embeddings": 163840, "vocab_size": 129280,
    "tie_word_embeddings": False, "attention_bias": False, "torch_dtype": "bfloat16", "eos_token_id": 1,
    "rope_scaling": {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    },
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "scale_fmt": "ue8m0",
        "activation_scheme": "dynamic",
    },
}  # fmt: skip


def test_published_v32():
    from sparsespan.models import expected_tensors, layer_dims

    config = parse_config(V32)
    assert config.dims == layer_dims("v3.2")
    assert (config.dtype, config.quantized, config.eos_token_ids) == ("bfloat16", True, (1,))
    assert config.indexer_types == ("full",) * 61
    assert config.mlp_layer_types == ("dense",) * 3 + ("sparse",) * 58
    names = expected_tensors(config)
    # 3 of the embedding, norm and head; 14 of a layer beside its MLP; 3 dense or 2 + 257 * 3.
    assert len(names) == 3 + 61 * 14 + 3 * 3 + 58 * (2 + 257 * 3)
    parameters = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in names.values())
    assert round(parameters / 1e9) == 672  # 671 billion of DeepSeek-V3, and the indexers
    assert names["model.layers.60.self_attn.indexer.wq_b.weight"] == (8192, 1536)


def test_both_spellings_of_rope():
    new = {k: v for k, v in V32.items() if k not in ("rope_theta", "rope_scaling")}
    rope = {k: v for k, v in V32["rope_scaling"].items() if k != "type"}
    assert parse_config(new | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **rope}}).dims == (
        parse_config(V32).dims
    )
    plain = parse_config(new | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}).dims
    assert (plain.theta, plain.yarn_factor) == (5e5, 1.0)
    both = {"mscale", "mscale_all_dim"}
    bare = parse_config(V32 | {"rope_scaling": {k: v for k, v in V32["rope_scaling"].items() if k not in both}}).dims
    # transformers then puts the factor on cos and sin, and none on the softmax scale
    assert (bare.mscale, bare.mscale_all_dim, bare.sm_scale) == (1.0, 0.0, pytest.approx(192**-0.5, rel=1e-14))


def test_index_share_of_glm():
    config = parse_config(tiny_config("glm_moe_dsa"))
    assert "".join(kind[0] for kind in config.indexer_types) == "fffsssfs"
    assert (
        config.dims.index_rope_interleaved and not parse_config(tiny_config("deepseek_v32")).dims.index_rope_interleaved
    )
    explicit = parse_config(tiny_config("glm_moe_dsa", num_hidden_layers=2, indexer_types=["full", "shared"]))
    assert explicit.indexer_types == ("full", "shared")


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 9}
REFUSALS = [
    ({"model_type": "llama"}, "model_type is 'llama', needs one of deepseek_v32, glm_moe_dsa"),
    ({"model_type": None}, "model_type is missing"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
    ({"topk_method": "greedy"}, "topk_method is 'greedy'"),
    ({"hidden_size": "big"}, "hidden_size is 'big', needs a whole number from 1"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"rms_norm_eps": None}, "rms_norm_eps is missing, needs a finite number"),
    ({"kv_lora_rank": 256}, "kv_lora is 256, needs 512"),
    ({"norm_topk_prob": 1}, "norm_topk_prob is 1, needs true or false"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
    ({"rope_parameters": [1]}, "rope_parameters is"),
    ({"rope_parameters": YARN | {"original_max_position_embeddings": 1.5}}, r"is 1\.5, needs"),
    ({"rope_parameters": YARN | {"truncate": False}}, "truncate = False"),
    ({"rope_parameters": YARN | {"mscale_all_dim": 1.0}}, "mscale_all_dim without mscale"),
    ({"quantization_config": {"quant_method": "awq"}}, "quant_method 'awq'"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}, r"weight_block_size \[64, 64\]"),
    ({"quantization_config": 3}, "quantization_config is 3"),
    ({"mlp_layer_types": ["dense"]}, "mlp_layer_types needs 6 entries"),
    ({"n_group": 3}, "8 experts in 3 groups"),
    ({"topk_group": 5}, "of which 5 are kept"),
    ({"num_experts_per_tok": 5}, "cannot give 5 a token"),
    ({"index_topk": 0}, "index_topk is 0"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", REFUSALS)
def test_refusals(change, words):
    with pytest.raises(CheckpointError, match=words):
        parse_config(tiny_config("deepseek_v32", **change))


def test_refusals_of_glm_and_of_no_object():
    with pytest.raises(CheckpointError, match="first layer is shared"):
        parse_config(tiny_config("glm_moe_dsa", num_hidden_layers=1, indexer_types=["shared"]))
    with pytest.raises(CheckpointError, match="is no JSON object"):
        parse_config([1])
