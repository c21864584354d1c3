"""What a caller, or another thread, sets while ops run reaches no bit of a result."""

import ctypes
import platform
import subprocess
import sys

import numpy as np
import pytest

from sparsespan.testing import each_isa
from sparsespan.transform import rms_norm

UPWARD = 0x800  # FE_UPWARD of x86-64's fenv.h

SWITCHING = """
import threading, time
import ml_dtypes, numpy as np
import sparsespan
from sparsespan.attention import sparse_mla
from sparsespan.quant import convert_kv
from sparsespan.testing import each_isa
rng = np.random.default_rng(0)
q = rng.standard_normal((4, 16, 576)).astype(ml_dtypes.bfloat16)
kv = convert_kv(rng.standard_normal((5, 64, 576)).astype(np.float32), "f32_576", "fp8_656")
indices = np.sort(rng.permuted(np.tile(np.arange(320), (4, 1)), axis=1)[:, :300])
def out():
    return sparse_mla(q, kv, indices, 0.07, layout="fp8_656", page_size=64, threads=2)[0].tobytes()
wants = {level: out() for level in each_isa()}
results, ends = set(), time.monotonic() + 1.5
def work():
    while time.monotonic() < ends:
        results.add(out())
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
while time.monotonic() < ends:
    for level in wants:
        sparsespan.set_max_isa(level)
for thread in threads:
    thread.join()
assert results <= set(wants.values()), "an op ran at two levels"
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another fenv.h")
def test_a_callers_rounding_mode_stays_its_own(rng):
    x, w = rng.standard_normal((3000, 64)).astype(np.float32), np.ones(64, np.float32)
    libm = ctypes.CDLL("libm.so.6")
    for _ in each_isa():
        want = rms_norm(x, w, 1e-6)
        libm.fesetround(UPWARD)
        try:
            results = [rms_norm(x, w, 1e-6, threads=threads) for threads in (1, 2, 3)]
            mode = libm.fegetround()
        finally:
            libm.fesetround(0)
        assert mode == UPWARD
        for got in results:
            np.testing.assert_array_equal(got, want)


@pytest.mark.peer
def test_torchs_flush_to_zero_does_not_reach_ops():
    torch = pytest.importorskip("torch")
    x, w = np.full((3000, 64), 1e-39, np.float32), np.full(64, 1e-3, np.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush")
    try:
        results = [rms_norm(x, w, 1.0, threads=threads) for threads in (1, 2)]
    finally:
        torch.set_flush_denormal(False)
    for got in results:
        np.testing.assert_array_equal(got, rms_norm(x, w, 1.0))
        assert (got > 0).all()


def test_a_level_set_while_ops_run_is_the_next_ops():
    result = subprocess.run([sys.executable, "-c", SWITCHING], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr or result.returncode
