"""The stages of a layer, in the order in which they are computed, and what each has in a row."""

from __future__ import annotations

import dataclasses

__all__ = ["ORDER", "STAGES", "Stage", "behind"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One kind of intermediate value.

    Attributes
    ----------
    name : str
    shape : str
        Of a row.
    what : str
    needs : tuple of str
        The stages of the same layer that it is computed from.
    heads : bool
        Whether tensor-parallel ranks have some heads each.
    ids : bool
        Whether a row is a set of indices.
    """

    name: str
    shape: str
    what: str
    needs: tuple[str, ...] = ()
    heads: bool = False
    ids: bool = False


_ALL = (
    Stage("layer_in", "[hidden]", "rows given to the layer; of layer 0 the embedding"),
    Stage("input_norm", "[hidden]", "behind input_layernorm", ("layer_in",)),
    Stage("q_latent", "[q_lora]", "q_a_layernorm(q_a_proj(x))", ("input_norm",)),
    Stage("kv_latent", "[512]", "kv_a_layernorm of the latent", ("input_norm",)),
    Stage("k_pe", "[64]", "rope part of the key, turned; pairs interleaved", ("input_norm",)),
    Stage("kv_cache", "[576]", "latent | rope key as they are read from the cache", ("kv_latent", "k_pe")),
    Stage("index_k", "[128]", "the indexer's key, normed, its first 64 dims turned", ("input_norm",)),
    Stage("index_cache", "[128]", "the indexer's key as it is read from the cache", ("index_k",)),
    Stage("q_nope", "[H, nope]", "query part without rope", ("q_latent",), heads=True),
    Stage("q_pe", "[H, 64]", "rope part of the query, turned; pairs interleaved", ("q_latent",), heads=True),
    Stage("q_absorbed", "[H, 512]", "q_nope through W_UK", ("q_nope",), heads=True),
    Stage("index_q", "[Hi, 128]", "the indexer's queries, their first 64 dims turned", ("q_latent",)),
    Stage("index_weights", "[Hi]", "head weights with Hi^-0.5 and 128^-0.5 in them", ("input_norm",)),
    Stage("index_scores", "[keys]", "scores of all keys by position, -inf where unseen",
          ("index_q", "index_k", "index_cache", "index_weights")),
    Stage("indices", "[topk]", "logical positions that are attended, -1 = none", ("index_scores",), ids=True),
    Stage("attention", "[H, 512]", "attention in the latent space",
          ("q_absorbed", "q_pe", "kv_cache", "kv_latent", "k_pe", "indices"), heads=True),
    Stage("lse", "[H]", "natural log of the sum of exponents", ("attention",), heads=True),
    Stage("heads", "[H, v]", "attention behind W_UV", ("attention",), heads=True),
    Stage("o_proj", "[hidden]", "behind the output projection", ("heads",)),
    Stage("mlp_norm", "[hidden]", "behind post_attention_layernorm", ("layer_in", "o_proj")),
    Stage("router_logits", "[E]", "router scores before the sigmoid", ("mlp_norm",)),
    Stage("router", "[experts]", "experts that were chosen", ("router_logits",), ids=True),
    Stage("router_weights", "[experts]", "weights of the chosen experts, by ascending expert", ("router",)),
    Stage("mlp_out", "[hidden]", "feed-forward part, without the residual", ("mlp_norm", "router_weights")),
    Stage("layer_out", "[hidden]", "the residual stream behind the layer", ("mlp_out",)),
    Stage("final_norm", "[hidden]", "behind the model's last norm; layer = number of layers", ("layer_out",)),
    Stage("logits", "[vocab]", "layer = number of layers", ("final_norm",)),
)  # fmt: skip
STAGES = {stage.name: stage for stage in _ALL}
ORDER = {stage.name: n for n, stage in enumerate(_ALL)}


def behind(name: str) -> set[str]:
    """The stages of a layer that are computed from this one, and itself."""
    found = {name}
    for stage in _ALL:  # in order: what a stage needs comes before it
        if found & set(stage.needs):
            found.add(stage.name)
    return found
