"""Checkpoints of make-tiny, in transformers and here: logits, 64 greedy tokens, the tokenizer."""

import numpy as np
import pytest

from sparsespan import models

pytestmark = pytest.mark.peer
# 32 indexer heads and more keys than topk; a text of unequal lengths.
TEXT = ("Sparse attention looks at a few of many keys. " * 8).encode()
LENGTHS = [150, 40, 97]
TOKENS = 64


@pytest.fixture(autouse=True)
def one_torch_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def smallest_gap(batch):
    """Smallest gap, over all rows, between the two best logits, relative to the row's spread."""
    gaps = []
    for logits in batch:
        best = np.sort(logits)[::-1]
        gaps.append((best[0] - best[1]) / (best[0] - best[-1]))
    return min(gaps)


@pytest.mark.parametrize("model", ["deepseek_v32", "glm_moe_dsa"])
def test_tiny_checkpoint_equals_transformers(tmp_path, model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = models.write_tiny(tmp_path / model, model)
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    ours = models.load(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert tokenizer(TEXT.decode())["input_ids"] == list(TEXT)
    assert tokenizer.decode(list(TEXT)) == TEXT.decode()
    prompts = [np.frombuffer(TEXT, np.uint8)[n : n + length].astype(np.int64) for n, length in enumerate(LENGTHS)]
    pool = ours.pool(1024)
    requests = [pool.open() for _ in prompts]
    got = ours.prefill(pool, requests, prompts, chunk=64)
    with torch.no_grad():
        want = np.stack([peer(torch.from_numpy(p)[None]).logits[0, -1].numpy() for p in prompts])
    spread = np.abs(want).max(axis=1, keepdims=True)
    # The target of the whole: float32, 1e-4 relative. Measured about 2e-6.
    np.testing.assert_allclose(got / spread, want / spread, rtol=0, atol=1e-4)
    greedy = []
    for p in prompts:
        ids = torch.from_numpy(p)[None]
        out = peer.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
            eos_token_id=None, pad_token_id=258, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        logits = torch.stack(out.logits)[:, 0].numpy()
        # A near tie at the argmax would make equality of tokens a matter of luck; this seed has none.
        assert smallest_gap(logits) > 1e-5
        greedy.append(out.sequences[0, len(p) :].tolist())
    assert ours.generate(prompts, TOKENS, stop_at_eos=False) == greedy


def test_a_checkpoint_saved_by_transformers_loads(tmp_path, rng):
    """Names, shapes and config spelling as transformers itself writes them; sharded, and in bfloat16."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.GlmMoeDsaConfig(
        **{k: v for k, v in models.tiny_config("glm_moe_dsa", num_hidden_layers=5).items() if k != "architectures"}
    )
    peer = transformers.GlmMoeDsaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    peer.save_pretrained(tmp_path / "x", max_shard_size="2MB")
    assert (tmp_path / "x" / "model.safetensors.index.json").exists()
    ours = models.load(tmp_path / "x", dtype="float32")
    assert ours.config.indexer_types == tuple(config.indexer_types)
    prompt = rng.integers(0, 256, 90)
    pool = ours.pool(128)
    got = ours.prefill(pool, [pool.open()], [prompt])[0]
    # Loaded anew: .to(bfloat16) has rounded the rope frequencies of the module above as well.
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "x", attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        want = peer(torch.from_numpy(prompt)[None]).logits[0, -1].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
