"""DCP decode: N ranks attend to one sharded KV cache."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call, query_parts
from ._dcp import DcpLayout
from ._together import core_of, together

__all__ = ["dcp_decode", "dcp_partial"]


def dcp_decode(
    comm: Any,
    q: Any,
    kv_cache: Any,
    indices: Any,
    layout: DcpLayout,
    block_table: Any,
    sm_scale: float,
    *,
    row_to_request: Any = None,
    context_lens: Any = None,
    topk_length: Any = None,
    attn_sink: Any = None,
    kv_layout: str = "bf16_576",
    d_v: int = 512,
    combine: str = "ag_rs",
    payload: str = "fp32",
    replicate_q: bool = False,
    head_pad: int | None = None,
    lanes: bool | None = None,
    out_dtype: str | None = None,
    out: Any = None,
    timeout: float | None = None,
    validate: str = "full",
    threads: int = 0,
) -> tuple[Any, Any]:
    """Attend this rank's heads to the selected keys of a cache that all ranks share; every rank calls it.

    The query heads of all ranks are gathered, each rank attends all of them to the keys that it owns (in time that
    follows their number), and the partial results of a head meet on the rank whose head it is.

    Parameters
    ----------
    comm : Communicator, or anything that :func:`sparsespan.comm.as_comm` takes
        N ranks in the order of the layout.
    q : array [T, h, 576], float32 or bfloat16, or a tuple (q_nope [T, h, 512], q_pe [T, h, 64])
        Absorbed queries of this rank's heads; heads of rank 0 come first among the N * h. The T rows are the same on
        all ranks. With ``replicate_q`` all heads [T, N * h, 576], as every rank has them.
    kv_cache : array
        This rank's shard: a paged cache of ``kv_layout`` with pages of ``layout.page_size`` rows.
    indices : array [T, K] or [T, 1, K], int32 or int64
        Selected keys as *logical* positions of the row's request, -1 = none; the same on all ranks, or (design union)
        each rank's own picks. A position that another rank owns is that rank's work.
    layout : DcpLayout
    block_table : array [R, W], int32 or int64
        Page ids, one column per *virtual* page, the same table on every rank.
    sm_scale : float
        Factor on the scores; see :func:`sparsespan.attention.sparse_mla`.
    row_to_request : array [T], int32 or int64, optional
        Row of ``block_table`` of each query row, -1 = a padding row without keys; not needed when it has one row.
    context_lens : array [T], int32 or int64, optional
        Keys that each row may name: an index at or above it is refused. Row i of a verify batch with history H sees
        ``H + i + 1``, its own key included.
    topk_length : array [T], int32 or int64, optional
        Columns of ``indices`` in use; what stands behind is never read.
    attn_sink : float32 [h], optional
        Sink logits of this rank's heads. They enter once, after the merge.
    kv_layout : {"bf16_576", "fp8_656", "f32_576"}
    d_v : int
        Values are the first ``d_v`` columns of a key.
    combine : {"ag_rs", "a2a", "ar"}
        ``"ag_rs"``: all-gather of the lse, reduce-scatter of the weighted outputs. ``"a2a"``: one all-to-all of out and
        lse, merged in a fixed tree. ``"ar"``: all-gather of the lse, all-reduce of the weighted outputs.
    payload : {"fp32", "bf16"}
        Element of the partial outputs on their way; "bf16" is the peers' packed form and makes no claim of bits.
    replicate_q : bool
        ``q`` holds all heads already, so that they are not gathered.
    head_pad : int, optional
        Heads are attended in a multiple of this number, the rest with queries of zeros; kernels of other machines need
        64 or 128, ours any. Changes no bit.
    lanes : bool, optional
        Form partial results by lane ``(p // S) % 8`` and merge them in the tree of strides 4, 2, 1. Default: where this
        makes the bits the same for N = 1, 2, 4 and 8, that is with ``combine="a2a"``, ``payload="fp32"`` and these N.
    out_dtype : {"float32", "bfloat16"}, optional
        Default: the dtype of ``q``.
    out : array or tuple (out, lse), optional
    timeout : float, optional
        Seconds that an exchange waits for the other ranks; default is the communicator's.
    validate : {"full", "trusted"}
        "trusted" skips the scan of ``indices``: out-of-range values are then undefined behaviour.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    out : array [T, h, d_v]
        Of this rank's heads, over the keys of all ranks.
    lse : float32 [T, h]
        Natural log, without the sink; -inf for a row that no rank has a key for (its ``out`` is 0).

    Raises
    ------
    IndexError
        For an index outside the row's context or its request's pages, or a page that is not in the cache; on every
        rank alike, whoever owns the position.
    ValueError, TypeError
        For a communicator of another size than the layout, heads that N does not divide, lanes with another N, shapes
        and dtypes. All of this is found before anything moves.
    RankMismatch
        When ranks follow different layouts, ways to combine, payloads, lanes, scales or shapes.

    Notes
    -----
    ``lse = ln(sum_r exp(lse_r))``, ``out = sum_r exp(lse_r - lse) * out_r / (1 + exp(sink - lse))``; a rank without
    keys has weight exactly 0. With lanes and ``combine="a2a"`` the result has the bits of
    ``sparse_mla(..., lane_of=(indices // S) % 8)`` over the whole cache. Bytes are those of
    ``cp.volume("dcp", ...)`` for one layer. Sources: vLLM's DCP all-to-all, SGLang and vllm-ascend; reference:
    :func:`sparsespan.reference.cp_decode.dcp_decode`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import comm, cp
    >>> layout = cp.dcp_layout(interleave=1, world_size=2, page_size=2)
    >>> keys = np.eye(4, 576, dtype=np.float32)             # position p is the p-th unit vector
    >>> def rank(c):
    ...     shard = keys[c.rank :: 2].copy().reshape(1, 2, 576)  # page 0 of this rank
    ...     q = np.zeros((1, 1, 576), np.float32)
    ...     picks = np.array([[3, 0, -1]])
    ...     return cp.dcp_decode(c, q, shard, picks, layout, np.array([[0]]), 1.0, kv_layout="f32_576", d_v=4)[0]
    >>> comm.run_ranks(2, rank)[0].tolist()
    [[[0.5, 0.0, 0.0, 0.5]]]
    """
    q_nope, q_pe = query_parts("dcp_decode", q)
    core = core_of("dcp_decode", layout)
    pad = 1 if head_pad is None else head_pad
    result: tuple[Any, Any] = together(
        _core.cp.dcp_decode, comm, core, q_nope, q_pe, kv_cache, indices, block_table, sm_scale, row_to_request,
        context_lens, topk_length, attn_sink, kv_layout, d_v, combine, payload, replicate_q, pad, lanes,
        out_dtype or "", out, timeout, validate, threads,
    )  # fmt: skip
    return result


def dcp_partial(
    q: Any,
    kv_cache: Any,
    indices: Any,
    layout: DcpLayout,
    rank: int,
    block_table: Any,
    sm_scale: float,
    *,
    row_to_request: Any = None,
    context_lens: Any = None,
    topk_length: Any = None,
    kv_layout: str = "bf16_576",
    d_v: int = 512,
    lanes: bool = False,
    out_dtype: str = "float32",
    out: Any = None,
    validate: str = "full",
    threads: int = 0,
) -> tuple[Any, Any]:
    """The part of :func:`dcp_decode` between the exchanges: all heads over the keys that ``rank`` owns.

    Parameters
    ----------
    q : array [T, H, 576] or a tuple (q_nope, q_pe)
        All heads that take part, in order of rank.
    rank : int
        Whose keys ``kv_cache`` holds. The other parameters are those of :func:`dcp_decode`.

    Returns
    -------
    out : array [T, H, d_v], float32 unless ``out_dtype`` says otherwise
    lse : float32 [T, H]
        -inf, with ``out`` 0, where the rank owns none of the row's keys.

    Raises
    ------
    IndexError, ValueError, TypeError
        As :func:`dcp_decode`.

    Notes
    -----
    Positions become slots of the rank's cache (``layout.remap_topk``, then the block table), owned ones first with
    their number beside them; attention stops there, so that 1 / N of the keys takes 1 / N of the time. Reference:
    :func:`sparsespan.reference.cp_decode.dcp_partials`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> layout = cp.dcp_layout(interleave=1, world_size=2, page_size=2)
    >>> shard = np.ones((1, 2, 576), np.float32)  # positions 1 and 3
    >>> out, lse = cp.dcp_partial(
    ...     np.zeros((2, 1, 576), np.float32), shard, np.array([[0, 3], [0, 2]]), layout, 1, np.array([[0]]), 1.0,
    ...     row_to_request=np.array([0, 0]), kv_layout="f32_576", d_v=2,
    ... )
    >>> out.tolist(), lse.tolist()  # the second row names no key of rank 1
    ([[[1.0, 1.0]], [[0.0, 0.0]]], [[0.0], [-inf]])
    """
    q_nope, q_pe = query_parts("dcp_partial", q)
    result: tuple[Any, Any] = call(
        _core.cp.dcp_partial, core_of("dcp_partial", layout), rank, q_nope, q_pe, kv_cache, indices, block_table,
        sm_scale, row_to_request, context_lens, topk_length, kv_layout, d_v, lanes, out_dtype, out, validate, threads,
    )  # fmt: skip
    return result
