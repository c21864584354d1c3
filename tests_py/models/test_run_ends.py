"""``sparsespan run`` where output ends early, and what ranks compare before they begin."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsespan import models
from sparsespan._commands import _run_rank

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 2, "n_group": 2, "topk_group": 1}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends")
    return {
        name: str(models.write_tiny(folder / name, "deepseek_v32", seed=seed, **SMALL))
        for seed, name in enumerate(("v32", "other"))
    }


def test_what_reads_the_output_may_end_first(paths):
    """As ``| head`` does: no error, and no rank is left behind."""
    for options in ([], ["--tp", "2"], ["--pp", "2"]):
        command = [sys.executable, "-m", "sparsespan.cli", "run", paths["v32"], "--prompt", "a", *options]
        with subprocess.Popen(
            [*command, "--ignore-eos", "--max-new-tokens", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process:  # fmt: skip
            process.stdout.read(1)
            process.stdout.close()
            err = process.stderr.read()
            assert (process.wait(timeout=30), err) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said(paths):
    for command in (["run", paths["v32"], "--prompt", "a", "--max-new-tokens", "2"], ["doctor"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "sparsespan.cli", *command], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 1 and "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr


def test_weights_are_looked_at(paths, tmp_path):
    """A checkpoint whose norms are the same and whose matrices are not."""
    twin = tmp_path / "twin"
    shutil.copytree(paths["v32"], twin)
    theirs = models.TensorFile(Path(paths["other"]) / "model.safetensors")
    ours = models.TensorFile(Path(paths["v32"]) / "model.safetensors")
    models.write_tensors(
        twin / "model.safetensors",
        {n: (ours if len(i.shape) == 1 else theirs).read(n) for n, i in ours.tensors.items()}, {"format": "pt"},
    )  # fmt: skip
    marks = [_run_rank.fingerprint(models.Checkpoint(path)) for path in (paths["v32"], twin)]
    assert marks[0] != marks[1]
