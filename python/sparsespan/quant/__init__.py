"""FP8 quantisation, KV and index-key cache layouts, cache writers, readers and converters.

A *slot* is ``page * page_size + offset`` in a paged cache. Every byte map comes from one table, shown by
:func:`kv_layout`.
"""

from __future__ import annotations

from ._layouts import KvField, KvLayout, kv_layout, kv_layout_names
from ._readers import convert_kv, gather_indexer_k, read_kv
from ._scales import act_quant, weight_dequant
from ._writers import concat_and_cache_mla, indexer_k_quant_and_cache

__all__ = [
    "KvField",
    "KvLayout",
    "act_quant",
    "concat_and_cache_mla",
    "convert_kv",
    "gather_indexer_k",
    "indexer_k_quant_and_cache",
    "kv_layout",
    "kv_layout_names",
    "read_kv",
    "weight_dequant",
]
