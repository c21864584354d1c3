from __future__ import annotations
import typing
__all__: list[str] = ['hadamard_transform']
def hadamard_transform(x: typing.Any, scale: typing.SupportsFloat | typing.SupportsIndex, out: typing.Any = None, threads: typing.SupportsInt | typing.SupportsIndex = 0) -> typing.Any:
    ...
