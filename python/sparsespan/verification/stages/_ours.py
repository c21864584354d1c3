"""Capture of our own model, on any grid of thread ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import comm, indexer, models, quant
from ._captured import Captured
from ._grids import NAMES, PRECISIONS, parse_grid
from ._names import ORDER, STAGES

__all__ = ["capture"]


class _Watched:
    """The head, with a look at what it is given."""

    def __init__(self, head: Any, see: Any) -> None:
        self._head, self._see = head, see

    def __call__(self, x: Any, *args: Any, **options: Any) -> Any:
        self._see(x)
        return self._head(x, *args, **options)


class _Rank:
    """What one rank saw: (stage, layer) -> [(rows, values)]."""

    def __init__(self, starts: np.ndarray) -> None:
        self.starts = starts
        self.batch: np.ndarray = np.zeros(0, np.int64)  # requests of the present call, in its order
        self.lengths: np.ndarray = np.zeros(0, np.int64)  # of these, when the call ends
        self.seen: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}

    def see(self, layer: int, positions: Any, requests: Any, values: dict[str, Any]) -> None:
        requests, positions = np.asarray(requests), np.asarray(positions)
        real = requests >= 0
        rows = np.where(real, self.starts[self.batch[np.maximum(requests, 0)]] + positions, -1)
        for name, value in values.items():
            self.put(name, layer, rows, value)

    def put(self, name: str, layer: int, rows: np.ndarray, value: Any) -> None:
        kind = np.int64 if STAGES[name].ids else np.float32
        self.seen.setdefault((name, layer), []).append((rows, np.array(value, kind)))

    def ends(self) -> np.ndarray:
        """Rows of the last tokens of the present call."""
        rows: np.ndarray = self.starts[self.batch] + self.lengths - 1
        return rows


def _run(rank: _Rank, model: Any, pool: Any, prompts: Sequence[Any], decoded: Sequence[Any]) -> list[int]:
    """Prefill and decode steps over given tokens; the pool's requests."""
    last = model.config.num_hidden_layers
    if model.head is not None:
        model.head = _Watched(model.head, lambda x: rank.put("final_norm", last, rank.ends(), x))
    requests = [pool.open() for _ in prompts]
    rank.batch = np.arange(len(prompts))
    rank.lengths = np.array([len(p) for p in prompts])
    with models.Tap(rank.see):
        logits = model.prefill(pool, requests, prompts)
        rank.put("logits", last, rank.ends(), logits)
        for step in range(max(map(len, decoded), default=0)):
            rank.batch = np.array([b for b, tokens in enumerate(decoded) if len(tokens) > step])
            rank.lengths = np.array([len(prompts[b]) + step + 1 for b in rank.batch])
            logits = model.decode(pool, [requests[b] for b in rank.batch], [decoded[b][step] for b in rank.batch])
            rank.put("logits", last, rank.ends(), logits)
    return requests


def _read_caches(rank: _Rank, model: Any, pool: Any, requests: list[int], rows: np.ndarray) -> None:
    """What stands in the caches at the end, rows of this rank."""
    caches, dcp = pool.caches, model.ranks.dcp
    table = caches.block_table = pool.table(requests)
    request, position = np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1])
    if dcp is None:
        slots = index_slots = caches.slots(request, position)
    else:
        tp = model.ranks.tp
        slots = index_slots = dcp.layout.slot_mapping(position, table, tp.rank, request)
        if dcp.index_k == "replicated":
            whole, page = dcp.layout.replicated_table(table), caches.page_size
            index_slots = whole[request, position // page].astype(np.int64) * page + position % page
    for name, parts, layout, at in (
        ("kv_cache", caches.kv, caches.kv_layout, slots),
        ("index_cache", caches.index_k, caches.index_layout, index_slots),
    ):
        mine = np.flatnonzero(at >= 0)
        for layer, cache in parts.items():
            rank.put(name, layer, mine, quant.read_kv(cache, at[mine], layout, caches.page_size))


def _join(captured: Captured, ranks: list[tuple[int, _Rank]], tp: int) -> None:
    """Every rank's rows; heads of tensor-parallel neighbours side by side."""
    for first in range(0, len(ranks), tp):
        group = ranks[first : first + tp]
        for key in sorted(set().union(*(rank.seen for _, rank in group)), key=lambda k: (k[1], ORDER[k[0]])):
            stage, layer = key
            if STAGES[stage].heads:
                parts = zip(*(rank.seen[key] for _, rank in group))
                for shards in parts:
                    captured.add(stage, layer, np.concatenate([v for _, v in shards], 1), shards[0][0], group[0][0])
                continue
            for number, rank in group:
                for rows, values in rank.seen.get(key, ()):
                    captured.add(stage, layer, values, rows, number)


def _scores(captured: Captured, layers: int) -> None:
    """Index scores of all keys. Selection never writes them out: they are computed from what it was given."""
    longest = int(np.diff(captured.starts).max(initial=0))
    for layer in range(layers):
        parts = [captured.get(name, layer) for name in ("index_q", "index_cache", "index_weights")]
        if any(part is None for part in parts):
            continue
        q, k, weights = (np.ascontiguousarray(part, np.float32) for part in parts)
        scores = np.full((len(captured.rows), longest), -np.inf, np.float32)
        for a, b in zip(captured.starts[:-1], captured.starts[1:]):
            ends = np.arange(1, b - a + 1)
            found = indexer.mqa_logits(q[a:b], k[a:b], weights[a:b], np.zeros(b - a, np.int64), ends)
            scores[a:b, : b - a] = found
        captured.add("index_scores", layer, scores)


def capture(
    path: str | os.PathLike[str], prompts: Sequence[Any], decoded: Sequence[Any] | None = None, grid: str = "one",
    *, page_size: int = 4, timeout: float = 120.0,
) -> Captured:  # fmt: skip
    """Run our model over prompts, and behind them over given tokens one at a time, and keep every stage.

    Parameters
    ----------
    path : path
        Folder of a checkpoint.
    prompts, decoded
        As of :class:`Captured`.
    grid : str
        ``"one"``, ``"tp2"``, ``"cp4:interleave"``, ``"dcp2:ag_rs:sharded"``, ``"pp2xcp2"``, ...; with ``"@bf16"`` or
        ``"@fp8"`` behind it for these activations and caches, else float32.
    page_size : int
        Of the caches: small pages make every request cross some.
    timeout : float
        Seconds that a rank waits for its peers.

    Returns
    -------
    Captured
        Rows of all ranks in the order of the requests. ``index_scores`` are computed afterwards from the captured
        queries, cached keys and weights.
    """
    chosen = parse_grid(grid, page_size)
    dtype, kv, index = PRECISIONS[chosen.precision]
    chosen.grid.require(models.Checkpoint(path).config)
    captured = Captured(grid, prompts, decoded)
    captured.precision, captured.turned = NAMES[chosen.precision], index == "index_132"
    held = page_size * chosen.grid.dcp
    room = sum(-(-int(n) // held) * held for n in np.diff(captured.starts))

    def main(world: Any) -> tuple[int, _Rank, int]:
        ranks, _ = chosen.grid.join(world)
        model = models.load(path, dtype=dtype, ranks=ranks)
        pool = model.pool(max(room, 1), page_size, kv, index)
        rank = _Rank(captured.starts)
        requests = _run(rank, model, pool, captured.prompts, captured.decoded)
        _read_caches(rank, model, pool, requests, captured.rows)
        return world.rank, rank, model.config.num_hidden_layers

    found = comm.run_ranks(chosen.grid.ranks, main, timeout=timeout)
    _join(captured, [(number, rank) for number, rank, _ in found], chosen.grid.tp)
    _scores(captured, found[0][2])
    return captured
