"""Generators. All of them write compute-only schedules; :func:`~sparsespan.pipeline.add_send_recv` adds messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from ._schedule import Schedule

__all__ = [
    "chunked_prefill",
    "decode_loop",
    "dualpipe_v",
    "gpipe",
    "interleaved",
    "mixed_prefill_decode",
    "one_f_one_b",
    "zero_bubble",
]


def gpipe(ranks: int, microbatches: int) -> Schedule:
    """All forwards, then all backwards; stage r on rank r.

    Parameters
    ----------
    ranks, microbatches : int

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If either is below 1.

    Notes
    -----
    Bubble (P - 1)(F + B), activations of all M micro-batches held (GPipe, arXiv 1811.06965).

    Examples
    --------
    >>> from sparsespan.pipeline import gpipe
    >>> print(gpipe(ranks=2, microbatches=2))
    step   0   1   2   3
    rank 0 0F0 0F1 0B0 0B1
    rank 1 1F0 1F1 1B0 1B1
    """
    return Schedule._wrap(_core.pipeline.gpipe(ranks, microbatches))


def one_f_one_b(ranks: int, microbatches: int) -> Schedule:
    """Forward and backward by turns as soon as the first backward is possible; stage r on rank r.

    Parameters
    ----------
    ranks, microbatches : int

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If either is below 1.

    Notes
    -----
    Bubble (P - 1)(F + B); rank r holds at most min(P - r, M) activations (PipeDream-Flush, arXiv 2104.04473).

    Examples
    --------
    >>> from sparsespan.pipeline import one_f_one_b
    >>> print(one_f_one_b(ranks=2, microbatches=3))
    step   0   1   2   3   4   5
    rank 0 0F0 0F1 0B0 0F2 0B1 0B2
    rank 1 1F0 1B0 1F1 1B1 1F2 1B2
    """
    return Schedule._wrap(_core.pipeline.one_f_one_b(ranks, microbatches))


def interleaved(ranks: int, microbatches: int, *, stages_per_rank: int = 2) -> Schedule:
    """1F1B with several stages on each rank: stage v * ranks + r on rank r.

    Parameters
    ----------
    ranks, microbatches : int
    stages_per_rank : int

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If ``microbatches`` is no multiple of the rounds, max(1, microbatches // ranks).

    Notes
    -----
    Bubble (P - 1)(F + B) / v with F and B of all stages of a rank (arXiv 2104.04473). Micro-batches advance in groups
    of microbatches / rounds; where that is ``ranks`` the schedule is that of the paper.
    """
    return Schedule._wrap(_core.pipeline.interleaved(ranks, microbatches, stages_per_rank))


def zero_bubble(ranks: int, microbatches: int, *, flavor: str = "h1", stages_per_rank: int = 1) -> Schedule:
    """Backwards split in two, the weight half (W) fills the bubble.

    Parameters
    ----------
    ranks, microbatches : int
    flavor : {"h1", "v"}
        ``"h1"``: ZB-H1, memory of 1F1B; ``stages_per_rank`` > 1 interleaves it. ``"v"``: ZBV, two stages on each rank,
        r and 2 * ranks - 1 - r.
    stages_per_rank : int
        For ``"h1"``; ``"v"`` always has two.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        For another flavor, or if ``"h1"`` gets ``microbatches`` that are no multiple of the rounds.

    Notes
    -----
    ``"h1"``: bubble (P - 1)(F + I - W) with I and W the halves of the backward, P activations held. ``"v"``: no bubble
    but the P - 1 steps at the start of the last rank when F = I = W, and 2 * P half-size activations held
    (arXiv 2401.10241).
    """
    if flavor == "h1":
        return Schedule._wrap(_core.pipeline.zero_bubble_h1(ranks, microbatches, stages_per_rank))
    if flavor != "v":
        raise ValueError(f"zero_bubble: flavor is {flavor!r}, needs 'h1' or 'v'")
    if stages_per_rank not in (1, 2):
        raise ValueError(f"zero_bubble: stages_per_rank is {stages_per_rank}, needs 2 for flavor 'v'")
    return Schedule._wrap(_core.pipeline.zero_bubble_v(ranks, microbatches))


def dualpipe_v(ranks: int, microbatches: int) -> Schedule:
    """DualPipeV: two stages on each rank, r and 2 * ranks - 1 - r; forwards overlap backwards.

    Parameters
    ----------
    ranks : int
    microbatches : int
        At least 2 * ranks.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If there are fewer micro-batches than stages.

    Notes
    -----
    With S = 2 * ranks stages: bubble (S / 2 - 1)(FB + B - 3 W), where FB is the cost of an overlapped pair and B that
    of a full backward, and S + 1 activations held (the DualPipe repository of DeepSeek).
    """
    return Schedule._wrap(_core.pipeline.dualpipe_v(ranks, microbatches))


def chunked_prefill(
    ranks: int, chunks: Sequence[int] | Sequence[Sequence[int]], *, prefixes: Sequence[int] | None = None
) -> Schedule:
    """Prefill chunks that follow one another through the stages; the last chunk of a request is sampled.

    Parameters
    ----------
    ranks : int
    chunks : sequence of int, or of one such sequence for each request
        Tokens of each chunk, see :func:`~sparsespan.pipeline.chunk_sizes`.
    prefixes : sequence of int, optional
        Tokens of each request that are cached already.

    Returns
    -------
    Schedule

    Notes
    -----
    With equal stages the makespan is sum(t) + (P - 1) max(t) for any chunk costs t, plus the sample.

    Examples
    --------
    >>> from sparsespan.pipeline import chunked_prefill
    >>> print(chunked_prefill(2, [64, 32]))
    step   0          1           2
    rank 0 0P0@0:0+64 0P1@0:64+32 .
    rank 1 1P0@0:0+64 1P1@0:64+32 1S1
    """
    given: list[Any] = list(chunks)
    if given and not any(hasattr(n, "__iter__") for n in given):
        given = [given]
    requests = [list(one) for one in given]
    for n in (n for one in requests for n in one):
        if not isinstance(n, (int, np.integer)):
            raise TypeError(f"chunked_prefill: chunks has {n!r}, needs integers: tokens of each chunk")
    return Schedule._wrap(_core.pipeline.chunked_prefill(ranks, requests, list(prefixes or [])))


def decode_loop(ranks: int, steps: int, *, depth: int = 1, batch: int = 1) -> Schedule:
    """Decode with ranks + depth micro-batches in flight, each for ``steps`` tokens.

    Parameters
    ----------
    ranks, steps : int
    depth : int
        Slots beyond one for each rank: 1 hides the work between two steps (vLLM and SGLang use it), 0 does not.
    batch : int
        Requests in each slot.

    Returns
    -------
    Schedule

    Notes
    -----
    A slot's next step starts on stage 0 only after its token was sampled on the last stage. Round time:
    max(m max(t), sum(t)) for m slots and stage times t.
    """
    return Schedule._wrap(_core.pipeline.decode_loop(ranks, steps, depth, batch))


def mixed_prefill_decode(
    ranks: int, chunks: Sequence[int], *, prefix: int = 0, depth: int = 1, batch: int = 1
) -> Schedule:
    """One request's prefill chunks, each in one forward with a decode step of the slots in turn.

    Parameters
    ----------
    ranks : int
    chunks : sequence of int
        Tokens of each chunk of request 0.
    prefix : int
        Tokens of request 0 that are cached already.
    depth, batch : int
        Slots 1 .. ranks + depth of ``batch`` requests decode, see :func:`decode_loop`.

    Returns
    -------
    Schedule
    """
    return Schedule._wrap(_core.pipeline.mixed_prefill_decode(ranks, list(chunks), prefix, depth, batch))
