"""Tiles that Linux does not give: the level below runs, and build_info() says why."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

import sparsespan

if "SPARSESPAN_SANITIZED" in os.environ:
    pytest.skip("preloads a library of its own", allow_module_level=True)

# Answers the request for tile registers (arch_prctl 0x1023) with an error and lets every other system call through.
REFUSES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
long syscall(long number, long a, long b, long c, long d, long e, long f) {
  if (number == SYS_arch_prctl && a == 0x1023) {
    errno = atoi(getenv("REFUSE_WITH"));
    return -1;
  }
  long (*next)(long, ...) = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  return next(number, a, b, c, d, e, f);
}
"""

RUN = """
import hashlib, numpy as np, sparsespan
from sparsespan.indexer import mqa_logits
rng = np.random.default_rng(0)
q, k = (rng.standard_normal(s).astype(np.float32) for s in ((4, 8, 128), (300, 128)))
logits = mqa_logits(q, k, np.ones((4, 8), np.float32), np.zeros(4, int), np.full(4, 300))
info = sparsespan.build_info()
print(info["isa"], hashlib.sha256(logits.tobytes()).hexdigest(), info["isa_refused"], sep="|")
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("needs a C compiler and Linux on x86-64")
    if "not built" in sparsespan.build_info()["isa_refused"]:
        pytest.skip("this build has no amx level")
    folder = tmp_path_factory.mktemp("refusing")
    (folder / "refuses.c").write_text(REFUSES)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "refuses.so", folder / "refuses.c", "-ldl"], check=True
    )
    return str(folder / "refuses.so")


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "amx: Linux refused the tile registers: a thread has a sigaltstack too small to save them"),
        (errno.EPERM, "amx: Linux refused the tile registers (Operation not permitted, it has them since 5.16)"),
        (errno.EINVAL, "amx: Linux refused the tile registers (Invalid argument, it has them since 5.16)"),
    ],
)
def test_a_refusal_is_said_and_the_level_below_runs(refusing, number, words):
    cap = {"SPARSESPAN_MAX_ISA": "amx"}
    isa, bits, refused = run(RUN, LD_PRELOAD=refusing, REFUSE_WITH=str(number), SPARSESPAN_EMULATE_AMX="refused", **cap)
    assert words in refused and isa != "amx"
    assert (isa, bits) == tuple(run(RUN, SPARSESPAN_MAX_ISA=isa)[:2])


def test_a_grant_does_not_make_tiles_on_a_cpu_without(refusing):
    del refusing  # what it asks of the machine is asked here too
    isa = run(RUN, SPARSESPAN_EMULATE_AMX="refused", SPARSESPAN_MAX_ISA="amx")[0]
    assert isa in sparsespan.build_info()["isa_available"].split(", ")


SMALL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, 8192)), None) == 0
"""


def test_a_small_signal_stack_makes_linux_refuse():
    if "amx" not in sparsespan.build_info()["isa_available"]:
        pytest.skip(sparsespan.build_info()["isa_refused"])
    isa, bits, refused = run(SMALL_STACK + RUN, SPARSESPAN_MAX_ISA="amx")
    assert "a thread has a sigaltstack too small" in refused
    assert (isa, bits) == tuple(run(RUN, SPARSESPAN_MAX_ISA=isa)[:2])
