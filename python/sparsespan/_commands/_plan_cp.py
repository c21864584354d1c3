"""The figures of ``sparsespan plan cp``: one plain document that the text, the JSON and the drawing share."""

from __future__ import annotations

import itertools
from typing import Any

from .. import cp

__all__ = ["SPLITS", "document"]

SPLITS = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")
_DEFINITIONS = {
    "figures": "modelled: closed formulas, no clock and no network",
    "bytes": "into the busiest rank in one step over all layers; ring algorithms, pad rows that travel included",
    "tp": "tensor-parallel attention with as many ranks; its all-reduce is that of o_proj, the MoE is left out",
    "work": "TFLOP of the busiest rank over all layers; the indexer is not divided by tensor parallelism",
    "balance": "busiest rank over mean, minus 1; all_keys: indexer or dense attention, topk: sparse attention",
    "break_even": "tokens in a step from which gathering the o_proj weights moves no more bytes",
}


def _plan(scheme: str, tokens: list[int], prefix: list[int], ranks: int) -> Any:
    return cp.split_plan(scheme, [0, *itertools.accumulate(tokens)], prefix, ranks)


def _model_step(dims: cp.AttentionDims, tokens: list[int], ranks: int, scheme: str, cache: str) -> dict[str, Any]:
    tp = cp.volume("tp", model=dims, tokens=tokens, ranks=ranks)
    split = cp.volume(scheme, model=dims, tokens=tokens, ranks=ranks, cache=cache)
    return {
        "tp_received": tp.received,
        "cp_received": split.received,
        "tp_over_cp": tp.received / split.received if split.received else None,
        "tp": tp.to_dict(),
        "cp": split.to_dict(),
    }


def _work(dims: cp.AttentionDims, plan: Any, ranks: int) -> dict[str, float]:
    """FLOP of one rank: 2 per multiply-add; dense attention in MHA form, sparse attention absorbed."""
    indexer = 2 * dims.index_heads * dims.index_dim * dims.index_layers
    if dims.index_layers:
        attention, kind = 2 * dims.heads * (2 * dims.kv_lora + dims.rope) * dims.layers, "attention"
    else:
        attention, kind = 2 * dims.heads * (dims.nope + dims.rope + dims.v_head) * dims.layers, "indexer"
    pairs, scored = plan.rank_costs(kind, max(dims.topk, 1)), plan.rank_costs("indexer")
    return {
        "tp_indexer": float(scored.sum()) * indexer / 1e12,
        "tp_attention": float(pairs.sum()) * attention / ranks / 1e12,
        "cp_indexer": float(scored.max()) * indexer / 1e12,
        "cp_attention": float(pairs.max()) * attention / 1e12,
    }


def _balance(dims: cp.AttentionDims, tokens: list[int], prefix: list[int], sizes: list[int]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for scheme in SPLITS:
        plans = [_plan(scheme, tokens, prefix, n) for n in sizes]
        out[scheme] = {"all_keys": [plan.imbalance("indexer") for plan in plans]}
        if dims.index_layers:
            out[scheme]["topk"] = [plan.imbalance("attention", dims.topk) for plan in plans]
        out[scheme]["rows"] = [int(plan.padded_len) for plan in plans]
    return out


def _o_proj(dims: cp.AttentionDims, tokens: list[int], sizes: list[int], weights: str) -> list[dict[str, Any]]:
    out = []
    for n in sizes:
        if dims.heads % n:
            out.append({"ranks": n, "refused": f"{dims.heads} heads do not divide by {n}"})
            continue
        gather = cp.volume("dsa_cp_prefill", model=dims, tokens=tokens, ranks=n, weights=weights).rows
        moved = cp.volume("dsa_cp_decode", model=dims, tokens=tokens, ranks=n).rows
        summed = cp.volume("tp", model=dims, tokens=tokens, ranks=n).rows
        point = cp.o_proj_break_even(dims, ranks=n, weights=weights)
        out.append(
            {
                "ranks": n,
                "gather_weight": next(r.received for r in gather if r.what == "o_proj weights"),
                "a2a_rs": sum(r.received for r in moved if r.what in ("attention output", "o_proj output")),
                "all_reduce": summed[0].received if summed else 0,
                "break_even_all_reduce": point.all_reduce,
                "break_even_a2a_rs": point.a2a_rs,
            }
        )
    return out


def document(
    *, model: str, tokens: list[int], prefix: list[int], sizes: list[int], scheme: str, cache: str, weights: str
) -> dict[str, Any]:
    """Everything the command prints, as plain JSON data."""
    dims = cp.attention_dims(model)
    if scheme not in SPLITS:
        raise ValueError(f"scheme is {scheme!r}, needs one of {', '.join(map(repr, SPLITS))}")
    if any(n < 1 for n in sizes):
        raise ValueError(f"cp has {min(sizes)}, needs sizes >= 1")
    prefix = prefix * len(tokens) if len(prefix) == 1 else prefix
    if len(prefix) != len(tokens):
        raise ValueError(f"prefix has {len(prefix)} numbers, needs one or one for each of {len(tokens)} requests")
    models = [cp.attention_dims("v3.1"), cp.attention_dims("v3.2")]
    models = models if dims in models else [dims, *models]
    steps = []
    for n in sizes:
        plan = _plan(scheme, tokens, prefix, n)
        step: dict[str, Any] = {"ranks": n, "models": {}}
        for m in models:
            figures = _model_step(m, tokens, n, scheme, cache)
            step["models"][m.name] = {**figures, "work": _work(m, plan, n)}
        steps.append(step)
    return {
        "kind": "plan_cp",
        "figures": "modelled",
        "definitions": _DEFINITIONS,
        "model": dims.name,
        "tokens": tokens,
        "prefix": prefix,
        "scheme": scheme,
        "cache": cache,
        "weights": weights,
        "sizes": sizes,
        "models": [m.name for m in models],
        "steps": steps,
        "balance": _balance(dims, tokens, prefix, sizes),
        "o_proj": _o_proj(dims, tokens, sizes, weights),
    }
