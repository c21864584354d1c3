"""One decode batch, laid out for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from sparsespan import attention, comm, cp, indexer, quant

SCALE = 192**-0.5
BF16 = ml_dtypes.bfloat16


@dataclass
class Batch:
    """Requests with histories; each has `next_n` query rows at the end of its context."""

    lengths: list[int]  # context of each request, its new rows included; below next_n its first rows see nothing
    next_n: int = 1
    topk: int = 24
    heads: int = 8
    dtype: type = np.float32
    kv_layout: str = "f32_576"
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self):
        self.rng = np.random.default_rng(self.seed)
        self.rows = len(self.lengths) * self.next_n
        self.request = np.repeat(np.arange(len(self.lengths)), self.next_n)
        ends = np.array([max(0, n - self.next_n + i + 1) for n in self.lengths for i in range(self.next_n)])
        self.context = ends.astype(np.int32)
        self.q = self.rng.standard_normal((self.rows, self.heads, 576), dtype=np.float32).astype(self.dtype)
        self.kv = [self.rng.standard_normal((n, 576), dtype=np.float32).astype(BF16) for n in self.lengths]
        self.indices = np.full((self.rows, self.topk), -1, np.int32)
        for t, end in enumerate(ends):
            picked = self.rng.permutation(end)[: self.topk]
            self.indices[t, self.rng.permutation(self.topk)[: len(picked)]] = picked  # -1 stands anywhere

    def table(self, layout):
        """Pages in no particular order, one too many in the cache; -1 past a request's end."""
        wide = max(1, max((layout.pages_for(n) for n in self.lengths), default=1))
        table = np.full((len(self.lengths), wide), -1, np.int32)
        pages = np.random.default_rng(self.seed + 1).permutation(sum(layout.pages_for(n) for n in self.lengths) + 1)
        used = 0
        for s, n in enumerate(self.lengths):
            table[s, : layout.pages_for(n)] = pages[used : used + layout.pages_for(n)]
            used += layout.pages_for(n)
        return table, len(pages)

    def cache(self, layout, rank):
        """The shard of a rank; what nobody wrote is NaN (or for bytes 255)."""
        table, pages = self.table(layout)
        info = quant.kv_layout(self.kv_layout)
        byte = self.kv_layout == "fp8_656"
        storage = np.uint8 if byte else BF16 if self.kv_layout == "bf16_576" else np.float32
        width = info.bytes_per_token // np.dtype(storage).itemsize
        cache = np.full((pages, layout.page_size, width), 255 if byte else np.nan, storage)
        for s, keys in enumerate(self.kv):
            at = np.arange(len(keys))
            cp.dcp_write_kv(
                keys[:, :512], keys[:, 512:], cache, at, table, layout, rank,
                row_to_request=np.full(len(keys), s), kv_layout=self.kv_layout,
            )  # fmt: skip
        return cache

    def q_of(self, rank, ranks):
        h = self.heads // ranks
        return self.q[:, rank * h : (rank + 1) * h]

    def decode(self, c, layout, **options):
        """cp.dcp_decode on one rank, of its heads."""
        table, _ = self.table(layout)
        replicated = options.get("replicate_q", False)
        sink = options.pop("attn_sink", None)
        h = self.heads // c.size
        return cp.dcp_decode(
            c, self.q if replicated else self.q_of(c.rank, c.size), self.cache(layout, c.rank), self.indices, layout,
            table, SCALE, row_to_request=self.request, context_lens=self.context, kv_layout=self.kv_layout,
            attn_sink=None if sink is None else sink[c.rank * h : (c.rank + 1) * h], **options,
        )  # fmt: skip

    def on_ranks(self, layout, **options):
        """Out [T, heads, d_v] and lse of all ranks' heads side by side."""
        results = comm.run_ranks(layout.world_size, lambda c: self.decode(c, layout, **options), timeout=20)
        return tuple(np.concatenate([r[i] for r in results], axis=1) for i in range(2))

    def one_rank(self, interleave, lanes, attn_sink=None):
        """sparse_mla over the whole cache."""
        layout = cp.dcp_layout(interleave, 1, max(64, interleave))
        table, _ = self.table(layout)
        slots = np.where(
            self.indices < 0, -1, layout_slots(table, self.request, np.maximum(self.indices, 0), layout.page_size)
        )
        lane_of = np.where(self.indices < 0, -1, self.indices // interleave % 8) if lanes else None
        return attention.sparse_mla(
            self.q, self.cache(layout, 0), slots, SCALE, layout=self.kv_layout, page_size=layout.page_size,
            lane_of=lane_of, attn_sink=attn_sink,
        )[:2]  # fmt: skip


def layout_slots(table, request, positions, page_size):
    return table[request[:, None], positions // page_size].astype(np.int64) * page_size + positions % page_size


@dataclass
class IndexBatch:
    """The indexer's side of the same: queries, weights and keys of each request."""

    lengths: list[int]
    next_n: int = 1
    heads: int = 4
    index_layout: str = "index_132"
    ties: bool = False  # few distinct scores
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        rows = len(self.lengths) * self.next_n
        draw = (lambda s: rng.integers(-1, 2, s).astype(np.float32)) if self.ties else rng.standard_normal
        self.q = draw((len(self.lengths), self.next_n, self.heads, 128)).astype(np.float32).astype(BF16)
        self.weights = (
            np.ones((rows, self.heads), np.float32) if self.ties else rng.random((rows, self.heads), np.float32)
        )
        self.k = [np.asarray(draw((n, 128)), np.float32).astype(BF16) for n in self.lengths]
        if self.ties:
            for k in self.k:
                k[:, 3:] = 0
        self.context = np.array(self.lengths, np.int32)

    table = Batch.table

    def cache(self, layout, rank, replicated=False):
        table, pages = self.table(layout)
        info = quant.kv_layout(self.index_layout)
        storage = {"index_132": np.uint8, "index_bf16": BF16, "index_f32": np.float32}[self.index_layout]
        width = info.bytes_per_token // np.dtype(storage).itemsize
        pages *= layout.world_size if replicated else 1
        cache = np.full((pages, layout.page_size, width), 255 if storage == np.uint8 else np.nan, storage)
        for s, keys in enumerate(self.k):
            cp.dcp_write_index(
                keys, cache, np.arange(len(keys)), table, layout, rank, replicated=replicated,
                row_to_request=np.full(len(keys), s), index_layout=self.index_layout,
            )  # fmt: skip
        return cache

    def select(self, c, layout, topk, index_k, **options):
        table, _ = self.table(layout)
        return cp.dcp_select(
            c, self.q, self.cache(layout, c.rank, index_k == "replicated"), self.weights, self.context, table, layout,
            topk, index_k=index_k, index_layout=self.index_layout, **options,
        )  # fmt: skip

    def on_ranks(self, layout, topk, index_k, **options):
        return comm.run_ranks(layout.world_size, lambda c: self.select(c, layout, topk, index_k, **options), timeout=20)

    def one_rank(self, topk):
        layout = cp.dcp_layout(1, 1, 64)
        table, _ = self.table(layout)
        return indexer.paged_select(
            self.q, self.cache(layout, 0), self.weights, self.context, table, 64, topk, self.index_layout
        )


def assert_same_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()
