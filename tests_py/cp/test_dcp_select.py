"""cp.global_topk and cp.dcp_select: N ranks against one."""

import sys
from pathlib import Path

import numpy as np
import pytest

from sparsespan import comm, cp, indexer

sys.path.insert(0, str(Path(__file__).parent))
from dcp_cases import IndexBatch

sys.path.pop(0)
pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("index_layout", ["index_132", "index_bf16", "index_f32"])
@pytest.mark.parametrize("index_k", ["replicated", "sharded", "sharded_routed", "gathered"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_exact_design_is_one_rank(ranks, index_k, index_layout):
    batch = IndexBatch([300, 2, 0, 97, 33], next_n=2, index_layout=index_layout, ties=ranks == 3)
    layout = cp.dcp_layout(16, ranks, 32)
    expected = batch.one_rank(40)
    for got in batch.on_ranks(layout, 40, index_k):
        np.testing.assert_array_equal(got, expected)
