"""Twin of :func:`sparsespan.cp.volume`: nothing is calculated, buffers go round a ring and are counted on arrival."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Ring", "count", "split_rows"]


class Ring:
    """N ranks in a circle. Collectives really move arrays, one hop at a time, and count bytes at both ends."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.received = np.zeros(ranks, np.int64)
        self.sent = np.zeros(ranks, np.int64)

    def _hop(self, src: int, dst: int, array: np.ndarray) -> np.ndarray:
        if src != dst:
            self.sent[src] += array.nbytes
            self.received[dst] += array.nbytes
        arrived: np.ndarray = array.copy()
        return arrived

    def all_gather(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Every rank passes on what it got last, N - 1 times."""
        held = [{r: parts[r]} for r in range(self.ranks)]
        for step in range(self.ranks - 1):
            moves = [(r, (r + 1) % self.ranks, (r - step) % self.ranks) for r in range(self.ranks)]
            for dst, piece, array in [(d, p, self._hop(s, d, held[s][p])) for s, d, p in moves]:
                held[dst][piece] = array
        return [np.concatenate([h[r] for r in range(self.ranks)]) for h in held]

    def reduce_scatter(self, buffers: list[np.ndarray]) -> list[np.ndarray]:
        """Rank r ends with the sum of piece r; a flat buffer is padded to N equal pieces."""
        n = self.ranks
        size = -(-buffers[0].size // n)
        pieces = [np.pad(b.reshape(-1), (0, n * size - b.size)).reshape(n, size).copy() for b in buffers]
        for step in range(n - 1):
            moves = [(r, (r + 1) % n, (r - step - 1) % n) for r in range(n)]
            for dst, piece, array in [(d, p, self._hop(s, d, pieces[s][p])) for s, d, p in moves]:
                pieces[dst][piece] += array
        return [pieces[r][r] for r in range(n)]

    def all_reduce(self, buffers: list[np.ndarray]) -> list[np.ndarray]:
        """Reduce-scatter, then all-gather."""
        whole = self.all_gather(self.reduce_scatter(buffers))
        return [w[: buffers[0].size].reshape(buffers[0].shape) for w in whole]

    def all_to_all(self, pieces: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        """``pieces[src][dst]`` arrives as ``result[dst][src]``."""
        return [[self._hop(s, d, pieces[s][d]) for s in range(self.ranks)] for d in range(self.ranks)]

    def broadcast(self, array: np.ndarray, owner: int) -> list[np.ndarray]:
        """From the owner round the ring; the last rank only receives."""
        out = [array] * self.ranks
        for i in range(self.ranks - 1):
            src, dst = (owner + i) % self.ranks, (owner + i + 1) % self.ranks
            out[dst] = self._hop(src, dst, out[src])
        return out


def split_rows(scheme: str, lengths: list[int], n: int) -> list[list[int]]:
    """Flat row ids of each rank, -1 for a pad row that travels, from the layouts' definitions."""
    rows: list[list[int]] = [[] for _ in range(n)]
    start = 0
    if scheme in ("interleave", "contiguous_flat"):
        ids = list(range(sum(lengths)))
        ids += [-1] * (-len(ids) % n)
        size = len(ids) // n
        return [ids[r::n] if scheme == "interleave" else ids[r * size : (r + 1) * size] for r in range(n)]
    for length in lengths:
        ids = list(range(start, start + length))
        start += length
        if scheme == "contiguous":
            blocks = [ids[length * r // n : length * (r + 1) // n] for r in range(n)]
            pairs = [[r] for r in range(n)]
        else:
            if scheme == "zigzag_padded":
                ids += [-1] * (-length % (2 * n))
            chunk = -(-len(ids) // (2 * n))
            blocks = [b.tolist() for b in np.array_split(np.array(ids, int), 2 * n)]  # the first ones one longer
            if scheme == "ceil_chunk":
                blocks = [ids[k * chunk : (k + 1) * chunk] for k in range(2 * n)]
            pairs = [[r, 2 * n - 1 - r] for r in range(n)]
        for r, owned in enumerate(pairs):
            for b in owned:
                rows[r] += blocks[b]
    return rows


def _gather_rows(ring: Ring, rows: list[list[int]], size: int) -> None:
    most = max(map(len, rows))
    ring.all_gather([np.zeros((most, size), np.uint8) for _ in rows])


def _count_split(scheme: str, ring: Ring, what: str, dims: Any, lengths: list[int], o: dict[str, Any]) -> None:
    rows = split_rows("contiguous_flat" if scheme.startswith("dsa_cp") else scheme, lengths, ring.ranks)
    t = max(map(len, rows))
    n, width = ring.ranks, dims.heads * dims.v_head
    if what == "latent KV":
        _gather_rows(ring, rows, o["kv_bytes"])
    elif what == "index-K":
        _gather_rows(ring, rows, o["index_bytes"])
    elif what.startswith("hidden"):
        _gather_rows(ring, rows, dims.hidden * 2)
    elif what.startswith("last rows"):
        ends = [int(end) - 1 for end, length in zip(np.cumsum(lengths), lengths) if length]
        ring.all_gather([np.zeros((sum(e in mine for e in ends), dims.hidden), np.uint16) for mine in rows])
    elif what == "o_proj weights":
        ring.all_gather([np.zeros((width // n, dims.hidden, o["weight_bytes"]), np.uint8)] * n)
    elif what == "attention output":
        ring.all_to_all([[np.zeros((t, width // n), np.uint16)] * n] * n)
    elif o["replicated_state"]:
        ring.all_reduce([np.zeros((t * n, dims.hidden), np.uint16)] * n)
    else:
        ring.reduce_scatter([np.zeros((t * n, dims.hidden), np.uint16)] * n)


def _count_dcp(ring: Ring, what: str, primitive: str, dims: Any, tokens: int, o: dict[str, Any]) -> None:
    n, h, d = ring.ranks, dims.heads // o["tp"], dims.kv_lora
    payload = np.float32 if o["payload_bytes"] == 4 else np.uint16
    per = -(-tokens // n)
    if what == "query heads":
        ring.all_gather([np.zeros((tokens, h, d + dims.rope), np.uint16)] * n)
    elif what == "lse":
        ring.all_gather([np.zeros((tokens, h * n), np.float32)] * n)
    elif what == "partial out":
        buffers = [np.zeros((n, tokens, h, d), payload)] * n
        ring.all_reduce(buffers) if primitive == "all_reduce" else ring.reduce_scatter(buffers)
    elif what == "partial out | lse":
        ring.all_to_all([[np.zeros((tokens, h, d * np.dtype(payload).itemsize + 4), np.uint8)] * n] * n)
    elif what == "top-k (score, id)" and primitive == "all_gather":
        ring.all_gather([np.zeros((tokens, dims.topk, 8), np.uint8)] * n)
    elif what == "top-k (score, id)":
        ring.all_to_all([[np.zeros((per, dims.topk, 8), np.uint8)] * n] * n)
    elif what == "top-k ids":
        ring.all_gather([np.zeros((per, dims.topk), np.int32)] * n)
    else:  # index-K: every rank's share of each request, padded to the busiest and to whole runs of the interleave
        s = o["interleave"]
        shares = [[sum(1 for p in range(c) if p // s % n == r) for c in o["contexts"]] for r in range(n)]
        rows = sum(-(-max(share[i] for share in shares) // s) * s for i in range(len(o["contexts"])))
        ring.all_gather([np.zeros((rows, o["index_bytes"]), np.uint8)] * n)


def count(scheme: str, what: str, primitive: str, ranks: int, dims: Any, lengths: list[int], o: dict[str, Any]) -> Ring:
    """Carry out one collective of a scheme on zero-filled buffers of the true shapes."""
    ring, tokens = Ring(ranks), sum(lengths)
    weights = o["weight_bytes"]
    if scheme == "tp" or (what == "o_proj output" and not scheme.startswith("dsa_cp")):
        rows = tokens if scheme == "tp" else max(map(len, split_rows(scheme, lengths, o["cp"])))
        ring.all_reduce([np.zeros((rows, dims.hidden), np.uint16)] * ranks)
    elif scheme == "layer_shard":
        q_b = (dims.q_lora, dims.heads, dims.nope + dims.rope, weights)
        o_proj = (dims.heads, dims.v_head, dims.hidden, weights)
        ring.broadcast(np.zeros(q_b if what.startswith("q_b") else o_proj, np.uint8), 0)
    elif scheme.startswith("block"):
        span = o["page_size"] * ranks
        pages = sum(len(range(0, c, span)) for c in o["contexts"])
        size = o["kv_bytes"] if "latent" in what else o["index_bytes"]
        ring.all_gather([np.zeros((pages, o["page_size"], size), np.uint8)] * ranks)
    elif scheme == "dcp":
        _count_dcp(ring, what, primitive, dims, tokens, o)
    else:
        _count_split(scheme, ring, what, dims, lengths, o)
    return ring
