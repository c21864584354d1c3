"""Softmax attention over latent (MLA) and expanded (MHA) keys: sparse, dense, and the merge of partial results.

All ops return ``lse`` as natural logarithm without the sink; an empty row has ``out`` 0 and ``lse`` -inf.
"""

from __future__ import annotations

from ._merge import merge_states
from ._mha import mha, sparse_mha
from ._mla import dense_mla, sparse_mla

__all__ = ["dense_mla", "merge_states", "mha", "sparse_mha", "sparse_mla"]
