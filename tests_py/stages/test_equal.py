"""Implementations that are equal are said to be: no grid, no precision and no near tie is called a bug."""

import numpy as np
import pytest

from sparsespan.verification import stages

EXACT = ["one", "tp2", "cp2", "cp4:interleave", "cp3:ceil_chunk", "cp2:zigzag_padded", "tp2xcp2", "pp2", "pp2xcp2"]
ROUNDED = ["dcp2", "dcp4:ag_rs:sharded", "pp2xdcp2"]


@pytest.mark.parametrize("kind", ["v32", "glm"])
@pytest.mark.parametrize("grid", EXACT + ROUNDED)
def test_grids_do_not_differ(worlds, kind, grid):
    world = getattr(worlds, kind)
    report = stages.compare(world.capture("one"), world.fresh(grid), world.facts)
    assert report.finding is None and report.ties == report.left_out == 0
    assert {line.layer for line in report.lines} == {0, 1, 2, 3, 4} and len(report.lines) >= 90
    assert report.bits == (grid in EXACT)
    # float32 sums in another order through four layers: measured 5e-6.
    assert max(line.error for line in report.lines) < 2e-5


@pytest.mark.parametrize("kind", ["v32", "glm"])
@pytest.mark.parametrize("names", [("one", "one@bf16"), ("one@bf16", "dcp2@bf16"), ("one", "one@fp8"),
                                   ("one@fp8", "cp2@fp8")])  # fmt: skip
def test_roundings_are_no_bug(worlds, kind, names):
    world = getattr(worlds, kind)
    report = stages.compare(*map(world.capture, names), world.facts)
    assert report.finding is None
    assert report.tolerance == stages.TOLERANCE["float8" if "fp8" in names[1] else "bfloat16"]


def test_the_hadamard_transform_is_no_difference(worlds):
    """A float8 cache keeps turned keys; they are turned back where the other side's are not."""
    world = worlds.v32
    turned = world.capture("one@fp8")
    plain = turned.turned_back()
    assert turned.turned and not plain.turned and plain.turned_back() is plain
    report = stages.compare(turned, plain, world.facts)
    assert report.finding is None and max(line.error for line in report.lines) < 1e-6
    assert {"index_q", "index_k", "index_cache"} <= {line.stage for line in report.lines}


def test_a_near_tie_is_no_difference(worlds):
    """The last of the chosen keys and the next best score alike: either may be chosen."""
    world = worlds.v32
    ours, theirs = world.copy(name="ours"), world.copy()
    row = 35
    for captured in (ours, theirs):
        scores = captured.pieces["index_scores", 1][0].values[row]
        order = np.argsort(-scores)
        scores[order[16]] = scores[order[15]]
    chosen = theirs.pieces["indices", 1][0].values[row]
    chosen[chosen == order[15]] = order[16]
    for stage in ("attention", "heads"):
        theirs.pieces[stage, 1][0].values[row] += 1.0
    report = stages.compare(ours, theirs, world.facts)
    assert report.finding is None and report.ties == 1
    assert report.left_out == 44 - row  # that row, and in the layers behind all rows after it in its request
    chosen[chosen == order[16]] = order[40] if order[40] <= row else order[20]
    report = stages.compare(ours, theirs, world.facts)
    assert (report.finding.stage, report.finding.position) == ("indices", row)


def test_some_stages_of_some_rows_are_enough(worlds):
    world = worlds.glm
    ours = world.capture("one")
    theirs = stages.Captured("theirs", world.prompts, world.decoded)
    theirs.add("o_proj", 2, ours.get("o_proj", 2)[5:9], range(5, 9))
    report = stages.compare(ours, theirs, world.facts)
    assert report.finding is None and report.bits
    assert [(line.stage, line.layer, line.rows) for line in report.lines] == [("o_proj", 2, 4)]
