"""DCP over MPI and gloo, each rank a process: the bits of one rank. And ranks that fail, on threads."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparsespan import comm, cp
from sparsespan.testing import FaultyComm

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import Batch, IndexBatch

sys.path.pop(0)
pytestmark = pytest.mark.timeout(120)
WORKER = str(Path(__file__).parent / "dcp_worker.py")
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def same(text, size):
    return re.findall(r"rank (\d) same", text) and set(re.findall(r"rank (\d) same", text)) == set(
        map(str, range(size))
    )


@pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None,
    reason="mpi4py or mpirun is not installed: pip install mpi4py mpich",
)
def test_mpi_has_the_bits_of_one_rank():
    run = subprocess.run(
        [MPIRUN, "-n", "4", sys.executable, WORKER, "mpi"], capture_output=True, text=True, timeout=100, env=ENV
    )
    assert run.returncode == 0 and same(run.stdout, 4), run.stdout + run.stderr


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_gloo_has_the_bits_of_one_rank(tmp_path):
    team = [
        subprocess.Popen(
            [sys.executable, WORKER, "gloo", str(tmp_path), str(r), "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        )
        for r in range(2)
    ]  # fmt: skip
    try:
        ends = [p.communicate(timeout=100) for p in team]
    finally:
        for p in team:
            p.kill()
    assert [p.returncode for p in team] == [0, 0] and same("".join(out for out, _ in ends), 2), ends


DECODES = {  # operations of one call, by way
    ("ag_rs", "replicated"): 3,
    ("a2a", "sharded_routed"): 4,
    ("ar", "gathered"): 4,
}


@pytest.mark.parametrize(("combine", "index_k"), DECODES)
@pytest.mark.parametrize("fault", ["raise", "mismatch", "delay"])
def test_a_rank_that_fails_at_any_operation_ends_all_in_words(fault, combine, index_k):
    keys, picks = Batch([40], heads=4, topk=8), IndexBatch([40])
    layout = cp.dcp_layout(1, 2, 4)
    for at in range(DECODES[combine, index_k]):
        ended = []

        def rank(c, at=at, ended=ended):
            bad = FaultyComm(c, fault, at, seconds=0.6) if c.rank == 1 else c
            try:
                picks.select(bad, layout, 8, index_k)
                keys.decode(bad, layout, combine=combine)
            except comm.CommError as error:
                ended.append(type(error))
                raise

        start = time.monotonic()
        with pytest.raises(comm.CommError):
            comm.run_ranks(2, rank, timeout=0.2)
        assert time.monotonic() - start < 10 and ended
    got = keys.on_ranks(layout, combine=combine)  # the process is as good as before
    np.testing.assert_allclose(got[0], keys.one_rank(1, False)[0], atol=2e-6, rtol=1e-5)
