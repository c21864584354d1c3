"""The engines' CPU ops as peers: our arrays in their layouts, on modules that stand in for them."""

import importlib
import sys
import types

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer


@pytest.fixture
def engines(bench, monkeypatch, tmp_path):
    """Two packages that can be found, and operators that keep what they are called with."""
    seen = {}
    for name in ("vllm", "sgl_kernel"):
        (tmp_path / name).mkdir()
    (tmp_path / "vllm" / "_C.abi3.so").touch()
    (tmp_path / "sgl_kernel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    monkeypatch.setattr(bench("peers"), "_cpu_has", lambda flag: True)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: seen.__setitem__("loaded", path), raising=False)

    class Ops:
        def __init__(self, known):
            for name, result in known.items():
                setattr(self, name, lambda *a, name=name, result=result: (seen.__setitem__(name, a), result(*a))[1])

    logits = {"fp8_paged_mqa_logits_cpu": lambda q, *rest: torch.zeros(len(q), 256)}
    attention = {"flash_mla_with_kvcache_cpu": lambda *a: None}
    monkeypatch.setattr(torch.ops, "_C", Ops(logits | attention), raising=False)
    sglang = {"fp8_mqa_logits_cpu": lambda q, k, *rest: torch.zeros(len(q), len(k))}
    monkeypatch.setattr(torch.ops, "sgl_kernel", Ops(logits | attention | sglang), raising=False)
    return seen


def _described(arguments):
    return [(tuple(a.shape), a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments]


def _call(calls):
    assert len(calls) == 1
    (run,) = calls.values()
    run()


def test_decode_logits(bench, engines):
    native = bench("native_peers")
    q = np.zeros((2, 64, 128), ml_dtypes.float8_e4m3fn)
    cache, weights = np.zeros((8, 64 * 132), np.uint8), np.ones((2, 64), np.float32)
    lens, table = np.full(2, 256, np.int32), np.arange(8, dtype=np.int32).reshape(2, 4)
    paged = q, cache, weights, lens, table, 64, 256, 100
    _call(native.vllm_logits(*paged))
    i32, f32 = torch.int32, torch.float32
    rest = [((2, 64), f32), ((2,), i32), ((2, 4), i32)]
    q3, q4 = (((2, *one, 64, 128), torch.float8_e4m3fn) for one in ((), (1,)))
    name = "fp8_paged_mqa_logits_cpu"
    assert _described(engines[name]) == [q3, ((8, 64 * 132), torch.uint8), *rest, 64, 256]
    _call(native.sglang_paged_logits(*paged))
    assert _described(engines[name]) == [q4, ((8, 64, 1, 132), torch.uint8), *rest, 256, False]


def test_prefill_logits(bench, engines):
    native = bench("native_peers")
    q, k = (np.zeros(s, ml_dtypes.float8_e4m3fn) for s in ((3, 64, 128), (50, 128)))
    ks, ke = np.zeros(3, np.int32), np.full(3, 50, np.int32)
    scale, weights = np.ones(50, np.float32), np.ones((3, 64), np.float32)
    _call(native.sglang_logits(q, k, scale, weights, ks, ke))
    i32, f32, f8 = torch.int32, torch.float32, torch.float8_e4m3fn
    tensors = [((3, 64, 128), f8), ((50, 128), f8), ((50,), f32), ((3, 64), f32), ((3,), i32), ((3,), i32)]
    assert _described(engines["fp8_mqa_logits_cpu"]) == [*tensors, ((2,), i32), False, 0]
    older = types.SimpleNamespace(arguments=(None,) * 7)
    torch.ops.sgl_kernel.fp8_mqa_logits_cpu.default = types.SimpleNamespace(_schema=older)
    _call(native.sglang_logits(q, k, scale, weights, ks, ke))
    assert _described(engines["fp8_mqa_logits_cpu"]) == [*tensors, False]
    assert native.sglang_logits(q, k, None, weights, ks, ke) == {}  # bf16 keys: they have none


@pytest.mark.parametrize("fp8", [False, True])
def test_sparse_attention_of_sglang(bench, engines, fp8):
    q, indices = np.zeros((2, 16, 576), ml_dtypes.bfloat16), np.zeros((2, 32), np.int32)
    pages = np.zeros((3, 64, 656), np.uint8) if fp8 else np.zeros((3, 64, 576), ml_dtypes.bfloat16)
    _call(bench("native_peers").sglang_sparse(q, pages, indices, 0.5, fp8))
    cache = ((3, 64, 1, 656), torch.uint8) if fp8 else ((3, 64, 1, 576), torch.bfloat16)
    assert _described(engines["flash_mla_with_kvcache_cpu"]) == [
        ((2, 1, 16, 576), torch.bfloat16), cache, 512, 0.5, ((2, 1, 32), torch.int32), *[None] * 5, fp8, 1,
    ]  # fmt: skip


def test_sparse_attention_of_vllm(bench, engines):
    q, indices = np.ones((2, 16, 576), ml_dtypes.bfloat16), np.full((2, 32), 99, np.int32)
    _call(bench("native_peers").vllm_sparse(q, 100, 64, indices, 0.5))
    out, rows, cache, slots, page, no_cache, no_slots, same_page, sink, scale = engines["flash_mla_with_kvcache_cpu"]
    assert out.shape == rows.shape == (2, 16, 512) and rows.is_contiguous() and out.dtype == torch.bfloat16
    assert cache.shape == (2, 64 * 584) and cache.dtype == torch.uint8 and page == same_page == 64 and scale == 0.5
    assert slots.dtype == torch.int64 and (slots == 99).all() and no_slots.shape == (2, 0)
    assert no_cache.numel() == 0 and (sink == float("-inf")).all()
    assert cache[0, :448].view(torch.float8_e4m3fn).float().eq(1).all()  # times 2^(127 - 127)
    assert (cache[:, 64 * 576 :] == 127).all()


def test_an_engine_that_is_not_there_is_skipped_in_words(bench, monkeypatch):
    native, session = bench("native_peers"), bench("session")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    q = np.zeros((2, 16, 576), ml_dtypes.bfloat16)
    assert native.vllm_sparse(q, 100, 64, np.zeros((2, 32), np.int32), 0.5) == {}
    assert native.sglang_sparse(q, q, np.zeros((2, 32), np.int32), 0.5, False) == {}
    assert session.SESSION.notes == [
        f"{name}: not installed, its CPU ops were skipped" for name in ("vllm", "sgl_kernel")
    ]


def test_only_the_extension_of_vllm_is_loaded(bench, engines):
    q, indices = np.ones((1, 16, 576), ml_dtypes.bfloat16), np.zeros((1, 32), np.int32)
    bench("native_peers").vllm_sparse(q, 64, 64, indices, 0.5)
    assert engines["loaded"].endswith("vllm/_C.abi3.so") and "vllm" not in sys.modules


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda m, peers, root: m.setattr(peers, "_cpu_has", lambda flag: False), "its _C is built for AVX512-BF16"),
        (lambda m, peers, root: (root / "vllm" / "_C.abi3.so").unlink(), "it has no _C, as a build for a CPU has"),
        (lambda m, peers, root: m.setattr(torch.ops, "load_library", lambda path: 1 / 0), "division by zero"),
    ],
)
def test_an_engine_that_cannot_be_loaded_is_skipped_in_words(bench, monkeypatch, engines, tmp_path, change, words):
    change(monkeypatch, bench("peers"), tmp_path)
    assert bench("native_peers").vllm_sparse(np.zeros((2, 16, 576), ml_dtypes.bfloat16), 9, 64, None, 0.5) == {}
    (note,) = bench("session").SESSION.notes
    assert note.startswith("vllm: cannot be loaded here (") and words in note


def test_a_peer_that_refuses_falls_out_of_the_comparison_and_the_rest_is_measured(bench):
    timing, session = bench("timing"), bench("session")
    session.SESSION.quick = True

    def refuses():
        raise RuntimeError("expected a 2D tensor\nand a stack")

    turns = [0]

    def gives_up():
        turns[0] += 1
        if turns[0] > 4:
            raise MemoryError("no room")

    peers = {"broken": refuses, "tired": gives_up, "well": lambda: None}
    rows = list(timing.compare("op", "shape", lambda: None, peers, turns=3, seconds=0.5))
    assert {"well"} <= {row["peer"] for row in rows} <= {"well", "tired"}
    assert "broken: skipped for op shape, it failed with RuntimeError: expected a 2D tensor" in session.SESSION.notes
    assert "tired: skipped for op shape, it failed with MemoryError: no room" in session.SESSION.notes
    with pytest.raises(ZeroDivisionError):  # an error of ours is an error
        list(timing.compare("op", "shape", lambda: 1 // 0))
