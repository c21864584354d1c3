"""A stack of DSA layers, with and without stages. Layer 3 shares the indices of layer 2 (IndexShare)."""

import numpy as np

from sparsespan import cp, models
from sparsespan.pipeline import LayerShard, StageProgram

HIDDEN, LAYERS, SHARED, TOPK, PAGE = 32, 5, 3, 24, 16
DIMS = models.layer_dims("v3.2", hidden=HIDDEN, heads=2, q_lora=16, index_heads=4, topk=TOPK)
KINDS = ["shared" if i == SHARED else "full" for i in range(LAYERS)]
TOKENS = np.random.default_rng(11).integers(0, 512, 75)
CHUNKS = [32, 20, 16, 7]
STEPS = 2


def embed(tokens):
    table = np.random.default_rng(3).standard_normal((512, HIDDEN)).astype(np.float32)
    return table[np.asarray(tokens)]


def sample(rows, batch):
    return np.abs(rows * 100).sum(axis=1).astype(np.int64) % 512


def stack(layers):
    return [models.dsa_layer(DIMS, index=i, seed=9, dtype="float32", shared=KINDS[i] == "shared") for i in layers]


def caches(layers, tokens=96, requests=1):
    pages = -(-tokens // PAGE)
    table = np.arange(requests * pages).reshape(requests, pages)
    return models.PagedCaches(
        layers, requests * pages, PAGE, "f32_576", "index_f32",
        index_layers=[i for i in layers if KINDS[i] == "full"], block_table=table,
    )  # fmt: skip


def plain():
    """Hidden states of the whole prompt, in one piece on one rank."""
    plan = cp.split_plan("contiguous", [0, len(TOKENS)], None, 1)
    hidden, indices, keys = embed(TOKENS), None, caches(range(LAYERS))
    for layer in stack(range(LAYERS)):
        hidden, indices = layer.prefill(hidden, plan, keys, indices=indices)
    return hidden


def plain_decode(firsts):
    """Tokens of each request of a slot that starts with one token."""
    keys, out = caches(range(LAYERS), requests=len(firsts)), []
    tokens = np.asarray(firsts)
    for step in range(STEPS):
        hidden, indices = embed(tokens), None
        for layer in stack(range(LAYERS)):
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


def program(splits, stage, prefetch=None):
    """The layers of one stage; caches by slot for decode, one set for prefill."""
    layers = range(sum(splits[: stage.index]), sum(splits[: stage.index + 1]))
    built = stack(layers)
    shard = None if prefetch is None else sharded(built, stage.comm, prefetch)

    def forward(x):
        hidden, indices = x.hidden, x.indices
        key = (x.batch.kind, x.batch.request)
        keys = x.state.setdefault(key, caches(layers, requests=x.plan.num_requests))
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

    return StageProgram(forward, HIDDEN, "float32", embed=embed, sample=sample, state=dict, topk=TOPK, shard=shard)


def options(splits):
    """What makes stages hand indices over."""
    return {"stage_layers": splits, "index_layers": KINDS}
