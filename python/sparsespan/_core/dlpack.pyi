from __future__ import annotations
import numpy
import typing_extensions
__all__: list[str] = ['from_capsule', 'to_capsule']
def from_capsule(capsule: typing_extensions.CapsuleType) -> numpy.ndarray:
    ...
def to_capsule(array: numpy.ndarray) -> typing_extensions.CapsuleType:
    ...
