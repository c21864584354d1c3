"""Looking at a model's values: every value is shown with its rows, and looking changes nothing."""

from sparsespan import models

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 2, "first_k_dense_replace": 1}
SHARED = {"indexer_types": ["full", "shared"]}
ALL = {
    "layer_in", "input_norm", "q_latent", "kv_latent", "k_pe", "q_nope", "q_pe", "q_absorbed", "indices", "attention",
    "lse", "heads", "o_proj", "mlp_norm", "mlp_out", "layer_out",
}  # fmt: skip
INDEXER, ROUTER = {"index_k", "index_q", "index_weights"}, {"router_logits", "router", "router_weights"}


def test_a_tap_sees_all_and_changes_nothing(tmp_path, rng):
    model = models.load(models.write_tiny(tmp_path / "m", "glm_moe_dsa", **SMALL, **SHARED))
    prompts = [rng.integers(0, 256, n) for n in (20, 3)]

    def run():
        pool = model.pool(256)
        requests = [pool.open() for _ in prompts]
        return model.prefill(pool, requests, prompts).tobytes() + model.decode(pool, requests, [1, 2]).tobytes()

    seen = {}

    def see(layer, positions, requests, values):
        for name, value in values.items():
            assert len(value) == len(positions) == len(requests)
            seen.setdefault((name, layer), []).append((positions.tolist(), requests.tolist()))

    want = run()
    with models.Tap(see):
        assert run() == want
    assert {name for name, layer in seen if layer == 0} == ALL | INDEXER
    assert {name for name, layer in seen if layer == 1} == ALL | ROUTER
    prefill, decode = seen["k_pe", 1]
    assert prefill == ([*range(20), *range(3)], [0] * 20 + [1] * 3) and decode == ([20, 3], [0, 1])
    before = len(seen["k_pe", 1])
    run()
    assert len(seen["k_pe", 1]) == before
