"""Model, tensors and caches of a verification: the same on every rank, from a seed."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np

from .. import cp, quant, transform
from .._runtime import build_info
from ..testing._model_inputs import MODELS, Inputs, ModelDims, make_inputs, rope_table
from ._batches import Batch

__all__ = ["INDEX_LAYOUTS", "Caches", "Model", "Rows", "Setup", "kept", "turn"]

INDEX_LAYOUTS = {"fp8_656": "index_132", "bf16_576": "index_bf16"}
# Beyond these a verification would fill the memory instead of ending.
_LIMITS = (("heads", 1, 1024), ("page_size", 1, 2**16), ("seed", 0, None), ("topk", 1, 2**17))
_CACHE = {"fp8_656": "fp8", "bf16_576": "bf16"}  # as cp.volume names them


Oracle = TypeVar("Oracle")


@dataclasses.dataclass(frozen=True)
class Model:
    """One DSA layer: real dims of a latent, an index key and the index heads; fewer attention heads, a smaller top-k.

    ``topk`` None: a quarter of the longest context, at most the model's own, so that the selection has to choose.
    """

    name: str = "v3.2"
    heads: int = 16
    topk: int | None = None
    layout: str = "fp8_656"
    page_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"verification: model is {self.name!r}, needs one of {', '.join(map(repr, MODELS))}")
        if self.layout not in INDEX_LAYOUTS:
            raise ValueError(
                f"verification: layout is {self.layout!r}, needs one of {', '.join(map(repr, INDEX_LAYOUTS))}: the "
                "layouts whose bytes cp.volume counts"
            )
        for argument, least, most in _LIMITS:
            value = getattr(self, argument)
            if value is not None and value < least:
                raise ValueError(f"verification: {argument} is {value}, needs at least {least}")
            if value is not None and most is not None and value > most:
                raise ValueError(f"verification: {argument} is {value}, needs at most {most}")

    @property
    def index_layout(self) -> str:
        """The index cache that goes with :attr:`layout`."""
        return INDEX_LAYOUTS[self.layout]

    @property
    def cache(self) -> str:
        """What :func:`sparsespan.cp.volume` calls these layouts."""
        return _CACHE[self.layout]

    def dims(self, batch: Batch) -> ModelDims:
        """Dims of the tensors for a batch."""
        full = MODELS[self.name]
        topk = self.topk or max(8, min(full.topk, max(batch.contexts, default=0) // 4))
        return dataclasses.replace(full, heads=self.heads, topk=topk)

    def volume_dims(self, batch: Batch) -> cp.AttentionDims:
        """The same dims for :func:`sparsespan.cp.volume`: one layer."""
        full = cp.attention_dims(self.name)
        topk = self.dims(batch).topk
        return dataclasses.replace(full, layers=1, index_layers=1, heads=self.heads, topk=topk)


@dataclasses.dataclass
class Rows:
    """Rows as an attention backend has them: after RoPE, Hadamard and the quantisation of the index queries."""

    q: np.ndarray  # [T, H, 576] bf16
    c_kv: np.ndarray  # [T, 512] bf16
    k_pe: np.ndarray  # [T, 64] bf16
    k_index: np.ndarray  # [T, 128] bf16
    q_index: np.ndarray  # [T, Hi, 128] fp8
    weights: np.ndarray  # [T, Hi] f32, the scales of q_index in them


@dataclasses.dataclass
class Caches:
    """Paged caches of one rank; what nobody wrote is NaN."""

    kv: np.ndarray
    index: np.ndarray

    def same_bytes(self, other: Caches) -> bool:
        """Bit for bit, the unwritten places too."""
        return self.kv.tobytes() == other.kv.tobytes() and self.index.tobytes() == other.index.tobytes()


class Setup:
    """All tokens of a batch: ``past`` are the cached ones, ``new`` the step's, both before RoPE, request by request."""

    def __init__(self, model: Model, batch: Batch) -> None:
        self.model = model
        self.batch = batch
        self.dims = model.dims(batch)
        key = zlib.crc32(repr((batch.lens, batch.prefix, batch.decode)).encode())
        self.new = make_inputs(self.dims, batch.rows, (model.seed, key, 0))
        self.past = make_inputs(dataclasses.replace(self.dims, heads=1), sum(batch.prefix), (model.seed, key, 1))
        width = cp.attention_dims(model.name).hidden
        self.hidden = np.random.default_rng((model.seed, key, 2)).standard_normal((batch.rows, width), np.float32)
        self.rng_key = (model.seed, key, 3)

    @cached_property
    def positions(self) -> np.ndarray:
        """[T] logical position of each new row."""
        parts = [np.arange(p, p + n) for p, n in zip(self.batch.prefix, self.batch.lens)]
        return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)

    @cached_property
    def requests(self) -> np.ndarray:
        """[T] request of each new row."""
        return np.repeat(np.arange(len(self.batch.lens)), self.batch.lens)

    @cached_property
    def past_positions(self) -> np.ndarray:
        """[sum P] logical position of each cached token."""
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(p) for p in self.batch.prefix)]).astype(np.int64)

    @cached_property
    def past_requests(self) -> np.ndarray:
        """[sum P] request of each cached token."""
        return np.repeat(np.arange(len(self.batch.prefix)), self.batch.prefix)

    @cached_property
    def _rope(self) -> Any:
        return rope_table(self.dims, max([1, *self.batch.contexts]))

    def rotated(self, x: Inputs, positions: np.ndarray) -> Rows:
        """RoPE with the rows' own positions, Hadamard on the indexer's side, fp8 index queries."""
        index_q, index_k = (self._index(part, positions) for part in (x.index_q, x.index_k))
        q_index, scale = quant.act_quant(index_q, scale_fmt="ue8m0")
        q_rope = transform.apply_rope(x.q_rope, positions, self._rope, True)
        return Rows(
            q=np.concatenate([x.q_latent, q_rope], axis=-1),
            c_kv=x.c_kv,
            k_pe=transform.apply_rope(x.k_rope, positions, self._rope, True),
            k_index=index_k,
            q_index=q_index,
            weights=x.index_weights * scale.reshape(x.index_weights.shape),
        )

    def _index(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        pe = transform.apply_rope(
            np.ascontiguousarray(x[..., :64]), positions, self._rope, self.dims.index_rope_interleaved
        )
        return transform.hadamard_transform(np.concatenate([pe, x[..., 64:]], axis=-1), 128**-0.5)

    def write(self, caches: Caches, rows: Rows, slots: np.ndarray, which: str = "both") -> None:
        """Store rows at slots, -1 = skip."""
        model = self.model
        if which != "index":
            quant.concat_and_cache_mla(rows.c_kv, rows.k_pe, caches.kv, slots, model.layout, model.page_size)
        if which != "kv":
            quant.indexer_k_quant_and_cache(rows.k_index, caches.index, slots, model.page_size, model.index_layout)

    def caches(self, pages: int, index_pages: int | None = None) -> Caches:
        """Caches full of NaN: what leaks out of a place that nobody wrote shows."""
        parts = []
        for name, count in ((self.model.layout, pages), (self.model.index_layout, index_pages or pages)):
            cache = quant.kv_layout(name).zeros(pages=max(1, count), page_size=self.model.page_size)
            cache.view(np.uint8)[...] = 0xFF  # NaN in bfloat16, in fp8 and in float32 scales
            parts.append(cache)
        return Caches(*parts)

    def table(self, lengths: Any, per_page: int) -> tuple[np.ndarray, int]:
        """Block table [B, most] with pages in random order, and the number of pages, three of which nobody owns."""
        pages = [-(-int(n) // per_page) for n in lengths]
        order = np.random.default_rng(self.rng_key).permutation(sum(pages) + 3).astype(np.int32)
        table = np.full((len(pages), max([1, *pages])), -1, np.int32)
        start = 0
        for request, count in enumerate(pages):
            table[request, :count] = order[start : start + count]
            start += count
        return table, len(order)


def turn(x: Inputs, rows: np.ndarray) -> Inputs:
    """The given rows, in the given order; -1 gives a row of NaN in everything that must go nowhere."""
    safe = np.maximum(rows, 0)
    pad = rows < 0
    parts = {}
    for field in dataclasses.fields(Inputs):
        part = getattr(x, field.name)
        taken = part[safe] if len(part) else np.zeros((len(rows), *part.shape[1:]), part.dtype)
        taken[pad] = np.nan if field.name in ("c_kv", "k_rope", "index_k") else 0
        parts[field.name] = taken
    return Inputs(**parts)


@lru_cache(maxsize=16)
def _kept(make: Callable[[Model, Batch], Any], model: Model, batch: Batch, isa: str) -> Any:
    return make(model, batch)


def kept(make: Callable[[Model, Batch], Oracle], model: Model, batch: Batch) -> Oracle:
    """``make(model, batch)``, once for each ISA level: bits are promised within one."""
    found: Oracle = _kept(make, model, batch, build_info()["isa"])
    return found
