"""Rows of a batch to the ranks of a plan and back."""

from __future__ import annotations

from typing import Any

from .. import _core
from .._interop import call
from ..comm import Communicator, Work
from ._plan import CpPlan
from ._start import need_comm, need_plan, start

__all__ = ["gather_rows", "igather_rows", "split"]


def split(x: Any, plan: CpPlan, rank: int, *, out: Any = None, threads: int = 0) -> Any:
    """Cut a rank's rows out of a batch.

    Parameters
    ----------
    x : array [T, ...], any dtype
        The whole batch, or [pad_to, ...] as an engine pads it. The axes after the first lie in one piece.
    plan : CpPlan
    rank : int
        Whose rows.
    out : array [counts[rank], ...] like ``x``, optional
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    array [counts[rank], ...]
        ``x[plan.rank_rows(rank)]``, in local order; zeros where the plan pads.

    Raises
    ------
    ValueError, TypeError, IndexError
        Rows that are not the plan's, a rank that it does not have, an ``out`` that does not fit.

    Notes
    -----
    Reference: :func:`sparsespan.reference.cp_rows.split`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> plan = cp.split_plan("zigzag", [0, 8], [0], 2)
    >>> cp.split(np.arange(8) * 10, plan, 0)
    array([ 0, 10, 60, 70])
    """
    return call(_core.cp.split, x, need_plan("split", plan)._core, rank, out, threads)


def igather_rows(
    comm: Communicator,
    x_local: Any,
    plan: CpPlan,
    rows: str = "all",
    *,
    out: Any = None,
    timeout: float | None = None,
    threads: int = 0,
) -> Work:
    """Start :func:`gather_rows`; the result is whole when the work is done."""
    if rows not in ("all", "last"):
        raise ValueError(f"gather_rows: rows is {rows!r}, needs 'all' or 'last'")
    core = need_plan("gather_rows", plan)._core
    comm = need_comm("gather_rows", comm)
    return start(comm, _core.cp.gather_rows, x_local, core, rows == "last", out, threads, timeout)


def gather_rows(comm: Communicator, x_local: Any, plan: CpPlan, rows: str = "all", **options: Any) -> Any:
    """Bring the ranks' rows together on every rank.

    Parameters
    ----------
    comm : Communicator
        Of as many ranks as the plan has; every rank calls this.
    x_local : array [counts[rank], ...], any dtype
        This rank's rows in local order. What stands in pad rows does not matter.
    plan : CpPlan
    rows : {"all", "last"}
        All rows of the batch, or each request's last real row, whose logits are sampled.
    **options
        ``out``, ``timeout`` (seconds), ``threads``. :func:`igather_rows` takes the same and returns a
        :class:`~sparsespan.comm.Work`.

    Returns
    -------
    array [T, ...] or [B, ...]
        In the order of the batch. Of replicated decode rows rank 0's copy; for a request without a real row the last
        row is zeros.

    Raises
    ------
    ValueError, TypeError
        Local rows that do not match the plan, a communicator of another size, an ``out`` that does not fit.
    RankMismatch
        If the ranks follow different plans.
    CommError
        As any operation between ranks.

    Notes
    -----
    ``"all"`` is one all-gather of ``plan.padded_len`` rows per rank: each rank receives ``(N-1) padded_len row_bytes``.
    ``"last"`` is one all-gather of the rows that their owners have: a rank receives the requests' rows except its own,
    all ranks together ``(N-1) requests row_bytes``. Reference: :func:`sparsespan.reference.cp_rows.gather_rows`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> from sparsespan.comm import run_ranks
    >>> plan = cp.split_plan("interleave", [0, 3, 5], [0, 0], 2)
    >>> x = np.arange(5) * 10
    >>> run_ranks(2, lambda comm: cp.gather_rows(comm, cp.split(x, plan, comm.rank), plan).tolist())
    [[0, 10, 20, 30, 40], [0, 10, 20, 30, 40]]
    >>> run_ranks(2, lambda comm: cp.gather_rows(comm, cp.split(x, plan, comm.rank), plan, "last").tolist())
    [[20, 40], [20, 40]]
    """
    return igather_rows(comm, x_local, plan, rows, **options).wait()
