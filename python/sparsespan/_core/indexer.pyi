from __future__ import annotations
import typing
__all__: list[str] = ['mqa_logits']
def mqa_logits(q: typing.Any, k: typing.Any, weights: typing.Any, ks: typing.Any, ke: typing.Any, k_scale: typing.Any = None, clean_logits: bool = True, max_seqlen_k: typing.SupportsInt | typing.SupportsIndex = 0, out: typing.Any = None, threads: typing.SupportsInt | typing.SupportsIndex = 0, validate: str = 'full') -> typing.Any:
    ...
