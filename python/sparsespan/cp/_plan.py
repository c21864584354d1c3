"""``CpPlan``: everything that can be asked about a split."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from .. import _core
from .._interop import call
from . import _batches, _engines, _picture
from ._views import CpSegments, NextNRows, StaticBatch

__all__ = ["CpPlan"]


def _fixed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class CpPlan:
    """A context-parallel split as pure data; made by :func:`split_plan`.

    A plan keeps the ordered local rows of each rank. All else is computed from those rows. Plans compare with ``==``,
    hash, pickle and print; :attr:`fingerprint` is the same in every process. All arrays are int64.

    Index spaces: *row* = row of the batch (flat, 0 to T-1), *local row* = row of a rank's tensor, *gathered row* =
    ``rank * padded_len + local row``, the stream that an all-gather of ranks padded to ``padded_len`` gives,
    *packed* = row of a K array that holds, request by request, P cached keys and then the request's L rows.

    Methods that give one entry per local row take ``length=``: the result is padded to that many entries, with what
    padding rows have (-1, or 0 for positions, key ranges and lengths).
    """

    def __init__(
        self, core: _core.cp.CpPlan, scheme: str, world_size: int, pad_to: int | None, flavor: str | None
    ) -> None:
        self._core = core
        self.scheme = scheme
        self.world_size = world_size
        self.pad_to = pad_to
        self.flavor = flavor

    # ---- facts about the whole plan ------------------------------------------------------------------------------

    @cached_property
    def cu_seqlens(self) -> np.ndarray:
        """[B + 1] first row of each request."""
        return _fixed(self._core.cu_seqlens())

    @cached_property
    def prefix_lens(self) -> np.ndarray:
        """[B] cached keys before each request's first row."""
        return _fixed(self._core.prefix_lens())

    @property
    def num_requests(self) -> int:
        """B."""
        return len(self.prefix_lens)

    @property
    def num_rows(self) -> int:
        """T, the rows of the batch."""
        return int(self.cu_seqlens[-1])

    @cached_property
    def real_lens(self) -> np.ndarray:
        """[B] rows of each request that are no pad rows."""
        return _fixed(self._core.real_lens())

    @cached_property
    def k_starts(self) -> np.ndarray:
        """[B + 1] packed row of each request's first key: running sum of P + L."""
        return _fixed(self._core.k_starts())

    @cached_property
    def replicated(self) -> np.ndarray:
        """[B] bool: decode requests whose rows stand on every rank."""
        return _fixed(self._core.replicated().astype(bool))

    @cached_property
    def decode_requests(self) -> np.ndarray:
        """Requests of decode rows, ascending."""
        return _fixed(self._core.decode_requests())

    @cached_property
    def counts(self) -> np.ndarray:
        """[N] local rows of each rank, padding included."""
        return _fixed(self._core.counts())

    @cached_property
    def real_counts(self) -> np.ndarray:
        """[N] local rows of each rank that are no padding."""
        return _fixed(self._core.real_counts())

    @property
    def padded_len(self) -> int:
        """Rows per rank in the gathered stream: the largest count (aligned as the flavor's engine does)."""
        return self._core.padded_len()

    @cached_property
    def restore_index(self) -> np.ndarray:
        """[T] gathered row of each row: ``gathered[restore_index]`` is the batch. Rank 0's copy of decode rows."""
        return _fixed(self._core.restore_index())

    @cached_property
    def owner(self) -> np.ndarray:
        """[T] rank whose copy of the row counts."""
        return _fixed(self._core.owner())

    @cached_property
    def last_row_owner(self) -> np.ndarray:
        """[B] rank that has the request's last real row, -1 if there is none."""
        return _fixed(self._core.last_row_owner())

    @cached_property
    def last_row_index(self) -> np.ndarray:
        """[B] gathered row of the request's last real row (the one whose logits are sampled), -1 if there is none."""
        return _fixed(self._core.last_row_index())

    @property
    def fingerprint(self) -> int:
        """64 bits over scheme, batch and every rank's rows: ranks compare it before they exchange data."""
        return self._core.fingerprint()

    @property
    def nbytes(self) -> int:
        """Bytes that the plan keeps: 4 per row, 4 per local row, and a few words per request and rank."""
        return self._core.nbytes()

    def rank_costs(self, cost: str = "indexer", topk: int = 2048) -> np.ndarray:
        """[N] float64 work of each rank.

        Parameters
        ----------
        cost : {"indexer", "attention", "rows"}
            Per row: the keys it sees, ``P + i + 1``; ``min(P + i + 1, topk)``; 1.
        topk : int
            Only for ``"attention"``.
        """
        return np.asarray(self._core.rank_costs(cost, topk))

    def imbalance(self, cost: str = "indexer", topk: int = 2048) -> float:
        """``max / mean - 1`` of :meth:`rank_costs`; 0.0 for a batch without rows."""
        costs = self.rank_costs(cost, topk)
        return float(costs.max() / costs.mean() - 1.0) if costs.any() else 0.0

    # ---- per local row -------------------------------------------------------------------------------------------

    def rank_rows(self, r: int, *, length: int | None = None) -> np.ndarray:
        """Rows of the batch in the local order of rank ``r``; -1 = padding. ``x_local = x[rank_rows(r)]``."""
        return self._core.rank_rows(r, -1 if length is None else length)

    def positions(self, r: int, *, length: int | None = None) -> np.ndarray:
        """Logical position ``P + i`` of each local row, for RoPE.

        Padding inside a request goes on counting, as the engines do; padding of no request has 0.
        """
        return self._core.positions(r, -1 if length is None else length)

    def row_to_request(self, r: int, *, length: int | None = None, include_pads: bool = False) -> np.ndarray:
        """Request of each local row, -1 for padding (``include_pads`` names the request that padding belongs to)."""
        return self._core.row_to_request(r, -1 if length is None else length, include_pads)

    def ks_ke(self, r: int, *, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Packed key range ``[ks, ke)`` of each local row; (0, 0) for padding.

        ``ks = k_starts[s]`` and ``ke = ks + P + i + 1`` for row i of request s.
        """
        return self._core.ks_ke(r, -1 if length is None else length)

    def context_lens(self, r: int, *, length: int | None = None) -> np.ndarray:
        """Keys that each local row sees, its own included (``ke - ks``); 0 for padding."""
        return self._core.context_lens(r, -1 if length is None else length)

    def kv_write_mask(self, r: int, *, length: int | None = None) -> np.ndarray:
        """Bool: local rows whose KV is written. False for padding and for decode rows on ranks other than 0."""
        return self._core.kv_write_mask(r, -1 if length is None else length).astype(bool)

    def slot_mapping(self, global_slots: Any, r: int, *, length: int | None = None) -> Any:
        """Slot of each local row where :meth:`kv_write_mask` holds, else -1.

        ``global_slots`` are integers [T], the slot of each row of the batch (or [pad_to], the engine's padded array).
        """
        return call(self._core.slot_mapping, global_slots, r, -1 if length is None else length)

    def gathered_slot_mapping(self, global_slots: Any) -> np.ndarray:
        """[N * padded_len] slot of each gathered row: what every rank writes after gathering KV. -1 = write nothing."""
        slots = [self._core.slot_mapping(np.asarray(global_slots), r, self.padded_len) for r in range(self.world_size)]
        return np.concatenate(slots)

    # ---- per segment, per request --------------------------------------------------------------------------------

    def segments(self, r: int) -> CpSegments:
        """Non-empty segments of rank ``r`` in local order, with bottom-right causal ``(q_len, kv_len)`` pairs."""
        return CpSegments(*self._core.segments(r))

    def front_back(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """Local rows of the front and of the back pieces, padding left out: two attention calls."""
        return self._core.part_rows(r, 0), self._core.part_rows(r, 1)

    def actual_seq_q(self, r: int) -> np.ndarray:
        """Inclusive cumulative query lengths, without a leading 0.

        [B] per request, empty ones repeating their neighbour; [2, B] for schemes with front and back pieces (two
        calls, over the rows of :meth:`front_back`); for interleave one entry per real local row.
        """
        return self._seq_lens(r)[0]

    def actual_seq_kv(self, r: int) -> np.ndarray:
        """Keys that the last query of each entry of :meth:`actual_seq_q` sees; 0 for an entry without queries."""
        return self._seq_lens(r)[1]

    def _seq_lens(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        q, kv, parts = self._core.seq_lens(r)
        return (np.reshape(q, (2, -1)), np.reshape(kv, (2, -1))) if parts == 2 else (q, kv)

    def request_counts(self, r: int) -> np.ndarray:
        """[B] real local rows of each request."""
        return self._core.request_counts(r)

    def kept_requests(self, r: int) -> np.ndarray:
        """Requests with a real row on rank ``r``, ascending: the one filter for every per-request tensor."""
        return self._core.kept_requests(r)

    def next_n_rows(self, r: int, next_n: int) -> NextNRows:
        """Decode requests as [D, next_n] rows with inclusive lengths, short requests padded with row -1, length 0."""
        return NextNRows(*_batches.next_n_rows(self, r, next_n))

    def static_batch(self, r: int, rows: int, *, requests: int | None = None, global_slots: Any = None) -> StaticBatch:
        """Rank ``r`` in buffers of ``rows`` rows and ``requests`` requests, for graph replay."""
        return StaticBatch(**_batches.static_batch(self, r, rows, requests, global_slots))

    def engine_metadata(self, r: int) -> dict[str, Any]:
        """The flavor's engine's own metadata of rank ``r``, under its own names.

        ``sglang`` zigzag and contiguous: the fields of ZigzagContextParallelMetadata (``split_list``, ``zigzag_index``,
        ``cp_reverse_index``, ``kv_len_prev_list``, ...); interleave: ``bs_idx``, ``q_lens``, ``cache_seqlens``, ...
        ``vllm`` and ``vllm_ascend`` zigzag_padded: ``pcp_allgather_restore_idx``, ``pcp_unpad_mask``, ``q_head_idx``,
        ``kv_with_q_head_nomask_idx``, ``head_actual_seq_kv``, ``logits_indices``, ...; ceil_chunk:
        ``hidden_restore_idx``, ``padded_gather_idx``, ``gathered_kv_write_mask`` and the local request rows.
        ``vllm_ascend`` contiguous_flat: ``actual_seq_lengths_query``, ``actual_seq_lengths_key``, ``local_start``, ...
        Lengths count padding where the engine counts it; the plan's own methods never do.

        Raises
        ------
        ValueError
            If the plan has no flavor.
        """
        return _engines.engine_metadata(self, r)

    # ---- as a value ----------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return self._core.equals(other._core) if isinstance(other, CpPlan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        from ._split import split_plan

        kinds = self._core.row_kind()
        args = (self.scheme, self.cu_seqlens, self.prefix_lens, self.world_size, kinds, self.pad_to, self.flavor)
        return split_plan, args

    def __repr__(self) -> str:
        return (
            f"<CpPlan {self.scheme}{'/' + self.flavor if self.flavor else ''} N={self.world_size} "
            f"B={self.num_requests} T={self.num_rows} fingerprint={self.fingerprint:016x}>"
        )

    def __str__(self) -> str:
        return _picture.picture(self)
