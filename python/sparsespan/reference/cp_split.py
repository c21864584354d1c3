"""Twin of :func:`sparsespan.cp.split_plan`: plain lists of (request, offset), written down from the definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["SplitPlan", "split_plan"]

# A local row: (request, offset in the request), or None for padding of no request.
Row = tuple[int, int] | None


@dataclass
class SplitPlan:
    """Local rows of every rank and what follows from them; the names are those of ``CpPlan``."""

    scheme: str
    ranks: list[list[Row]]
    cu: np.ndarray
    prefix: np.ndarray
    real: np.ndarray
    whole: np.ndarray
    cut: np.ndarray
    align: int

    def _visible(self, row: Row) -> bool:
        return row is not None and row[1] < self.real[row[0]]

    def _each(self, r: int, value: Any, padding: int, hidden: bool = False) -> np.ndarray:
        shown = [row is not None if hidden else self._visible(row) for row in self.ranks[r]]
        out = [value(*row) if ok and row is not None else padding for row, ok in zip(self.ranks[r], shown)]
        return np.array(out, np.int64)

    def rank_rows(self, r: int) -> np.ndarray:
        """Rows of the batch, -1 for padding."""
        length = np.diff(self.cu)
        return self._each(r, lambda s, i: self.cu[s] + i if i < length[s] else -1, -1, hidden=True)

    def positions(self, r: int) -> np.ndarray:
        """``P + i``."""
        return self._each(r, lambda s, i: self.prefix[s] + i, 0, hidden=True)

    def row_to_request(self, r: int) -> np.ndarray:
        """Request, -1 for padding."""
        return self._each(r, lambda s, i: s, -1)

    def ks_ke(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """Packed key range."""
        start = np.concatenate([[0], np.cumsum(self.prefix + np.diff(self.cu))])
        ks = self._each(r, lambda s, i: start[s], 0)
        return ks, self._each(r, lambda s, i: start[s] + self.prefix[s] + i + 1, 0)

    @property
    def counts(self) -> np.ndarray:
        """Local rows, padding included."""
        return np.array([len(rank) for rank in self.ranks])

    @property
    def padded_len(self) -> int:
        """Rows per rank in the gathered stream."""
        return -(-int(self.counts.max()) // self.align) * self.align

    @property
    def restore_index(self) -> np.ndarray:
        """First place of each row in the gathered stream."""
        gathered = np.full((len(self.ranks), self.padded_len), -1)
        for r in range(len(self.ranks)):
            rows = self.rank_rows(r)
            gathered[r, : len(rows)] = rows
        ids, first = np.unique(gathered.ravel(), return_index=True)
        return first[ids >= 0]

    def request_counts(self, r: int) -> np.ndarray:
        """Real local rows per request."""
        request = self.row_to_request(r)
        return np.bincount(request[request >= 0], minlength=len(self.prefix))

    def kept_requests(self, r: int) -> np.ndarray:
        """Requests with a real row."""
        return np.flatnonzero(self.request_counts(r))

    def _front_len(self, s: int) -> int:
        n = len(self.ranks)
        if self.whole[s]:
            return int(self.cut[s])
        if self.scheme == "zigzag":
            return sum(len(b) for b in np.array_split(np.arange(self.cut[s]), 2 * n)[:n])
        return -(-int(self.cut[s]) // (2 * n)) * n

    def actual_seq(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """(``actual_seq_q``, ``actual_seq_kv``)."""
        seen = [row for row in self.ranks[r] if row is not None and self._visible(row)]
        if self.scheme == "interleave":
            return np.arange(1, len(seen) + 1), np.array([self.prefix[s] + i + 1 for s, i in seen], np.int64)
        two = self.scheme in ("zigzag", "zigzag_padded", "ceil_chunk", "thd_even")
        q = np.zeros((2 if two else 1, len(self.prefix)), np.int64)
        kv = np.zeros_like(q)
        for s, i in seen:
            part = int(two and i >= self._front_len(s))
            q[part, s] += 1
            kv[part, s] = max(kv[part, s], self.prefix[s] + i + 1)
        q = np.cumsum(q, axis=1)
        return (q, kv) if two else (q[0], kv[0])

    def slot_mapping(self, global_slots: np.ndarray, r: int) -> np.ndarray:
        """Slots of the rows that are written here."""
        return self._each(r, lambda s, i: -1 if self.whole[s] and r > 0 else global_slots[self.cu[s] + i], -1)

    @property
    def last_row_owner(self) -> np.ndarray:
        """Rank of each request's last real row."""
        last = [(s, n - 1) if n > 0 else None for s, n in enumerate(self.real.tolist())]
        return np.array([next((r for r, rows in enumerate(self.ranks) if at in rows), -1) if at else -1 for at in last])

    def rank_costs(self, topk: int | None = None) -> np.ndarray:
        """Keys scored per rank (capped at ``topk``)."""
        keys = [ke - ks for ks, ke in (self.ks_ke(r) for r in range(len(self.ranks)))]
        return np.array([np.minimum(k, topk).sum() if topk else k.sum() for k in keys], np.float64)


def _pieces(scheme: str, length: int, n: int) -> list[list[list[int]]]:
    """Offsets by rank and phase: a rank's rows are all its phase-0 rows, then all its phase-1 rows."""
    offsets = list(range(length))
    if scheme == "zigzag":
        blocks = [b.tolist() for b in np.array_split(np.arange(length), 2 * n)]
        return [[blocks[r], blocks[2 * n - 1 - r]] for r in range(n)]
    if scheme == "contiguous":
        return [[offsets[length * r // n : length * (r + 1) // n], []] for r in range(n)]
    chunk = -(-length // (2 * n))
    if scheme == "zigzag_padded":
        offsets = list(range(2 * n * chunk))
    cuts = [offsets[k * chunk : (k + 1) * chunk] for k in range(2 * n)]
    return [[cuts[r] + cuts[2 * n - 1 - r], []] for r in range(n)]


def _by_request(scheme: str, flavor: str | None, batch: SplitPlan, n: int) -> list[list[Row]]:
    phases: list[list[list[Row]]] = [[[], []] for _ in range(n)]
    for s, length in enumerate(batch.cut.tolist()):
        every = [[list(range(length)), []] for _ in range(n)]
        for r, piece in enumerate(every if batch.whole[s] else _pieces(scheme, length, n)):
            if scheme == "ceil_chunk" and flavor and not batch.whole[s] and batch.prefix[s] == 0 and 0 in piece[0]:
                chunk = -(-length // (2 * n))  # the piece that starts the sequence goes last
                piece = [piece[0][chunk:], piece[0][:chunk]]
            for phase, offsets in enumerate(piece):
                phases[r][phase] += [(s, i) for i in offsets]
    return [front + back for front, back in phases]


def _by_flat_row(scheme: str, batch: SplitPlan, n: int, pads: int) -> list[list[Row]]:
    rows = [(s, i) for s, length in enumerate(batch.cut.tolist()) for i in range(length)]
    cut: list[Row] = [row for row in rows if not batch.whole[row[0]]]
    if scheme == "contiguous_flat":
        cut += [None] * pads
        cut += [None] * (-len(cut) % n)
    t = len(cut) // n
    ranks = []
    for r in range(n):
        mine = cut[r::n] if scheme == "interleave" else cut[r * t : (r + 1) * t]
        here = [row for row in mine if row] + [row for row in rows if batch.whole[row[0]]]
        ranks.append(sorted(here) + [None] * mine.count(None))
    return ranks


def split_plan(
    scheme: str,
    cu_seqlens: Sequence[int],
    prefix_lens: Sequence[int] | None,
    world_size: int,
    row_kind: Sequence[int] | None = None,
    pad_to: int | None = None,
    flavor: str | None = None,
) -> SplitPlan:
    """Split as :func:`sparsespan.cp.split_plan` does; validates nothing."""
    cu, n = np.asarray(cu_seqlens, np.int64), world_size
    length = np.diff(cu)
    prefix = np.zeros(len(length), np.int64) if prefix_lens is None else np.asarray(prefix_lens, np.int64)
    kind = np.zeros(cu[-1], np.int64) if row_kind is None else np.asarray(row_kind)
    real = np.array([np.count_nonzero(kind[a:b] != 2) for a, b in pairwise(cu)], np.int64)
    sharded = (scheme, flavor) == ("contiguous_flat", "vllm_ascend")
    whole = np.array([not sharded and b > a and kind[a] == 1 for a, b in pairwise(cu)], bool)
    cut = length.copy()
    pads = 0 if pad_to is None else pad_to - int(cu[-1])
    sglang = flavor == "sglang"
    if sglang and scheme in ("zigzag", "contiguous"):
        cut[-1] += pads
    align = (2 * n if scheme == "zigzag" else n) if sglang else 1
    plan = SplitPlan(scheme, [], cu, prefix, real, whole, cut, align)
    if scheme in ("interleave", "contiguous_flat"):
        plan.ranks = _by_flat_row(scheme, plan, n, pads)
    else:
        plan.ranks = _by_request(scheme, flavor, plan, n)
    if pad_to is not None and scheme != "contiguous_flat" and not (sglang and scheme != "interleave"):
        level = [len(range(r, pad_to, n)) for r in range(n)] if sglang else [max(-(-pad_to // n), *plan.counts)] * n
        plan.ranks = [rank + [None] * (m - len(rank)) for rank, m in zip(plan.ranks, level)]
    return plan
