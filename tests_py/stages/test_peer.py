"""transformers (eager) beside our model: no stage differs; what is planted is named against it, too."""

import pytest

from sparsespan.verification import stages

pytestmark = pytest.mark.peer
# In its eyes there is no cache to read and no latent attention.
OURS_ALONE = {"kv_cache", "index_cache", "q_absorbed", "attention"}


@pytest.fixture(scope="module")
def peers(worlds):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {
        kind: stages.capture_transformers(world.path, world.prompts, world.decoded)
        for kind, world in vars(worlds).items()
    }
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["v32", "glm"])
@pytest.mark.parametrize("grid", ["one", "cp2", "dcp2"])
def test_no_stage_differs(worlds, peers, kind, grid):
    world = getattr(worlds, kind)
    report = stages.compare(peers[kind], world.capture(grid), world.facts)
    assert report.finding is None and report.ties == 0
    assert max(line.error for line in report.lines) < 5e-5  # float32; measured 1e-5
    seen = {line.stage for line in report.lines}
    assert seen == set(stages.STAGES) - OURS_ALONE


@pytest.mark.parametrize(
    ("kind", "name", "layer", "stage"),
    [
        ("v32", "index-pairs", 2, "index_k"),
        ("v32", "scale-of-576", 1, "lse"),
        ("v32", "merge-in-base-2", 0, "lse"),
        ("v32", "no-diagonal", 1, "indices"),
        ("glm", "k-pe-half-split", 1, "k_pe"),
        ("glm", "none-is-last", 3, "lse"),
        ("glm", "local-positions", 2, "k_pe"),
        ("glm", "lost-rank", 1, "lse"),
    ],
)
def test_planted_bugs_are_named(worlds, peers, kind, name, layer, stage):
    """Layer 3 of GLM has no indexer: it attends to the keys that layer 2 chose."""
    world, plant = getattr(worlds, kind), stages.PLANTS[name]
    with stages.planted(name, layer):
        ours = world.fresh(plant.grid)
    finding = stages.compare(peers[kind], ours, world.facts).finding
    assert (finding.stage, finding.layer, finding.bug) == (stage, layer, plant.bug)


def test_a_bug_in_transformers_is_named(worlds, peers, monkeypatch):
    """Its indexer with the pairs of MLA, as the first DeepSeek-V3.2-Exp release had them."""
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as module

    monkeypatch.setattr(module, "apply_rotary_pos_emb", module.apply_rotary_pos_emb_interleave)
    world = worlds.v32
    theirs = stages.capture_transformers(world.path, world.prompts, world.decoded)
    finding = stages.compare(world.capture("one"), theirs, world.facts).finding
    assert (finding.stage, finding.layer, finding.bug) == ("index_k", 0, "rope pairing")
