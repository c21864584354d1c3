"""The lightning indexer: scores of every visible key, and the choice of the best ones.

Index spaces: ``packed`` is a row of the ``k`` array passed in, ``logical`` a position in the request's sequence,
``slot`` a place in a paged cache (``page * page_size + offset``). -1 means "none" and nothing else does.
"""

from __future__ import annotations

from typing import Any

from . import _core
from ._interop import call

__all__ = ["mqa_logits"]


def mqa_logits(
    q: Any,
    k: Any,
    weights: Any,
    ks: Any,
    ke: Any,
    k_scale: Any = None,
    clean_logits: bool = True,
    max_seqlen_k: int = 0,
    *,
    out: Any = None,
    threads: int = 0,
    validate: str = "full",
) -> Any:
    """Score the keys that each query row sees, over packed keys.

    Parameters
    ----------
    q : array [T, Hi, D], float8_e4m3fn, bfloat16 or float32
        A query scale (``q_scale``) is folded into ``weights``. The last axis is contiguous, here and below.
    k : array [S, D], float8_e4m3fn, bfloat16 or float32
        One shared key head. Its dtype may differ from that of ``q``.
    weights : array [T, Hi], float32
        Any sign.
    ks, ke : array [T], int32 or int64
        Row ``t`` sees the packed keys ``ks[t] <= s < ke[t]``, both in [0, S]; ``ks >= ke`` is an empty row. Keys that
        no row sees are never read.
    k_scale : array [S], float32, optional
        Factor per key, only with float8 keys; none is the same as ones.
    clean_logits : bool
        Whether entries outside the windows become -inf. False leaves them as they are.
    max_seqlen_k : int
        Above 0: compressed logits ``[T, max_seqlen_k]`` whose column ``j`` is key ``ks[t] + j``. Needs
        ``clean_logits=False``.
    out : array [T, S] or [T, max_seqlen_k], float32, optional
        Rows may be padded; shares no memory with an input.
    threads : int
        0 takes :func:`sparsespan.num_threads`. The bits do not depend on it.
    validate : {"full", "trusted"}
        "trusted" skips the scan of ``k_scale``.

    Returns
    -------
    array [T, S] or [T, max_seqlen_k], float32

    Raises
    ------
    TypeError
        If a dtype is none of those named.
    ValueError
        If shapes do not fit, ``ks`` or ``ke`` lie outside [0, S], a visible key's scale is NaN, infinite or negative, a
        window is longer than ``max_seqlen_k``, or ``out`` does not fit.

    Notes
    -----
    ``out[t, s] = (sum_h relu(q[t, h] . k[s]) * weights[t, h]) * k_scale[s]``, dot products and sums in float32, ``d``
    and ``h`` ascending. NaN stays NaN through the relu. Source: DeepSeek-V3.2 ``fp8_index``, DeepGEMM
    ``fp8_mqa_logits``; reference: :func:`sparsespan.reference.indexer.mqa_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.indexer import mqa_logits
    >>> q = np.array([[[1, 0], [0, 1]], [[1, 0], [0, 1]]], np.float32)
    >>> k = np.array([[2, -1], [3, 5], [1, 1]], np.float32)
    >>> mqa_logits(q, k, np.array([[1, 10], [1, -1]], np.float32), ks=np.array([0, 1]), ke=np.array([2, 3]))
    array([[  2.,  53., -inf],
           [-inf,  -2.,   0.]], dtype=float32)
    """
    return call(
        _core.indexer.mqa_logits,
        q,
        k,
        weights,
        ks,
        ke,
        k_scale,
        clean_logits,
        max_seqlen_k,
        out=out,
        threads=threads,
        validate=validate,
    )
