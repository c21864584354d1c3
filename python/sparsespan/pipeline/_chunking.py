"""Chunk costs, chunk sizes, layers of stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import _core

__all__ = ["ChunkCost", "chunk_sizes", "fit_chunk_cost", "split_layers"]

ChunkCost = _core.pipeline.ChunkCost


def fit_chunk_cost(lengths: Sequence[float], prefixes: Sequence[float], seconds: Sequence[float]) -> ChunkCost:
    """Fit t(C, H) = a (C H + C^2 / 2) + b C + c to measured chunks.

    Parameters
    ----------
    lengths, prefixes, seconds : sequence of float
        At least 8 samples: tokens of the chunk, tokens before it, time.

    Returns
    -------
    ChunkCost
        Attributes ``a``, ``b``, ``c``; ``cost(length, prefix)`` gives seconds.

    Raises
    ------
    ValueError
        If there are fewer than 8 samples, if they cannot tell a, b and c apart, or if a <= 0.

    Notes
    -----
    Least squares by orthogonalisation, sums in the order of the samples: the same samples give the same bits on every
    rank, so all ranks derive the same chunks. A negative b is set to 0.

    Examples
    --------
    >>> from sparsespan.pipeline import ChunkCost, fit_chunk_cost
    >>> true = ChunkCost(1e-9, 2e-6, 0.5e-3)
    >>> c = [1024 * i for i in range(1, 9)]
    >>> fit = fit_chunk_cost(c, [0] * 8, [true(n, 0) for n in c])
    >>> round(fit.a * 1e9, 6), round(fit.b * 1e6, 6), round(fit.c * 1e3, 6)
    (1.0, 2.0, 0.5)
    """
    return _core.pipeline.fit_chunk_cost(list(lengths), list(prefixes), list(seconds))


def chunk_sizes(
    total: int,
    first: int,
    cost: ChunkCost,
    smooth: float = 0.75,
    align: int = 64,
    *,
    floor: int | None = None,
    cap: int | None = None,
    prefix: int = 0,
) -> np.ndarray:
    """Chunks of one request that shrink as its prefix grows.

    Parameters
    ----------
    total : int
        Tokens to prefill.
    first : int
        Size of the first chunk and measure of the others.
    cost : ChunkCost
        ``c`` plays no part.
    smooth : float
        0: fixed chunks; 1: every chunk costs what the first one does.
    align : int
        Sizes are rounded down to a multiple (at least one); engines use max(page size, 64). Only the last chunk may be
        smaller.
    floor : int, optional
        Least size before it is rounded down; ``first // 4`` when not given.
    cap : int, optional
        Largest size.
    prefix : int
        Tokens cached before the first chunk.

    Returns
    -------
    int64 [chunks]
        Sums to ``total``.

    Raises
    ------
    ValueError
        If a size is not positive, ``smooth`` is outside 0 .. 1, or ``cost.a`` <= 0 where it is needed.

    Notes
    -----
    With A = a / 2 and a prefix L the equal-cost chunk solves A x^2 + (2 A L + b) x = A first^2 + b first; the size is
    first + smooth (x - first). The recurrence is that of SGLang's ChunkSizePredictor. Twin:
    :func:`sparsespan.reference.pipeline.chunk_sizes`.

    Examples
    --------
    >>> from sparsespan.pipeline import ChunkCost, chunk_sizes
    >>> chunk_sizes(8192, 4096, ChunkCost(a=1.0, b=0.0, c=0.0), smooth=1.0)
    array([4096, 1664, 1280, 1088,   64])
    """
    sizes = _core.pipeline.chunk_sizes(
        total, first, cost, smooth, align, -1 if floor is None else floor, -1 if cap is None else cap, prefix
    )
    return np.asarray(sizes, np.int64)


def split_layers(
    num_layers: int,
    pp: int,
    flavor: str = "vllm",
    *,
    balance: Sequence[float] | None = None,
    extra: Sequence[float] | None = None,
) -> list[int]:
    """Layers of each stage.

    Parameters
    ----------
    num_layers, pp : int
    flavor : {"vllm", "vllm_ascend", "sglang", "sglang_first"}
        Who takes the remainder: vLLM and vllm-ascend give it to the second to last stage and the ones before it, SGLang
        to the last stages, SGLang before that change to the first ones. Ignored with ``balance``.
    balance : sequence of float, optional
        Cost of each chunk in one layer: choose the split that ends them soonest.
    extra : [pp] float, optional
        With ``balance``: work of a stage besides its layers, counted in layers (embedding, norm and LM head, drafter).

    Returns
    -------
    list of int

    Raises
    ------
    ValueError
        If there are fewer layers than stages, or for another flavor.

    Notes
    -----
    ``balance`` tries every placement of the remainder (up to 20000): exact, and stages differ by one layer at most.
    With ``extra`` it then moves single layers as long as the chunks end sooner.

    Examples
    --------
    >>> from sparsespan.pipeline import split_layers
    >>> split_layers(61, 4, "vllm"), split_layers(61, 4, "sglang")
    ([15, 15, 16, 15], [15, 15, 15, 16])
    >>> split_layers(61, 4, balance=[1.0, 2.0, 3.0])
    [15, 15, 15, 16]
    """
    if balance is None:
        if extra is not None:
            raise ValueError("split_layers: extra is given, needs balance with it")
        return list(_core.pipeline.split_layers(num_layers, pp, flavor))
    return list(_core.pipeline.balance_layers(num_layers, pp, list(balance), list(extra or [])))
