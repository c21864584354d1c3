"""Same bits for a row, whatever stands around it (contract 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .._runtime import available_isas, max_isa, set_max_isa

__all__ = ["assert_row_invariant", "each_isa"]

Outputs = tuple[np.ndarray, ...]


def each_isa() -> Iterator[str]:
    """Yield every ISA level up to the present cap, capped at it while the loop's body runs.

    Examples
    --------
    >>> from sparsespan.testing import each_isa
    >>> "generic" in list(each_isa())
    True
    """
    before = max_isa()
    order = ["generic", "avx2", "avx512", "avx512_bf16", "amx"]
    try:
        for isa in available_isas():
            if order.index(isa) <= order.index(before):
                set_max_isa(isa)
                yield isa
    finally:
        set_max_isa(before)


def _outputs(result: Any) -> Outputs:
    return tuple(np.asarray(r) for r in (result if isinstance(result, tuple) else (result,)))


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def _compare(expected: Outputs, got: Outputs, rows: np.ndarray, what: str) -> None:
    for n, (e, g) in enumerate(zip(expected, got)):
        want = e[rows]
        if want.shape != g.shape or want.dtype != g.dtype:
            raise AssertionError(
                f"{what}: output {n} is {g.dtype} {list(g.shape)}, needs {want.dtype} {list(want.shape)}"
            )
        if g.size == 0:
            continue
        differ = (_bits(want) != _bits(g)).reshape(len(rows), -1).any(axis=1)
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            a = np.asarray(want[at], np.float64)
            b = np.asarray(g[at], np.float64)
            with np.errstate(invalid="ignore"):
                largest = np.nanmax(np.abs(a - b)) if a.size else 0.0
            raise AssertionError(
                f"{what}: output {n}, row {int(rows[at])} (place {at} of {len(rows)}) differs in its bits from the "
                f"same row of the whole batch; largest difference {largest:g}; {int(differ.sum())} rows differ"
            )


def _subsets(rows: int, rng: np.random.Generator, alone: int) -> Iterator[tuple[str, np.ndarray]]:
    picks = rng.choice(rows, size=min(rows, alone), replace=False)
    for row in np.sort(picks):
        yield "alone", np.array([row])
    yield "permuted", rng.permutation(rows)
    yield "reversed", np.arange(rows)[::-1].copy()
    for size in {2, 3, rows // 2, rows - 1} - {0, 1, rows}:
        if 0 < size < rows:
            yield f"{size} of {rows} rows", np.sort(rng.choice(rows, size=size, replace=False))
    yield "each row twice", np.repeat(np.arange(rows), 2)


def assert_row_invariant(
    op: Callable[[np.ndarray, int], Any],
    rows: int,
    *,
    threads: Sequence[int] = (1, 2, 3),
    seed: int = 0,
    alone: int = 8,
    subsets: bool = True,
) -> None:
    """Assert that each output row's bits depend on that row's input alone, at every ISA level.

    Parameters
    ----------
    op : callable
        ``op(row_ids, threads)`` runs the operation on the given rows (int64 ids, any order, repeats allowed) and
        returns an array, or a tuple of arrays, whose first axis is those rows.
    rows : int
        Number of rows of the whole batch.
    threads : sequence of int
        Thread counts to run; the first is the reference. Every run happens twice.
    seed, alone : int
        Seed of the row choices; how many rows are run entirely alone.
    subsets : bool
        False for ops whose rows cannot be chosen freely: only threads and repeats are compared.

    Raises
    ------
    AssertionError
        Naming level, threads, subset, output and row of the first difference.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.testing import assert_row_invariant
    >>> from sparsespan.transform import hadamard_transform
    >>> x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    >>> assert_row_invariant(lambda ids, threads: hadamard_transform(x[ids], threads=threads), 9)
    """
    every = np.arange(rows)
    for isa in each_isa():
        whole = _outputs(op(every, threads[0]))
        for count in threads:
            for repeat in range(2):
                _compare(whole, _outputs(op(every, count)), every, f"{isa}, {count} threads, repeat {repeat}")
        if not subsets or rows == 0:
            continue
        for name, ids in _subsets(rows, np.random.default_rng(seed), alone):
            count = threads[len(ids) % len(threads)]
            _compare(whole, _outputs(op(ids, count)), ids, f"{isa}, {count} threads, {name}")
