"""Captured stages of an engine of one's own: what was done wrong is found in the arrays alone."""

import numpy as np
import pytest

from sparsespan.models import rope_table
from sparsespan.verification import stages


def diagnosed(world, change, grid="one", layer=1):
    """The finding when ``change(theirs)`` has been done to a copy of our capture."""
    theirs = world.copy(grid)
    change({stage: piece[0].values for (stage, at), piece in theirs.pieces.items() if at == layer}, theirs)
    return stages.compare(world.capture(grid), theirs, world.facts).finding


def halves(x):
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def test_pairs_left_in_halves(worlds):
    """As transformers leaves q_pe and k_pe: the right pairs, in another order."""

    def change(values, _):
        values["k_pe"][:] = halves(values["k_pe"])

    finding = diagnosed(worlds.v32, change)
    assert (finding.stage, finding.bug) == ("k_pe", "rope pairing")
    assert "left in halves" in finding.verdicts[0].words


def turn(world, x, rows, shift):
    """k_pe of positions p turned on to p + shift."""
    table = np.asarray(rope_table(world.facts.dims, 64), np.float64)
    z = (x[:, 0::2] + 1j * x[:, 1::2]) / (table[rows, :32] + 1j * table[rows, 32:])
    z = z * (table[rows + shift, :32] + 1j * table[rows + shift, 32:])
    return np.stack([z.real, z.imag], -1).reshape(x.shape)


def test_positions_of_another_engine(worlds):
    """The flat batch's row for a position; the prefix that is not added; no turn at all."""
    world = worlds.v32
    p = world.capture("one").rows[:, 1]
    flat = np.array([0] * 44 + [41] * 23 + [0] * 3 + [64] * 7 + [0] * 3)
    decode = world.capture("one").decode
    prefix = np.where(decode, -np.repeat([41, 23, 7], [44, 26, 10]), 0)

    def change(shift):
        def changed(values, _):
            values["k_pe"][:] = turn(world, values["k_pe"], p, shift)

        return changed

    table = (
        (flat, "CP position", "a row's place in the flat batch"),
        (prefix, "CP position", "prefix is not added"),
        (-p, "rope missing", "not turned at all"),
        (np.ones_like(p), "length off by one", "one too large"),
    )
    for shift, bug, words in table:
        # Positions beyond the longest request are those of flat rows; the table has 64.
        if (p + shift).max() >= 64:
            shift = np.where(p + shift < 64, shift, 0)
        finding = diagnosed(world, change(shift))
        assert (finding.stage, finding.bug) == ("k_pe", bug), words
        assert words in finding.verdicts[0].words


@pytest.mark.parametrize(
    ("value", "words"), [(2**31 - 1, "the padding of a row is 2147483647"), (-(2**31), "is -2147483648 where -1")]
)
def test_other_sentinels(worlds, value, words):
    def change(values, _):
        values["indices"][values["indices"] == -1] = value

    finding = diagnosed(worlds.glm, change)
    assert (finding.stage, finding.bug, finding.position) == ("indices", "sentinel", 0)
    assert words in finding.verdicts[0].words


@pytest.mark.parametrize(
    ("stage", "factor", "words"),
    [
        ("index_weights", 128**0.5, "128^-0.5 is not applied"),
        ("q_pe", None, "the softmax scale is once more applied"),
        ("router_weights", 1 / 2.5, "routed_scaling_factor is not applied"),
        ("mlp_out", 1.1, "which is no constant of the model"),
    ],
)
def test_factors(worlds, stage, factor, words):
    world = worlds.v32
    factor = factor or world.facts.dims.sm_scale

    def change(values, _):
        values[stage] *= factor

    finding = diagnosed(world, change)
    assert (finding.stage, finding.bug) == (stage, "scale placement")
    assert words in finding.verdicts[0].words


@pytest.mark.parametrize("power", [-2, -1, 1])
def test_fp8_scales_of_the_index_cache(worlds, power):
    def change(values, _):
        k = values["index_cache"]
        k *= np.exp2(np.ceil(np.log2(np.abs(k).max(1, keepdims=True) / 448))) ** power

    finding = diagnosed(worlds.v32, change, "one@fp8")
    assert (finding.stage, finding.bug) == ("index_cache", "scale placement")
    assert "fp8 scale" in finding.verdicts[0].words and finding.verdicts[0].sure == "certain"


def test_scores_of_a_shifted_window(worlds):
    """index_scores without the diagonal."""

    def change(values, theirs):
        for row, (_, p) in enumerate(theirs.rows):
            values["index_scores"][row, p] = -np.inf

    finding = diagnosed(worlds.v32, change)
    assert (finding.stage, finding.bug) == ("index_scores", "length off by one")


def test_gathered_rows_in_the_order_of_ranks(worlds):
    """Any stage, rows of a prefill on two zigzag ranks that were not restored."""
    from sparsespan import cp

    world = worlds.glm
    flat = np.concatenate([np.arange(n) + s for n, s in zip((41, 23, 7), world.capture("one").starts)])
    plan = cp.split_plan("zigzag", [0, 41, 64, 71], None, 2)
    stream = np.concatenate([plan.rank_rows(r) for r in range(2)])

    def change(values, _):
        values["o_proj"][flat] = values["o_proj"][flat[stream]]

    finding = diagnosed(world, change)
    assert (finding.stage, finding.bug) == ("o_proj", "CP position")
    assert "rank after rank and were not put back in order (zigzag, 2 ranks)" in finding.verdicts[0].words


def test_every_rank_counts_all_keys(worlds):
    def change(values, _):
        values["lse"] += np.log(4)

    finding = diagnosed(worlds.v32, change)
    assert (finding.stage, finding.bug) == ("lse", "owner map")
    assert "ln 4" in finding.verdicts[0].words


def test_only_heads_are_known(worlds):
    """An engine that shows nothing but heads: the rest is taken from ours, attention goes through W_UV."""
    world = worlds.v32
    ours = world.capture("one")
    with stages.planted("scale-of-576", 1):
        wrong = world.fresh("one")
    for stage in ("heads", "o_proj"):
        theirs = stages.Captured("theirs", world.prompts, world.decoded)
        theirs.add(stage, 1, wrong.get(stage, 1))
        finding = stages.compare(ours, theirs, world.facts).finding
        assert (finding.stage, finding.bug) == (stage, "scale placement")
        assert "576^-0.5" in finding.verdicts[0].words


def test_what_is_not_known_is_said(worlds, rng):
    """Noise, a wrong weight, one row: no hypothesis explains them."""

    def noise(values, _):
        values["attention"] += 0.05 * rng.standard_normal(values["attention"].shape)

    def weight(values, _):
        values["kv_latent"] = values["kv_latent"].__imul__(1 + 0.1 * rng.standard_normal(512))

    def one_row(values, _):
        values["index_q"][30, 2] = 0

    for change, stage, rows in ((noise, "attention", 80), (weight, "kv_latent", 80), (one_row, "index_q", 1)):
        finding = diagnosed(worlds.v32, change)
        assert (finding.stage, finding.bug, finding.rows) == (stage, "unknown", rows), stage
        assert finding.verdicts == [] and finding.tested > 0


def test_indices_of_another_layer(worlds):
    """IndexShare gone wrong: the keys are those that the layer before chose."""
    world = worlds.v32

    def change(values, theirs):
        values["indices"][:] = theirs.pieces["indices", 0][0].values

    finding = diagnosed(world, change, layer=1)
    assert (finding.stage, finding.bug) == ("indices", "IndexShare")
    assert finding.verdicts[0].words == "the keys are those that layer 0 chose"


def test_other_shapes(worlds):
    """One rank's heads only; scores that are padded to the engine's own width."""
    world = worlds.v32
    ours = world.capture("one")
    theirs = stages.Captured("theirs", world.prompts, world.decoded)
    theirs.add("q_pe", 1, ours.get("q_pe", 1)[:, :4])
    finding = stages.compare(ours, theirs, world.facts).finding
    assert (finding.stage, finding.bug) == ("q_pe", "shape")
    assert finding.verdicts[0].words == "rows of theirs have shape [4, 64], those of one [8, 64]"
    wide = stages.Captured("wide", world.prompts, world.decoded)
    scores = ours.get("index_scores", 1)
    wide.add("index_scores", 1, np.pad(scores, ((0, 0), (0, 20)), constant_values=-np.inf))
    assert stages.compare(ours, wide, world.facts).bits


def test_nan_is_a_difference(worlds):
    def change(values, _):
        values["lse"][3, 1] = np.nan

    finding = diagnosed(worlds.v32, change)
    assert (finding.stage, finding.position, finding.rows) == ("lse", 3, 1)
    assert finding.error == np.inf


def test_files(worlds, tmp_path):
    world = worlds.glm
    ours = world.capture("cp2")
    ours.save(tmp_path / "ours.npz")
    back = stages.Captured.load(tmp_path / "ours.npz")
    assert back.names() == ours.names() and back.precision == "float32"
    assert stages.compare(ours, back, world.facts).bits
    # What another program writes: prompts and LAYER/STAGE.
    first = {f"prompt_{n}": p for n, p in enumerate(world.prompts)} | {
        f"decoded_{n}": d for n, d in enumerate(world.decoded)
    }
    np.savez(tmp_path / "small.npz", **first, **{"1/k_pe": ours.get("k_pe", 1).astype(np.float32)})
    small = stages.Captured.load(tmp_path / "small.npz")
    assert stages.compare(ours, small, world.facts).finding is None


def test_refusals(worlds, tmp_path):
    world = worlds.v32
    theirs = stages.Captured("theirs", [[1, 2, 3]], [[4]])
    for call, words in (
        (lambda: theirs.add("keys", 0, np.zeros((4, 2))), "stage is 'keys', needs one of layer_in"),
        (lambda: theirs.add("k_pe", 0, np.zeros((3, 64))), r"k_pe of layer 0 has shape \[3, 64\], needs 4 rows of"),
        (lambda: stages.Captured("x", [[1]], [[1], [2]]), "decoded has 2 requests, needs 1"),
        (lambda: stages.compare(world.capture("one"), theirs, world.facts), "ran over other tokens, needs the same"),
        (lambda: stages.compare(theirs, theirs, world.facts), "have no stage of a layer in common"),
        (lambda: stages.Captured.load(tmp_path / "none.npz"), "is no .npz file of plain arrays"),
        (lambda: stages.capture(world.path, [[1]], grid="cp2:sideways"), "'sideways' is none of scheme: zigzag"),
        (lambda: stages.capture(world.path, [[1]], grid="one@int4"), "'int4' is no precision"),
        (lambda: stages.capture(world.path, [[1]], grid="xp2"), "'xp2' is no grid"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(IndexError, match="rows lie in 0 to 9, needs -1 to 3"):
        theirs.add("k_pe", 0, np.zeros((2, 64)), [0, 9])
    np.savez(tmp_path / "a.npz", tokens=np.zeros(3))
    np.savez(tmp_path / "b.npz", prompt_0=np.zeros(1), **{"x/k_pe": np.zeros((1, 64))})
    np.savez(tmp_path / "c.npz", prompt_0=np.array([{}], dtype=object))
    for name, words in (("a", "needs prompt_0"), ("b", "'x/k_pe' is no LAYER/STAGE"), ("c", "no .npz file of plain")):
        with pytest.raises(ValueError, match=words):
            stages.Captured.load(tmp_path / f"{name}.npz")
