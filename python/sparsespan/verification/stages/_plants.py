"""Bugs to plant in our model: each is one that engines have had, in one layer or in all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ._wrong import Seen, divided_latent, instead, merged, now

__all__ = ["PLANTS", "Plant", "planted"]


@dataclasses.dataclass(frozen=True)
class Plant:
    """One bug.

    Attributes
    ----------
    name, bug, words : str
        ``bug`` is the class that it must be named.
    stage : str
        Where it must be found.
    places : tuple of (str, str)
        What is replaced.
    wrong : callable
    grid : str
        On which it shows.
    against : str
        What it is compared with.
    yarn : bool
        Whether it shows only in models with YaRN.
    """

    name: str
    bug: str
    words: str
    stage: str
    places: tuple[tuple[str, str], ...]
    wrong: Callable[..., Any]
    grid: str = "one"
    against: str = "one"
    yarn: bool = False


def _flip(right: Any, x: Any, positions: Any, table: Any, interleaved: bool, **options: Any) -> Any:
    return right(x, positions, table, not interleaved, **options)


def _keys_flipped(right: Any, x: Any, positions: Any, table: Any, interleaved: bool, **options: Any) -> Any:
    return right(x, positions, table, interleaved != (x.ndim == 2), **options)


def _queries_back(right: Any, x: Any, positions: Any, table: Any, interleaved: bool, **options: Any) -> Any:
    if x.ndim == 3:
        table = np.concatenate([table[:, :32], -table[:, 32:]], 1)
    return right(x, positions, table, interleaved, **options)


def _positions(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Any]:
    def wrong(right: Any, x: Any, positions: Any, table: Any, *rest: Any, **options: Any) -> Any:
        return right(x, np.maximum(change(np.asarray(positions)), 0), table, *rest, **options)

    return wrong


def _place_on_rank(positions: np.ndarray) -> np.ndarray:
    return positions if now().decode else np.arange(len(positions))


def _blocks_exchanged(positions: np.ndarray) -> np.ndarray:
    """Zigzag: where a rank's rows jump to its second block, that block's positions begin one block's length early."""
    jump = np.flatnonzero(np.diff(positions) > 1)
    if now().decode or not len(jump):
        return positions
    wrong = positions.copy()
    for first in jump + 1:
        end = first + 1
        while end < len(positions) and positions[end] == positions[end - 1] + 1:
            end += 1
        wrong[first:end] -= end - first
    return wrong


def _late(positions: np.ndarray) -> np.ndarray:
    return positions + now().decode


def _scaled(change: Callable[[float], float]) -> Callable[..., Any]:
    def wrong(right: Any, q: Any, kv: Any, indices: Any, sm_scale: float, **options: Any) -> Any:
        return right(q, kv, indices, change(sm_scale), **options)

    return wrong


def _dcp_scaled_twice(right: Any, comm: Any, q: Any, kv: Any, indices: Any, layout: Any, table: Any, scale: float,
                      **options: Any) -> Any:  # fmt: skip
    return right(comm, q, kv, indices, layout, table, scale * scale, **options)


class _Weights:
    def __init__(self, weights: Any, factor: float) -> None:
        self._weights, self._factor = weights, factor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weights, name)

    def index_weights(self, *args: Any, **options: Any) -> Any:
        return self._weights.index_weights(*args, **options) * np.float32(self._factor)


def _heads_unscaled(right: Any, x: Any, qr: Any, positions: Any, dims: Any, w: Any, *rest: Any) -> Any:
    return right(x, qr, positions, dims, _Weights(w, dims.index_heads**0.5), *rest)


def _base_2(right: Any, *args: Any, **options: Any) -> Any:
    out, lse, top = right(*args, **options)
    return out, lse * np.float32(1 / np.log(2)), top


def _zeros_for_none(right: Any, *args: Any, **options: Any) -> Any:
    found = right(*args, **options)
    return np.where(found == -1, 0, found).astype(found.dtype)


def _wrapped(right: Any, indices: Any, request: Any, *args: Any, **options: Any) -> Any:
    """-1 as Python takes it: the last key there is."""
    request, positions = np.asarray(request), np.asarray(now().positions)
    last = np.array([positions[request == r].max() if (request == r).any() else 0 for r in range(request.max() + 1)])
    fill = np.where(request >= 0, last[np.maximum(request, 0)], -1)[:, None]
    indices = np.asarray(indices)
    wrong = np.where(indices == -1, fill, indices).astype(indices.dtype)
    return right(wrong, request, *args, **options)


def _lengths(change: Callable[[Any, int, np.ndarray], np.ndarray]) -> Callable[..., Any]:
    def wrong(right: Any, plan: Any, *args: Any, **options: Any) -> Any:
        return right(Seen(plan, change), *args, **options)

    return wrong


def _shorter(right: Any, q: Any, cache: Any, weights: Any, lens: Any, *args: Any, **options: Any) -> Any:
    return right(q, cache, weights, np.asarray(lens) - 1, *args, **options)


def _one_key_less(right: Any, q: Any, kv: Any, indices: Any, sm_scale: float, **options: Any) -> Any:
    count = np.maximum((np.asarray(indices) >= 0).sum(1) - 1, 0)
    return right(q, kv, indices, sm_scale, topk_length=count, **options)


def _rank_after_rank(right: Any, comm: Any, latent: Any, k_pe: Any, index: Any, cache: Any, plan: Any, slots: Any,
                     **options: Any) -> Any:  # fmt: skip
    stream = np.concatenate([plan.rank_rows(r) for r in range(comm.size)])
    stream, wrong = stream[stream >= 0], np.array(slots)
    wrong[stream] = np.asarray(slots)[: len(stream)]
    return right(comm, latent, k_pe, index, cache, plan, wrong, **options)


def _local_lengths(plan: Any, rank: int, right: np.ndarray) -> np.ndarray:
    return np.arange(1, len(right) + 1)


def _local_indices(right: Any, comm: Any, *args: Any, **options: Any) -> Any:
    found = right(comm, *args, **options)
    return np.where(found >= 0, found // comm.size, -1).astype(found.dtype)


def _other_interleave(right: Any, comm: Any, q: Any, kv: Any, indices: Any, layout: Any, *rest: Any,
                      context_lens: Any, **options: Any) -> Any:  # fmt: skip
    """Written with interleave 1, read with 4."""
    request, positions = np.asarray(options["row_to_request"]), np.asarray(now().positions)
    written = np.array([positions[request == r].max(initial=-1) + 1 for r in request])
    n, limit = comm.size, written[:, None]
    p = np.asarray(indices)
    read = p // n // 4 * (n * 4) + p % n * 4 + p // n % 4
    wrong = np.where((p >= 0) & (read < limit), read, -1).astype(np.int32)
    return right(comm, q, kv, wrong, layout, *rest, context_lens=written, **options)


def _without_rank_1(lses: np.ndarray) -> np.ndarray:
    weights = np.exp(lses)
    weights[1] = 0
    return np.asarray(weights)


_ROPE, _INDEX_ROPE = (("layer.transform", "apply_rope"),), (("indexing.transform", "apply_rope"),)
_MLA, _DCP = (("attending.attention", "sparse_mla"),), (("dcp.cp", "dcp_decode"),)
_SELECT = (("layer.cp", "prefill_select"),)
_PLANTS = (
    Plant("k-pe-half-split", "rope pairing", "keys are turned in half-split pairs, queries interleaved", "k_pe", _ROPE,
          _keys_flipped),
    Plant("index-pairs", "rope pairing", "the indexer's q and k are turned in MLA's pairs (or MLA's in theirs)",
          "index_k", _INDEX_ROPE, _flip),
    Plant("q-pe-sign", "rope pairing", "queries are turned the other way round", "q_pe", _ROPE, _queries_back),
    Plant("scale-of-576", "scale placement", "softmax scale by the absorbed width", "attention", _MLA,
          _scaled(lambda s: 576**-0.5)),
    Plant("no-mscale", "scale placement", "softmax scale without YaRN's mscale^2 (of factor 40)", "attention", _MLA,
          _scaled(lambda s: s / (0.1 * np.log(40) + 1) ** 2), yarn=True),
    Plant("scale-twice", "scale placement", "softmax scale in the queries and in the kernel", "attention", _DCP,
          _dcp_scaled_twice, "dcp2"),
    Plant("index-weights", "scale placement", "index weights without Hi^-0.5", "index_weights",
          (("layer.index_queries", ""),), _heads_unscaled),
    Plant("fp8-divides", "scale placement", "the cache's fp8 scale divides", "kv_cache",
          (("caches.concat_and_cache_mla", ""),), divided_latent, "one@fp8", "one@fp8"),
    Plant("lse-in-base-2", "lse base", "the kernel's lse is in base 2", "lse", _MLA, _base_2),
    Plant("merge-in-base-2", "lse base", "DCP merges natural lse by 2^lse", "attention", _DCP, merged(np.exp2), "dcp2"),
    Plant("merge-as-natural", "lse base", "DCP merges base-2 lse by e^lse", "attention", _DCP,
          merged(lambda lse: np.exp(lse / np.log(2))), "dcp4"),
    Plant("zero-for-none", "sentinel", "rows are padded with 0 instead of -1", "indices",
          (*_SELECT, ("indexing.indexer", "paged_select")), _zeros_for_none),
    Plant("none-is-last", "sentinel", "-1 wraps around to the last key", "attention",
          (("attending.indexer", "to_slots"),), _wrapped),
    Plant("no-diagonal", "length off by one", "a row does not see its own key", "indices", _SELECT,
          _lengths(lambda plan, rank, right: right - 1)),
    Plant("future-key", "length off by one", "a row sees the key behind it", "indices", _SELECT,
          _lengths(lambda plan, rank, right: right + 1), "cp2"),
    Plant("decode-length", "length off by one", "decode counts the cached tokens without the new one", "indices",
          (("indexing.indexer", "paged_select"),), _shorter),
    Plant("decode-position", "length off by one", "decode turns by the position behind", "k_pe",
          (*_ROPE, *_INDEX_ROPE), _positions(_late)),
    Plant("one-key-less", "length off by one", "the last chosen key is left out", "attention", _MLA, _one_key_less),
    Plant("local-positions", "CP position", "rows are turned by their place on the rank", "k_pe",
          (*_ROPE, *_INDEX_ROPE), _positions(_place_on_rank), "cp2"),
    Plant("wrong-block", "CP position", "a zigzag rank's second block has the positions of the block before it",
          "k_pe", (*_ROPE, *_INDEX_ROPE), _positions(_blocks_exchanged), "cp2"),
    Plant("not-restored", "CP position", "gathered keys are written rank after rank", "kv_cache",
          (("layer.cp", "gather_kv_and_cache"),), _rank_after_rank, "cp4:interleave"),
    Plant("local-lengths", "CP position", "rows see as many keys as their place on the rank says", "indices", _SELECT,
          _lengths(_local_lengths), "cp2:contiguous_flat"),
    Plant("local-index", "owner map", "chosen keys keep their index on the owner", "indices",
          (("dcp.cp", "dcp_select"),), _local_indices, "dcp2"),
    Plant("other-interleave", "owner map", "written with interleave 1, read with 4", "attention", _DCP,
          _other_interleave, "dcp2"),
    Plant("lost-rank", "owner map", "the merge leaves out rank 1", "attention", _DCP, merged(_without_rank_1), "dcp4"),
)  # fmt: skip
PLANTS = {plant.name: plant for plant in _PLANTS}


@contextlib.contextmanager
def planted(name: str, layer: int = -1) -> Any:
    """Plant a bug of ``PLANTS`` in our model, in one layer or (-1) in all, while the block runs. For tests only.

    It replaces functions for the whole process: nothing else may run the model at the same time.
    """
    if name not in PLANTS:
        raise ValueError(f"planted: name is {name!r}, needs one of {', '.join(PLANTS)}")
    with contextlib.ExitStack() as stack:
        for place, function in PLANTS[name].places:
            stack.enter_context(instead(place, function, PLANTS[name].wrong, layer))
        yield
