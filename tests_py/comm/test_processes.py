"""The same conformance over gloo and MPI, in processes of their own; faults end in words and in time."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = str(Path(__file__).with_name("comm_worker.py"))
BIN = Path(sys.executable).parent
MPIRUN = shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(90),
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
]
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None,
    reason="mpi4py or mpirun is not installed: pip install mpi4py mpich",
)
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


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
        ends = [p.communicate(timeout=60) for p in team]
    finally:
        for p in team:
            p.kill()
    words = dict(re.findall(r"rank (\d) (done|mismatch|timeout|error)", "".join(out for out, _ in ends)))
    return words, [p.returncode for p in team], "".join(err for _, err in ends)


@needs_torch
@pytest.mark.parametrize("size", [2, 4])
def test_gloo_conforms(size, tmp_path):
    words, codes, errors = gloo(size, "none", tmp_path)
    assert words == {str(r): "done" for r in range(size)}, errors
    assert codes == [0] * size, errors


@needs_torch
@pytest.mark.parametrize(
    ("fault", "allowed"),
    [
        ("mismatch", {"0": {"mismatch"}, "1": {"mismatch"}}),
        ("raise", {"0": {"timeout"}, "1": {"error"}}),
        ("delay", {"0": {"timeout"}, "1": {"timeout", "error"}}),
        ("die", {"0": {"error", "timeout"}}),
    ],
)
def test_gloo_faults_end_in_words(fault, allowed, tmp_path):
    words, codes, errors = gloo(2, fault, tmp_path)
    assert words.keys() == allowed.keys(), errors
    assert all(words[r] in allowed[r] for r in allowed), (words, errors)
    assert codes[0] == 0 and codes[1] == (-9 if fault == "die" else 0), errors


def mpirun(size, fault):
    return subprocess.run(
        [MPIRUN, "-n", str(size), sys.executable, WORKER, "mpi", fault],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENV,
    )


@needs_mpi
@pytest.mark.parametrize("size", [2, 4])
def test_mpi_conforms(size):
    run = mpirun(size, "none")
    words = dict(re.findall(r"rank (\d) (done|mismatch|timeout|error)", run.stdout))
    assert words == {str(r): "done" for r in range(size)}, run.stdout + run.stderr
    assert run.returncode == 0, run.stderr


@needs_mpi
def test_mpi_mismatch_is_told_on_every_rank():
    run = mpirun(2, "mismatch")
    assert dict(re.findall(r"rank (\d) (done|mismatch|timeout|error)", run.stdout)) == {
        "0": "mismatch",
        "1": "mismatch",
    }, run.stderr


@needs_mpi
def test_mpi_kill_ends_the_program():
    assert mpirun(2, "die").returncode != 0
