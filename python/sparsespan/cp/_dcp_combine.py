"""The merge of DCP decode."""

from __future__ import annotations

from typing import Any

from .. import _core
from ._together import together

__all__ = ["dcp_combine"]


def dcp_combine(
    comm: Any,
    partial_out: Any,
    partial_lse: Any,
    *,
    attn_sink: Any = None,
    combine: str = "ag_rs",
    payload: str = "fp32",
    out_dtype: str | None = None,
    out: Any = None,
    timeout: float | None = None,
    plan: str = "",
    threads: int = 0,
) -> tuple[Any, Any]:
    """The last part of :func:`sparsespan.cp.dcp_decode`: each rank gets its heads' attention over the keys of all.

    Parameters
    ----------
    comm : Communicator, or anything that :func:`sparsespan.comm.as_comm` takes
    partial_out : array [T, N * h, d_v], float32 or bfloat16
        All heads, in order of rank, over this rank's keys.
    partial_lse : float32 [T, N * h]
        Natural log, without the sink; +inf and -inf both mean no keys, and the output there is never looked at.
    attn_sink : float32 [h], optional
        Of this rank's heads.
    combine, payload, out_dtype, out, timeout, threads
        As in :func:`sparsespan.cp.dcp_decode`; the default dtype is that of ``partial_out``.
    plan : str
        Fingerprint of what the caller follows (``layout.fingerprint``); ranks compare it before data moves.

    Returns
    -------
    out : array [T, h, d_v]
    lse : float32 [T, h]

    Raises
    ------
    ValueError, TypeError
        For heads that N does not divide, shapes and dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import comm, cp
    >>> def rank(c):  # rank 0 says 1, rank 1 says 3, with equal weight
    ...     part = np.full((1, 2, 1), 1.0 + 2 * c.rank, np.float32)
    ...     return cp.dcp_combine(c, part, np.zeros((1, 2), np.float32), combine="a2a")[0].item()
    >>> comm.run_ranks(2, rank)
    [2.0, 2.0]
    """
    result: tuple[Any, Any] = together(
        _core.cp.dcp_combine, comm, partial_out, partial_lse, attn_sink, combine, payload, out_dtype or "", out,
        timeout, plan, threads,
    )  # fmt: skip
    return result
