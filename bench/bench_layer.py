"""The DSA ops of one layer of DeepSeek-V3.2, prefill of S = 3072, beside transformers' attention of the same layer.

The peer is the library's own attention module with random weights, eager; the time of its linear layers is taken
out by hooks around them. Ours are the ops that stand in their place: RoPE, Hadamard, quantisation, cache writes,
select for the rows that see more than 2048 keys, and sparse attention on expanded heads (sparse_mha), which at this
length takes a third of the absorbed form's flops. What expands keys and values are linear layers, on both sides.

One eager forward takes some 15 s on two cores without AMX: its 128 heads make 1.2 G scores, which it writes and reads
about eight times (product, mask, float32 softmax, back to bfloat16). So there are three turns; sdpa, which takes as
long on a CPU with this mask, is in bench_transformers.py alone.
"""

from __future__ import annotations

import importlib.util
import time

import numpy as np
from peers import BF16, torch_or_none
from session import SESSION
from timing import Took, compare

from sparsespan import attention, indexer, quant, transform

LENGTH, TOPK, HEADS, INDEX_HEADS, PAGE = 3072, 2048, 128, 64, 64


def _peer(torch, kind: str):
    """Seconds of one forward of the attention module without its linear layers."""
    from transformers.models.deepseek_v32.configuration_deepseek_v32 import DeepseekV32Config
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention, DeepseekV32RotaryEmbedding

    config = DeepseekV32Config(attn_implementation=kind)
    torch.manual_seed(0)
    with torch.device("meta"):
        module = DeepseekV32Attention(config, 0).eval()
    module = module.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    hidden = torch.randn(1, LENGTH, config.hidden_size, dtype=torch.bfloat16)
    cos_sin = DeepseekV32RotaryEmbedding(config)(hidden, torch.arange(LENGTH)[None])
    mask = torch.full((LENGTH, LENGTH), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16).triu(1)[None, None]
    spent, began = [0.0], [0.0]
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.perf_counter()))
            layer.register_forward_hook(lambda *_: spent.__setitem__(0, spent[0] + time.perf_counter() - began[0]))

    @torch.no_grad()
    def run():
        spent[0] = 0.0
        start = time.perf_counter()
        module(hidden, cos_sin, mask)
        return Took(time.perf_counter() - start - spent[0])

    return run


def _ours():
    rng = np.random.default_rng(0)

    def noise(*shape):  # a row's worth of neighbours laid end to end: drawing 200 M numbers takes seconds
        few = rng.standard_normal((257, *shape[1:]), dtype=np.float32).astype(BF16)
        return np.concatenate([few] * (shape[0] // len(few) + 1))[: shape[0]]

    q_rope, k_rope = noise(LENGTH, HEADS, 64), noise(LENGTH, 1, 64)
    c_kv, index_q, index_k = noise(LENGTH, 512), noise(LENGTH, INDEX_HEADS, 128), noise(LENGTH, 128)
    weights = rng.standard_normal((LENGTH, INDEX_HEADS), dtype=np.float32)
    positions, table = np.arange(LENGTH), transform.yarn_cos_sin(LENGTH, factor=40)
    ks, ke = np.zeros(LENGTH - TOPK, np.int32), np.arange(TOPK + 1, LENGTH + 1, dtype=np.int32)
    kv = np.zeros((LENGTH // PAGE, PAGE, 576), BF16)
    q_nope, k_nope, v = (noise(LENGTH, HEADS, 128) for _ in range(3))
    columns = np.arange(TOPK, dtype=np.int32)
    few = np.where(columns <= columns[:, None], columns, -1)  # rows that see no more keys than they may take

    def run():
        q_pe = transform.apply_rope(q_rope, positions, table, True)
        k_pe = transform.apply_rope(k_rope, positions, table, True)
        quant.concat_and_cache_mla(c_kv, k_pe[:, 0], kv, positions, "bf16_576", PAGE)
        q8, q_scale = quant.act_quant(transform.hadamard_transform(index_q[TOPK:], 128**-0.5), scale_fmt="ue8m0")
        k8, k_scale = quant.act_quant(transform.hadamard_transform(index_k, 128**-0.5), scale_fmt="ue8m0")
        scaled = weights[TOPK:] * q_scale[..., 0]
        chosen = indexer.select(q8, k8, scaled, ks, ke, k_scale[:, 0], TOPK)
        q = np.concatenate([q_nope, q_pe], axis=2)
        k = np.concatenate([k_nope, np.broadcast_to(k_pe, (LENGTH, HEADS, 64))], axis=2)
        attention.sparse_mha(q, k, v, np.concatenate([few, chosen]), 192**-0.5)

    return run


def rows(quick: bool):
    if quick:
        return
    torch = torch_or_none()
    if torch is None or importlib.util.find_spec("transformers") is None:
        SESSION.note("transformers: not installed, one layer was skipped")
        return
    scores = float(np.arange(TOPK + 1, LENGTH + 1).sum())
    taken = TOPK * (TOPK + 1) / 2 + (LENGTH - TOPK) * TOPK
    flops = 2.0 * HEADS * taken * 320 + 2 * scores * INDEX_HEADS * 128
    ours = _ours()
    try:
        peers = {"transformers eager": _peer(torch, "eager")}
    except ImportError as failure:
        SESSION.note(f"transformers: has no DeepSeek-V3.2 ({failure}), one layer was skipped")
        return
    yield from compare(
        "DSA ops of one layer", f"V3.2 S={LENGTH} prefill", ours, peers, flops=flops, turns=3, seconds=75.0,
        levels=[SESSION.top()],
    )  # fmt: skip
