"""The table under mpirun and torchrun: the first process alone asks transformers, smaller grids leave ranks idle."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
MPIRUN = shutil.which("mpirun", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers"),
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None,
        reason="torch or transformers is not installed",
    ),
]
needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None,
    reason="mpi4py or mpirun is not installed: pip install mpi4py mpich",
)


def launch(backend, ranks, *arguments):
    command = {
        "mpi": [str(MPIRUN), "-n", str(ranks), sys.executable],
        "gloo": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)],
    }[backend]
    command += ["-m", "sparsespan.cli", "verify", "--models", "deepseek_v32", "--backend", backend, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


@needs_mpi
def test_four_processes_give_one_table():
    run = launch("mpi", 4, "--grids", "cp2,tp2xcp2", "--json")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert [(row["grid"], row["ranks"], row["bits"]) for row in document["rows"]] == [
        ("one", 1, ""), ("cp2", 2, "one"), ("tp2xcp2", 4, "one"),
    ]  # fmt: skip
    assert [len(row["bytes"]) for row in document["rows"]] == [1, 2, 4]


@needs_mpi
def test_what_is_refused_is_said_once():
    run = launch("mpi", 2, "--grids", "cp4")
    assert run.returncode != 0 and run.stdout == ""
    assert run.stderr.count("the program has 2 ranks, cp4 needs 4: launch 4") == 1


def test_gloo():
    run = launch("gloo", 2, "--grids", "dcp2")
    assert run.returncode == 0, run.stderr
    assert "ok    deepseek_v32  dcp2" in run.stdout and "2 of 2 rows" in run.stdout
