"""
sparsespan's C++ core. Use the documented functions of the sparsespan package.
"""
from __future__ import annotations
import typing
from . import attention
from . import comm
from . import cp
from . import dlpack
from . import indexer
from . import pipeline
from . import models
from . import transform
from . import quant
__all__: list[str] = ['active_isa', 'attention', 'available_isas', 'build_info', 'comm', 'cp', 'dlpack', 'indexer', 'max_isa', 'models', 'num_threads', 'pipeline', 'probe', 'quant', 'set_max_isa', 'set_num_threads', 'set_num_threads_here', 'set_openmp_hint', 'transform']
def active_isa() -> str:
    ...
def available_isas() -> list[str]:
    ...
def build_info() -> list[tuple[str, str]]:
    ...
def max_isa() -> str:
    ...
def num_threads() -> int:
    ...
def probe(isa: str, iterations: typing.SupportsInt | typing.SupportsIndex = 1048576, threads: typing.SupportsInt | typing.SupportsIndex = 1) -> float:
    ...
def set_max_isa(isa: str) -> None:
    ...
def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def set_num_threads_here(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
def set_openmp_hint(path: str) -> None:
    ...
