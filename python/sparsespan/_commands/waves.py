"""``sparsespan waves``: what an SM held by a receive costs the indexer's logits kernel, and the grid that avoids it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("waves", help="a persistent kernel while another one holds SMs: time by grid")
    parser.add_argument("--prefix", type=int, default=16384, help="keys before the chunk")
    parser.add_argument("--chunk", type=int, default=8192, help="new rows, dealt round-robin over the ranks")
    parser.add_argument("--cp", type=int, default=8)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--rows-per-tile", type=int, default=2, help="128 // index heads in DeepGEMM")
    parser.add_argument("--keys-per-unit", type=int, default=256, help="keys in a block")
    parser.add_argument("--tiles", type=int, help="so many equal tiles, instead of the chunk's")
    parser.add_argument("--sms", type=int, default=78)
    parser.add_argument("--reserved", type=int, default=1, help="SMs that the other kernel holds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_run)


def _tiles(arguments: argparse.Namespace) -> Any:
    from .. import pipeline

    if arguments.tiles is not None:
        return arguments.tiles
    for name, least in (("prefix", 0), ("chunk", 0), ("cp", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"waves: --{name} is {getattr(arguments, name)}, needs at least {least}")
    if not 0 <= arguments.rank < arguments.cp:
        raise ValueError(f"waves: --rank is {arguments.rank}, needs 0 to {arguments.cp - 1}")
    ends = arguments.prefix + np.arange(arguments.rank, arguments.chunk, arguments.cp) + 1
    return pipeline.logit_tiles(ends, rows_per_tile=arguments.rows_per_tile, keys_per_unit=arguments.keys_per_unit)


def _run(arguments: argparse.Namespace) -> int:
    from .. import pipeline

    sms, held = arguments.sms, arguments.reserved
    try:
        tiles = _tiles(arguments)
        full = pipeline.sm_waves(tiles, sms, held)
        grids = {"all SMs": sms, "all but the held ones": sms - held, "best": full.best_grid}
        table = {name: pipeline.sm_waves(tiles, sms, held, grid=grid) for name, grid in grids.items()}
    except ValueError as refusal:
        print(refusal, file=sys.stderr)
        return 1
    count = tiles if isinstance(tiles, int) else len(tiles)
    if arguments.json:
        rows = [
            {"grid": grids[name], "waves": w.waves, "time": w.time, "slowdown": w.slowdown} for name, w in table.items()
        ]
        print(json.dumps({"tiles": count, "sms": sms, "reserved": held, "alone": full.alone, "modelled": rows}))
        return 0
    print(f"{count} tiles, {sms} SMs of which {held} held; modelled, alone on the machine: {full.alone:g} units")
    print(f"{'grid':22} {'blocks':>6} {'waves':>6} {'units':>8} {'slowdown':>9}")
    for name, w in table.items():
        print(f"{name:22} {grids[name]:6} {w.waves:6} {w.time:8g} {w.slowdown:9.3f}")
    return 0
