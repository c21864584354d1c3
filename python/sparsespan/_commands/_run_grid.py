"""The grid options of ``sparsespan run``: one grid, or one that prefills and one that decodes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models import Grid, PdGrid

__all__ = ["add_grid", "grid_facts", "grid_of"]

# Spelled out so that other commands need not import the operators.
SCHEMES = ("zigzag", "zigzag_padded", "ceil_chunk", "interleave", "contiguous", "contiguous_flat")
COMBINES = ("a2a", "ag_rs", "ar")
O_PROJS = ("full", "gather_weight", "a2a_rs", "broadcast")
INDEX_KS = ("replicated", "sharded", "sharded_routed", "union", "gathered")


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    grid = parser.add_argument_group("grid")
    grid.add_argument("--tp", type=int, help="ranks that share heads and experts (default dcp)")
    grid.add_argument("--cp", type=int, default=1, help="ranks that share the rows of the prefill")
    grid.add_argument("--dcp", type=int, default=1, help="ranks that share the KV cache: 1, or those of tp")
    grid.add_argument("--pp", type=int, default=1, help="pipeline stages, each with some of the layers")
    grid.add_argument("--pp-layers", metavar="N,N,...", help="layers of each stage (default an even split)")
    grid.add_argument(
        "--flavor",
        choices=("native", "vllm", "sglang"),
        default="native",
        help="whose numbers these are: for sglang tp is all ranks of a stage, and cp lies inside it",
    )
    grid.add_argument("--scheme", choices=SCHEMES, default="zigzag", help="how cp ranks split rows")
    grid.add_argument("--o-proj", choices=O_PROJS, default="full", help="how cp ranks keep o_proj: whole, cut and "
                      "gathered, cut with heads exchanged in decode, or one layer's on each rank")  # fmt: skip
    grid.add_argument("--combine", choices=COMBINES, default="a2a", help="how dcp ranks join attention")
    grid.add_argument("--index-k", choices=INDEX_KS, default="replicated", help="where dcp ranks keep index keys; "
                      "with union the selection is approximate, and so may the tokens be")  # fmt: skip
    grid.add_argument("--backend", choices=("threads", "mpi", "gloo"), default="threads")
    grid.add_argument("--timeout", type=float, default=300.0, help="seconds that an operation waits for its peers")
    decode = parser.add_argument_group(
        "decode grid", "any of these: the ranks above prefill, further ones behind them take the KV cache and decode"
    )
    decode.add_argument("--decode-tp", type=int, help="ranks that share heads and experts (default those of dcp)")
    decode.add_argument("--decode-dcp", type=int, help="ranks that share the KV cache: 1, or those of tp")
    decode.add_argument("--decode-pp", type=int, help="pipeline stages")


def _stage_layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(n) for n in text.split(","))
    except ValueError:
        raise ValueError(f"--pp-layers is {text!r}, needs whole numbers with commas between, such as 2,1,1") from None


def grid_of(arguments: argparse.Namespace) -> Grid | PdGrid:
    """The grid, or both."""
    from ..models import Grid, PdGrid

    a = arguments
    grid = Grid.of(
        a.flavor, a.tp, a.cp, a.dcp, a.pp, scheme=a.scheme, combine=a.combine, index_k=a.index_k,
        stage_layers=_stage_layers(a.pp_layers), o_proj=a.o_proj,
    )  # fmt: skip
    if a.decode_tp is None and a.decode_dcp is None and a.decode_pp is None:
        return grid
    given = {name: value for name, value in (("dcp", a.decode_dcp), ("pp", a.decode_pp)) if value is not None}
    try:
        decode = Grid.of(a.flavor, a.decode_tp, **given, combine=a.combine, index_k=a.index_k)
    except ValueError as refusal:
        raise ValueError(f"decode {refusal}") from None
    return PdGrid(grid, decode)


def grid_facts(grid: Grid | PdGrid, flavor: str) -> dict[str, Any]:
    """Plain data for --json; of two grids the prefill's with the decode's inside."""
    from ..models import PdGrid

    if isinstance(grid, PdGrid):
        facts = grid_facts(grid.prefill, flavor)
        return facts | {"words": grid.words, "decode": grid_facts(grid.decode, flavor)}
    return {
        "tp": grid.tp, "cp": grid.cp, "dcp": grid.dcp, "pp": grid.pp, "flavor": flavor, "words": grid.words,
        "scheme": grid.scheme, "combine": grid.combine, "index_k": grid.index_k, "o_proj": grid.o_proj,
    }  # fmt: skip
