"""Prefill, projection and hand-over over gloo and MPI: the bits of one rank; a killed rank leaves caches alone."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = str(Path(__file__).with_name("prefill_worker.py"))
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(120),
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None,
    reason="mpi4py or mpirun is not installed: pip install mpi4py mpich",
)


def words_of(text):
    return dict(re.findall(r"rank (\d) (\w+)", text))


def gloo(size, fault, folder):
    team = [
        subprocess.Popen(
            [sys.executable, WORKER, "gloo", fault, str(folder), str(r), str(size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
        )
        for r in range(size)
    ]
    try:
        ends = [p.communicate(timeout=90) for p in team]
    finally:
        for p in team:
            p.kill()
    return words_of("".join(out for out, _ in ends)), [p.returncode for p in team], "".join(err for _, err in ends)


@needs_torch
def test_gloo(tmp_path):
    words, codes, errors = gloo(2, "none", tmp_path)
    assert words == {"0": "done", "1": "done"} and codes == [0, 0], errors


@needs_torch
def test_gloo_with_a_killed_rank(tmp_path):
    words, codes, errors = gloo(2, "die", tmp_path)
    assert words == {"0": "error"} and codes == [0, -9], errors


@needs_mpi
def test_mpi():
    command = [MPIRUN, "-n", "4", sys.executable, WORKER, "mpi", "none"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=90, env=ENV)
    assert words_of(run.stdout) == {str(r): "done" for r in range(4)}, run.stdout + run.stderr
    assert run.returncode == 0, run.stderr
