"""One attention layer of a DSA model: norm, projections, indexer, selection, absorbed sparse MLA, output projection."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .. import cp, transform
from ..cp import CpPlan
from ._attending import attend, chosen, undecided
from ._caches import PagedCaches
from ._dcp import Dcp
from ._dims import LayerDims, rope_table
from ._heads import project_out
from ._indexing import index_keys, index_queries, select_paged
from ._stopwatch import timed
from ._taps import at, seen
from ._weights import LayerWeights

__all__ = ["DsaLayer"]


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
        self, dims: LayerDims, weights: LayerWeights, index: int, hadamard: bool | None = None,
        norm_cast: str = "after", dense_until: int = 0,
    ) -> None:  # fmt: skip
        if not 0 <= dense_until <= dims.topk:
            raise ValueError(
                f"dense_until is {dense_until}, needs 0 to index_topk = {dims.topk}: a row that sees more does not "
                "attend to all it sees"
            )
        self.dims = dims
        self.weights = weights
        self.index = index
        self.shared = not weights.indexer
        self._hadamard = hadamard
        self._norm_cast = norm_cast
        self._dense_until = dense_until

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
        tp: Any = None,
        dcp: Dcp | None = None,
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
        tp : Communicator, optional
            The ranks that share the heads, where this layer has only some; they call with the same rows.
        dcp : Dcp, optional
            How these ranks share the KV cache; with a plan of one rank.
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
        A row has the same bits whatever ranks, chunks and batch it is computed in, given the same caches; over heads on
        several ranks if ``o_proj="gather"``, and over a shared cache if compared with :class:`Dcp` of one rank.
        """
        rank = 0 if comm is None else comm.rank
        self._require_rows(hidden, plan, comm, rank)
        positions, request = plan.positions(rank), plan.row_to_request(rank)
        at(self.index, positions, request, layer_in=hidden)
        if dcp is not None:
            return self._over_shared_cache(hidden, positions, request, caches, tp, dcp, indices, threads)
        self._require_heads(tp)
        x, qr, keys = self._keys(hidden, positions, caches, threads)
        cache, slots = caches.layer(self.index), cp.prefill_slots(plan, caches.block_table, caches.page_size)
        work = None
        if comm is None:
            caches.write(self.index, keys, plan.slot_mapping(slots, rank), threads)
        else:  # keys travel while queries are made
            work = cp.gather_kv_and_cache(comm, keys[0], keys[1], keys[2], cache, plan, slots, threads=threads)
        q = self._queries(qr, positions, threads)
        rows = undecided(positions, request, self._dense_until)
        given = None if self.shared else self._index_queries(x, qr, positions, rows, caches, threads)
        if work is not None:
            work.wait()
            self.weights.travel(plan)
        if given is None:
            indices = self._given(indices, len(hidden))
        else:
            choose = functools.partial(
                cp.prefill_select, plan, rank, *given, cache, caches.block_table, self.dims.topk, rows=rows,
                threads=threads,
            )  # fmt: skip
            indices = chosen(choose, rows, positions, request, self.dims.topk)
        return self._attend(hidden, q, indices, positions, request, caches, tp, threads), indices

    def decode(
        self,
        hidden: Any,
        context_lens: Any,
        caches: PagedCaches,
        comm: Any = None,
        *,
        next_n: int = 1,
        dcp: Dcp | None = None,
        indices: Any = None,
        threads: int = 0,
    ) -> tuple[Any, Any]:
        """Run one decode step of a batch of requests, ``next_n`` rows each.

        Parameters
        ----------
        hidden : array [B * next_n, hidden]
            Request by request, in the order of ``caches.block_table``; the same on all ranks.
        context_lens : integers [B]
            Tokens of each request, the new ones included.
        comm : Communicator, optional
            The ranks that share the heads.
        dcp : Dcp, optional
            How they share the KV cache; without it each has the whole.
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
        at(self.index, positions, request, layer_in=hidden)
        if dcp is not None:
            return self._over_shared_cache(hidden, positions, request, caches, comm, dcp, indices, threads)
        self._require_heads(comm)
        x, qr, keys = self._keys(hidden, positions, caches, threads)
        caches.write(self.index, keys, caches.slots(request, positions), threads)
        if self.shared:
            indices = self._given(indices, len(hidden))
        else:
            rows = undecided(positions, request, self._dense_until)
            given = self._index_queries(x, qr, positions, rows, caches, threads)
            choose = functools.partial(
                select_paged, *given, positions, request, rows, next_n, caches, self.index, self.dims.topk, threads
            )
            indices = chosen(choose, rows, positions, request, self.dims.topk)
        q = self._queries(qr, positions, threads)
        return self._attend(hidden, q, indices, positions, request, caches, comm, threads), indices

    def _over_shared_cache(
        self, hidden: Any, positions: Any, request: Any, caches: PagedCaches, tp: Any, dcp: Dcp, indices: Any,
        threads: int,
    ) -> tuple[Any, Any]:  # fmt: skip
        """Rows that all ranks have, over caches of which each keeps a part."""
        self._require_heads(tp)
        if tp is None:
            raise ValueError("dcp is given without ranks, needs the communicator that shares the cache")
        x, qr, keys = self._keys(hidden, positions, caches, threads)
        dcp.store(tp, caches, self.index, keys, positions, request, threads)
        if self.shared:
            indices = self._given(indices, len(hidden))
        else:
            rows = undecided(positions, request, self._dense_until)
            at = slice(None) if rows is None else rows
            choose = functools.partial(
                dcp.select, tp, caches, self.index, *self._index_queries(x, qr, positions, rows, caches, threads),
                positions[at], request[at], self.dims.topk, threads,
            )  # fmt: skip
            indices = chosen(choose, rows, positions, request, self.dims.topk)
        q = self._queries(qr, positions, threads)
        latent = timed(
            "attention", dcp.attend,
            tp, caches, self.index, q, indices, positions, request, self.dims.sm_scale, threads,
        )  # fmt: skip
        seen(indices=indices, attention=latent)
        heads = self.weights.w_uv(latent, threads=threads)
        return project_out(hidden, heads, self.weights, tp, threads), indices

    # ---- the parts -------------------------------------------------------------------------------------------------

    def _norm(self, x: Any, w: Any, eps: float, threads: int) -> Any:
        return transform.rms_norm(x, w, eps, self._norm_cast, threads=threads)

    def _keys(self, hidden: Any, positions: Any, caches: PagedCaches, threads: int) -> tuple[Any, Any, Any]:
        """Normed rows, the query latent (which the indexer shares), and (KV latent, rope key, index key or None)."""
        d, w = self.dims, self.weights
        w.begin()
        x = self._norm(hidden, w.norm, d.eps, threads)
        kv = w.kv_a(x, threads=threads)
        latent, k_pe = self._norm(kv[:, : d.kv_lora], w.kv_a_norm, d.latent_eps, threads), kv[:, d.kv_lora :]
        table = rope_table(d, int(positions.max(initial=0)) + 1)
        transform.apply_rope(k_pe, positions, table, True, out=k_pe, threads=threads)
        index = None if self.shared else timed("indexer", index_keys, x, positions, d, w, self._turned(caches), threads)
        qr = self._norm(w.q_a(x, threads=threads), w.q_a_norm, d.latent_eps, threads)
        seen(input_norm=x, q_latent=qr, kv_latent=latent, k_pe=k_pe, index_k=index)
        return x, qr, (latent, k_pe, index)

    def _queries(self, qr: Any, positions: Any, threads: int) -> tuple[Any, Any]:
        """(absorbed queries [n, h, 512], their rope part [n, h, 64])."""
        d, w = self.dims, self.weights
        q = w.q_b(qr, threads=threads).reshape(len(qr), w.heads, d.nope + d.rope)
        q_pe, table = q[..., d.nope :], rope_table(d, int(positions.max(initial=0)) + 1)
        transform.apply_rope(q_pe, positions, table, True, out=q_pe, threads=threads)
        absorbed = w.w_uk(q[..., : d.nope], threads=threads)
        seen(q_nope=q[..., : d.nope], q_pe=q_pe, q_absorbed=absorbed)
        return absorbed, q_pe

    def _index_queries(
        self, x: Any, qr: Any, positions: Any, rows: np.ndarray | None, caches: PagedCaches, threads: int
    ) -> tuple[Any, Any]:
        if rows is not None:
            x, qr, positions = x[rows], qr[rows], positions[rows]
        return timed(
            "indexer", index_queries, x, qr, positions, self.dims, self.weights, caches, self._turned(caches), threads
        )  # fmt: skip

    def _turned(self, caches: PagedCaches) -> bool:
        return caches.index_layout == "index_132" if self._hadamard is None else self._hadamard

    def _attend(
        self, hidden: Any, q: Any, indices: Any, positions: Any, request: Any, caches: PagedCaches, tp: Any,
        threads: int,
    ) -> Any:  # fmt: skip
        latent, lse = attend(
            q, indices, positions, request, self._dense_until, caches, self.index, self.dims.sm_scale, threads
        )
        seen(indices=indices, attention=latent, lse=lse)
        return project_out(hidden, self.weights.w_uv(latent, threads=threads), self.weights, tp, threads)

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

    def _require_heads(self, tp: Any) -> None:
        ranks = 1 if tp is None else tp.size
        if self.weights.heads * ranks != self.dims.heads:
            raise ValueError(
                f"layer {self.index}: has {self.weights.heads} of {self.dims.heads} heads and runs on {ranks} ranks; "
                "needs ranks that have all heads between them"
            )
