from __future__ import annotations
import typing
__all__: list[str] = ['sparse_mla']
def sparse_mla(q: typing.Any, q_pe: typing.Any, kv: typing.Any, indices: typing.Any, sm_scale: typing.SupportsFloat | typing.SupportsIndex, d_v: typing.SupportsInt | typing.SupportsIndex, topk_length: typing.Any, attn_sink: typing.Any, layout: str, page_size: typing.SupportsInt | typing.SupportsIndex, lane_of: typing.Any, out_dtype: str, out: typing.Any, validate: str, threads: typing.SupportsInt | typing.SupportsIndex) -> tuple:
    ...
