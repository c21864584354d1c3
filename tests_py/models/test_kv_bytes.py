"""Bytes of a token in the caches: what the engines' logs say of the real models.

48,068 B for V3.2: sglang pull request 11309, "975,424 tokens, 43.67 GB". 54,728 B for GLM-5.2 with its MTP layer:
vLLM's log line in local-inference-lab/vllm pull request 82.
"""

import pytest

from sparsespan import models
from sparsespan.models import PagedCaches, parse_config, tiny_config

FP8 = {"kv_layout": "fp8_656", "index_layout": "index_132"}
# All that a cache depends on is as in the real models: layers, which of them have an indexer, 512 + 64, 128.
NARROW = {
    "hidden_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": 8, "index_n_heads": 1,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "intermediate_size": 8, "moe_intermediate_size": 8,
}  # fmt: skip


def test_v32(tmp_path):
    path = models.write_tiny(tmp_path / "v32", "deepseek_v32", num_hidden_layers=61, **NARROW)
    pool = models.load(path).pool(128, **FP8)
    assert pool.caches.bytes_per_token == 48_068
    assert pool.caches.nbytes == 128 * 48_068
    assert repr(pool) == "<KvPool 0 of 2 pages used by 0 requests, 48,068 bytes a token>"
    # The log's own figures, in GiB: 975,424 tokens; and 1,462,784 when the index keys were not counted yet.
    assert 975_424 * pool.caches.bytes_per_token / 2**30 == pytest.approx(43.67, abs=0.005)
    without = PagedCaches(61, 1, index_layers=[])
    assert 1_462_784 * without.bytes_per_token / 2**30 == pytest.approx(54.52, abs=0.01)


def test_glm_with_mtp(tmp_path):
    config = parse_config(tiny_config("glm_moe_dsa", num_hidden_layers=78))
    assert len(config.index_layers) == 21
    mtp = config.num_hidden_layers  # the draft layer comes behind the others and has an indexer of its own
    caches = PagedCaches(mtp + 1, 1, index_layers=(*config.index_layers, mtp), **FP8)
    assert caches.bytes_per_token == 54_728 and caches.nbytes == 64 * 54_728
    path = models.write_tiny(tmp_path / "glm", "glm_moe_dsa", num_hidden_layers=78, **NARROW)
    pool = models.load(path).pool(64, **FP8)
    assert pool.caches.bytes_per_token == 54_728 - 656 - 132
