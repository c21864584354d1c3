"""A small causal model for stages: every row depends on all rows before it, and its bits on nothing else."""

import numpy as np

from sparsespan import cp
from sparsespan.comm import run_ranks
from sparsespan.pipeline import Stage, StageProgram, run_pipeline

WIDTH = 6
LAYERS = 5


def embed(tokens):
    rng = np.arange(1, WIDTH + 1, dtype=np.float32)
    return np.sin(np.asarray(tokens, np.float32)[:, None] * rng)


def sample(rows, batch):
    return (np.abs(rows).sum(axis=1) * 1000).astype(np.int64) % 97


def attend(x, keys, layer):
    """One row over its keys; a product at a time, so that nothing else has a say in its bits."""
    scores = np.array([np.dot(x, k) for k in keys], np.float32) * np.float32(0.1 * (layer + 1))
    weights = np.exp(scores - scores.max())
    return x + np.tanh((weights[:, None] * keys).sum(axis=0) / weights.sum())


def plain(tokens, layers=LAYERS):
    """The whole prompt on one rank, without stages, chunks or ranks."""
    x = embed(tokens)
    for layer in range(layers):
        x = np.stack([attend(x[i], x[: i + 1], layer) for i in range(len(x))])
    return x


def plain_decode(tokens, steps):
    """Tokens that follow, one request at a time."""
    out = []
    for first in tokens:
        ids = [int(first)]
        for _ in range(steps):
            ids.append(int(sample(plain(ids)[-1:], None)[0]))
        out.append(ids[1:])
    return np.array(out)


def layers_of(splits, stage):
    return range(sum(splits[:stage]), sum(splits[: stage + 1]))


class Caches(dict):
    """(layer, kind, request, number) to keys so far."""


def gathered(x):
    """All rows of the batch on every rank."""
    return cp.gather_rows(x.comm, x.hidden, x.plan) if x.stage.cp > 1 else x.hidden[x.plan.restore_index]


def make_forward(splits, scratch=0, shard_check=None):
    def forward(x):
        scratch_rows = x.allocate((len(x.hidden) + x.batch.start, scratch), np.float32) if scratch else None
        for layer in layers_of(splits, x.stage.index):
            with x.layer(layer) as weights:
                if shard_check is not None:
                    shard_check(layer, weights)
                whole = gathered(x)
                cu, prefix, keys = x.plan.cu_seqlens, x.batch.prefix_lens, []
                for i in range(x.plan.num_requests):
                    old = x.state.get((layer, x.batch.kind, x.batch.request, i), np.zeros((0, WIDTH), np.float32))
                    # In a dry run the keys of chunks that were left out are missing.
                    missing = np.zeros((max(0, prefix[i] - len(old)), WIDTH), np.float32)
                    keys.append(np.concatenate([old[: prefix[i]], missing, whole[cu[i] : cu[i + 1]]]))
                for i, k in enumerate(keys):
                    assert len(k) == x.batch.prefix_lens[i] + cu[i + 1] - cu[i]
                    x.state[layer, x.batch.kind, x.batch.request, i] = k
                rows = zip(x.hidden, x.positions, x.plan.row_to_request(x.rank))
                x.hidden = np.stack(
                    [attend(row, keys[q][: p + 1], layer) if q >= 0 else row for row, p, q in rows]
                    or [np.zeros((0, WIDTH), np.float32)]
                ).reshape(-1, WIDTH)
        del scratch_rows
        return x.hidden

    return forward


def program(splits, **more):
    scratch, check = more.pop("scratch", 0), more.pop("shard_check", None)
    return StageProgram(
        make_forward(splits, scratch, check), WIDTH, "float32", embed=embed, sample=sample, state=Caches, **more
    )


def on_ranks(pp, cp_size, schedule, inputs, splits=None, *, tp=1, scheme="zigzag", blocking=False, **options):
    """Results of all ranks."""
    splits = splits or [LAYERS] if pp == 1 else splits

    def rank(comm):
        stage = Stage(comm, pp=pp, cp=cp_size, tp=tp, scheme=scheme, blocking_sends=blocking)
        return run_pipeline(stage, program(splits), schedule, inputs, **options)

    return run_ranks(pp * cp_size * tp, rank, threads_per_rank=1, timeout=20)
