"""What LayerShard refuses, on every rank and in the same words."""

import numpy as np
import pytest

from sparsespan.comm import run_ranks
from sparsespan.pipeline import LayerShard

pytestmark = pytest.mark.timeout(60)


def weight(layer, shape=(3, 2)):
    return np.full(shape, layer, np.float32)


def series(layers, names=("o_proj",)):
    return {n: {i: weight(i) for i in layers} for n in names}


def refusal(make, ranks=2):
    """The message on every rank: all end in words, none waits."""
    words = [None] * ranks

    def rank(comm):
        with pytest.raises((ValueError, TypeError)) as error:
            make(comm)
        words[comm.rank] = str(error.value)

    run_ranks(ranks, rank, timeout=5)
    return words


@pytest.mark.parametrize(
    ("own", "prefetch", "words"),
    [
        (series(range(31, 61)), 29, "prefetch is 29, needs 0 to 28, the maximum for 30 layers"),
        (series(range(2)), 1, "prefetch is 1, needs 0 to 0, the maximum for 2 layers"),
        (series([4]), 1, "prefetch is 1, needs 0 to 0, the maximum for 1 layer"),
        (series(range(4)), -1, "prefetch is -1, needs 0 to 2"),
        (series(range(4)), 1.5, "prefetch is 1.5, needs an integer"),
        (series([31, 32, 34]), 1, "'o_proj' has layers 32 and 34 but not 33"),
        ({"o_proj": {3: weight(3), 4: weight(4, (2, 3))}}, 0,
         r"'o_proj' has float32 [2, 3] at layer 4 and float32 [3, 2] at layer 3, needs one shape and dtype"),
        ({"a": {0: weight(0), 1: weight(1).astype(np.float64)}}, 0, "has float64 [3, 2] at layer 1"),
        ({"a": {0: weight(0)}, "b": {1: weight(0)}}, 0, "'b' has layers 1 to 1 and 'a' has 0 to 0"),
        ({}, 0, "needs a mapping {name: {layer: weight}}"),
        ({"a": {}}, 0, "'a' has no layers"),
        ({"a": [1]}, 0, "needs {name: {layer: ...}}"),
        ({"a": {"0": weight(0)}}, 0, "layers that are no integers"),
        ({"a": {-1: weight(0), 0: weight(0)}}, 0, "starts at layer -1"),
    ],
)  # fmt: skip
def test_refusals_come_on_every_rank(own, prefetch, words):
    for said in refusal(lambda comm: LayerShard(own, comm, prefetch)):
        assert said.startswith("LayerShard: ") and words in said


@pytest.mark.parametrize(
    ("odd", "own", "other"),
    [
        (
            {"o_proj": {0: None, 1: None}},
            "layer 1: is None on the rank that keeps it",
            "rank 1 refused: series 'o_proj'",
        ),
        ({"o_proj": {0: None, 1: 7}}, "layer 1: is a int, needs an array", "rank 1 refused"),
        ({"o_proj": {0: None, 1: weight(1, (2, 3)).T}}, "is not contiguous", "rank 1 refused"),
        (series(range(3)), "layers is [0, 2] on rank 1 and [0, 1] on rank 0", "layers is [0, 2] on rank 1"),
        (series(range(2), ("q_b",)), "series is ['q_b'] on rank 1 and ['o_proj'] on rank 0", "series is ['q_b']"),
    ],
)
def test_what_one_rank_gets_wrong_all_are_told(odd, own, other):
    said = refusal(lambda comm: LayerShard(odd if comm.rank else series(range(2)), comm, 0))
    assert own in said[1] and other in said[0]


def test_ranks_with_another_prefetch_are_told():
    for said in refusal(lambda comm: LayerShard(series(range(5)), comm, comm.rank)):
        assert "prefetch is 1 on rank 1 and 0 on rank 0" in said


def test_reach_and_wait_out_of_order_name_expected_and_got():
    def rank(comm):
        shard = LayerShard(series(range(31, 36)), comm, 1)
        with pytest.raises(ValueError, match=r"wait: layer is 31, but no layer is reached yet: call reach\(31\)"):
            shard.wait(31)
        with pytest.raises(ValueError, match=r"reach: layer is 32, expected 31"):
            shard.reach(32)
        shard.reach(31)
        with pytest.raises(ValueError, match=r"wait: layer is 32, expected 31, the layer that was reached last"):
            shard.wait(32)
        with pytest.raises(ValueError, match=r"reach: layer is 36, needs 31 to 35, the layers of this stage"):
            shard.reach(36)
        with pytest.raises(TypeError, match="layer is '32', needs an integer"):
            shard.reach("32")
        shard.wait_all()

    run_ranks(2, rank, timeout=5)
