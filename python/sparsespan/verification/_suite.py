"""Which cases a run has: the product of what was asked for."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from ._batches import BATCHES, Batch, batch
from ._case import COMBINES, INDEX_KS, O_PROJS, SCHEMES, Case
from ._setup import Model

__all__ = ["TABLE", "Options", "cases"]

_DECODE_BATCHES = ("single", "ragged")


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices, each a tuple of alternatives; ``()`` leaves out what it would choose."""

    cp: tuple[int, ...] = ()
    dcp: tuple[int, ...] = ()
    tp: int | None = None
    scheme: tuple[str, ...] = ("zigzag",)
    interleave: tuple[int, ...] = (1,)
    combine: tuple[str, ...] = ("a2a",)
    index_k: tuple[str, ...] = ("replicated",)
    payload: tuple[str, ...] = ("fp32",)
    replicate_q: bool = False
    o_proj: tuple[str, ...] = ()
    layer: bool = False
    batches: tuple[str, ...] = BATCHES
    lens: tuple[int, ...] = ()
    prefix: tuple[int, ...] = (0,)
    next_n: tuple[int, ...] = (1,)
    model: Model = dataclasses.field(default_factory=Model)


def _batches(options: Options, part: str) -> list[Batch]:
    if options.lens:
        ways = options.next_n if part == "decode" else options.next_n[:1]
        return [batch("lens", options.lens, options.prefix, n, part) for n in ways]
    known = BATCHES if part == "prefill" else _DECODE_BATCHES
    names = [name for name in options.batches if name in known]
    if part == "decode" and not names:
        names = ["ragged"]
    found = [batch(name, next_n=n, part=part) for name in names for n in options.next_n]
    return list(dict.fromkeys(found))  # next_n changes only batches with decode rows


def _prefill(options: Options, cp: int, dcp: int) -> list[Case]:
    batches = _batches(options, "prefill")
    grid: dict[str, Any] = {"cp": cp, "dcp": dcp, "tp": options.tp, "model": options.model}
    found = [
        Case(part, b, scheme=scheme, **grid)
        for part in (("prefill", "layer") if options.layer else ("prefill",))
        for scheme, b in itertools.product(options.scheme, batches)
    ]
    return found + [Case("o_proj", b, o_proj=mode, **grid) for mode in options.o_proj for b in batches[:1]]


def _decode(options: Options, cp: int, dcp: int) -> list[Case]:
    ways = itertools.product(
        options.interleave, options.combine, options.index_k, options.payload, _batches(options, "decode")
    )
    return [
        Case(
            "decode", b, cp=cp, dcp=dcp, tp=options.tp, interleave=s, combine=combine, index_k=index_k, payload=payload,
            replicate_q=options.replicate_q, model=options.model,
        )
        for s, combine, index_k, payload, b in ways
    ]  # fmt: skip


def cases(options: Options, *, joint: bool = True) -> list[Case]:
    """One grid for every pair of ``cp`` and ``dcp``: prefill in its cp groups where cp is given, decode where dcp is.

    ``joint`` False: grids of their own for prefill (cp ranks) and for decode (dcp ranks).

    Examples
    --------
    >>> from sparsespan.verification import Options, cases
    >>> [case.name for case in cases(Options(cp=(2,), dcp=(2,), batches=("ragged",)))]
    ['prefill cp 2 x tp 2, dcp 2 zigzag ragged', 'decode cp 2 x tp 2, dcp 2 S=1 a2a replicated ragged']
    >>> [case.name for case in cases(Options(cp=(4,), dcp=(4,), batches=("ragged",)), joint=False)]
    ['prefill cp 4 zigzag ragged', 'decode dcp 4 S=1 a2a replicated ragged']
    """
    if not joint:
        alone = [dataclasses.replace(options, dcp=()), dataclasses.replace(options, cp=())]
        return [case for part in alone for case in cases(part)]
    found: list[Case] = []
    for cp, dcp in itertools.product(options.cp or (1,), options.dcp or (1,)):
        found += _prefill(options, cp, dcp) if options.cp else []
        found += _decode(options, cp, dcp) if options.dcp else []
    return found


# Every scheme and batch for each size of cp, every design of decode for each size of dcp; joint=False.
TABLE = Options(
    cp=(2, 4, 8), dcp=(2, 4, 8), scheme=SCHEMES, interleave=(1, 16, 64), combine=COMBINES, index_k=INDEX_KS,
    o_proj=O_PROJS, layer=True,
)  # fmt: skip
