"""cp.dcp_decode: N ranks against one."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sparsespan import cp

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import Batch

sys.path.pop(0)
pytestmark = pytest.mark.timeout(60)


def assert_same_bits(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("interleave", [1, 16, 64])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_lanes_and_a2a_give_the_bits_of_one_rank(ranks, interleave):
    # 2 tokens leave most ranks without a key, 0 all of them.
    batch = Batch([300, 2, 0, 97], topk=40)
    layout = cp.dcp_layout(interleave, ranks, 64)
    assert_same_bits(batch.on_ranks(layout, combine="a2a"), batch.one_rank(interleave, lanes=True))


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("combine", ["ag_rs", "a2a", "ar"])
def test_every_way_to_combine_is_near_one_rank(ranks, combine):
    batch = Batch([300, 2, 0, 97], heads=24, topk=40)
    layout = cp.dcp_layout(16, ranks, 32)
    out, lse = batch.on_ranks(layout, combine=combine, lanes=False)
    expected = batch.one_rank(16, lanes=False)
    assert_near(out, lse, expected)


def assert_near(out, lse, expected):
    """float32 sums in another order: a few ulp of outputs below 1 in size, and of the lse."""
    np.testing.assert_allclose(out, expected[0], atol=2e-6, rtol=1e-5)
    np.testing.assert_allclose(lse, expected[1], rtol=1e-6)
    assert np.isneginf(lse).any() and not out[np.isneginf(lse)].any()


def test_another_layout_on_one_rank_is_told(capsys):
    batch = Batch([64], heads=2)

    def rank(c):
        return batch.decode(c, cp.dcp_layout(1 + c.rank, 2, 32))

    from sparsespan.comm import RankMismatch, run_ranks

    with pytest.raises(RankMismatch, match="plan"):
        run_ranks(2, rank, timeout=10)
