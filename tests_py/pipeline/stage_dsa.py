"""A stack of DSA layers, with and without stages. Some share the indices of a layer before (IndexShare)."""

from typing import Any, NamedTuple

import numpy as np

from sparsespan import cp, models
from sparsespan.pipeline import LayerShard, StageProgram

HIDDEN, LAYERS, TOPK, PAGE = 32, 5, 24, 16
SMALL = {"hidden": HIDDEN, "heads": 2, "q_lora": 16, "index_heads": 4, "topk": TOPK}


class Form(NamedTuple):
    dims: Any
    kinds: list[str]
    dtype: str
    layouts: tuple[str, str]


# Layer 3 shares the indices of layer 2.
V32 = Form(
    models.layer_dims("v3.2", **SMALL), ["full"] * 3 + ["shared", "full"], "float32", ("f32_576", "index_f32")
)  # fmt: skip
# Heads of 192 + 64, values of 256, an interleaved rope without YaRN; three layers share for each that selects.
GLM = Form(
    models.layer_dims("glm-5", **SMALL), ["full", "shared", "shared", "shared", "full", "shared"], "bfloat16",
    ("fp8_656", "index_132"),
)  # fmt: skip
TOKENS = np.random.default_rng(11).integers(0, 512, 75)
CHUNKS = [32, 20, 16, 7]
STEPS = 2


def embed(tokens, form=V32):
    table = np.random.default_rng(3).standard_normal((512, HIDDEN)).astype(np.dtype(form.dtype))
    return table[np.asarray(tokens)]


def sample(rows, batch):
    return np.abs(rows.astype(np.float32) * 100).sum(axis=1).astype(np.int64) % 512


def stack(layers, form=V32):
    return [
        models.dsa_layer(form.dims, index=i, seed=9, dtype=form.dtype, shared=form.kinds[i] == "shared") for i in layers
    ]


def caches(layers, tokens=96, requests=1, form=V32):
    pages = -(-tokens // PAGE)
    table = np.arange(requests * pages).reshape(requests, pages)
    full = [i for i in layers if form.kinds[i] == "full"]
    return models.PagedCaches(layers, requests * pages, PAGE, *form.layouts, index_layers=full, block_table=table)


def plain(form=V32):
    """Hidden states of the whole prompt, in one piece on one rank."""
    plan, layers = cp.split_plan("contiguous", [0, len(TOKENS)], None, 1), range(len(form.kinds))
    hidden, indices, keys = embed(TOKENS, form), None, caches(layers, form=form)
    for layer in stack(layers, form):
        hidden, indices = layer.prefill(hidden, plan, keys, indices=indices)
    return hidden


def plain_decode(firsts, form=V32):
    """Tokens of each request of a slot that starts with one token."""
    layers = range(len(form.kinds))
    keys, out = caches(layers, requests=len(firsts), form=form), []
    tokens = np.asarray(firsts)
    for step in range(STEPS):
        hidden, indices = embed(tokens, form), None
        for layer in stack(layers, form):
            hidden, indices = layer.decode(hidden, [step + 1] * len(firsts), keys, indices=indices)
        tokens = sample(hidden, None)
        out.append(tokens.tolist())
    return out


SERIES = {"o_proj": "o", "q_b_proj": "q_b"}


def sharded(built, comm, prefetch):
    """o_proj and q_b_proj of the layers, each kept by one rank of the stage; the layers keep nothing of them."""
    weights = {name: {x.index: getattr(x.weights, part).weight for x in built} for name, part in SERIES.items()}
    shard = LayerShard(weights, comm, prefetch)
    for layer in built:
        for part in SERIES.values():
            setattr(layer.weights, part, None)
    return shard


def program(splits, stage, prefetch=None, form=V32):
    """The layers of one stage; caches by slot for decode, one set for prefill."""
    layers = range(sum(splits[: stage.index]), sum(splits[: stage.index + 1]))
    built = stack(layers, form)
    shard = None if prefetch is None else sharded(built, stage.comm, prefetch)

    def forward(x):
        hidden, indices = x.hidden, x.indices
        key = (x.batch.kind, x.batch.request)
        keys = x.state.setdefault(key, caches(layers, requests=x.plan.num_requests, form=form))
        for layer in built:
            with x.layer(layer.index) as weights:
                for name, part in SERIES.items() if shard is not None else ():
                    setattr(layer.weights, part, models.Linear(weights[name]))
                if x.batch.kind == "prefill":
                    hidden, indices = layer.prefill(hidden, x.plan, keys, x.comm, indices=indices)
                else:
                    lens = np.array(x.batch.prefix_lens) + 1
                    hidden, indices = layer.decode(hidden, lens, keys, indices=indices)
        return hidden, indices

    return StageProgram(
        forward, HIDDEN, form.dtype, embed=lambda tokens: embed(tokens, form), sample=sample, state=dict, topk=TOPK,
        shard=shard,
    )  # fmt: skip


def options(splits, form=V32):
    """What makes stages hand indices over."""
    return {"stage_layers": splits, "index_layers": form.kinds}
