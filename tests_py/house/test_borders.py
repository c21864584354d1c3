"""No op touches a byte before or behind an array of the caller's, at any level, in loads that sanitizers miss too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsespan.testing import each_isa

WORKER = Path(__file__).with_name("borders_worker.py")


def run(*levels, **more):
    command = [sys.executable, WORKER, *levels]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more, timeout=280)
    called = done.stdout.splitlines() or ["nothing"]
    assert done.returncode == 0, f"{called[-1]}: {done.stderr}"
    assert called[-1] == "all borders kept"
    return {line.split()[2] for line in called[:-1]}


def test_every_op_keeps_to_its_arrays():
    assert run() == set(each_isa())


def test_so_does_the_amx_level_on_emulated_tiles():
    if run("amx", SPARSESPAN_EMULATE_AMX="1", SPARSESPAN_MAX_ISA="amx") != {"amx"}:
        pytest.skip("emulated tiles need a CPU with AVX512-BF16 and VBMI")
