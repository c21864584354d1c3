"""Outputs that outgrow the caches are written past them: the same bits as in small pieces, at any address."""

import ml_dtypes
import numpy as np
import pytest

from sparsespan import _core, quant
from sparsespan.attention import merge_states
from sparsespan.testing import each_isa
from sparsespan.transform import hadamard_transform

BF16 = ml_dtypes.bfloat16


LARGE = _core.last_level_cache_bytes() + (1 << 20)
if LARGE > 1 << 29:
    pytest.skip("the last-level cache is larger than this test wants to be", allow_module_level=True)


def _at(offset: int, shape, dtype) -> np.ndarray:
    """An array that starts `offset` elements behind an aligned address."""
    size = int(np.prod(shape))
    return np.empty(size + offset, dtype)[offset:].reshape(shape)


@pytest.mark.parametrize("offset", [0, 1])
def test_hadamard(offset):
    rows = LARGE // 512
    x = np.resize(np.random.default_rng(0).standard_normal((1024, 128), dtype=np.float32), (rows, 128))
    small = hadamard_transform(x[:1024])
    for isa in each_isa():
        got = hadamard_transform(x, out=_at(offset, x.shape, np.float32))
        assert (got[:1024].view(np.uint32) == small.view(np.uint32)).all(), isa
        assert (got[1024:2048] == small).all() and (got[-(rows % 1024 or 1024) :] == small[: rows % 1024 or 1024]).all()


@pytest.mark.parametrize("offset", [0, 8])
def test_hadamard_of_bfloat16(offset):
    rows = LARGE // 256
    x = np.resize(np.random.default_rng(3).standard_normal((1000, 128)).astype(BF16), (rows, 128))
    small = hadamard_transform(x[:1000], 0.1).view(np.uint16)
    for isa in each_isa():
        got = hadamard_transform(x, 0.1, out=_at(offset, x.shape, BF16)).view(np.uint16)
        assert (got[: rows // 1000 * 1000].reshape(-1, 1000, 128) == small).all(), isa
        assert (got[rows // 1000 * 1000 :] == small[: rows % 1000]).all(), isa


def test_nothing_is_written_beside_an_output():
    rows = LARGE // 256 + 1
    x = np.ones((rows, 128), BF16)
    for isa in each_isa():
        memory = np.full(rows * 128 + 64, 7, BF16)
        out = memory[8:-56].reshape(rows, 128)  # begins and ends within a line of the caches
        hadamard_transform(x, out=out)
        assert (memory[:8] == 7).all() and (memory[-56:] == 7).all() and (out[[0, -1], 0] == 128).all(), isa


def test_convert_and_read():
    tokens = -(-LARGE // 656) // 64 * 64 + 64
    kv = np.resize(np.random.default_rng(1).standard_normal((64, 576), dtype=np.float32).astype(BF16), (tokens, 576))
    kv = kv.reshape(-1, 64, 576)
    small = quant.convert_kv(kv[:1], "bf16_576", "fp8_656")
    back = quant.convert_kv(small, "fp8_656", "bf16_576")
    for isa in each_isa():
        fp8 = quant.convert_kv(kv, "bf16_576", "fp8_656")
        assert (fp8 == small).all(), isa
        wide = quant.convert_kv(fp8, "fp8_656", "bf16_576")
        assert (wide.view(np.uint16) == back.view(np.uint16)).all(), isa
        rows = quant.read_kv(fp8, np.arange(tokens), "fp8_656", 64)
        assert (rows.view(np.uint16) == wide.reshape(-1, 576).view(np.uint16)).all(), isa


def test_weight_dequant():
    rows = LARGE // 512
    codes = np.resize(np.arange(256, dtype=np.uint8), (rows, 256)).view(ml_dtypes.float8_e4m3fn)
    scale = np.full((-(-rows // 128), 2), 0.75, np.float32)
    small = quant.weight_dequant(codes[:128], scale[:1])
    for isa in each_isa():
        got = quant.weight_dequant(codes, scale)
        assert (got.view(np.uint16) == small[:1].view(np.uint16)).all(), isa


def test_merge():
    rows = LARGE // 2048
    rng = np.random.default_rng(2)
    outs = np.resize(rng.standard_normal((3, 1, 1, 512), dtype=np.float32), (1, rows, 1, 512)).repeat(3, 0)
    outs[1] *= 2
    lses = np.resize(rng.standard_normal((3, 1, 1), dtype=np.float32), (3, 1, 1)).repeat(rows, 1)
    small = merge_states(outs[:, :6], lses[:, :6])[0]
    for isa in each_isa():
        got = merge_states(outs, lses)[0]
        assert (got[:6] == small).all() and (got[6:12] == merge_states(outs[:, 6:12], lses[:, 6:12])[0]).all(), isa
