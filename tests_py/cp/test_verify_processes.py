"""``sparsespan verify`` under mpirun and torchrun: one report, one exit code, faults that end in time."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
MPIRUN = shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.timeout(120),
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
]
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None,
    reason="mpi4py or mpirun is not installed: pip install mpi4py mpich",
)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
BACKENDS = [pytest.param("mpi", marks=needs_mpi), pytest.param("gloo", marks=needs_torch)]
SMALL = ["--lens", "9,30", "--prefix", "0,20", "--heads", "8"]


def launch(backend, ranks, *arguments, limit=90):
    command = {
        "mpi": [str(MPIRUN), "-n", str(ranks), sys.executable],
        "gloo": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)],
    }[backend]
    command += ["-m", "sparsespan.cli", "verify", "--backend", backend, *SMALL, *arguments]
    start = time.monotonic()
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=limit, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return run, time.monotonic() - start


@needs_mpi
def test_four_processes_give_one_report():
    run, _ = launch("mpi", 4, "--scheme", "zigzag,interleave", "--combine", "all", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)  # rank 0 alone prints
    assert report["passed"] and report["backend"] == "mpi"
    assert {case["grid"]["ranks"] for case in report["cases"]} == {4}
    assert len(report["cases"]) == 2 + 3
    assert all(row["counted"] == row["formula"] for case in report["cases"] for row in case["bytes"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_grid_of_groups_on_processes(backend):
    run, _ = launch(backend, 4, "--cp", "2", "--dcp", "2", "--combine", "all")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("every case kept its contract") == 1


@needs_mpi
def test_a_program_of_another_size_is_refused_in_words():
    run, _ = launch("mpi", 2, "--cp", "3")
    assert run.returncode != 0
    assert run.stderr.count("the program has 2 ranks, 'prefill cp 3 zigzag lens' needs 3") == 1
    assert run.stdout == ""


# Starting torch several times takes long: on gloo only the faults that end otherwise there.
FAULTS = [pytest.param("mpi", fault, marks=needs_mpi) for fault in ("flip", "plan", "raise", "die")]
FAULTS += [pytest.param("gloo", fault, marks=needs_torch) for fault in ("raise", "die")]


@pytest.mark.parametrize(("backend", "fault"), FAULTS)
def test_faults_end_in_words_in_time(backend, fault):
    run, seconds = launch(backend, 2, "--cp", "2", "--timeout", "3", "--inject", fault)
    assert run.returncode != 0
    assert seconds < 60  # 3 s of waiting, the grace of the other ranks, and two slow starts
    words = {"flip": "is off by", "plan": "RankMismatch", "raise": "injected failure", "die": ""}[fault]
    assert words in run.stdout + run.stderr
