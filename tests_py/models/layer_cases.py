"""A small DSA layer and batches for it."""

import numpy as np

from sparsespan import models

PAGE = 4
SMALL = {
    "v3.2": models.layer_dims("v3.2", hidden=40, heads=4, q_lora=24, nope=16, v_head=12, index_heads=4, topk=7),
    "glm-5": models.layer_dims("glm-5", hidden=40, heads=2, q_lora=24, nope=24, v_head=16, index_heads=8, topk=7),
}
LAYOUTS = {
    "float32": ("f32_576", "index_f32"),
    "bfloat16": ("bf16_576", "index_bf16"),
    "fp8": ("fp8_656", "index_132"),
}


def make_caches(rng, lengths, layers=1, kind="float32", **kwargs):
    """Shuffled pages, garbage behind each request's last one, NaN bytes in unused pages."""
    pages = [-(-n // PAGE) for n in lengths]
    order = rng.permutation(sum(pages) + 2)
    table = np.full((len(lengths), max(pages, default=0)), 2147480000, np.int32)
    at = 0
    for b, n in enumerate(pages):
        table[b, :n] = order[at : at + n]
        at += n
    kv, index = LAYOUTS[kind]
    caches = models.PagedCaches(layers, len(order), PAGE, kv, index, block_table=table, **kwargs)
    for cache in (*caches.kv.values(), *caches.index_k.values()):
        cache.view(np.uint8)[order[at:]] = 0xFF
    return caches


def cu(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def hidden_rows(rng, rows, dims, dtype=np.float32):
    return rng.standard_normal((rows, dims.hidden)).astype(dtype)
