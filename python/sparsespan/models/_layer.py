"""One attention layer of a DSA model: norm, projections, indexer, selection, absorbed sparse MLA, output projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .. import attention, indexer, quant, transform
from ..cp import AttentionDims, CpPlan
from ._caches import PagedCaches
from ._dims import LayerDims, layer_dims, rope_table
from ._kv import gather_and_cache, write
from ._weights import LayerWeights, seeded_tensors

__all__ = ["DsaLayer", "dsa_layer"]


class DsaLayer:
    """An attention layer of DeepSeek-V3.2 or GLM-5; made by :func:`dsa_layer`. It keeps weights, and no state.

    Attributes
    ----------
    dims : LayerDims
    index : int
        Which layer it is, as in the checkpoint; caches are found by it.
    shared : bool
        Whether it has no indexer and takes the indices of the layer before.
    """

    def __init__(
        self, dims: LayerDims, weights: LayerWeights, index: int, hadamard: bool | None = None, norm_cast: str = "after"
    ) -> None:
        self.dims = dims
        self.weights = weights
        self.index = index
        self.shared = not weights.indexer
        self._hadamard = hadamard
        self._norm_cast = norm_cast

    def __repr__(self) -> str:
        kind = "shared" if self.shared else "full"
        return f"<DsaLayer {self.index} {kind}, {self.weights.heads} of {self.dims.heads} heads>"

    def prefill(
        self,
        hidden: Any,
        plan: CpPlan,
        caches: PagedCaches,
        comm: Any = None,
        *,
        indices: Any = None,
        threads: int = 0,
    ) -> tuple[Any, Any]:
        """Run a chunk of prompts (the rows of a plan), writing its keys to the caches.

        Parameters
        ----------
        hidden : array [n, hidden], float32 or bfloat16
            This rank's rows of the residual stream, in the plan's local order (``cp.split(x, plan, rank)``).
        plan : CpPlan
            Which rows stand here; its requests are the rows of ``caches.block_table``.
        caches : PagedCaches
            Their layouts say in which precision keys are kept and the indexer works. Every rank has the whole batch.
        comm : Communicator, optional
            The ranks of the plan; None for a plan of one rank.
        indices : int32 array [n, topk], optional
            For a shared layer: what the full layer before it returned, on this rank.
        threads : int

        Returns
        -------
        hidden : array [n, hidden]
            ``hidden + attention(norm(hidden))``.
        indices : int32 array [n, topk]
            The keys that each row attended to: logical positions, -1 = none.

        Raises
        ------
        ValueError, TypeError, IndexError
            Rows that are not those of the plan, a shared layer without indices, a block table that is too short.

        Notes
        -----
        A row has the same bits whatever ranks, chunks and batch it is computed in, given the same caches.
        """
        rank = 0 if comm is None else comm.rank
        self._require_rows(hidden, plan, comm, rank)
        positions, request = plan.positions(rank), plan.row_to_request(rank)
        x = self._norm(hidden, self.weights.norm, self.dims.eps, threads)
        q, latent, k_pe, qr = self._project(x, positions, threads)
        keys = None if self.shared else self._index_keys(x, positions, caches, threads)
        gather_and_cache(comm, plan, rank, caches, self.index, (latent, k_pe, keys), threads)
        if self.shared:
            indices = self._given(indices, len(hidden))
        else:
            iq, weights = self._index_queries(x, qr, positions, caches, threads)
            cache = caches.index_k[self.index]
            k, k_scale = quant.gather_indexer_k(
                cache, caches.block_table, plan.k_starts, caches.page_size, caches.index_layout, threads=threads
            )
            ks, ke = plan.ks_ke(rank)
            packed = indexer.select(iq, k, weights, ks, ke, k_scale=k_scale, topk=self.dims.topk, threads=threads)
            indices = np.where(packed >= 0, packed - ks[:, None].astype(np.int32), np.int32(-1))
        return self._attend(hidden, q, indices, request, caches, threads), indices

    def decode(
        self,
        hidden: Any,
        context_lens: Any,
        caches: PagedCaches,
        comm: Any = None,
        *,
        next_n: int = 1,
        indices: Any = None,
        threads: int = 0,
    ) -> tuple[Any, Any]:
        """Run one decode step of a batch of requests, ``next_n`` rows each.

        Parameters
        ----------
        hidden : array [B * next_n, hidden]
            Request by request, in the order of ``caches.block_table``.
        context_lens : integers [B]
            Tokens of each request, the new ones included.
        caches, indices, threads
            As in :meth:`prefill`.

        Returns
        -------
        hidden : array [B * next_n, hidden]
        indices : int32 array [B * next_n, topk]
            Logical positions, -1 = none.
        """
        lens = np.asarray(context_lens)
        positions = (lens[:, None] - next_n + np.arange(next_n)).reshape(-1)
        if (positions < 0).any():
            raise ValueError(f"decode: context_lens has {int(lens.min())}, needs at least next_n = {next_n}")
        request = np.repeat(np.arange(len(lens)), next_n)
        if len(hidden) != len(request):
            raise ValueError(f"decode: hidden has {len(hidden)} rows, needs {len(request)}: B * next_n")
        x = self._norm(hidden, self.weights.norm, self.dims.eps, threads)
        q, latent, k_pe, qr = self._project(x, positions, threads)
        keys = None if self.shared else self._index_keys(x, positions, caches, threads)
        write(caches, self.index, (latent, k_pe, keys), caches.slots(request, positions), threads)
        if self.shared:
            indices = self._given(indices, len(hidden))
        else:
            iq, weights = self._index_queries(x, qr, positions, caches, threads)
            indices = indexer.paged_select(
                iq.reshape(len(lens), next_n, *iq.shape[1:]), caches.index_k[self.index], weights, lens,
                caches.block_table, caches.page_size, topk=self.dims.topk, layout=caches.index_layout, threads=threads,
            )  # fmt: skip
        return self._attend(hidden, q, indices, request, caches, threads), indices

    # ---- the parts -------------------------------------------------------------------------------------------------

    def _norm(self, x: Any, w: Any, eps: float, threads: int) -> Any:
        return transform.rms_norm(x, w, eps, self._norm_cast, threads=threads)

    def _project(self, x: Any, positions: Any, threads: int) -> tuple[Any, Any, Any, Any]:
        """Queries (absorbed, rope part), KV latent, rope key, and the query latent, which the indexer shares."""
        d, w = self.dims, self.weights
        table = rope_table(d, int(positions.max(initial=0)) + 1)
        qr = self._norm(w.q_a(x, threads=threads), w.q_a_norm, d.latent_eps, threads)
        q = w.q_b(qr, threads=threads).reshape(len(x), w.heads, d.nope + d.rope)
        kv = w.kv_a(x, threads=threads)
        latent = self._norm(kv[:, : d.kv_lora], w.kv_a_norm, d.latent_eps, threads)
        q_pe, k_pe = q[..., d.nope :], kv[:, d.kv_lora :]
        transform.apply_rope(q_pe, positions, table, True, out=q_pe, threads=threads)
        transform.apply_rope(k_pe, positions, table, True, out=k_pe, threads=threads)
        return (w.w_uk(q[..., : d.nope], threads=threads), q_pe), latent, k_pe, qr

    def _index_keys(self, x: Any, positions: Any, caches: PagedCaches, threads: int) -> Any:
        norm_w, norm_b = self.weights.index_k_norm
        k = transform.layer_norm(self.weights.index_k(x, threads=threads), norm_w, norm_b, 1e-6, threads=threads)
        return self._turn(k, positions, caches, threads)

    def _index_queries(
        self, x: Any, qr: Any, positions: Any, caches: PagedCaches, threads: int
    ) -> tuple[Any, np.ndarray]:
        """Queries in the precision of the index cache, and weights with every factor folded in."""
        d, w = self.dims, self.weights
        q = w.index_q(qr, threads=threads).reshape(len(x), d.index_heads, d.index_dim)
        q = self._turn(q, positions, caches, threads)
        weights = w.index_weights(x, out_dtype="float32", threads=threads)
        weights *= np.float32(d.index_heads**-0.5 * d.index_dim**-0.5)
        if caches.index_layout == "index_132":
            q, scale = quant.act_quant(q, d.index_dim, "ue8m0", threads=threads)
            weights *= scale[..., 0]
        elif caches.index_layout == "index_bf16":
            q = q.astype(ml_dtypes.bfloat16)
        return q, weights

    def _turn(self, x: Any, positions: Any, caches: PagedCaches, threads: int) -> Any:
        """RoPE on the first dims, in place; then the Hadamard transform where the cache is fp8, or as asked."""
        pe = x[..., : self.dims.rope]
        table = rope_table(self.dims, int(positions.max(initial=0)) + 1)
        transform.apply_rope(pe, positions, table, self.dims.index_rope_interleaved, out=pe, threads=threads)
        wanted = caches.index_layout == "index_132" if self._hadamard is None else self._hadamard
        return transform.hadamard_transform(x, self.dims.index_dim**-0.5, threads=threads) if wanted else x

    def _attend(self, hidden: Any, q: Any, indices: Any, request: Any, caches: PagedCaches, threads: int) -> Any:
        slots = indexer.to_slots(indices, request, caches.block_table, caches.page_size, threads=threads)
        latent, _, _ = attention.sparse_mla(
            q, caches.kv[self.index], slots, self.dims.sm_scale, layout=caches.kv_layout, page_size=caches.page_size,
            threads=threads,
        )  # fmt: skip
        heads = self.weights.w_uv(latent, threads=threads)
        return hidden + self.weights.o(heads.reshape(len(hidden), heads.shape[1] * heads.shape[2]), threads=threads)

    def _given(self, indices: Any, rows: int) -> Any:
        if indices is None:
            raise ValueError(
                f"layer {self.index}: indices is None, needs those of the full layer before it: it is shared"
            )
        if len(indices) != rows:
            raise ValueError(f"layer {self.index}: indices has {len(indices)} rows, needs {rows}, those of hidden")
        return indices

    def _require_rows(self, hidden: Any, plan: CpPlan, comm: Any, rank: int) -> None:
        size = 1 if comm is None else comm.size
        if plan.world_size != size:
            raise ValueError(f"prefill: plan has {plan.world_size} ranks, comm {size}; needs the same")
        rows = int(plan.counts[rank])
        if len(hidden) != rows:
            raise ValueError(f"prefill: hidden has {len(hidden)} rows, needs {rows}, the plan's on rank {rank}")


def dsa_layer(
    dims: str | AttentionDims | LayerDims,
    *,
    index: int = 0,
    seed: int = 0,
    tensors: Mapping[str, Any] | None = None,
    dtype: str = "bfloat16",
    shared: bool = False,
    heads: slice | None = None,
    hadamard: bool | None = None,
    norm_cast: str = "after",
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
    heads : slice, optional
        The heads of a tensor-parallel rank.
    hadamard : bool, optional
        Whether indexer queries and keys are transformed; default: when the index cache is fp8. Scores are the same but
        for rounding. All that share a cache must agree.
    norm_cast : {"after", "before"}
        Where bfloat16 norms round; see :func:`sparsespan.transform.rms_norm`.

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
    return DsaLayer(known, LayerWeights(tensors, known, heads), index, hadamard, norm_cast)
