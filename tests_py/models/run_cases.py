"""What the tests of ``sparsespan run`` share: two tiny models' prompt, and the command on processes."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = {"index_topk": 16, "n_routed_experts": 4, "num_hidden_layers": 3}
PROMPT = "Sparse attention reads few keys. " * 2
NEW = 5
WANTED = ["--max-new-tokens", str(NEW), "--ignore-eos"]
CLI = [sys.executable, "-m", "sparsespan.cli", "run"]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

needs_mpi = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or MPIRUN is None, reason="mpi4py is not installed"
)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
unsanitized = pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="peers are not built with sanitizers")
backends = pytest.mark.parametrize(
    "backend", [pytest.param("mpi", marks=needs_mpi), pytest.param("gloo", marks=needs_torch)]
)


def processes(command, seconds=110):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def four_processes(backend, path, *options):
    """``sparsespan run`` of four processes, its report as JSON."""
    start = {
        "mpi": [str(MPIRUN), "-n", "4", sys.executable],
        "gloo": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"],
    }[backend]
    return processes([*start, *CLI[1:], path, "--prompt", PROMPT, *WANTED, "--backend", backend, "--json", *options])


def expect_ctrl_c_to_end(path, *options):
    """An endless run ends soon after the first token, with 130 and a word."""
    with subprocess.Popen(
        [*CLI, path, "--prompt", "a", "--ignore-eos", "--max-new-tokens", "100000", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, b"sparsespan run: interrupted")
