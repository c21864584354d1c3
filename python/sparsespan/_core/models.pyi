from __future__ import annotations
import typing
__all__: list[str] = ['linear']
def linear(x: typing.Any, w: typing.Any, weight_scale_inv: typing.Any, block: typing.SupportsInt | typing.SupportsIndex, out_dtype: str, out: typing.Any, threads: typing.SupportsInt | typing.SupportsIndex, validate: str) -> typing.Any:
    ...
