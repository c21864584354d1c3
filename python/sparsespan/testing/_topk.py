"""Is a top-k right? Judged by scores, so that any implementation's order and ties are fair."""

from __future__ import annotations

import numpy as np

__all__ = ["compare_topk"]


def _windows(
    scores: np.ndarray, lengths: np.ndarray | None, row_starts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = scores.shape
    starts = np.zeros(rows, np.int64) if row_starts is None else np.asarray(row_starts, np.int64)
    sizes = columns - starts if lengths is None else np.asarray(lengths, np.int64)
    if starts.shape != (rows,) or sizes.shape != (rows,):
        raise ValueError(f"compare_topk: lengths and row_starts need shape [{rows}], one number per row of scores")
    if ((starts < 0) | (sizes < 0) | (starts + sizes > columns)).any():
        raise ValueError(f"compare_topk: a window leaves the {columns} columns of scores")
    return starts, sizes


def _check_indices(row: int, got: np.ndarray, count: int, size: int) -> np.ndarray:
    """Number valid, padding, range, duplicates. Returns the chosen columns of the window."""
    valid = got != -1
    if int(valid.sum()) != count:
        raise AssertionError(f"row {row}: {int(valid.sum())} indices are given, needs {count} (window of {size})")
    if not valid[:count].all():
        raise AssertionError(f"row {row}: -1 at place {int(np.argmin(valid[:count]))}, before the padding begins")
    chosen = got[:count].astype(np.int64)
    outside = (chosen < 0) | (chosen >= size)
    if outside.any():
        place = int(outside.argmax())
        raise AssertionError(
            f"row {row}: index {int(chosen[place])} (from the window's start) at place {place} lies outside the window "
            f"of {size}"
        )
    values, counts = np.unique(chosen, return_counts=True)
    if (counts > 1).any():
        repeated = int(values[counts > 1][0])
        raise AssertionError(f"row {row}: index {repeated} (from the window's start) is given more than once")
    return chosen


def _check_scores(row: int, chosen: np.ndarray, window: np.ndarray, rtol: float, atol: float) -> None:
    """Best against best, then both directions at the boundary."""
    count = len(chosen)
    order = np.argsort(-window, kind="stable")
    best = window[order[:count]]
    mine = -np.sort(-window[chosen])
    slack = atol + rtol * np.abs(np.where(np.isfinite(best), best, 0.0))
    with np.errstate(invalid="ignore"):  # inf - inf: equal, as the second test says
        off = ~((np.abs(mine - best) <= slack) | (mine == best))
    if off.any():
        rank = int(off.argmax())
        raise AssertionError(
            f"row {row}: the score of rank {rank} among the chosen is {mine[rank]:.9g}, "
            f"the best there is {best[rank]:.9g} (rtol {rtol:g}, atol {atol:g})"
        )
    last = best[-1]
    taken = np.zeros(len(window), bool)
    taken[chosen] = True
    missed = ~taken & (window > last + slack[-1])
    if missed.any():
        index = int(missed.argmax())
        raise AssertionError(
            f"row {row}: index {index} (from the window's start) scores {window[index]:.9g}, above the {count}th best "
            f"{last:.9g}, and is not chosen"
        )
    unreachable = window[chosen] < last - slack[-1]
    if unreachable.any():
        index = int(chosen[unreachable.argmax()])
        raise AssertionError(
            f"row {row}: index {index} (from the window's start) scores {window[index]:.9g}, below the {count}th best "
            f"{last:.9g}, and is chosen"
        )


def compare_topk(
    got: np.ndarray,
    scores: np.ndarray,
    k: int,
    lengths: np.ndarray | None = None,
    row_starts: np.ndarray | None = None,
    base: str = "packed",
    *,
    rtol: float = 2e-4,
    atol: float = 1e-4,
) -> None:
    """Assert that ``got`` holds the ``k`` best of each row's window, whatever their order and whichever ties it took.

    Parameters
    ----------
    got : array [T, k], integer
        Indices of an implementation under test; -1 behind them where a window has fewer than ``k`` scores.
    scores : array [T, S], float
        Reference scores, better than those that ``got`` was chosen by.
    k : int
    lengths, row_starts : array [T], integer, optional
        Row ``t`` has the window ``[start, start + length)``; without them, all of it.
    base : {"packed", "row"}
        Whether ``got`` counts columns of ``scores`` or from the row's start.
    rtol, atol : float
        How far a chosen score may lie from the one that the reference puts at its rank. The defaults are those of
        vLLM's oracle for float8 inputs; 0 for scores that ``got`` was chosen by.

    Raises
    ------
    AssertionError
        Naming row, place and score: number of indices, padding, range, duplicates, scores rank by rank, a better
        index that was missed, an index that no tie explains.
    ValueError
        If the comparison itself is ill-posed: shapes, windows, NaN in a window of ``scores``.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.testing import compare_topk
    >>> scores = np.array([[3.0, 1.0, 2.0, 2.0]])
    >>> compare_topk(np.array([[3, 0]]), scores, 2)  # 2 or 3: a tie
    >>> compare_topk(np.array([[1, 0]]), scores, 2)
    Traceback (most recent call last):
    AssertionError: row 0: the score of rank 1 among the chosen is 1, the best there is 2 (rtol 0.0002, atol 0.0001)
    """
    got, scores = np.asarray(got), np.asarray(scores, np.float64)
    if scores.ndim != 2 or got.shape != (len(scores), k):
        raise ValueError(f"compare_topk: got has shape {list(got.shape)}, needs [T, k] = {[len(scores), k]}")
    if got.dtype.kind not in "iu":
        raise ValueError(f"compare_topk: got has dtype {got.dtype}, needs integers")
    if base not in ("packed", "row"):
        raise ValueError(f'compare_topk: base is {base!r}, needs "packed" or "row"')
    starts, sizes = _windows(scores, lengths, row_starts)
    for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist())):
        window = scores[row, start : start + size]
        if np.isnan(window).any():
            raise ValueError(f"compare_topk: scores has NaN inside the window of row {row}, needs numbers")
        indices = got[row].astype(np.int64)
        if base != "row":
            indices = np.where(indices == -1, -1, indices - start)
            if (lost := (indices == -1) & (got[row] != -1)).any():  # one before the start would read as padding
                raise AssertionError(f"row {row}: index {int(got[row][lost][0])} lies before the window, at {start}")
        chosen = _check_indices(row, indices, min(size, k), size)
        if len(chosen):
            _check_scores(row, chosen, window, rtol, atol)
