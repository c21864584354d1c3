from __future__ import annotations
import collections.abc
import numpy
import typing
__all__: list[str] = ['transfer_plan', 'transfer_positions', 'transfer_slots']
def transfer_plan(prefill: dict, decode: dict, lengths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], present: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], num_layers: typing.SupportsInt | typing.SupportsIndex, kv_bytes: typing.SupportsInt | typing.SupportsIndex, index_bytes: typing.SupportsInt | typing.SupportsIndex, index_layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], spread: str) -> numpy.ndarray:
    ...
def transfer_positions(set: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(8)"]) -> numpy.ndarray:
    ...
def transfer_slots(set: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(8)"], source: bool, table: typing.Any, page_size: typing.SupportsInt | typing.SupportsIndex) -> numpy.ndarray:
    ...
