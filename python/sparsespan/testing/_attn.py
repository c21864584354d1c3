"""Comparison of attention results with a reference: places of inf and NaN, then every element, then the direction."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["compare_attn"]

# FlashMLA's test_flash_mla_sparse_prefill.py: bfloat16 outputs, scores of bfloat16 products.
_OUT = (8e-4, 3.01 / 128, 7e-6)
_LSE = (1e-6, 2.01 / 65536)


def _f64(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):  # a torch tensor; bfloat16 has no NumPy dtype there
        array = array.detach().float().numpy()
    return np.asarray(array).astype(np.float64)


def _at(place: int, shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(int(i)) for i in np.unravel_index(place, shape)) + "]"


def _same_places(name: str, what: str, got: np.ndarray, want: np.ndarray, test: Any) -> None:
    differ = test(got) != test(want)
    if differ.any():
        i = int(np.flatnonzero(differ)[0])
        raise AssertionError(
            f"{name}{_at(i, got.shape)} is {got.flat[i]}, reference {want.flat[i]}: {what} must stand at the same "
            f"places; {int(differ.sum())} of {got.size} do not"
        )


def _close(name: str, got: np.ndarray, want: np.ndarray, abs_tol: float, rel_tol: float) -> None:
    finite = np.isfinite(want)
    error = np.abs(np.where(finite, got, 0.0) - np.where(finite, want, 0.0))
    bound = rel_tol * np.abs(np.where(finite, want, 0.0))
    bad = (error > abs_tol) & (error > bound)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        worst = int(np.argmax(np.where(bad, error, -1.0)))
        raise AssertionError(
            f"{name}{_at(i, got.shape)} is {got.flat[i]:.9g}, reference {want.flat[i]:.9g}: off by "
            f"{error.flat[i]:.3g}, allowed {abs_tol:.3g} or {rel_tol:.3g} relative; {int(bad.sum())} of {got.size} are "
            f"off, worst {error.flat[worst]:.3g} at {_at(worst, got.shape)}"
        )


def _compare(name: str, got: Any, want: Any, abs_tol: float, rel_tol: float) -> tuple[np.ndarray, np.ndarray]:
    g, w = _f64(got), _f64(want)
    if g.shape != w.shape:
        raise AssertionError(f"{name} has shape {list(g.shape)}, reference {list(w.shape)}")
    _same_places(name, "NaN", g, w, np.isnan)
    _same_places(name, "+inf", g, w, np.isposinf)
    _same_places(name, "-inf", g, w, np.isneginf)
    _close(name, g, w, abs_tol, rel_tol)
    return g, w


def compare_attn(
    got: Any,
    want: Any,
    *,
    out_abs: float = _OUT[0],
    out_rel: float = _OUT[1],
    cos: float = _OUT[2],
    lse_abs: float = _LSE[0],
    lse_rel: float = _LSE[1],
) -> None:
    """Assert that attention results agree with a reference.

    Parameters
    ----------
    got, want : array or tuple
        ``out``, ``(out, lse)`` or ``(out, lse, max_logits)``, any shapes that match; NumPy arrays or torch tensors.
        ``want`` should come from float64 or float32 arithmetic on the very same (narrow) inputs.
    out_abs, out_rel : float
        An element of ``out`` passes if its error is within either. The defaults are FlashMLA's for bfloat16 results.
    cos : float
        Bound on ``1 - 2 xy / (xx + yy)`` over the whole of ``out``: catches a small error that leans one way.
    lse_abs, lse_rel : float
        The same for ``lse`` and ``max_logits``.

    Raises
    ------
    AssertionError
        Naming the first bad element, in this order: shapes, places of NaN, +inf and -inf, elements, direction.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.testing import compare_attn
    >>> compare_attn((np.ones((1, 1, 4)), np.zeros((1, 1))), (np.ones((1, 1, 4)), np.full((1, 1), -np.inf)))
    Traceback (most recent call last):
    ...
    AssertionError: lse[0, 0] is 0.0, reference -inf: -inf must stand at the same places; 1 of 1 do not
    """
    got = got if isinstance(got, tuple) else (got,)
    want = want if isinstance(want, tuple) else (want,)
    if not 1 <= len(got) == len(want) <= 3:
        raise AssertionError(f"{len(got)} results against {len(want)}, needs out, (out, lse) or (out, lse, max_logits)")
    for name, g, w in zip(("lse", "max_logits"), got[1:], want[1:]):
        _compare(name, g, w, lse_abs, lse_rel)
    x, y = _compare("out", got[0], want[0], out_abs, out_rel)
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    norm = float(np.sum(x * x) + np.sum(y * y))
    off = 0.0 if norm == 0.0 else 1.0 - 2.0 * float(np.sum(x * y)) / norm
    if off > cos:
        raise AssertionError(f"out leans away from the reference: cosine difference {off:.3g}, allowed {cos:.3g}")
