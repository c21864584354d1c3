"""The lightning indexer: scores of every visible key, and the choice of the best ones.

Index spaces: ``packed`` is a row of the ``k`` array passed in, ``logical`` a position in the request's sequence,
``slot`` a place in a paged cache (``page * page_size + offset``). -1 means "none" and nothing else does.
"""

from __future__ import annotations

from ._index_share import index_share_layers
from ._indexer_choice import paged_select, select, topk
from ._indexer_logits import mqa_logits, paged_mqa_logits
from ._indexer_slots import to_slots

__all__ = ["index_share_layers", "mqa_logits", "paged_mqa_logits", "paged_select", "select", "to_slots", "topk"]
