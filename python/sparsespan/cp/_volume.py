"""Communication volume in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ._dims import AttentionDims, attention_dims
from ._ints import int_list
from ._plan import CpPlan

__all__ = ["BreakEven", "Volume", "VolumeRow", "o_proj_break_even", "volume"]

_ONCE = "for the LM head"  # rows that come once per step, not once per layer
_ELEMENT = {"bf16": 2, "fp32": 4, "fp8": 1, "int8": 1}


class VolumeRow(NamedTuple):
    """One collective of a step; bytes are those of one execution, ``times`` executions make the step.

    ``chunk`` is what a rank contributes (all_gather), keeps (reduce_scatter, all_reduce), sends to each peer
    (all_to_all), or the whole buffer (broadcast; all_gather of unequal parts).
    """

    what: str
    primitive: str
    group: int
    times: int
    chunk: int
    received: int
    sent: int
    total: int
    formula: str


@dataclasses.dataclass(frozen=True)
class Volume:
    """What one step moves, primitive by primitive; made by :func:`sparsespan.cp.volume`. Every figure is modelled."""

    scheme: str
    model: AttentionDims
    ranks: int
    tokens: int
    rows: tuple[VolumeRow, ...]

    @property
    def received(self) -> int:
        """Bytes that the busiest rank receives in the step."""
        return sum(row.received * row.times for row in self.rows)

    @property
    def sent(self) -> int:
        """Bytes that the busiest rank sends in the step."""
        return sum(row.sent * row.times for row in self.rows)

    @property
    def total(self) -> int:
        """Bytes that all ranks of one group receive in the step."""
        return sum(row.total * row.times for row in self.rows)

    @property
    def layer_received(self) -> int:
        """Bytes that the busiest rank receives in a layer that has every part (once-per-step rows left out)."""
        return sum(row.received for row in self.rows if not row.what.endswith(_ONCE))

    @property
    def per_token_layer(self) -> float:
        """``layer_received`` per token of the step."""
        return self.layer_received / self.tokens if self.tokens else 0.0

    @property
    def primitives(self) -> dict[str, int]:
        """Collectives in the step by kind."""
        count: dict[str, int] = {}
        for row in self.rows:
            count[row.primitive] = count.get(row.primitive, 0) + row.times
        return count

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "kind": "volume",
            "figures": "modelled",
            "scheme": self.scheme,
            "model": self.model.name,
            "ranks": self.ranks,
            "tokens": self.tokens,
            "received": self.received,
            "sent": self.sent,
            "total": self.total,
            "layer_received": self.layer_received,
            "rows": [row._asdict() for row in self.rows],
        }

    def __str__(self) -> str:
        head = f"{self.scheme}, {self.model.name}, {self.ranks} ranks, {self.tokens:,} tokens: bytes modelled"
        lines = [head, f"{'what':26} {'primitive':14} {'group':>5} {'times':>5} {'received/rank':>16}  formula"]
        for r in self.rows:
            lines.append(f"{r.what:26} {r.primitive:14} {r.group:5} {r.times:5} {r.received:16,}  {r.formula}")
        return "\n".join([*lines, f"step: busiest rank receives {self.received:,}, all ranks {self.total:,}"])


def _choice(argument: str, value: str, table: dict[str, int]) -> int:
    if value not in table:
        raise ValueError(f"volume: {argument} is {value!r}, needs one of {', '.join(map(repr, table))}")
    return table[value]


def _of_plan(plan: CpPlan, tokens: Any, ranks: int | None) -> tuple[list[int], int, dict[str, Any]]:
    """Lengths, ranks and what else a plan says better than a formula."""
    if tokens is not None or ranks is not None:
        raise ValueError("volume: tokens and ranks are given, needs neither: the plan has its own")
    owners = plan.last_row_owner
    owned = np.bincount(owners[owners >= 0], minlength=plan.world_size)
    return plan.real_lens.tolist(), plan.world_size, {"rows": plan.padded_len, "last_rows": owned.tolist()}


def _of_scheme(tokens: Any, ranks: int | None) -> tuple[list[int], int, dict[str, Any]]:
    for name, value in (("tokens", tokens), ("ranks", ranks)):
        if value is None:
            raise TypeError(f"volume: {name} is None, needs a value; only a plan brings its own")
    return int_list("volume", "tokens", tokens), ranks or 0, {"rows": -1, "last_rows": []}


def volume(
    scheme: str | CpPlan,
    *,
    tokens: int | Sequence[int] | Any = None,
    ranks: int | None = None,
    model: str | AttentionDims = "v3.2",
    tp: int = 1,
    cache: str = "bf16",
    weights: str = "bf16",
    restore: str = "last",
    o_proj: str | None = None,
    replicated_state: bool = False,
    combine: str = "ag_rs",
    index_k: str | None = None,
    payload: str = "fp32",
    replicate_q: bool = False,
    context: int | Sequence[int] | Any = (),
    page_size: int = 64,
    interleave: int = 1,
) -> Volume:
    """Count the bytes that one step of attention moves between ranks, in closed form.

    Parameters
    ----------
    scheme : str or CpPlan
        A plan stands for its scheme, tokens and ranks, with its padding and replicated decode rows. ``"tp"``:
        tensor-parallel attention. ``"zigzag"``, ``"zigzag_padded"``, ``"ceil_chunk"``, ``"interleave"``,
        ``"contiguous"``, ``"contiguous_flat"``, ``"thd_even"``: prefill context parallelism with the whole cache on
        every rank. ``"dsa_cp_prefill"``, ``"dsa_cp_decode"``: contiguous split inside the TP group with TP-sharded
        o_proj. ``"layer_shard"``: q_b_proj and o_proj of each layer broadcast from the rank that keeps them. ``"dcp"``:
        decode context parallelism, what it adds to TP. ``"block_gather"``: latent pages gathered before attention,
        ``"block_regather"``: latent and index-K pages.
    tokens : int or int array [B]
        New tokens of each request in the step; for decode the query rows of each request.
    ranks : int
        N: the cp or dcp group, or the tp group of ``"tp"``.
    model : str or AttentionDims
        See :func:`attention_dims`.
    tp : int
        ``"dcp"``: the tp group inside which dcp shards. CP splits: attention TP inside each cp rank.
    cache : {"bf16", "fp8"}
        Bytes of a gathered cache row: 1152 and 256, or 656 and 132 with scales, for 512 + 64 and 128 elements.
    weights : {"bf16", "fp8", "int8"}
        Element of weights that are gathered or broadcast; their scales are not counted.
    restore : {"last", "all", "none"}
        Rows brought together for the LM head, once per step: each request's last row, all rows, or none.
    o_proj : {"none", "gather_weight", "a2a_rs"}, optional
        DSA-CP only. Default: ``"gather_weight"`` in prefill, ``"a2a_rs"`` in decode.
    replicated_state : bool
        DSA-CP only: hidden states are whole on every rank between layers (an all-gather or all-reduce more).
    combine : {"ag_rs", "a2a", "ar"}
        DCP merge of partial outputs: lse all-gather and reduce-scatter; one all-to-all of out and lse; all-reduce.
    index_k : {"replicated", "sharded", "sharded_routed", "union", "gathered"}, optional
        DCP indexer design. Default: ``"replicated"`` for a model with an indexer. ``"sharded"`` exchanges (score, id)
        with all ranks, ``"sharded_routed"`` with the row's owner; ``"union"`` attends up to ``N * topk`` keys instead.
    payload : {"fp32", "bf16"}
        Element of DCP partial outputs.
    replicate_q : bool
        DCP: every rank computes all query heads, so they are not gathered.
    context : int or int array [B], optional
        Cached tokens of each request, for ``"block_gather"``, ``"block_regather"`` and ``index_k="gathered"``.
    page_size, interleave : int
        Of the sharded cache, for the same schemes.

    Returns
    -------
    Volume

    Raises
    ------
    ValueError, TypeError
        Naming the argument, what it has and what it needs.

    Notes
    -----
    **What is counted.** ``received`` is the bytes that come into the busiest rank with ring algorithms: all_gather,
    reduce_scatter and all_to_all ``(N-1) chunk``, all_reduce ``2 (N-1) chunk``, broadcast ``chunk``. A rank sends as
    much as it receives (a broadcast's owner only sends, the last of the ring only receives), so ``sent`` is the same
    figure; ``total`` sums ``received`` over the group. Pad rows that travel are counted: every rank contributes as many
    rows as the busiest one. Last rows come from the ranks that have them; a request without tokens has none.
    MoE, embedding and pipeline hand-offs are not part of it.
    Sources: SGLang, vLLM and vllm-ascend; reference: :func:`sparsespan.reference.cp_volume.count`.

    Examples
    --------
    >>> from sparsespan import cp
    >>> print(cp.volume("zigzag", tokens=65536, ranks=8))
    zigzag, v3.2, 8 ranks, 65,536 tokens: bytes modelled
    what                       primitive      group times    received/rank  formula
    latent KV                  all_gather         8    61       66,060,288  (N-1) rows kv_bytes
    index-K                    all_gather         8    61       14,680,064  (N-1) rows index_bytes
    last rows for the LM head  all_gather         8     1           14,336  (requests - own) hidden e
    step: busiest rank receives 4,925,175,808, all ranks 39,401,392,128
    >>> cp.volume("tp", tokens=65536, ranks=8).per_token_layer
    25088.0
    """
    dims = attention_dims(model)
    kv_bytes, index_bytes = dims.cache_bytes(cache)
    plan, scheme = (scheme, scheme.scheme) if isinstance(scheme, CpPlan) else (None, scheme)
    lengths, ranks, known = _of_scheme(tokens, ranks) if plan is None else _of_plan(plan, tokens, ranks)
    options: dict[str, Any] = {
        "lengths": lengths,
        "contexts": int_list("volume", "context", context),
        "ranks": ranks,
        "tp": tp,
        "kv_bytes": kv_bytes,
        "index_bytes": index_bytes,
        "activation_bytes": 2,
        "weight_bytes": _choice("weights", weights, {k: _ELEMENT[k] for k in ("bf16", "fp8", "int8")}),
        "payload_bytes": _choice("payload", payload, {k: _ELEMENT[k] for k in ("fp32", "bf16")}),
        "page_size": page_size,
        "interleave": interleave,
        "combine": combine,
        "index_k": index_k or ("replicated" if dims.index_layers and scheme == "dcp" else "none"),
        "o_proj": o_proj or {"dsa_cp_prefill": "gather_weight", "dsa_cp_decode": "a2a_rs"}.get(scheme, "none"),
        "restore": restore,
        "replicate_q": replicate_q,
        "replicated_state": replicated_state,
        **known,
    }
    rows = _core.cp.volume(scheme, dataclasses.asdict(dims), options)
    return Volume(scheme, dims, ranks, sum(lengths), tuple(VolumeRow(*row) for row in rows))


class BreakEven(NamedTuple):
    """Tokens in a step from which gathering o_proj weights moves no more bytes than the alternative (modelled)."""

    all_reduce: int
    a2a_rs: int


def o_proj_break_even(model: str | AttentionDims = "v3.2", *, ranks: int, weights: str = "bf16") -> BreakEven:
    """Say from how many tokens on gathering the o_proj weights pays.

    Parameters
    ----------
    model : str or AttentionDims
    ranks : int
        N, at least 1.
    weights : {"bf16", "fp8", "int8"}

    Returns
    -------
    BreakEven
        ``all_reduce``: against the TP all-reduce of the output, ``H v w / 4`` tokens for any N. ``a2a_rs``: against
        all-to-all of the attention output and reduce-scatter of the o_proj output, ``H v hidden w / (2 (H v / N +
        hidden))``. Activations are bfloat16; ``w`` is the bytes of a weight.

    Raises
    ------
    ValueError
        If ``ranks`` or ``weights`` is none of these.

    Examples
    --------
    >>> from sparsespan import cp
    >>> cp.o_proj_break_even("v3.2", ranks=8, weights="int8")
    BreakEven(all_reduce=4096, a2a_rs=6372)
    """
    if ranks < 1:
        raise ValueError(f"o_proj_break_even: ranks is {ranks}, needs at least 1")
    dims = attention_dims(model)
    width = dims.heads * dims.v_head
    gathered = width * dims.hidden * _choice("weights", weights, {k: _ELEMENT[k] for k in ("bf16", "fp8", "int8")})
    return BreakEven(-(-gathered // (4 * dims.hidden)), -(-gathered * ranks // (2 * (width + ranks * dims.hidden))))
