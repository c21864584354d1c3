"""Transfer plans: who sends which token bytes to whom between prefill and decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _core
from ._ints import int_list
from ._transfer_plan import KvSide, TransferPlan

__all__ = ["transfer_plan"]


def _side(op: str, name: str, grid: Any) -> KvSide:
    if isinstance(grid, KvSide):
        return grid
    if isinstance(grid, Mapping):
        known = {field.name for field in dataclasses.fields(KvSide)}
        for key in grid:
            if key not in known:
                raise ValueError(f"{op}: {name} has the key {key!r}, needs {', '.join(sorted(known))}")
        return KvSide(**grid)
    if all(hasattr(grid, field) for field in ("tp", "cp", "pp", "dcp")):
        return KvSide.of_grid(grid)
    raise TypeError(
        f"{op}: {name} is a {type(grid).__name__}, needs a KvSide, a rank grid or a mapping like {{'tp': 8}}"
    )


def transfer_plan(
    prefill: KvSide | Mapping[str, Any] | Any,
    decode: KvSide | Mapping[str, Any] | Any,
    lengths: int | Sequence[int] | Any,
    *,
    num_layers: int,
    kv_bytes: int,
    index_bytes: int,
    present: int | Sequence[int] | Any = 0,
    index_layers: Iterable[int] | None = None,
    spread: str = "balanced",
) -> TransferPlan:
    """Plan the hand-over of requests' caches from a prefill grid to a decode grid.

    Parameters
    ----------
    prefill, decode : KvSide, rank grid or mapping
        The two sides. ``prefill.kv`` is ``"full"``, ``"layer_split"`` or ``"interleave"``; the decode side shards the
        latent cache over ``dcp`` with ``interleave`` and holds everything else whole. ``decode.cp`` must be 1.
    lengths : int or int array [B]
        Tokens of each request whose cache exists on the prefill side (logical positions ``0 .. length - 1``).
    num_layers : int
        Layers of all pipeline stages together, the draft layer included if its cache moves too.
    kv_bytes, index_bytes : int
        Bytes of one token in one layer: 1152 and 256 for DeepSeek-V3.2 in bfloat16, 656 and 132 in fp8; ``index_bytes``
        0 for a model without an indexer.
    present : int or int array [B], default 0
        Leading tokens of each request that every decode rank already holds (a prefix hit), in tokens. Engines hit on
        whole virtual pages (``page_size * dcp`` tokens); any number is planned exactly.
    index_layers : iterable of int, optional
        The layers that own an index cache (models that share the top-k between layers). Default: every layer.
    spread : {"balanced", "pages", "request", "first"}
        Which of several ranks that hold the same bytes sends them. ``"balanced"``: all of them, wrap-around; loads of
        one request differ by at most one unit of pages. ``"pages"``: every cp rank sends its positional slice of the
        page list to every destination (SGLang with all cp ranks sending). ``"request"``: cp rank ``request % cp`` sends
        the whole request (sglang#31182). ``"first"``: cp rank 0 sends all (SGLang's default).

    Returns
    -------
    TransferPlan

    Raises
    ------
    ValueError, TypeError, IndexError
        Naming the argument, what it has and what it needs.

    Notes
    -----
    A decode rank of a stage needs, for every layer of that stage, the latent rows of the positions that its dcp class
    owns, ``(p // interleave) % dcp == tp_rank % dcp``, and the index rows of the same positions
    (``index_k="sharded"``) or of all positions (``"replicated"``). The plan delivers each of these rows exactly once,
    from one source that holds it, except the rows below ``present``. Requests are cut at multiples of the least common
    multiple of both sides' virtual pages (``page_size`` times the number of shards), so never inside a page of either
    side, except at ``present`` and at the request's end. Slices go by position in the request's page list, never by
    page id: pages need not be consecutive. For chunked prefill make one plan per chunk: ``lengths`` is the chunk's end
    and ``present`` the tokens handed over before. Source of the rules: SGLang's and vllm-ascend's connectors;
    reference: :func:`sparsespan.reference.cp_transfer.needed_rows`.

    Examples
    --------
    >>> from sparsespan import cp
    >>> plan = cp.transfer_plan(cp.KvSide(cp=2, page_size=4), cp.KvSide(tp=2, dcp=2, page_size=4), [13],
    ...                         num_layers=1, kv_bytes=1152, index_bytes=0)
    >>> print(plan)
    transfer plan: 2 prefill ranks -> 2 decode ranks, 1 requests, 1 layers, spread balanced
    from -> to    layers   positions          tokens          bytes  part
       0 -> 0     0-0      r0 0:13                 7          8,064  kv, shard 0/2 there
       1 -> 1     0-0      r0 0:13                 6          6,912  kv, shard 1/2 there
    total 14,976 bytes (modelled); busiest sender 8,064, mean 7,488; busiest receiver 8,064
    """
    op = "transfer_plan"
    sides = tuple(
        _side(op, name, grid).with_stages(num_layers) for name, grid in (("prefill", prefill), ("decode", decode))
    )
    rows = int_list(op, "lengths", lengths)
    had = int_list(op, "present", present)
    if np.ndim(present) == 0:
        had = had * len(rows)
    layers = range(num_layers) if index_layers is None else index_layers
    table = _core.cp.transfer_plan(
        sides[0]._core_form(),
        sides[1]._core_form(),
        rows,
        had,
        num_layers,
        kv_bytes,
        index_bytes,
        [int(layer) for layer in layers],
        spread,
    )
    return TransferPlan._of(
        table,
        prefill=sides[0],
        decode=sides[1],
        lengths=tuple(rows),
        present=tuple(had),
        num_layers=num_layers,
        kv_bytes=kv_bytes,
        index_bytes=index_bytes,
        index_layers=None if index_layers is None else tuple(int(v) for v in layers),
        spread=spread,
    )
