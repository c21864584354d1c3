"""The layer beside transformers' attention modules, on the same float32 weights."""

import numpy as np
import pytest
from layer_cases import cu, make_caches

from sparsespan import cp, models

pytestmark = pytest.mark.peer
LENGTHS = [40, 23]
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096,
    "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
SIZES = {
    "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "index_n_heads": 32,
    "index_topk": 8, "num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


def build(model):
    """Two decoder layers of the peer, eager, and ours with their weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(11)
    torch.set_num_threads(1)
    if model == "v3.2":
        config = transformers.DeepseekV32Config(**SIZES, qk_nope_head_dim=16, v_head_dim=24, rope_parameters=YARN)
        peer = transformers.DeepseekV32Model(config)
    else:
        rope = {"rope_type": "default", "rope_theta": 1e6}
        share = {"index_topk_freq": 2, "index_skip_topk_offset": 1}
        config = transformers.GlmMoeDsaConfig(
            **SIZES, qk_nope_head_dim=24, v_head_dim=16, rope_parameters=rope, **share
        )
        peer = transformers.GlmMoeDsaModel(config)
    peer.set_attn_implementation("eager")
    peer.eval()
    for name, parameter in peer.named_parameters():  # the default spread of 0.02 would leave attention uniform
        with torch.no_grad():
            parameter.normal_(
                1.0 if "norm" in name else 0.0, 0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            )
    dims = models.layer_dims(
        model, hidden=48, heads=4, q_lora=32, index_heads=32, topk=8, nope=config.qk_nope_head_dim,
        v_head=config.v_head_dim, eps=1e-5,
    )  # fmt: skip
    ours = []
    for i, layer in enumerate(peer.layers):
        tensors = {n: p.detach().numpy() for n, p in layer.named_parameters()}
        ours.append(models.dsa_layer(dims, index=i, tensors=tensors, norm_cast="before"))
    return torch, peer, ours


def attention_of(torch, peer, x, start, cache):
    """Both layers' attention with its norm and residual, without the MLPs; x [1, n, hidden] from position start."""
    n = x.shape[1]
    positions = torch.arange(start, start + n)[None]
    rope = peer.rotary_emb(x, positions)
    mask = torch.full((n, start + n), torch.finfo(torch.float32).min).triu(start + 1)[None, None]
    indices, picked = None, []
    for layer in peer.layers:
        kwargs = {} if "v32" in type(peer).__name__.lower() else {"prev_topk_indices": indices}
        out = layer.self_attn(
            layer.input_layernorm(x), position_embeddings=rope, attention_mask=mask, past_key_values=cache, **kwargs
        )
        x = x + out[0]
        indices = out[2] if len(out) > 2 else None
        picked.append(indices)
    return x, picked


@pytest.mark.parametrize("model", ["v3.2", "glm-5"])
def test_two_layers_equal_transformers(rng, model):
    torch, peer, ours = build(model)
    assert [layer.shared for layer in ours] == [False, model == "glm-5"]
    caches = make_caches(rng, LENGTHS, layers=2, index_layers=[layer.index for layer in ours if not layer.shared])
    table = caches.block_table
    requests = [rng.standard_normal((n, 48)).astype(np.float32) for n in LENGTHS]
    from transformers import DynamicCache

    peer_caches = [DynamicCache(config=peer.config) for _ in LENGTHS]
    prompt = [n - 2 for n in LENGTHS]
    with torch.no_grad():
        want = [
            [attention_of(torch, peer, torch.from_numpy(r[None, :p]), 0, c)[0][0].numpy()]
            for r, p, c in zip(requests, prompt, peer_caches)
        ]
        for step in range(2):
            for b, p in enumerate(prompt):
                x = torch.from_numpy(requests[b][None, p + step : p + step + 1])
                want[b].append(attention_of(torch, peer, x, p + step, peer_caches[b])[0][0].numpy())
    x, indices = np.concatenate([r[:p] for r, p in zip(requests, prompt)]), None
    plan = cp.split_plan("contiguous", cu(prompt), None, 1)
    for layer in ours:
        x, indices = layer.prefill(x, plan, caches, indices=indices)
    got = [[part] for part in np.split(x, cu(prompt)[1:-1])]
    caches.block_table = table
    for step in range(2):
        x, indices = np.stack([r[p + step] for r, p in zip(requests, prompt)]), None
        for layer in ours:
            x, indices = layer.decode(x, np.array(prompt) + step + 1, caches, indices=indices)
        for b in range(2):
            got[b].append(x[b : b + 1])
    for b in range(2):
        g, w = np.concatenate(got[b]), np.concatenate(want[b])
        # float32 sums in other orders; a selection that differed would show as a difference of order one.
        np.testing.assert_allclose(g, w, rtol=0, atol=2e-5 * np.abs(w).max())
