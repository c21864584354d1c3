"""Twins of :mod:`sparsespan.transform`."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "add_rms_norm",
    "apply_rope",
    "hadamard_transform",
    "layer_norm",
    "rms_norm",
    "yarn_cos_sin",
    "yarn_frequencies",
    "yarn_softmax_scale",
]


def hadamard_transform(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """``scale * (x @ H_n)`` in float64, with ``H[i, j] = (-1) ** popcount(i & j)``."""
    n = x.shape[-1]
    i = np.arange(n, dtype=np.uint64)
    h = 1.0 - 2.0 * (np.bitwise_count(i[:, None] & i[None, :]) % 2)
    return np.asarray(scale * (np.asarray(x, np.float64) @ h))


def apply_rope(x: np.ndarray, positions: np.ndarray, cos_sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """Pairs ``a + ib`` times ``cos + i sin``, in float64."""
    half = x.shape[-1] // 2
    rows = np.asarray(cos_sin, np.float64)[positions].reshape(len(x), *([1] * (x.ndim - 2)), 2 * half)
    turn = rows[..., :half] + 1j * rows[..., half:]
    first = (
        slice(0, None, 2) if interleaved else slice(0, half),
        slice(1, None, 2) if interleaved else slice(half, None),
    )
    wide = np.asarray(x, np.float64)
    turned = (wide[..., first[0]] + 1j * wide[..., first[1]]) * turn
    out = np.empty_like(wide)
    out[..., first[0]] = turned.real
    out[..., first[1]] = turned.imag
    return out


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * float(np.log(factor)) + 1.0


def yarn_frequencies(
    dim: int = 64,
    *,
    base: float = 10000.0,
    factor: float = 1.0,
    original_max_position: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> np.ndarray:
    """``base ** (-2 i / dim)``, blended with its ``factor``-th part over the correction range, in float64."""
    i = np.arange(dim // 2)
    plain = np.power(float(base), -2.0 * i / dim)
    if factor == 1:
        return np.asarray(plain)
    correction = [
        dim * np.log(original_max_position / (2 * np.pi * turns)) / (2 * np.log(base))
        for turns in (beta_fast, beta_slow)
    ]
    low = max(np.floor(correction[0]), 0)
    high = min(np.ceil(correction[1]), dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((i - low) / (high - low), 0, 1)
    return np.asarray(plain / factor * ramp + plain * (1 - ramp))


def yarn_cos_sin(
    max_positions: int,
    dim: int = 64,
    *,
    factor: float = 1.0,
    mscale: float = 1.0,
    mscale_all_dim: float = 1.0,
    **how: Any,
) -> np.ndarray:
    """Table of cos | sin of ``position * frequency``, times the amplitude, in float64."""
    angles = np.arange(max_positions)[:, None] * yarn_frequencies(dim, factor=factor, **how)
    amplitude = _magnitude(factor, mscale) / _magnitude(factor, mscale_all_dim)
    return amplitude * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def yarn_softmax_scale(head_dim: int, factor: float = 1.0, mscale_all_dim: float = 1.0) -> float:
    """``head_dim ** -0.5 * (0.1 * mscale_all_dim * ln(factor) + 1) ** 2``."""
    return float(head_dim**-0.5 * _magnitude(factor, mscale_all_dim) ** 2)


def _rms_norm(wide: np.ndarray, w: np.ndarray, eps: float, cast: str, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        unit = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps)
        if cast == "before":
            unit = unit.astype(dtype).astype(np.float64)
        return np.asarray(unit * np.asarray(w, np.float64))


def rms_norm(x: np.ndarray, w: np.ndarray, eps: float, cast: str = "after") -> np.ndarray:
    """``x / sqrt(mean(x ** 2) + eps) * w`` in float64; ``cast="before"`` rounds the quotient to the dtype of ``x``."""
    return _rms_norm(np.asarray(x, np.float64), w, eps, cast, x.dtype)


def add_rms_norm(
    x: np.ndarray, residual: np.ndarray, w: np.ndarray, eps: float, cast: str = "after"
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`rms_norm` of the float64 sum, and that sum."""
    total = np.asarray(x, np.float64) + np.asarray(residual, np.float64)
    return _rms_norm(total, w, eps, cast, x.dtype), total


def layer_norm(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """``(x - mean) / sqrt(var + eps) * w + b`` with the biased variance, in float64."""
    wide = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        centred = wide - wide.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps)
        return np.asarray(unit * np.asarray(w, np.float64) + np.asarray(b, np.float64))
