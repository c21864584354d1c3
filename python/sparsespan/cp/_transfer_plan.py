"""The objects of a transfer plan: one side's layout, and the plan as data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import _core

__all__ = ["KvSide", "Transfer", "TransferPlan"]


@dataclasses.dataclass(frozen=True)
class KvSide:
    """Where one side of a hand-over keeps the cache.

    Rank = ``(pp_rank * cp + cp_rank) * tp + tp_rank`` and ``dcp_rank = tp_rank % dcp``; SGLang's and vLLM's numbering
    agree with it when ``tp`` is the attention TP size. TP ranks hold copies of the latent cache.

    Parameters
    ----------
    tp, cp, pp, dcp : int
        Sizes; ``dcp`` divides ``tp``.
    kv : {"full", "layer_split", "interleave"}
        ``"full"``: every cp rank holds every token. ``"layer_split"``: cp rank r holds every token of its part of the
        stage's layers (the first ``layers % cp`` ranks one more). ``"interleave"``: position p lies with cache shard
        ``(p // interleave) % (cp * dcp)``, shard ``cp_rank * dcp + dcp_rank``. Leave it ``"full"`` on the
        decode side.
    interleave : int
        Tokens that stay together when the cache is sharded; divides ``page_size``.
    page_size : int
        Tokens of one physical page on one rank.
    index_k : {"sharded", "replicated"}
        Whether the index cache is sharded like the latent cache or whole on every rank.
    stages : tuple of int, optional
        Layers of each pipeline stage. Default: even, the first ``num_layers % pp`` stages one more.

    Examples
    --------
    >>> from sparsespan import cp
    >>> cp.KvSide(tp=2, cp=8).world_size
    16
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    dcp: int = 1
    kv: str = "full"
    interleave: int = 1
    page_size: int = 64
    index_k: str = "sharded"
    stages: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tp", "cp", "pp", "dcp", "interleave", "page_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"KvSide: {name} is a {type(value).__name__}, needs an int")
            object.__setattr__(self, name, int(value))
        if self.stages is not None:
            object.__setattr__(self, "stages", tuple(operator.index(n) for n in self.stages))
        if self.index_k not in ("sharded", "replicated"):
            raise ValueError(f"KvSide: index_k is {self.index_k!r}, needs 'sharded' or 'replicated'")

    @classmethod
    def of_grid(cls, grid: Any, **layout: Any) -> KvSide:
        """Take ``tp`` (the attention TP size), ``cp``, ``pp`` and ``dcp`` from a rank grid."""
        tp = getattr(grid, "attn_tp", grid.tp)
        if getattr(grid, "dp", 1) not in (None, 1):
            raise ValueError(
                f"KvSide: grid has dp = {grid.dp}, needs 1: a request lives in one replica; plan each alone"
            )
        if getattr(grid, "dcp_axis", "tp") != "tp":
            raise ValueError(
                f"KvSide: grid has dcp_axis = {grid.dcp_axis!r}, needs 'tp': shards lie inside the tp group"
            )
        return cls(tp=tp, cp=grid.cp, pp=grid.pp, dcp=grid.dcp, **layout)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.cp * self.tp

    def with_stages(self, num_layers: int) -> KvSide:
        """Return the same side with ``stages`` written out for ``num_layers``."""
        if self.stages is not None or self.pp < 1:
            return self
        base, more = divmod(num_layers, self.pp)
        return dataclasses.replace(self, stages=tuple(base + (i < more) for i in range(self.pp)))

    def shards(self, part: str, decode: bool) -> tuple[int, int]:
        """(interleave, number of shards) of ``"kv"`` or ``"index"``; (1, 1) where every holder has every token."""
        count = self.dcp if decode else self.cp * self.dcp if self.kv == "interleave" else 1
        if count == 1 or (part == "index" and self.index_k == "replicated"):
            return (1, 1)
        return (self.interleave, count)

    def _core_form(self) -> dict[str, Any]:
        form = dataclasses.asdict(self)
        form["index_sharded"] = form.pop("index_k") == "sharded"
        form["stages"] = list(self.stages or ())
        return form


class Transfer(NamedTuple):
    """One line of a plan: positions ``start <= p < stop`` that source and destination class both own.

    Layers and pages are half-open ranges; pages are places in the request's page list on that rank.
    """

    request: int
    part: str
    layer_begin: int
    layer_end: int
    src: int
    dst: int
    src_class: int
    dst_class: int
    start: int
    stop: int
    src_page_begin: int
    src_page_end: int
    dst_page_begin: int
    dst_page_end: int
    tokens: int
    bytes: int


_PARTS = ("kv", "index")
_DTYPE = np.dtype([(name, np.int64) for name in Transfer._fields])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TransferPlan:
    """A hand-over as data; made by :func:`sparsespan.cp.transfer_plan`.

    ``table`` is a read-only structured array with the fields of :class:`Transfer` (``part`` 0 is the latent cache, 1
    the index cache), sorted by request, destination, part, layer, start, source. Plans compare by content, have the
    same fingerprint on every machine, and print.
    """

    table: np.ndarray
    prefill: KvSide
    decode: KvSide
    lengths: tuple[int, ...]
    present: tuple[int, ...]
    num_layers: int
    kv_bytes: int
    index_bytes: int
    index_layers: tuple[int, ...] | None
    spread: str

    @classmethod
    def _of(cls, rows: np.ndarray, **facts: Any) -> TransferPlan:
        table = rows.view(_DTYPE).reshape(-1) if rows.size else np.empty(0, _DTYPE)
        table.flags.writeable = False
        return cls(table=table, **facts)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> Transfer:
        row = self.table[i].item()
        return Transfer(row[0], _PARTS[row[1]], *row[2:])

    def __iter__(self) -> Iterator[Transfer]:
        return (self[i] for i in range(len(self)))

    def facts(self) -> dict[str, Any]:
        """Everything the plan was made from, as plain JSON data."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "table"}
        facts.update({side: dataclasses.asdict(facts[side]) for side in ("prefill", "decode")})
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the facts (sorted JSON) and the table (little-endian int64), 16 hex digits."""
        digest = hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.table).view(np.int64).astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TransferPlan):
            return NotImplemented
        return self.facts() == other.facts() and np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def total_bytes(self) -> int:
        """Bytes of all transfers (modelled)."""
        return int(self.table["bytes"].sum())

    def sent_bytes(self) -> np.ndarray:
        """Bytes that each prefill rank sends: int64 [prefill ranks] (modelled)."""
        return self._by_rank("src", self.prefill.world_size)

    def received_bytes(self) -> np.ndarray:
        """Bytes that each decode rank receives: int64 [decode ranks] (modelled)."""
        return self._by_rank("dst", self.decode.world_size)

    def _by_rank(self, field: str, world: int) -> np.ndarray:
        out = np.zeros(world, np.int64)
        np.add.at(out, self.table[field], self.table["bytes"])
        return out

    def traffic(self) -> np.ndarray:
        """Bytes from each prefill rank to each decode rank: int64 [prefill ranks, decode ranks] (modelled)."""
        out = np.zeros((self.prefill.world_size, self.decode.world_size), np.int64)
        np.add.at(out, (self.table["src"], self.table["dst"]), self.table["bytes"])
        return out

    def _set(self, t: Transfer) -> tuple[int, ...]:
        layouts = (*self.prefill.shards(t.part, False), *self.decode.shards(t.part, True))
        return (*layouts, t.src_class, t.dst_class, t.start, t.stop)

    def positions(self, i: int) -> np.ndarray:
        """Logical positions that transfer ``i`` moves, ascending: int64 [tokens]."""
        positions: np.ndarray = _core.cp.transfer_positions(self._set(self[i]))
        return positions

    def slots(self, i: int, src_pages: Any, dst_pages: Any) -> tuple[np.ndarray, np.ndarray]:
        """Slots to read and to write for transfer ``i``, in the order of :meth:`positions`.

        Parameters
        ----------
        i : int
        src_pages, dst_pages : int32 or int64 array [pages]
            The request's page ids on the source rank and on the destination rank, in the order of its positions there.
            Where the index cache has a page table of its own (replicated beside a sharded latent cache), pass that one.

        Returns
        -------
        (int64 [tokens], int64 [tokens])
            ``slot = page * page_size + offset`` on the source and on the destination.
        """
        t = self[i]
        return (
            _core.cp.transfer_slots(self._set(t), True, np.asarray(src_pages), self.prefill.page_size),
            _core.cp.transfer_slots(self._set(t), False, np.asarray(dst_pages), self.decode.page_size),
        )

    def _shards(self, t: Transfer) -> str:
        src, dst = self.prefill.shards(t.part, False)[1], self.decode.shards(t.part, True)[1]
        out = f", shard {t.src_class}/{src} here" if src > 1 else ""
        return out + (f", shard {t.dst_class}/{dst} there" if dst > 1 else "")

    def to_dict(self) -> dict[str, Any]:
        """Facts, fingerprint, totals and transfers as plain JSON data."""
        return {
            "kind": "transfer_plan",
            "figures": "modelled",
            "fingerprint": self.fingerprint,
            **self.facts(),
            "total_bytes": self.total_bytes,
            "transfers": [t._asdict() for t in self],
        }

    def diff(self, other: TransferPlan) -> list[str]:
        """Say in words where two plans differ; empty when they are equal."""
        mine, theirs = self.facts(), other.facts()
        words = [f"{key}: {mine[key]} here, {theirs[key]} there" for key in mine if mine[key] != theirs[key]]
        a, b = set(self), set(other)
        words += [f"only here: {t}" for t in self if t not in b]
        return words + [f"only there: {t}" for t in other if t not in a]

    def __repr__(self) -> str:
        return f"<TransferPlan {self.fingerprint}: {len(self)} transfers, {self.total_bytes:,} bytes>"

    def __str__(self) -> str:
        return self.text()

    def text(self, max_lines: int = 40) -> str:
        """Who sends what to whom, and how many bytes."""
        counts = f"{len(self.lengths)} requests, {self.num_layers} layers"
        ranks = f"{self.prefill.world_size} prefill ranks -> {self.decode.world_size} decode ranks"
        lines = [f"transfer plan: {ranks}, {counts}, spread {self.spread}"]
        lines.append(f"{'from -> to':12}  {'layers':8} {'positions':16} {'tokens':>8} {'bytes':>14}  part")
        for i in range(min(len(self), max_lines)):
            t = self[i]
            layers, where = f"{t.layer_begin}-{t.layer_end - 1}", f"r{t.request} {t.start}:{t.stop}"
            counts = f"{t.tokens:8,} {t.bytes:14,}"
            lines.append(f"{t.src:4} -> {t.dst:<4}  {layers:8} {where:16} {counts}  {t.part}{self._shards(t)}")
        if len(self) > max_lines:
            lines.append(f"... and {len(self) - max_lines:,} more transfers")
        sent, received = self.sent_bytes(), self.received_bytes()
        lines.append(
            f"total {self.total_bytes:,} bytes (modelled); busiest sender {int(sent.max()):,}, mean "
            f"{int(sent.sum()) // len(sent):,}; busiest receiver {int(received.max()):,}"
        )
        return "\n".join(lines)
