"""Twins of :class:`sparsespan.cp.DcpLayout`: maps by enumeration, so that closed forms have something to agree with.

S = interleave, N = world_size, B = page_size. -1 means "none" and stays -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = [
    "block_rows",
    "capacity",
    "fingerprint",
    "gather_plan",
    "local",
    "local_len",
    "logical",
    "owner",
    "packed_rows",
    "remap_topk",
    "replicated_table",
    "slot_mapping",
    "visible_len",
    "write_plan",
]

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


def fingerprint(text: str) -> str:
    """64-bit FNV-1a of ``repr(plan)``."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def owner(p: np.ndarray, s: int, n: int) -> np.ndarray:
    """``(p // S) % N``."""
    p = np.asarray(p, np.int64)
    return np.where(p < 0, -1, p // s % n)


def local(p: np.ndarray, s: int, n: int) -> np.ndarray:
    """``p // (N * S) * S + p % S``."""
    p = np.asarray(p, np.int64)
    return np.where(p < 0, -1, p // (n * s) * s + p % s)


def logical(r: int, index: np.ndarray, s: int, n: int) -> np.ndarray:
    """``l // S * (N * S) + r * S + l % S``."""
    index = np.asarray(index, np.int64)
    return np.where(index < 0, -1, index // s * (n * s) + r * s + index % s)


def local_len(length: int, r: int, s: int, n: int) -> int:
    """Counted, not computed: positions below ``length`` that ``r`` owns."""
    return int((owner(np.arange(length), s, n) == r).sum())


def visible_len(p: int, r: int, s: int, n: int) -> int:
    """Positions up to ``p``, itself included, that ``r`` owns."""
    return local_len(p + 1, r, s, n)


def slot_mapping(
    positions: Sequence[int], table: np.ndarray, requests: Sequence[int], r: int, s: int, n: int, b: int
) -> np.ndarray:
    """The block-table arithmetic of vLLM, token by token."""
    slots = []
    for p, request in zip(positions, requests):
        if p < 0:
            slots.append(-1)
            continue
        block, offset = divmod(int(p), b * n)
        row = offset // (n * s) * s + offset % s
        slots.append(int(table[request][block]) * b + row if offset // s % n == r else -1)
    return np.array(slots, np.int64)


def write_plan(locations: Sequence[int], r: int, s: int, n: int) -> tuple[list[int], list[int]]:
    """Rows of the step that ``r`` writes, and their physical rows."""
    mine = [t for t, v in enumerate(locations) if v >= 0 and v // s % n == r]
    return mine, [int(locations[t]) // (n * s) * s + int(locations[t]) % s for t in mine]


def remap_topk(indices: np.ndarray, r: int, s: int, n: int, topk_length: np.ndarray | None = None) -> Triple:
    """Local rows, lanes and counts of each row: a mask, then the kept entries in front."""
    indices = np.asarray(indices, np.int64)
    out = np.full(indices.shape, -1, np.int64)
    lanes = np.full(indices.shape, -1, np.int64)
    counts = np.zeros(len(indices), np.int32)
    for t, row in enumerate(indices):
        row = row if topk_length is None else row[: topk_length[t]]
        mine = row[(row >= 0) & (owner(row, s, n) == r)]
        counts[t] = len(mine)
        out[t, : len(mine)] = local(mine, s, n)
        lanes[t, : len(mine)] = mine // s % 8
    return out, lanes, counts


def gather_plan(
    lengths: Sequence[int], starts: Sequence[int], s: int, n: int
) -> tuple[list[list[tuple[int, int]]], np.ndarray]:
    """Send rows of every rank as (request, local) lists, and the gathered row of each position, by simulation."""
    sends: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for request, (length, start) in enumerate(zip(lengths, starts)):
        if length == 0:
            continue
        first, last = start // (n * s) * (n * s), -(-(start + length) // (n * s)) * (n * s)
        for p in range(first, last):
            inside = start <= p < start + length
            sends[p // s % n].append((request, p // (n * s) * s + p % s if inside else -1))
    gathered = [(r, *row) for r, rows in enumerate(sends) for row in rows]
    where = {row: i for i, row in enumerate(gathered)}
    source = [
        where[(p // s % n, request, p // (n * s) * s + p % s)]
        for request, (length, start) in enumerate(zip(lengths, starts))
        for p in range(start, start + length)
    ]
    return sends, np.array(source, np.int64)


def packed_rows(indices: np.ndarray, prefix: int, s: int, n: int) -> np.ndarray:
    """Rows of ``[rank-major prefix, padded to whole rounds | new tokens]``."""
    send = -(-prefix // (n * s)) * s
    p = np.asarray(indices, np.int64)
    rows = np.where(p < prefix, owner(p, s, n) * send + local(p, s, n), n * send + p - prefix)
    return np.where(p < 0, -1, rows)


def block_rows(positions: Sequence[int], request: int, table: np.ndarray, s: int, n: int, b: int) -> np.ndarray:
    """Gathered row of each position when every rank sends the unique pages of ``table``."""
    ids = sorted({int(x) for x in np.asarray(table).reshape(-1) if x >= 0})
    rows = []
    for p in positions:
        at = int(local(np.array(p), s, n))
        place = ids.index(int(table[request][at // b]))
        rows.append((int(owner(np.array(p), s, n)) * len(ids) + place) * b + at % b)
    return np.array(rows, np.int64)


def replicated_table(table: np.ndarray, n: int, sub: int = 1) -> np.ndarray:
    """Block table of an index cache that every rank holds whole."""
    table = np.asarray(table)
    out = np.empty((table.shape[0], table.shape[1] * n), table.dtype)
    for j in range(out.shape[1]):
        block = table[:, j // (n * sub) * sub + j % sub]
        out[:, j] = np.where(block < 0, -1, (block // sub * n + j // sub % n) * sub + block % sub)
    return out


def capacity(memory: int, kv: int, ik: int, shards: int, n: int, b: int) -> tuple[int, float]:
    """Tokens of the group, whole pages, and the gain over one rank. ``kv`` and ``ik`` in bytes per token."""
    pages = memory // (kv * b + ik * b * n // shards)
    return pages * b * n, (kv + ik) / (kv / n + ik / shards)
