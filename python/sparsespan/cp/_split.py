"""``split_plan``: which rank computes which rows of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .._interop import call
from ._plan import CpPlan

__all__ = ["DECODE", "PAD", "PREFILL", "split_plan"]

PREFILL, DECODE, PAD = 0, 1, 2
_KINDS = {"prefill": PREFILL, "decode": DECODE, "pad": PAD}


def _integers(name: str, value: Any) -> Any:
    """Sequences of Python integers become int64 arrays; arrays stay what they are."""
    if not isinstance(value, (list, tuple, range)):
        return value
    if not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in value):
        raise TypeError(f"split_plan: {name} has entries that are no integers")
    return np.asarray(value, np.int64)


def _kinds(row_kind: Any) -> Any:
    if isinstance(row_kind, np.ndarray) and row_kind.dtype.kind == "U":
        row_kind = row_kind.tolist()
    if isinstance(row_kind, (list, tuple)) and any(isinstance(k, str) for k in row_kind):
        unknown = [k for k in row_kind if k not in _KINDS]
        if unknown:
            raise ValueError(f'split_plan: row_kind has {unknown[0]!r}, needs "prefill", "decode" or "pad"')
        return np.array([_KINDS[k] for k in row_kind], np.int64)
    return _integers("row_kind", row_kind)


def split_plan(
    scheme: str,
    cu_seqlens: Any,
    prefix_lens: Any,
    world_size: int,
    row_kind: Any = None,
    pad_to: int | None = None,
    flavor: str | None = None,
) -> CpPlan:
    """Split the rows of a ragged batch over the ranks of a context-parallel group.

    Parameters
    ----------
    scheme : str
        One of the layouts under Notes.
    cu_seqlens : integers [B + 1], array or sequence
        Running sum of the requests' new rows; starts with 0 and ends with T. Requests may be empty.
    prefix_lens : integers [B], or None
        Keys of each request that are cached already (logical positions before its first row). Always an input, never
        inferred from padded lengths. None is all zero.
    world_size : int
        N, the ranks of the group.
    row_kind : integers or strings [T], optional
        Per row: ``PREFILL`` (0, "prefill"), ``DECODE`` (1, "decode") or ``PAD`` (2, "pad"). A request is wholly
        prefill or wholly decode, and its pad rows stand behind its real ones. Decode rows stand on **every** rank,
        and rank 0's copy counts. Pad rows keep their place in the batch, but have no keys, no slot and no logit.
        None is all prefill.
    pad_to : int, optional
        Rows of the padded stream (at least T). Every rank then has the same number of local rows, at least
        ``ceil(pad_to / N)``; the padding is -1 in ``rank_rows``.
    flavor : {"sglang", "vllm", "vllm_ascend"}, optional
        Follow that engine exactly: its refusals, row order and padding (Notes), and its metadata under
        :meth:`CpPlan.engine_metadata`. None accepts every length for which the arithmetic is defined.

    Returns
    -------
    CpPlan

    Raises
    ------
    TypeError
        If metadata is no int32 or int64.
    ValueError
        If an argument does not fit, if ``thd_even`` meets a length that is no multiple of ``2 * N``, or if the engine
        of ``flavor`` would refuse the batch or run it without context parallelism. The message gives the engine's
        rule and the scheme that would work.

    Notes
    -----
    L = rows of a request as it is cut, P = its prefix, N = ranks.

    =================  ==========================================================================================
    scheme             rank r owns, of every request
    =================  ==========================================================================================
    zigzag             blocks r and 2N-1-r of 2N, the first L % 2N of them one row longer; local order: the front
                       blocks of all requests, then the back blocks of all requests
    zigzag_padded      chunks r and 2N-1-r of 2N, each ceil(L / 2N) long, the sequence filled up with -1; request
                       by request
    ceil_chunk         the same chunks without filling up: the last ones are short or empty
    interleave         rows i of the flat batch with i % N == r
    contiguous         rows L*r//N to L*(r+1)//N
    contiguous_flat    t = ceil(T / N) rows of the flat batch from r * t on, the last ranks filled up with -1
    thd_even           chunks r and 2N-1-r of 2N equal ones
    =================  ==========================================================================================

    The flat schemes count rows without decode rows. What flavors change: ``sglang`` cuts the padding of ``pad_to``
    together with the last request (zigzag, contiguous) and aligns ``padded_len`` to 2N (zigzag) or N rows;
    ``vllm`` and ``vllm_ascend`` put pieces that start a sequence (position 0) behind all others in ceil_chunk;
    ``vllm_ascend`` contiguous_flat (DSA-CP) shards decode rows like any row. Sources: SGLang ``layers/cp/zigzag.py``,
    ``contiguous.py``, ``interleave.py`` and ``padding.py``; vLLM ``v1/worker/gpu/pcp_manager.py`` and
    ``v1/worker/cp_utils.py``; vllm-ascend ``attention/context_parallel/sfa_cp.py`` and ``worker/pcp_utils.py``;
    Transformer Engine ``context_parallel.cu``. Reference: :func:`sparsespan.reference.cp_split.split_plan`.

    Examples
    --------
    >>> from sparsespan.cp import split_plan
    >>> plan = split_plan("zigzag", [0, 13], None, world_size=4)
    >>> [plan.rank_rows(r).tolist() for r in range(4)]
    [[0, 1, 12], [2, 3, 11], [4, 5, 10], [6, 7, 8, 9]]
    >>> plan.actual_seq_q(0).tolist(), plan.actual_seq_kv(0).tolist()
    ([[2], [1]], [[2], [13]])
    >>> print(plan)
    zigzag over 4 ranks: 13 rows of 1 request, counts 3 3 3 4, padded to 4, imbalance 49.5%
    request 0 (0 cached + 13 rows): 0011223333210
    """
    core = call(
        _core.cp.split_plan,
        scheme,
        _integers("cu_seqlens", cu_seqlens),
        _integers("prefix_lens", prefix_lens),
        world_size,
        _kinds(row_kind),
        pad_to,
        "native" if flavor is None else flavor,
    )
    return CpPlan(core, scheme, world_size, pad_to, flavor)
