"""A ragged batch with prefixes and decode rows, its caches, and one rank's answer made without plans."""

import dataclasses

import ml_dtypes
import numpy as np

from sparsespan import attention, indexer, quant
from sparsespan.cp import DECODE, PREFILL, LayerCache, split_plan

BF16 = ml_dtypes.bfloat16
SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat", "thd_even")
HEADS, INDEX_HEADS, TOPK, PAGE, SCALE = 2, 2, 7, 4, 0.1


@dataclasses.dataclass
class Batch:
    """B requests: `lengths` new rows behind `prefixes` cached keys; `decode` marks those whose rows are replicated."""

    lengths: tuple
    prefixes: tuple
    decode: tuple = ()
    layout: str = "fp8_656"
    index_layout: str = "index_132"
    seed: int = 0

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        rows, self.total = sum(self.lengths), [p + n for p, n in zip(self.prefixes, self.lengths)]
        pages = [-(-n // PAGE) for n in self.total]
        ids = rng.permutation(sum(pages) + 2).astype(np.int32)
        self.table = np.full((len(pages), max(pages, default=0)), 2147480000, np.int32)  # garbage past each length
        start = 0
        for s, n in enumerate(pages):
            self.table[s, :n] = ids[start : start + n]
            start += n
        self.pages = len(ids)
        self.request = np.repeat(np.arange(len(pages)), self.lengths)
        self.position = np.concatenate([p + np.arange(n) for p, n in zip(self.prefixes, self.lengths)] + [[]]).astype(
            int
        )
        self.slots = self.slots_of(self.request, self.position)
        normal = rng.standard_normal
        self.c_kv, self.k_pe, self.k_index = (normal((rows, d)).astype(BF16) for d in (512, 64, 128))
        self.q = normal((rows, HEADS, 576)).astype(BF16)
        self.index_q = normal((rows, INDEX_HEADS, 128)).astype(BF16)
        self.weights = normal((rows, INDEX_HEADS)).astype(np.float32)
        self.old = [(normal((p, 512)).astype(BF16), normal((p, 64)).astype(BF16), normal((p, 128)).astype(BF16))
                    for p in self.prefixes]  # fmt: skip

    def slots_of(self, request, position):
        if not len(position):
            return np.zeros(0, np.int64)
        return self.table[request, position // PAGE].astype(np.int64) * PAGE + position % PAGE

    def caches(self, index=True):
        """Caches that hold the prefixes; what is not written is full of NaN codes."""
        kv = quant.kv_layout(self.layout).zeros(self.pages, PAGE)
        ik = quant.kv_layout(self.index_layout).zeros(self.pages, PAGE)
        kv.view(np.uint8)[:] = 0xFF
        ik.view(np.uint8)[:] = 0xFF
        for s, rows in enumerate(self.old):
            p = np.arange(self.prefixes[s])
            self.write(kv, ik, rows, self.slots_of(np.full(len(p), s), p))
        return LayerCache(kv, ik if index else None, self.layout, self.index_layout, PAGE)

    def write(self, kv, ik, rows, slots):
        quant.concat_and_cache_mla(rows[0], rows[1], kv, slots, self.layout, PAGE)
        quant.indexer_k_quant_and_cache(rows[2], ik, slots, PAGE, self.index_layout)

    def plan(self, scheme, ranks, **options):
        kinds = None
        if any(self.decode):
            kinds = np.repeat([DECODE if d else PREFILL for d in self.decode], self.lengths)
        cu = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        return split_plan(scheme, cu, self.prefixes, ranks, row_kind=kinds, **options)

    def one_rank(self):
        """(caches, out, lse, logical indices) of the whole batch."""
        caches = self.caches()
        self.write(caches.kv, caches.index, (self.c_kv, self.k_pe, self.k_index), self.slots)
        starts = np.concatenate([[0], np.cumsum(self.total)]).astype(np.int64)
        k, scale = quant.gather_indexer_k(caches.index, self.table, starts, PAGE, self.index_layout)
        ks = starts[self.request]
        packed = indexer.select(self.index_q, k, self.weights, ks, ks + self.position + 1, scale, TOPK)
        slots = indexer.to_slots(packed, self.request, self.table, PAGE, ks=ks)
        out, lse, _ = attention.sparse_mla(self.q, caches.kv, slots, SCALE, layout=self.layout, page_size=PAGE)
        return caches, out, lse, np.where(packed >= 0, packed - ks[:, None], -1).astype(np.int32)


def same_bits(a, b):
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def even(lengths, scheme, ranks, decode=()):
    """Lengths that the scheme takes: thd_even cuts multiples of 2N only."""
    if scheme != "thd_even":
        return tuple(lengths)
    whole = list(decode) + [False] * (len(lengths) - len(decode))
    return tuple(n if d else -(-n // (2 * ranks)) * 2 * ranks for n, d in zip(lengths, whole))
