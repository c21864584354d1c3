import gc
from pathlib import Path

import numpy as np
import pytest

import sparsespan
from sparsespan import quant
from sparsespan.quant import kv_layout_names


@pytest.mark.parametrize("name", kv_layout_names())
def test_a_pool_is_an_array_of_any_layout(name):
    layout = quant.kv_layout(name)
    pool = sparsespan.empty_kv_pool(name, 3, 16)
    assert pool.shape == (3, 16, layout.width) and pool.dtype == layout.dtype
    assert pool.flags.c_contiguous and pool.flags.writeable and not pool.view(np.uint8).any()
    assert pool.ctypes.data % (2 << 20) == 0


def test_ops_write_and_read_it():
    rng = np.random.default_rng(0)
    c_kv, k_pe = rng.standard_normal((40, 512), dtype=np.float32), rng.standard_normal((40, 64), dtype=np.float32)
    slots = rng.permutation(64)[:40]
    pool, plain = sparsespan.empty_kv_pool("fp8_656", 4, 16), np.zeros((4, 16, 656), np.uint8)
    for cache in (pool, plain):
        quant.concat_and_cache_mla(c_kv, k_pe, cache, slots, "fp8_656", 16)
    assert (pool == plain).all()
    assert (quant.read_kv(pool, slots, "fp8_656", 16) == quant.read_kv(plain, slots, "fp8_656", 16)).all()


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    pytest.skip("this system does not tell what is resident")


def test_the_memory_goes_back_with_its_last_view():
    before = _resident()
    pool = sparsespan.empty_kv_pool("bf16_576", 1024)  # 75 MB
    size = pool.nbytes
    assert _resident() - before > 0.9 * size  # touched
    view = pool[5:7]
    del pool
    gc.collect()
    assert not view.view(np.uint8).any()  # still there
    del view
    gc.collect()
    assert _resident() - before < 0.1 * size


def test_an_empty_pool_is_legal():
    assert sparsespan.empty_kv_pool("bf16_576", 0).shape == (0, 64, 576)


def test_refusals():
    with pytest.raises(ValueError, match=r"fp9.*needs one of f32_576"):
        sparsespan.empty_kv_pool("fp9", 1)
    with pytest.raises(ValueError, match=r"empty_kv_pool: pages is -1, needs at least 0"):
        sparsespan.empty_kv_pool("fp8_656", -1)
    with pytest.raises(ValueError, match=r"empty_kv_pool: page_size is 0, needs at least 1"):
        sparsespan.empty_kv_pool("fp8_656", 1, 0)
    with pytest.raises(ValueError, match=r"empty_kv_pool: pages is 1152921504606846976, asks for \d+ bytes"):
        sparsespan.empty_kv_pool("fp8_656", 1 << 60)
    with pytest.raises(TypeError, match=r"^empty_kv_pool: pages is 1.5, needs an integer$"):
        sparsespan.empty_kv_pool("fp8_656", 1.5)
    with pytest.raises(TypeError, match=r"^empty_kv_pool: page_size is '64', needs an integer$"):
        sparsespan.empty_kv_pool("fp8_656", 1, "64")
    with pytest.raises(ValueError, match=r"^empty_kv_pool: threads is -2"):
        sparsespan.empty_kv_pool("fp8_656", 1, threads=-2)
