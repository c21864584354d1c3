"""What the levels above avx512 promise: emulated tiles run every path of amx, no code of a level leaks into another."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import sparsespan
from sparsespan.attention import sparse_mla
from sparsespan.indexer import mqa_logits
from sparsespan.testing import each_isa

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "build/Release/libsparsespan_core.a"

EMULATED = """
import numpy as np, ml_dtypes, sparsespan
import sparsespan.reference.attention, sparsespan.reference.indexer
from sparsespan import reference
from sparsespan.attention import dense_mla, sparse_mla
from sparsespan.indexer import mqa_logits, select, topk
from sparsespan.testing import assert_row_invariant, compare_attn
import sparsespan.testing._invariance as invariance

assert sparsespan.build_info()["isa"].startswith("amx (emulated"), sparsespan.build_info()
invariance.available_isas = lambda: ["amx"]
rng = np.random.default_rng(0)
BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn

# One row alone takes the form of few rows, a batch that of many: the same bits.
q = rng.standard_normal((20, 24, 128)).astype(FP8)
k = rng.standard_normal((700, 128)).astype(FP8)
w = rng.standard_normal((20, 24)).astype(np.float32)
ks, ke = np.arange(20) * 3, np.arange(20) * 30 + 100
scale = rng.uniform(0.5, 2, 700).astype(np.float32)
logits = lambda ids, threads: mqa_logits(q[ids], k, w[ids], ks[ids], ke[ids], scale, threads=threads)
assert_row_invariant(logits, 20)
want = reference.indexer.mqa_logits(q, k, w, ks, ke, k_scale=scale)
np.testing.assert_allclose(logits(np.arange(20), 1), want, rtol=2e-4, atol=2e-4)
best = select(q, k, w, ks, ke, scale, 50)
assert (best == topk(logits(np.arange(20), 1), 50, ke - ks, ks)).all()

q = (rng.standard_normal((5, 20, 576)) / 10).astype(BF16)
kv = (rng.standard_normal((900, 576)) / 10).astype(BF16)
rows = np.stack([rng.permutation(900)[:600] for _ in range(5)]).astype(np.int32)
length = np.array([600, 0, 1, 257, 511])
mla = lambda ids, threads: sparse_mla(q[ids], kv, rows[ids], 0.5, topk_length=length[ids], threads=threads)
assert_row_invariant(mla, 5)
compare_attn(mla(np.arange(5), 1), reference.attention.sparse_mla(q, kv, rows, 0.5, 512, length))
print("emulated amx agrees")
"""


def test_the_amx_paths_on_emulated_tiles():
    environment = os.environ | {"SPARSESPAN_EMULATE_AMX": "1", "SPARSESPAN_MAX_ISA": "amx"}
    probe = "import sparsespan; print(sparsespan.build_info()['isa_refused'])"
    run = [sys.executable, "-c"]
    refused = subprocess.run([*run, probe], capture_output=True, text=True, env=environment, check=True).stdout
    if "amx" in refused:
        pytest.skip(refused.strip())
    done = subprocess.run([*run, EMULATED], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "emulated amx agrees" in done.stdout


def test_subnormals_count_as_zero_from_avx2_upwards_and_outside_nothing_changes():
    tiny = np.float32(1e-40)
    q = np.ones((1, 1, 32), ml_dtypes.bfloat16)
    q[0, 0, 1:] = 0
    weights = np.array([[1e-20]], np.float32)
    scale = np.array([1e-20], np.float32)
    key = np.zeros((1, 32), ml_dtypes.float8_e4m3fn)
    key[0, 0] = 1
    for isa in each_isa():
        logit = mqa_logits(q, key, weights, np.zeros(1, int), np.ones(1, int), scale, threads=1)[0, 0]
        assert (logit == 0) == (isa != "generic"), isa  # 1e-20 * 1e-20
        kv = np.full((1, 32), tiny, np.float32)
        out = sparse_mla(np.zeros((1, 1, 32), np.float32), kv, np.zeros((1, 1), np.int32), 1.0, 32, threads=1)[0]
        assert (out == 0).all() == (isa != "generic"), isa
        assert np.float32(1e-30) * np.float32(1e-10) > 0, isa  # this thread's own mode is back


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """The kernels' object files by level."""
    if not LIBRARY.exists() or not shutil.which("objdump") or not shutil.which("ar"):
        pytest.skip("needs the build folder, objdump and ar")
    folder = ROOT / "build/Release/CMakeFiles/sparsespan_core.dir/csrc"
    found = {}
    for path in folder.rglob("*.o"):
        level = path.parent.name if path.parent.parent.name == "kernels" else "rest"
        found.setdefault(level, []).append(path)
    return found


def _code(path):
    return subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout


def test_tile_instructions_stand_in_the_amx_level_alone(objects):
    tiles = re.compile(r"\b(tdpbf16ps|tileloadd|tilestored|ldtilecfg|tilerelease)\b")
    assert {"generic", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"} <= set(objects)
    used = {tiles.search(_code(path)).group() for path in objects["amx"] if tiles.search(_code(path))}
    assert used
    assert any("tdpbf16ps" in _code(path) for path in objects["amx"])
    for level, paths in objects.items():
        if level in ("amx", "rest"):
            continue
        for path in paths:
            assert not tiles.search(_code(path)), path


def test_no_wide_function_can_be_merged_into_another_level(objects):
    """A weak function of a wide level might be the one that the linker keeps for everybody."""
    for level in set(objects) - {"rest", "generic"}:
        for path in objects[level]:
            symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
            weak = [line for line in symbols.splitlines() if re.search(r" [Wu] ", line)]
            assert weak == [], path
            for line in symbols.splitlines():  # what leaves the file is its table, data
                assert not re.search(r" T ", line), f"{path}: {line}"


def test_the_build_says_what_it_has():
    info = sparsespan.build_info()
    for isa in ("generic", "avx2", "avx512", "avx512_bf16", "amx"):
        assert isa in info["isa_available"] + info["isa_refused"]
