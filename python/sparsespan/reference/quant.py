"""Twins of :mod:`sparsespan.quant`.

Scales and codes are defined in float32, so these twins are float32 too and agree bit for bit. Rounding to e4m3 goes by
the table of its values in float64, where every difference is exact.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ..quant import KvField, KvLayout, kv_layout

__all__ = [
    "act_quant",
    "concat_and_cache_mla",
    "convert_kv",
    "gather_indexer_k",
    "indexer_k_quant_and_cache",
    "read_kv",
    "round_e4m3",
    "tile_scale",
    "weight_dequant",
]

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.float32


def _e4m3_values() -> np.ndarray:
    """The 127 values of codes 0 to 0x7E, ascending, from the definition of the format (1-4-3, bias 7)."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))


_VALUES = _e4m3_values()


def round_e4m3(x: np.ndarray) -> np.ndarray:
    """Nearest e4m3 value, ties to the even code, beyond 448 the largest; the sign of zero and NaN are kept."""
    x = np.asarray(x, np.float64)
    magnitude = np.minimum(np.abs(np.where(np.isnan(x), 0.0, x)), 448.0)
    low = np.searchsorted(_VALUES, magnitude, side="right") - 1
    high = np.minimum(low + 1, 126)
    to_low, to_high = magnitude - _VALUES[low], _VALUES[high] - magnitude
    code = np.where((to_high < to_low) | ((to_high == to_low) & (low % 2 == 1)), high, low)
    code = np.where(np.isnan(x), 0x7F, code)
    result: np.ndarray = (code + 128 * np.signbit(x)).astype(np.uint8).view(E4M3)
    return result


def _ceil2(x: np.ndarray) -> np.ndarray:
    """Smallest power of two >= x, by splitting x exactly."""
    mantissa, exponent = np.frexp(x)  # x = mantissa * 2**exponent, 0.5 <= mantissa < 1
    result: np.ndarray = np.ldexp(F32(1), exponent - (mantissa == 0.5)).astype(F32)
    return result


def tile_scale(amax: np.ndarray, rule: str) -> np.ndarray:
    """Scale of a tile from its largest magnitude: the four rules of the writers, and ``"official_f32"``."""
    amax = np.asarray(amax, F32)
    smallest = np.finfo(F32).tiny
    scale: np.ndarray
    if rule == "official":
        scale = _ceil2(np.maximum(amax, F32(1e-4)) * F32(1 / 448))
    elif rule == "official_f32":
        scale = np.maximum(amax, F32(1e-4)) * F32(1 / 448)
    elif rule == "flashmla":
        scale = _ceil2(np.maximum(amax / F32(448), F32(1e-4)))
    elif rule == "sglang":
        scale = np.where(amax / F32(448) == 0, smallest, amax / F32(448))
    elif rule == "vllm":
        scale = np.maximum(amax / F32(448), smallest)
    else:
        raise ValueError(f"tile_scale: rule is {rule!r}")
    return scale


def _quantize(x: np.ndarray, tile: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [..., N] and scales [..., N / tile]; a tile with NaN or infinity gives NaN codes and scale 1."""
    x = np.asarray(x).astype(F32)
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // tile, tile)
    bad = ~np.isfinite(groups).all(-1)
    groups = np.where(bad[..., None], F32(0), groups)
    scale = tile_scale(np.abs(groups).max(-1, initial=0), rule)
    codes = round_e4m3(np.clip(groups / scale[..., None], F32(-448), F32(448)))
    codes = np.where(bad[..., None], np.uint8(0x7F), codes.view(np.uint8)).view(E4M3)
    return codes.reshape(x.shape), np.where(bad, F32(1), scale)


def act_quant(x: np.ndarray, block_size: int = 128, scale_fmt: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``scale = [ceil2](max(amax, 1e-4) * float32(1/448))``, ``y = e4m3(clamp(x / scale))`` per group, in float32."""
    return _quantize(x, block_size, "official_f32" if scale_fmt is None else "official")


def weight_dequant(w: np.ndarray, scale_inv: np.ndarray, block: int = 128, dtype: Any = BF16) -> np.ndarray:
    """Each block of ``w`` times its scale, in float32, rounded once."""
    rows, columns = np.arange(w.shape[0]) // block, np.arange(w.shape[1]) // block
    scale = np.asarray(scale_inv).astype(F32)[rows[:, None], columns[None, :]]
    result: np.ndarray = (w.astype(F32) * scale).astype(dtype)
    return result


def _place(cache: np.ndarray, slot: int, layout: KvLayout, page_size: int, field: KvField) -> np.ndarray:
    """Bytes of one field of one token, as a view."""
    page, offset = divmod(int(slot), page_size)
    page_bytes = cache[page].reshape(-1).view(np.uint8)
    if field.page_tail:
        start = page_size * layout.token_stride + offset * field.nbytes
    else:
        start = offset * layout.token_stride + field.offset
    place: np.ndarray = page_bytes[start : start + field.nbytes]
    return place


def token_fields(cache: np.ndarray, slot: int, layout: KvLayout, page_size: int) -> list[np.ndarray]:
    """Views of the bytes of one token, field by field."""
    return [_place(cache, slot, layout, page_size, field) for field in layout.fields]


def _write(cache: np.ndarray, slot: int, layout: KvLayout, page_size: int, values: np.ndarray, rule: str) -> None:
    at = 0
    for field in layout.fields:
        if field.name == "scale":
            continue
        part = values[at : at + field.count]
        at += field.count
        if field.dtype == E4M3:
            scale_field = next(f for f in layout.fields if f.name == "scale")
            part, scale = _quantize(part, field.count // scale_field.count, rule)
            _place(cache, slot, layout, page_size, scale_field)[:] = scale.view(np.uint8)
        _place(cache, slot, layout, page_size, field)[:] = np.ascontiguousarray(part.astype(field.dtype)).view(np.uint8)


def _read(cache: np.ndarray, slot: int, layout: KvLayout, page_size: int) -> np.ndarray:
    parts = []
    for field in layout.fields:
        if field.name == "scale":
            continue
        part = _place(cache, slot, layout, page_size, field).copy().view(field.dtype)
        if field.dtype == E4M3:
            scale_field = next(f for f in layout.fields if f.name == "scale")
            scale = _place(cache, slot, layout, page_size, scale_field).copy().view(F32)
            part = part.astype(F32) * np.repeat(scale, field.count // scale.size)
        parts.append(part.astype(layout.decoded))
    return np.concatenate(parts)


def concat_and_cache_mla(
    c_kv: np.ndarray,
    k_pe: np.ndarray,
    cache: np.ndarray,
    slot_mapping: np.ndarray,
    layout: str,
    page_size: int,
    scale_rule: str = "official",
) -> None:
    """Token by token: each row to its slot, -1 skipped."""
    for c, k, slot in zip(c_kv.astype(F32), k_pe.astype(F32), slot_mapping):
        if slot >= 0:
            _write(cache, slot, kv_layout(layout), page_size, np.concatenate([c, k]), scale_rule)


def indexer_k_quant_and_cache(
    k: np.ndarray,
    cache: np.ndarray,
    slot_mapping: np.ndarray,
    page_size: int,
    layout: str = "index_132",
    scale_fmt: str | None = "ue8m0",
) -> None:
    """Token by token: each key to its slot, -1 skipped."""
    rule = "official_f32" if scale_fmt is None else "official"
    for row, slot in zip(k.astype(F32), slot_mapping):
        if slot >= 0:
            _write(cache, slot, kv_layout(layout), page_size, row, rule)


def read_kv(cache: np.ndarray, slots: np.ndarray, layout: str, page_size: int) -> np.ndarray:
    """Decoded tokens; -1 gives zeros."""
    info = kv_layout(layout)
    out = np.zeros((slots.size, info.dim), info.decoded)
    for row, slot in enumerate(slots.reshape(-1)):
        if slot >= 0:
            out[row] = _read(cache, slot, info, page_size)
    return out.reshape(*slots.shape, info.dim)


def gather_indexer_k(
    cache: np.ndarray, block_table: np.ndarray, cu_seq_lens: np.ndarray, page_size: int, layout: str = "index_132"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Keys as stored, request after request, and their scales."""
    info = kv_layout(layout)
    slots = [
        int(block_table[b, i // page_size]) * page_size + i % page_size
        for b in range(len(block_table))
        for i in range(int(cu_seq_lens[b + 1]) - int(cu_seq_lens[b]))
    ]

    def field_rows(field: KvField) -> np.ndarray:
        rows = [_place(cache, s, info, page_size, field).copy().view(field.dtype) for s in slots]
        return np.array(rows, field.dtype).reshape(len(slots), field.count)

    k = field_rows(info.fields[0])
    return k, field_rows(info.fields[1])[:, 0] if len(info.fields) > 1 else None


def convert_kv(cache: np.ndarray, src: str, dst: str, scale_rule: str = "official") -> np.ndarray:
    """Each token read in one layout and written in the other."""
    pages, page_size = cache.shape[:2]
    out = kv_layout(dst).zeros(pages, page_size)
    if src == dst:
        out[...] = cache
        return out
    for slot in range(pages * page_size):
        values = _read(cache, slot, kv_layout(src), page_size).astype(F32)
        _write(out, slot, kv_layout(dst), page_size, values, scale_rule)
    return out
