"""The indexer's choice over a context that ranks share."""

from __future__ import annotations

from typing import Any

from .. import _core
from ._dcp import DcpLayout
from ._together import core_of, together

__all__ = ["dcp_select", "global_topk"]


def global_topk(
    comm: Any,
    scores: Any,
    k: int,
    layout: DcpLayout,
    context_lens: Any = None,
    *,
    exchange: str = "sharded",
    nan: str = "raise",
    out: Any = None,
    timeout: float | None = None,
    validate: str = "full",
    threads: int = 0,
) -> Any:
    """Find the exact top-k of scores that lie on N ranks; every rank calls it and every rank gets the whole answer.

    Parameters
    ----------
    comm : Communicator, or anything that :func:`sparsespan.comm.as_comm` takes
        N ranks in the order of the layout.
    scores : float32 [T, S]
        Of this rank's keys: column l is its local row l. S may differ between ranks; the T rows are the same.
    k : int
    layout : DcpLayout
    context_lens : array [T], int32 or int64, optional
        Keys that each row sees, in *logical* positions and so the same on every rank; a rank scores the first
        ``layout.local_len(context_lens, rank)`` columns. Default: all columns of every rank.
    exchange : {"sharded", "sharded_routed"}
        Who merges: every rank all rows, or rank ``t // ceil(T / N)`` row t, which then tells the others the ids.
    nan : {"raise", "lowest"}
        A NaN among the scores raises on every rank, or ranks below all numbers.
    out : int32 [T, k], optional
    timeout : float, optional
        Seconds that an exchange waits for the other ranks; default is the communicator's.
    validate, threads
        As everywhere.

    Returns
    -------
    int32 [T, k]
        *logical* positions, ascending, padded with -1; the same on every rank.

    Raises
    ------
    ValueError
        For shapes that do not fit, a communicator of another size than the layout, or a NaN (``out`` is then -1).
    RankMismatch
        When ranks follow different layouts, or differ in T, k or ``exchange``.

    Notes
    -----
    Order of choice, on a rank and between ranks: score descending, then position ascending; -0.0 equals +0.0. So ties
    fall alike everywhere and the result is that of :func:`sparsespan.indexer.topk` over the whole context. Each rank
    sends its own best k as 64-bit keys ``order(score) << 32 | ~position``: exact, since a member of the global best k
    has fewer than k better keys on its own rank. ``order`` flips the sign bit of a float32 or all bits of a negative
    one. Sources: vLLM's sparse indexer under DCP, SGLang; reference:
    :func:`sparsespan.reference.cp_decode.global_topk`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import comm, cp
    >>> layout = cp.dcp_layout(interleave=1, world_size=2, page_size=4)
    >>> scores = np.array([[1.0, 5.0, 5.0, 5.0, 0.0]], np.float32)  # positions 0..4
    >>> comm.run_ranks(2, lambda c: cp.global_topk(c, scores[:, c.rank :: 2].copy(), 2, layout, np.array([5])).tolist())
    [[[1, 2]], [[1, 2]]]
    """
    return together(
        _core.cp.global_topk, comm, core_of("global_topk", layout), scores, k, context_lens, exchange, nan, out,
        timeout, validate, threads,
    )  # fmt: skip


def dcp_select(
    comm: Any,
    q: Any,
    index_cache: Any,
    weights: Any,
    context_lens: Any,
    block_table: Any,
    layout: DcpLayout,
    topk: int = 2048,
    *,
    index_k: str = "replicated",
    index_layout: str = "index_132",
    nan: str = "raise",
    out: Any = None,
    timeout: float | None = None,
    validate: str = "full",
    threads: int = 0,
) -> Any:
    """Choose each row's keys by the indexer's scores, with index-K in one of five places; every rank calls it.

    Parameters
    ----------
    comm : Communicator, or anything that :func:`sparsespan.comm.as_comm` takes
    q : array [B, next_n, Hi, 128] or [T, Hi, 128], float8_e4m3fn, bfloat16 or float32
        Indexer queries of all heads, the same on every rank; T = B * next_n rows, request by request.
    index_cache : array
        Paged cache of ``index_layout`` with pages of ``layout.page_size`` rows: this rank's shard, or with
        ``index_k="replicated"`` the whole, N pages for each page of the table (:func:`dcp_write_index`).
    weights : float32 [T, Hi]
    context_lens : array [B] or [B, next_n], int32 or int64
        *Logical* lengths, new rows included: [B] gives row i of n ``length - n + i + 1`` keys, its own among them.
    block_table : array [B, W], int32 or int64
        Page ids, one column per virtual page, the same on every rank.
    layout : DcpLayout
    topk : int
    index_k : {"replicated", "sharded", "sharded_routed", "union", "gathered"}
        ``"replicated"``: nothing is exchanged. ``"sharded"``, ``"sharded_routed"``: each rank scores its shard and the
        best k are found as in :func:`global_topk`. ``"gathered"``: index-K is brought together, then every rank scores
        all of it. These four give the same bits. ``"union"`` is approximate: each rank keeps its own best k, so that
        :func:`dcp_decode` attends up to ``N * topk`` keys.
    index_layout : {"index_132", "index_bf16", "index_f32"}
    nan, out, timeout, validate, threads
        As in :func:`global_topk`.

    Returns
    -------
    int32 [T, topk]
        *logical* positions, ascending, padded with -1: what :func:`dcp_decode` takes. The same on every rank, but for
        ``"union"``, where they are this rank's own.

    Raises
    ------
    IndexError
        For a page that a row's context needs and the cache has not; on every rank alike.
    ValueError, TypeError
        For shapes, dtypes, lengths, a communicator of another size than the layout, or a NaN score: on every rank
        alike, but for "union", where nobody hears of another rank's NaN.
    RankMismatch
        When ranks follow different layouts or designs.

    Notes
    -----
    The result is that of :func:`sparsespan.indexer.paged_select` over one whole cache, bit for bit ("union" apart).
    Bytes per layer are those of ``cp.volume("dcp", index_k=...)``. A rank that owns no key of a row sends no entry.
    Sources: vLLM (sharded, union), vllm-ascend and SGLang (replicated, gathered); reference:
    :func:`sparsespan.reference.cp_decode.dcp_select`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import comm, cp
    >>> layout = cp.dcp_layout(interleave=1, world_size=2, page_size=4)
    >>> keys, table = np.arange(5, dtype=np.float32)[:, None] * np.ones(128, np.float32), np.array([[0]])
    >>> q, weights = np.ones((1, 1, 128), np.float32), np.ones((1, 1), np.float32)
    >>> def rank(c, index_k):
    ...     cache = np.zeros((1, 4, 128), np.float32)
    ...     cp.dcp_write_index(keys, cache, np.arange(5), table, layout, c.rank, index_layout="index_f32")
    ...     lens = np.array([5])
    ...     return cp.dcp_select(
    ...         c, q, cache, weights, lens, table, layout, 2, index_k=index_k, index_layout="index_f32"
    ...     ).tolist()
    >>> comm.run_ranks(2, lambda c: rank(c, "sharded"))  # the greatest scores are those of positions 3 and 4
    [[[3, 4]], [[3, 4]]]
    >>> comm.run_ranks(2, lambda c: rank(c, "union"))  # each rank's own
    [[[2, 4]], [[1, 3]]]
    """
    return together(
        _core.cp.dcp_select, comm, core_of("dcp_select", layout), q, index_cache, weights, context_lens, block_table,
        topk, index_k, index_layout, nan, out, timeout, validate, threads,
    )  # fmt: skip
