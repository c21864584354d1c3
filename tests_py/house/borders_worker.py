"""Calls every op, at every level, on arrays that end at, then begin behind, a page that nobody may touch.

A masked load or a gather is seen by no sanitizer of GCC's; the page sees it, and this process dies there. The line
printed before each call names it. Arguments: the levels to run, all without any.
"""

import ctypes
import mmap
import sys

import ml_dtypes
import numpy as np

from sparsespan.attention import dense_mla, merge_states, mha, sparse_mha, sparse_mla
from sparsespan.indexer import mqa_logits, paged_mqa_logits, paged_select, select, to_slots, topk
from sparsespan.quant import (
    act_quant,
    concat_and_cache_mla,
    convert_kv,
    gather_indexer_k,
    indexer_k_quant_and_cache,
    kv_layout,
    read_kv,
    weight_dequant,
)
from sparsespan.testing import each_isa
from sparsespan.transform import add_rms_norm, apply_rope, hadamard_transform, layer_norm, rms_norm

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
LIBC = ctypes.CDLL(None, use_errno=True)
KEEP = []  # maps live as long as the process


def walled(array, behind):
    """A copy whose last byte lies before (or whose first byte lies behind) a page without permissions."""
    array = np.ascontiguousarray(array)
    pages = -(-max(array.nbytes, 1) // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    KEEP.append(memory)
    raw = np.frombuffer(memory, np.uint8)
    wall = raw.ctypes.data + (pages * mmap.PAGESIZE if behind else 0)
    assert LIBC.mprotect(ctypes.c_void_p(wall), ctypes.c_size_t(mmap.PAGESIZE), ctypes.c_int(0)) == 0
    start = pages * mmap.PAGESIZE - array.nbytes if behind else mmap.PAGESIZE
    held = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    held[...] = array
    return held


def wall_in(value, behind):
    if isinstance(value, tuple):
        return tuple(wall_in(v, behind) for v in value)
    return walled(value, behind) if isinstance(value, np.ndarray) else value


def arrays_of(value):
    return [a for v in value for a in arrays_of(v)] if isinstance(value, tuple) else [value]


def cases(rng):
    def normal(*shape, dtype=np.float32):
        return (rng.standard_normal(shape) / 4).astype(dtype)

    # Transforms: lengths that fill no vector.
    for dtype in (np.float32, BF16):
        for n in (1, 2, 16, 256):
            yield hadamard_transform, (normal(3, n, dtype=dtype),), {}
        for n in (1, 7, 33, 200):
            x, w = normal(3, n, dtype=dtype), normal(n, dtype=dtype)
            yield rms_norm, (x, w, 1e-6), {}
            yield add_rms_norm, (x, x[::-1].copy(), w, 1e-6), {}
            yield layer_norm, (x, w.astype(np.float32), w.astype(np.float32)), {}
        for dim in (2, 6, 34, 64):
            yield apply_rope, (normal(5, 3, dim, dtype=dtype), np.arange(5)[::-1].copy(), normal(5, dim), dim != 6), {}
        yield act_quant, (normal(3, 128 * 3, dtype=dtype),), {}
        yield act_quant, (normal(3, 66, dtype=dtype), 33), {}
    yield weight_dequant, (normal(37, 41, dtype=FP8), abs(normal(3, 3)), 16), {}

    # Indexer: heads, keys and rows beside the blocks' sizes.
    for dtype in (FP8, BF16, np.float32):
        for rows, heads, keys, dim in ((1, 1, 1, 7), (3, 5, 17, 128), (20, 33, 333, 33), (9, 64, 130, 100)):
            scale = rng.uniform(0.5, 2, keys).astype(np.float32) if dtype is FP8 else None
            ke = rng.integers(0, keys + 1, rows)
            ke[-1] = keys
            q, k, w = normal(rows, heads, dim, dtype=dtype), normal(keys, dim, dtype=dtype), normal(rows, heads)
            yield mqa_logits, (q, k, w, ke // 3, ke, scale), {}
            yield select, (q, k, w, ke // 3, ke, scale, 11), {}
    for n in (1, 5, 16, 1023, 4097):
        yield topk, (normal(2, n), 10), {}
        yield topk, (normal(2, n), 10, np.array([n, n // 2])), {"order": "score"}
    table = np.array([[2, 0, 1], [4, 3, 5]], np.int32)
    lengths = np.array([[2 * 64 + 7], [3 * 64]])
    yield to_slots, (np.array([[0, 5, 130], [191, -1, 64]], np.int32), np.array([0, 1]), table, 64), {}
    for layout in ("index_132", "index_bf16", "index_f32"):
        kind = kv_layout(layout)
        cache = np.zeros((6, 64, kind.width), kind.dtype)
        slots = np.arange(6 * 64)
        k = normal(6 * 64, 128, dtype=BF16)
        yield indexer_k_quant_and_cache, (k[:70], cache, slots[:70], 64, layout), {}
        indexer_k_quant_and_cache(k, cache, slots, 64, layout)
        q, w = normal(2, 1, 5, 128, dtype=FP8 if layout == "index_132" else BF16), normal(2, 5)
        yield paged_mqa_logits, (q, cache, w, lengths, table, 64, 192, layout), {}
        yield paged_select, (q, cache, w, lengths, table, 64, 9, layout), {}
        if layout == "index_132":
            yield gather_indexer_k, (cache, table, np.array([0, 70, 201]), 64, layout), {}
        yield read_kv, (cache, np.array([383, 0, 17]), layout, 64), {}

    # Attention.
    for layout in ("bf16_576", "f32_576", "fp8_656"):
        kind = kv_layout(layout)
        cache = np.zeros((6, 64, kind.width), kind.dtype)
        yield concat_and_cache_mla, (normal(7, 512), normal(7, 64), cache, np.arange(377, 384), layout, 64), {}
        concat_and_cache_mla(normal(384, 512), normal(384, 64), cache, np.arange(384), layout, 64)
        yield read_kv, (cache, np.array([383, 0, 17]), layout, 64), {}
        if layout == "bf16_576":
            yield convert_kv, (cache, layout, "fp8_656"), {}
        for rows, heads, count in ((1, 1, 1), (3, 5, 37), (20, 16, 130), (2, 33, 300)):
            q = normal(rows, heads, 576, dtype=BF16)
            picked = np.stack([rng.permutation(384)[:count] for _ in range(rows)]).astype(np.int32)
            picked[0, 0] = 383  # the cache's last token
            some = np.minimum(count, rng.integers(0, count + 1, rows) + 1)
            paged = {"layout": layout, "page_size": 64}
            yield sparse_mla, (q, cache, picked, 0.1), paged | {"topk_length": some, "attn_sink": normal(heads)}
        q = normal(2, 5, 576, dtype=BF16)
        yield dense_mla, (q, cache, np.array([0, 1]), lengths[:, 0], table, 64, 0.1, layout), {}
    for dtype in (BF16, np.float32):
        for heads, dim, dv, count in ((1, 1, 1, 1), (5, 33, 7, 19), (4, 192, 128, 70)):
            q, k, v = normal(9, heads, dim), normal(count, heads, dim), normal(count, heads, dv)
            q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
            yield mha, (q, k, v, np.array([0, 4, 9]), np.array([0, count // 2, count]), 0.1), {"causal": False}
            sets = rng.integers(-1, count, (9, 13)).astype(np.int32)
            yield sparse_mha, (q, k, v, np.sort(sets, -1), 0.1), {}
            yield sparse_mla, (q, k[:, 0], np.minimum(sets, count - 1), 0.1, dv if dv <= dim else dim), {}
    for dim in (1, 7, 33, 128):
        yield merge_states, (normal(3, 2, 5, dim), normal(3, 2, 5), normal(5)), {}


def results_of(op, args, given):
    """What the op has written, as a list. One without a result writes into its second or third argument, a cache."""
    return arrays_of(given) if given is not None else list(args[1:3])


def with_outputs(op, keywords, want, behind):
    """The keywords, and arrays at a wall to write to; every element is written, whatever it held."""
    if op in (concat_and_cache_mla, indexer_k_quant_and_cache):
        return keywords
    outs = tuple(wall_in(np.empty_like(a), behind) for a in want)
    if op is add_rms_norm:
        return keywords | {"out": outs[0], "residual_out": outs[1]}
    return keywords | {"out": outs if len(outs) > 1 else outs[0]}


def main(levels):
    for number, (op, args, keywords) in enumerate(cases(np.random.default_rng(0))):
        for isa in each_isa():
            if levels and isa not in levels:
                continue
            want = [a.copy() for a in results_of(op, args, op(*args, **keywords)) if a is not None]
            for behind in (True, False):
                print(number, op.__name__, isa, "wall behind" if behind else "wall before", flush=True)
                given = tuple(wall_in(a, behind) for a in args)
                more = with_outputs(op, {k: wall_in(v, behind) for k, v in keywords.items()}, want, behind)
                got = [a for a in results_of(op, given, op(*given, **more)) if a is not None]
                for a, b in zip(got, want, strict=True):
                    assert a.tobytes() == b.tobytes()
        KEEP.clear()
    print("all borders kept")


if __name__ == "__main__":
    main(sys.argv[1:])
