"""Tiny models make many tiny calls: one thread each, where a test does not ask for more."""

import sys
from pathlib import Path

import pytest

import sparsespan
from sparsespan import models
from sparsespan.cli import main

# Tests are imported by their paths; what they share (layer_cases, run_cases) by its name.
sys.path.insert(0, str(Path(__file__).parent))

from run_cases import NEW, PROMPT, SMALL, WANTED


@pytest.fixture(autouse=True)
def one_thread():
    sparsespan.set_num_threads(1)
    yield
    sparsespan.set_num_threads(0)


@pytest.fixture(scope="session")
def run_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    v32 = {**SMALL, "n_group": 2, "topk_group": 1}
    return {
        "v32": str(models.write_tiny(folder / "v32", "deepseek_v32", **v32)),
        "other": str(models.write_tiny(folder / "other", "deepseek_v32", seed=1, **v32)),
        "glm": str(models.write_tiny(folder / "glm", "glm_moe_dsa", **SMALL, indexer_types=["full", "shared", "full"])),
    }


@pytest.fixture
def run(run_paths, capsys):
    """``sparsespan run`` in this process: (exit code, stdout, stderr)."""

    def run(name, *options, prompt=("--prompt", PROMPT)):
        code = main(["run", run_paths[name], *prompt, *WANTED, *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture(scope="session")
def run_tokens(run_paths):
    """What one rank says to the prompt."""
    prompt = [list(PROMPT.encode())]
    return {n: models.load(run_paths[n]).generate(prompt, NEW, stop_at_eos=False)[0] for n in ("v32", "glm")}
