"""Two tiny models of four layers, captured once."""

import types

import numpy as np
import pytest

import sparsespan
from sparsespan import models
from sparsespan.verification import stages

KINDS = {"v32": "deepseek_v32", "glm": "glm_moe_dsa"}


@pytest.fixture(autouse=True)
def one_thread():
    sparsespan.set_num_threads(1)
    yield
    sparsespan.set_num_threads(0)


class World:
    """A checkpoint, tokens, and captures of it, kept by name."""

    def __init__(self, path, kind, seed):
        rng = np.random.default_rng(seed)
        self.path = models.write_tiny(path, KINDS[kind], seed=seed, index_topk=16, num_hidden_layers=4)
        self.prompts = [rng.integers(0, 256, n) for n in (41, 23, 7)]
        self.decoded = [rng.integers(0, 256, 3) for _ in self.prompts]
        self.facts = stages.Facts.load(self.path)
        self.kept = {}

    def capture(self, grid):
        if grid not in self.kept:
            self.kept[grid] = self.fresh(grid)
        return self.kept[grid]

    def fresh(self, grid):
        return stages.capture(self.path, self.prompts, self.decoded, grid)

    def copy(self, grid="one", name="theirs"):
        """Another engine's capture: the same values under another name, to be changed."""
        ours = self.capture(grid)
        theirs = stages.Captured(name, self.prompts, self.decoded)
        theirs.precision, theirs.turned = ours.precision, ours.turned
        for stage, layer in ours.names():
            theirs.add(stage, layer, ours.get(stage, layer)[have(ours, stage, layer)], have(ours, stage, layer))
        return theirs


def have(captured, stage, layer):
    return np.unique(np.concatenate([p.rows for p in captured.pieces[stage, layer]]))


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    sparsespan.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stages")
    made = types.SimpleNamespace(v32=World(folder / "v32", "v32", 0), glm=World(folder / "glm", "glm", 1))
    yield made
    sparsespan.set_num_threads(0)
