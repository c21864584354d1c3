"""Attention layers from checkpoints' tensors or from seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..cp import AttentionDims
from ._dims import LayerDims, layer_dims
from ._layer import DsaLayer
from ._weights import LayerWeights, seeded_tensors

__all__ = ["dsa_layer"]


def dsa_layer(
    dims: str | AttentionDims | LayerDims,
    *,
    index: int = 0,
    seed: int = 0,
    tensors: Mapping[str, Any] | None = None,
    dtype: str = "bfloat16",
    shared: bool = False,
    tp: tuple[int, int] = (0, 1),
    o_proj: str = "reduce",
    hadamard: bool | None = None,
    norm_cast: str = "after",
    dense_until: int = 0,
) -> DsaLayer:
    """Make an attention layer, with weights of a checkpoint or with seeded ones.

    Parameters
    ----------
    dims : str, AttentionDims or LayerDims
        As :func:`layer_dims` takes them: ``"v3.2"``, ``"glm-5"``, ``"glm-5.2"``, or dims of one's own.
    index : int
        Which layer it is.
    seed : int
        Of random weights (normal, variance 1 / fan-in), which depend on seed, index and name alone.
    tensors : mapping, optional
        Weights by the names of a checkpoint, behind ``model.layers.N.``; ``seed`` and ``dtype`` then do nothing.
    dtype : {"bfloat16", "float32"}
        Of seeded weights.
    shared : bool
        Seeded weights without an indexer (IndexShare).
    tp : (int, int)
        Rank and number of ranks that share the heads: each has an equal part of q_b, kv_b and o_proj, and the whole of
        what makes latents and index keys.
    o_proj : {"reduce", "gather"}
        How ranks that share the heads make the output: by the sum of their products (their part of ``o_proj`` is its
        columns), or each some columns of the result, from all heads (its rows). "gather" has the bits of one rank.
    hadamard : bool, optional
        Whether indexer queries and keys are transformed; default: when the index cache is fp8. Scores are the same but
        for rounding. All that share a cache must agree.
    norm_cast : {"after", "before"}
        Where bfloat16 norms round; see :func:`sparsespan.transform.rms_norm`.
    dense_until : int
        As in :func:`load`.

    Returns
    -------
    DsaLayer

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp, models
    >>> dims = models.layer_dims("v3.2", hidden=32, heads=2, q_lora=16, index_heads=4, topk=8)
    >>> layer = models.dsa_layer(dims, seed=1, dtype="float32")
    >>> caches = models.PagedCaches(1, pages=1, kv_layout="f32_576", index_layout="index_f32", block_table=[[0]])
    >>> x = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    >>> out, indices = layer.prefill(x[:19], cp.split_plan("contiguous", [0, 19], None, 1), caches)
    >>> last, picks = layer.decode(x[19:], [20], caches)
    >>> out.shape, last.shape, picks.shape
    ((19, 32), (1, 32), (1, 8))
    """
    known = dims if isinstance(dims, LayerDims) else layer_dims(dims)
    if tensors is None:
        kind = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32}.get(dtype)
        if kind is None:
            raise ValueError(f'dsa_layer: dtype is {dtype!r}, needs "bfloat16" or "float32"')
        tensors = seeded_tensors(known, seed, index, kind, not shared)
    return DsaLayer(known, LayerWeights(tensors, known, tp, o_proj), index, hadamard, norm_cast, dense_until)
