"""Bugs of all seven classes, planted in the running model: each is named with its stage, layer and first token."""

import pytest

from sparsespan.verification import stages

# (request, position) of the first row in which the bug can show. Prompts have 41, 23 and 7 tokens. At position 0 no
# angle is turned, and one key alone has weight 1 under any scale and merge; padding shows from row 0 on. Two ranks in
# zigzag: blocks of 11, 10, 10, 10 tokens. In a flat split of 71 rows rank 1 begins with row 36. None: it depends on
# which rows choose their own key.
FIRST = {
    "k-pe-half-split": (0, 1), "index-pairs": (0, 1), "q-pe-sign": (0, 1), "scale-of-576": (0, 1), "no-mscale": (0, 1),
    "scale-twice": (0, 1), "index-weights": (0, 0), "fp8-divides": (0, 0), "lse-in-base-2": (0, 0),
    "merge-in-base-2": (0, 1), "merge-as-natural": (0, 1), "zero-for-none": (0, 0), "none-is-last": (0, 0),
    "no-diagonal": (0, 0), "future-key": (0, 0), "decode-length": None, "decode-position": (0, 41),
    "one-key-less": (0, 0), "local-positions": (0, 11), "wrong-block": (0, 21), "not-restored": (0, 1),
    "local-lengths": (0, 36), "local-index": (0, 1), "other-interleave": (0, 1), "lost-rank": (0, 1),
}  # fmt: skip
WORDS = {
    "k-pe-half-split": "pairs are half-split", "q-pe-sign": "sign of sin", "scale-of-576": "576^-0.5: that of the",
    "no-mscale": "lacks YaRN's mscale^2",
    "scale-twice": "is applied twice", "index-weights": "Hi^-0.5 = 32^-0.5 is not applied",
    "fp8-divides": "the fp8 scale divides where it should multiply", "lse-in-base-2": "lse is in base 2",
    "merge-in-base-2": "merged by 2^lse, their lse is natural (N = 2, S = 1)",
    "merge-as-natural": "merged by e^lse, their lse is in base 2 (N = 4, S = 1)",
    "zero-for-none": "key 0 stands in rows that see too few keys, for every -1",
    "none-is-last": "the last key in the cache is attended for every -1", "no-diagonal": "does not see its own key",
    "future-key": "sees the key behind it", "decode-length": "does not see its own key",
    "decode-position": "positions are one too large", "one-key-less": "their number is one too small",
    "local-positions": "a row's place on its rank is taken for its position (zigzag, 2 ranks)",
    "wrong-block": "block 2 has those of block 1", "not-restored": "not put back in order (interleave, 4 ranks)",
    "local-lengths": "place on its rank is taken for its position (contiguous_flat, 2 ranks)",
    "local-index": "local index kept, N = 2, S = 1", "other-interleave": "interleave 1, read with 4, N = 2",
    "lost-rank": "keys of rank 1 are missing (N = 4, S = 1)",
}  # fmt: skip
GLM = [
    "index-pairs", "scale-of-576", "fp8-divides", "merge-as-natural", "zero-for-none", "decode-length",
    "local-positions", "local-index", "other-interleave",
]  # fmt: skip


def found(world, name, layer):
    plant = stages.PLANTS[name]
    with stages.planted(name, layer):
        theirs = world.fresh(plant.grid)
    return plant, stages.compare(world.capture(plant.against), theirs, world.facts).finding


def test_every_class_is_planted_at_least_twice():
    assert set(FIRST) == set(stages.PLANTS)
    classes = [plant.bug for plant in stages.PLANTS.values()]
    assert set(classes) == set(stages.CLASSES) and all(classes.count(bug) >= 2 for bug in stages.CLASSES)


@pytest.mark.parametrize(
    ("kind", "name", "layer"), [*(("v32", n, 2) for n in FIRST), *(("glm", n, 1) for n in GLM),
                                *(("v32", n, 0) for n in ("k-pe-half-split", "no-diagonal", "lost-rank"))]
)  # fmt: skip
def test_planted_bugs_are_named(worlds, kind, name, layer):
    plant, finding = found(getattr(worlds, kind), name, layer)
    assert (finding.stage, finding.layer, finding.bug) == (plant.stage, layer, plant.bug)
    if FIRST[name] is not None:
        assert (finding.request, finding.position) == FIRST[name]
    prompt = getattr(worlds, kind).prompts[finding.request]
    if finding.position < len(prompt):
        assert finding.token == prompt[finding.position]
    best = finding.verdicts[0]
    assert best.sure == "certain" and best.explained == best.of and best.spared == 0
    if kind == "v32" and name in WORDS:
        assert WORDS[name] in best.words


def test_scopes_are_told(worlds):
    """Decode only; one rank only."""
    _, finding = found(worlds.v32, "decode-position", 1)
    assert finding.where == "decode rows only"
    _, finding = found(worlds.v32, "local-lengths", 1)
    assert "prefill rows only" in finding.where and "only what rank 1 computed" in finding.where
    assert finding.rank == 1


def test_a_bug_in_a_is_said_to_be_in_a(worlds):
    """k_pe turned back from wrong pairs gives the right ones."""
    world = worlds.v32
    with stages.planted("k-pe-half-split", 1):
        theirs = world.fresh("one")
    theirs.name = "theirs"
    finding = stages.compare(theirs, world.capture("one"), world.facts).finding
    assert (finding.stage, finding.layer, finding.bug, finding.suspect) == ("k_pe", 1, "rope pairing", "theirs")


@pytest.mark.parametrize("name", ["merge-as-natural", "merge-in-base-2", "no-mscale", "k-pe-half-split", "lost-rank"])
def test_classes_are_named_in_bfloat16(worlds, name):
    """Rounding lets neighbours of the right answer pass, too: the nearest is named."""
    plant = stages.PLANTS[name]
    with stages.planted(name, 1):
        theirs = worlds.v32.fresh(plant.grid + "@bf16")
    finding = stages.compare(worlds.v32.capture("one@bf16"), theirs, worlds.v32.facts).finding
    assert (finding.layer, finding.bug) == (1, plant.bug)


def test_index_pairs_behind_a_hadamard_transform(worlds):
    world = worlds.v32
    with stages.planted("index-pairs", 1):
        theirs = world.fresh("one@fp8")
    finding = stages.compare(world.capture("one@fp8"), theirs, world.facts).finding
    assert (finding.stage, finding.layer, finding.bug) == ("index_k", 1, "rope pairing")


def test_names_are_checked():
    with (
        pytest.raises(ValueError, match="planted: name is 'typo', needs one of k-pe-half-split"),
        stages.planted("typo"),
    ):
        pass
