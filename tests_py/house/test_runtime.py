"""Import cost, threads, one OpenMP runtime beside torch, fork, ISA cap, DLPack."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import sparsespan
from sparsespan.transform import hadamard_transform

sanitized = pytest.mark.skipif("SPARSESPAN_SANITIZED" in os.environ, reason="measures a plain process")


def run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@sanitized
def test_import_is_quick_and_imports_no_torch():
    code = """
import time, numpy, ml_dtypes, sys, importlib.util
start = time.perf_counter()
import sparsespan, sparsespan.transform
print(time.perf_counter() - start, "torch" in sys.modules)
"""
    times = []
    for _ in range(5):
        seconds, torch = run(code).split()
        assert torch == "False"
        times.append(float(seconds))
    assert min(times) < 0.1


def test_omp_num_threads_is_honoured():
    assert run("import sparsespan; print(sparsespan.num_threads())", OMP_NUM_THREADS="3") == "3"
    assert run("import sparsespan; sparsespan.set_num_threads(5); print(sparsespan.num_threads())") == "5"


def test_isa_cap_by_environment_and_call():
    code = "import sparsespan; print(sparsespan.build_info()['isa'])"
    assert run(code, SPARSESPAN_MAX_ISA="generic") == "generic"
    before = sparsespan.build_info()["isa_cap"]
    try:
        sparsespan.set_max_isa("generic")
        assert sparsespan.build_info()["isa"] == "generic"
    finally:
        sparsespan.set_max_isa(before)
    with pytest.raises(ValueError, match=r'isa is "sse9", needs generic, avx2, avx512, avx512_bf16 or amx'):
        sparsespan.set_max_isa("sse9")


def test_a_strange_wish_for_emulation_is_refused():
    code = """
import sparsespan
try:
    sparsespan.build_info()
except ValueError as error:
    print(error)
"""
    words = 'sparsespan: SPARSESPAN_EMULATE_AMX is "yes", needs 0, 1 or refused'
    assert run(code, SPARSESPAN_EMULATE_AMX="yes", SPARSESPAN_MAX_ISA="") == words
    assert run(code, SPARSESPAN_EMULATE_AMX="0", SPARSESPAN_MAX_ISA="") == ""


FORK = """
import os, numpy as np
from sparsespan.transform import hadamard_transform
x = np.random.default_rng(0).standard_normal((5000, 128)).astype(np.float32)
want = hadamard_transform(x, threads=2)
child = os.fork()
if child == 0:
    import sparsespan
    same = (hadamard_transform(x, threads=2) == want).all()
    os._exit(0 if same and sparsespan.build_info()["thread_runtime"].startswith("serial") else 1)
import signal
signal.alarm(30)
assert os.waitpid(child, 0)[1] == 0
assert (hadamard_transform(x, threads=2) == want).all()
print("ok")
"""


def test_a_forked_child_runs_serially():
    assert run("import warnings; warnings.simplefilter('ignore')\n" + FORK) == "ok"


ONE_RUNTIME = """
import json, sys
import numpy as np
def ours():
    from sparsespan.transform import hadamard_transform
    hadamard_transform(np.ones((5000, 128), np.float32), threads=2)
def theirs():
    import torch
    torch.ones(600, 600) @ torch.ones(600, 600)
for name in sys.argv[1:]:
    {"ours": ours, "theirs": theirs}[name]()
import threadpoolctl
pools = [p["filepath"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "openmp"]
import sparsespan
print(json.dumps([pools, sparsespan.build_info()["thread_runtime"]]))
"""


@pytest.mark.peer
@sanitized
@pytest.mark.parametrize("order", [("ours", "theirs", "ours"), ("theirs", "ours")])
def test_one_openmp_runtime_beside_torch(order):
    pytest.importorskip("torch")
    pytest.importorskip("threadpoolctl")
    result = subprocess.run([sys.executable, "-c", ONE_RUNTIME, *order], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    pools, used = json.loads(result.stdout)
    assert len(pools) == 1, pools
    assert os.path.realpath(used) == os.path.realpath(pools[0])


@pytest.mark.peer
def test_torch_tensors_go_in_and_come_back(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((4, 64)).astype(np.float32)).to(torch.bfloat16)
    y = hadamard_transform(x, 0.125)
    assert isinstance(y, torch.Tensor) and y.dtype == torch.bfloat16
    as_numpy = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(y.float().numpy(), hadamard_transform(as_numpy, 0.125).astype(np.float32))
    out = torch.empty_like(x)
    assert hadamard_transform(x, 0.125, out=out) is out
    assert torch.equal(out, y)
    with pytest.raises(ValueError, match=r"pass tensor.detach\(\)"):
        hadamard_transform(torch.ones(2, 4, requires_grad=True))
    fp8 = torch.zeros(2, 4).to(torch.float8_e4m3fn)
    with pytest.raises(TypeError, match=r"x has dtype float8_e4m3fn, needs float32 or bfloat16"):
        hadamard_transform(fp8)


def test_two_python_threads_at_once(rng):
    from concurrent.futures import ThreadPoolExecutor

    x = rng.standard_normal((2000, 128)).astype(np.float32)
    want = hadamard_transform(x)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: hadamard_transform(x, threads=2), range(40)):
            np.testing.assert_array_equal(got, want)
