"""mpirun -n 4: PP2 x CP2 in processes of their own is bitwise equal to one rank."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.peer
@pytest.mark.timeout(120)
@pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers")
@pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None,
    reason="mpi4py or mpirun is not installed: pip install mpi4py mpich",
)
def test_pp2_cp2_under_mpirun_equals_one_rank():
    worker = str(Path(__file__).with_name("stage_worker.py"))
    run = subprocess.run(
        [MPIRUN, "-n", "4", sys.executable, "-m", "mpi4py", worker],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert sorted(re.findall(r"rank (\d) equal", run.stdout)) == ["0", "1", "2", "3"], run.stdout + run.stderr
    assert run.returncode == 0, run.stderr
