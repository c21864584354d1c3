"""Bytes that ranks counted while they moved them are those of cp.volume, padding included."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sparsespan import cp
from sparsespan.comm import run_ranks

sys.path.insert(0, str(Path(__file__).parent))
from prefill_cases import BF16, SCHEMES, Batch, even

sys.path.pop(0)


HIDDEN = 24
LENGTHS = {"single": (37,), "ragged": (5, 3, 23, 1, 12), "short": (1, 0, 2)}
MODEL = cp.AttentionDims(
    name="test", layers=1, index_layers=1, hidden=HIDDEN, heads=2, q_lora=8, kv_lora=512, rope=64, nope=8, v_head=8,
    index_dim=128, topk=4,
)  # fmt: skip
CACHES = {"bf16": ("bf16_576", "index_bf16", 1408, 1152), "fp8": ("fp8_656", "index_132", 788, 656)}


def count(comm, batch, plan):
    """Bytes received by each of the ops of a layer and of the LM head."""
    mine = [cp.split(v, plan, comm.rank) for v in (batch.c_kv, batch.k_pe, batch.k_index)]
    hidden = np.zeros((plan.counts[comm.rank], HIDDEN), BF16)
    full, shared = batch.caches(), batch.caches(index=False)
    steps = (
        lambda: cp.gather_kv_and_cache(comm, *mine, full, plan, batch.slots).wait(),
        lambda: cp.gather_kv_and_cache(comm, *mine[:2], None, shared, plan, batch.slots).wait(),
        lambda: cp.gather_rows(comm, hidden, plan),
        lambda: cp.gather_rows(comm, hidden, plan, "last"),
    )
    counted = []
    for step in steps:
        comm.reset_trace()
        step()
        assert list(comm.trace()) == ["all_gather"] and comm.trace()["all_gather"]["calls"] == 1
        counted.append(comm.trace()["all_gather"]["bytes"])
    return counted


def check_bytes(batch, plan, cache, formula):
    """`formula(restore)` gives the volume of the step."""
    rows = {r.what: r for restore in ("all", "last") for r in formula(restore).rows}
    layer, shared, hidden, last = zip(*run_ranks(plan.world_size, lambda comm: count(comm, batch, plan)))
    latent, index = rows["latent KV"].received, rows["index-K"].received
    both, alone = CACHES[cache][2:]
    away = (plan.world_size - 1) * plan.padded_len
    assert set(layer) == {latent + index} == {away * both}
    assert set(shared) == {latent} == {away * alone}
    assert set(hidden) == {rows["hidden rows for the LM head"].received}
    final = rows["last rows for the LM head"]
    assert final.primitive == "all_gather" and max(last) == final.received and sum(last) == final.total


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_counted_bytes_are_the_formulas(scheme, ranks, name, cache):
    lengths = even(LENGTHS[name], scheme, ranks)
    batch = Batch(lengths, (0,) * len(lengths), (), *CACHES[cache][:2])
    options = {"tokens": list(lengths), "ranks": ranks, "model": MODEL, "cache": cache}
    check_bytes(batch, batch.plan(scheme, ranks), cache, lambda restore: cp.volume(scheme, restore=restore, **options))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_plan_knows_the_bytes_of_decode_rows_and_padding(scheme, ranks):
    decode = (True, False, True, False)
    batch = Batch(even((2, 9, 1, 6), scheme, ranks, decode), (3, 0, 7, 2), decode)
    plan = batch.plan(scheme, ranks, pad_to=sum(batch.lengths) + 5)
    check_bytes(batch, plan, "fp8", lambda restore: cp.volume(plan, restore=restore, model=MODEL, cache="fp8"))
    with pytest.raises(ValueError, match="the plan has its own"):
        cp.volume(plan, tokens=[3])
    with pytest.raises(TypeError, match="volume: ranks is None"):
        cp.volume("zigzag", tokens=[3])
