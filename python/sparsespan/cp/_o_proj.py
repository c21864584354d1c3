"""The output projection between token-sharded attention and a weight that is cut over the same ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import _core
from ..comm import Communicator, Work
from ._linear import GatherWeight, LinearShard, broadcast_weight, igather_weight
from ._plan import CpPlan
from ._rows import gather_rows
from ._start import need_comm, start

__all__ = ["exchange_heads", "iexchange_heads", "o_proj"]

_MODES = ("full", "gather_weight", "a2a_rs", "broadcast")


def iexchange_heads(
    comm: Communicator, x: Any, *, back: bool = False, out: Any = None, timeout: float | None = None, threads: int = 0
) -> Work:
    """Start :func:`exchange_heads`."""
    return start(need_comm("exchange_heads", comm), _core.cp.exchange_heads, x, back, out, threads, timeout)


def exchange_heads(comm: Communicator, x: Any, *, back: bool = False, **options: Any) -> Any:
    """Turn "all heads of my tokens" into "my heads of all tokens", or back.

    Parameters
    ----------
    comm : Communicator
    x : array [t, C, ...], any dtype
        C columns or heads of this rank's t tokens; t is equal on all ranks. With ``back``: [N t, C / N, ...].
    back : bool
        The inverse.
    **options
        ``out``, ``timeout``, ``threads``.

    Returns
    -------
    array [N t, C / N, ...]
        Row ``j t + i`` holds columns ``[r C / N, (r + 1) C / N)`` of token i of rank j, on rank r.

    Raises
    ------
    ValueError
        If N does not divide the columns (with ``back``: the tokens).
    CommError
        As any operation between ranks; ranks with different t are told.

    Notes
    -----
    One all-to-all: a rank receives ``(N-1) t C / N`` elements. ``Z_r = X[:, columns of r]`` in the order of the tokens.
    Reference: :func:`sparsespan.reference.cp_rows.exchange_heads`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> from sparsespan.comm import run_ranks
    >>> run_ranks(2, lambda comm: cp.exchange_heads(comm, np.array([[10, 11]]) + 10 * comm.rank).tolist())
    [[[10], [20]], [[11], [21]]]
    """
    return iexchange_heads(comm, x, back=back, **options).wait()


def _padded(x: Any, rows: int) -> Any:
    if len(x) == rows:
        return x
    shape = (rows, *x.shape[1:])
    whole = np.zeros(shape, x.dtype) if isinstance(x, np.ndarray) else x.new_zeros(shape)
    whole[: len(x)] = x
    return whole


def _check(comm: Communicator, x_local: Any, mode: str, plan: CpPlan | None, replicated: bool, gathered: Any) -> None:
    if mode not in _MODES:
        raise ValueError(f"o_proj: mode is {mode!r}, needs one of {', '.join(map(repr, _MODES))}")
    if getattr(x_local, "ndim", 0) < 2:
        raise TypeError(f"o_proj: x_local is a {type(x_local).__name__}, needs an array [t, C] or [t, H, v]")
    if isinstance(x_local, np.ndarray) and x_local.dtype.kind in "iub":
        raise TypeError(f"o_proj: x_local has dtype {x_local.dtype}, needs floating point: weights would be cut to it")
    if gathered is not None and mode != "gather_weight":
        raise ValueError(f"o_proj: gathered is given, mode {mode!r} needs None")
    if plan is None:
        if replicated:
            raise ValueError(
                "o_proj: plan is None, replicated=True needs the plan that says which rows are the batch's"
            )
        return
    if comm.size != plan.world_size:
        raise ValueError(f"o_proj: comm has {comm.size} ranks, needs the plan's {plan.world_size}")
    if len(x_local) != plan.counts[comm.rank]:
        raise ValueError(
            f"o_proj: x_local has {len(x_local)} rows, needs the {plan.counts[comm.rank]} that the {plan.scheme} plan "
            f"gives rank {comm.rank}"
        )


def _projected(y: Any, rows: int, who: str) -> Any:
    if getattr(y, "ndim", 0) != 2 or len(y) != rows:
        raise ValueError(
            f"o_proj: {who} gave shape {getattr(y, 'shape', None)}, needs [{rows}, hidden]: one row per row"
        )
    return y


def _with_bias(y: Any, linear: Any) -> Any:
    if getattr(linear, "bias", None) is None:
        return y
    return (y + linear.bias).astype(y.dtype) if isinstance(y, np.ndarray) else y + linear.bias


def _fits(params: Mapping[str, Any], columns: int) -> Mapping[str, Any]:
    weight = params.get("weight")
    if weight is not None and len(weight) != columns:
        raise ValueError(
            f"o_proj: linear has a weight of {len(weight)} input columns, needs {columns} as x_local has here"
        )
    return params


def _whole(comm: Communicator, x: Any, linear: Any, mode: str, gathered: Any, owner: int, timeout: Any) -> Any:
    """x @ W + bias with the whole weight on this rank."""
    if mode == "full":
        if callable(linear):
            return _projected(linear(x), len(x), "linear")
        params = linear.params(x.shape[1])
    elif mode == "broadcast":
        params = broadcast_weight(comm, linear, owner, timeout=timeout)
    else:
        params = (gathered or igather_weight(comm, linear, timeout=timeout)).wait(x.shape[1], timeout=timeout)
    return _with_bias(_projected(linear.apply(x, _fits(params, x.shape[1])), len(x), "linear.apply"), linear)


def _partial_sum(comm: Communicator, x: Any, linear: Any, plan: CpPlan | None, everywhere: bool, timeout: Any) -> Any:
    """All-to-all, this rank's part of the product for all tokens, then the sum: mine, or everybody's."""
    z = exchange_heads(comm, x, timeout=timeout)
    y = linear(z) if callable(linear) else linear.apply(z, _fits(linear.params(z.shape[1]), z.shape[1]))
    y = _projected(y, len(z), "linear")
    if isinstance(y, np.ndarray):
        y = np.ascontiguousarray(y)
    add = comm.all_reduce if everywhere else comm.reduce_scatter
    return _with_bias(add(y, timeout=timeout, plan=f"{plan.fingerprint:x}" if plan else ""), linear)


def o_proj(
    comm: Communicator,
    x_local: Any,
    linear: LinearShard | Callable[[Any], Any] | Any,
    mode: str = "full",
    *,
    plan: CpPlan | None = None,
    replicated: bool = False,
    gathered: GatherWeight | None = None,
    owner: int = 0,
    timeout: float | None = None,
) -> Any:
    """Project the attention output of this rank's tokens, whichever way the weight is kept.

    Parameters
    ----------
    comm : Communicator
    x_local : array [t, C] or [t, H, v]
        Attention output of this rank's tokens, all heads.
    linear : LinearShard, array, or callable(x) -> y
        An array is the input-major weight: [C, hidden] for ``"full"`` and ``"broadcast"``, [C / N, hidden] else. A
        callable is the whole layer for ``"full"``, this rank's part (without bias) for ``"a2a_rs"``, and refused where
        weights travel.
    mode : {"full", "gather_weight", "a2a_rs", "broadcast"}
        ``"full"``: every rank has the whole weight; nothing moves. ``"gather_weight"`` (prefill): the shards are
        all-gathered, every rank projects its tokens. ``"a2a_rs"`` (decode): all-to-all of ``x``, each rank multiplies
        its columns for all tokens, reduce-scatter. ``"broadcast"``: rank ``owner`` keeps the whole weight and sends it.
    plan : CpPlan, optional
        Says how many rows each rank has; needed when their number differs (they are padded to ``plan.padded_len``) and
        for ``replicated``.
    replicated : bool
        Return all rows of the batch on every rank, [T, hidden] (an all-gather; in ``"a2a_rs"`` an all-reduce instead of
        the reduce-scatter).
    gathered : GatherWeight, optional
        What :func:`igather_weight` started earlier for this layer.
    owner : int
        For ``"broadcast"``.
    timeout : float, optional
        Seconds.

    Returns
    -------
    array [t, hidden] or [T, hidden]

    Raises
    ------
    ValueError, TypeError
        Rows that do not match the plan, N that does not divide the columns, a result with other rows than it was given,
        a callable where weights must travel.
    CommError
        As any operation between ranks.

    Notes
    -----
    With X the rows of all ranks and ``Z_r = X[:, columns of r]``: ``sum_r Z_r W_r = X W``, and block r of the
    reduce-scatter equals what rank r gets from the whole weight, up to the order of the sum. A rank receives
    ``(N-1) C / N hidden`` weights, or ``(N-1) t C / N`` columns and ``(N-1) t hidden`` sums: see
    :func:`o_proj_break_even`. Sources: vllm-ascend #4702, #6120; reference:
    :func:`sparsespan.reference.cp_rows.o_proj`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> from sparsespan.comm import run_ranks
    >>> x, w = np.eye(2, 4, dtype=np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
    >>> def rank(comm, mode):
    ...     mine = w[2 * comm.rank : 2 * comm.rank + 2]
    ...     return cp.o_proj(comm, x + comm.rank, mine, mode).tolist()
    >>> run_ranks(2, lambda comm: rank(comm, "a2a_rs")) == run_ranks(2, lambda comm: rank(comm, "gather_weight"))
    True
    """
    comm = need_comm("o_proj", comm)
    _check(comm, x_local, mode, plan, replicated, gathered)
    if linear is None and mode != "broadcast":
        raise TypeError(f"o_proj: linear is None, mode {mode!r} needs a LinearShard, an array or a callable")
    if not callable(linear) and not isinstance(linear, LinearShard):
        linear = LinearShard({"weight": linear})
    if callable(linear) and mode in ("gather_weight", "broadcast"):
        raise TypeError(f"o_proj: linear is a callable, mode {mode!r} needs a cp.LinearShard: its weights must travel")
    if mode == "a2a_rs" and x_local.ndim == 3 and x_local.shape[1] % comm.size:
        raise ValueError(f"o_proj: x_local has {x_local.shape[1]} heads, needs a multiple of the {comm.size} ranks")
    rows = len(x_local)
    x = x_local.reshape(rows, math.prod(x_local.shape[1:]))  # a rank may have no rows
    if mode != "a2a_rs":
        y = _whole(comm, x, linear, mode, gathered, owner, timeout)
        return gather_rows(comm, y, plan, timeout=timeout) if replicated and plan is not None else y
    if plan is not None:
        x = _padded(x, plan.padded_len)
    y = _partial_sum(comm, x, linear, plan, replicated, timeout)
    return y[plan.restore_index] if replicated and plan is not None else y[:rows]
