"""Data of FlashMLA's shape for the attention tests, and caches written byte by byte without the package's writers."""

import ml_dtypes
import numpy as np

BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn


def flashmla_rows(rng, rows, heads, keys, topk, dim=576, dtype=BF16, fill=0.9):
    """q, kv and indices as FlashMLA's prefill test makes them: a permutation prefix without repeats, the rest -1."""

    def tensor(*shape):
        x = rng.standard_normal(shape) / 10 + rng.uniform(-0.05, 0.05)
        return np.clip(x, -10, 10).astype(dtype)

    indices = np.full((rows, topk), -1, np.int32)
    for t in range(rows):
        count = min(keys, int(topk * rng.uniform(fill, 1.0)))
        places = rng.permutation(topk)[:count]
        indices[t, places] = rng.permutation(keys)[:count]
    return tensor(rows, heads, dim), tensor(keys, dim), indices


def sinks(rng, heads):
    """About a third each of -inf, +inf and finite."""
    sink = rng.standard_normal(heads).astype(np.float32)
    kind = rng.uniform(size=heads)
    sink[kind < 0.31] = -np.inf
    sink[kind > 0.69] = np.inf
    return sink


def fp8_tokens(rng, count, pow2=True):
    """(bytes [count, 656], decoded float32 [count, 576]): 512 e4m3 | 4 float32 scales | 64 bfloat16."""
    latent = (rng.standard_normal((count, 4, 128)) / 10).clip(-1, 1).astype(np.float32)
    scale = np.maximum(np.abs(latent).max(-1) / np.float32(448), np.float32(1e-4)).astype(np.float32)
    if pow2:
        scale = np.exp2(np.ceil(np.log2(scale))).astype(np.float32)
    codes = (latent / scale[..., None]).astype(FP8)
    rope = (rng.standard_normal((count, 64)) / 10).clip(-1, 1).astype(BF16)
    decoded = (codes.astype(np.float32) * scale[..., None]).astype(BF16).astype(np.float32).reshape(count, 512)
    raw = [codes.reshape(count, 512).view(np.uint8), scale.view(np.uint8), np.ascontiguousarray(rope).view(np.uint8)]
    return np.concatenate(raw, axis=1), np.concatenate([decoded, rope.astype(np.float32)], axis=1)


def paged(tokens, page_size, pages, pad_pages=False, poison=True):
    """Put ``tokens`` [n, width] into slots 0..n-1 of a cache; unused tokens hold NaN. ``pad_pages`` pads each page."""
    width = tokens.shape[1]
    held = page_size + (1 if pad_pages else 0)
    cache = np.zeros((pages, held, width), tokens.dtype)
    if poison:
        cache[...] = 0xFF if tokens.dtype == np.uint8 else np.nan
    for slot in range(len(tokens)):
        cache[slot // page_size, slot % page_size] = tokens[slot]
    return cache[:, :page_size]


def scatter(tokens, slots, page_size, pages, pad_pages=False):
    """The same with token i at slot ``slots[i]``."""
    cache = paged(tokens[:0], page_size, pages, pad_pages)
    cache[slots // page_size, slots % page_size] = tokens
    return cache


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_array_equal(bits(x), bits(y))
