"""``sparsespan make-tiny``: a small random checkpoint in the real format."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("make-tiny", help="write a small random checkpoint with a byte-level tokenizer")
    parser.add_argument("model", choices=("deepseek_v32", "glm_moe_dsa"))
    parser.add_argument("--out", required=True, help="folder to write, new or empty")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16", "float8"), default="float32")
    parser.add_argument("--shards", type=int, default=1, help="files to spread the tensors over")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ..models import Checkpoint, write_tiny

    if arguments.seed < 0:
        print(f"sparsespan make-tiny: --seed is {arguments.seed}, needs at least 0", file=sys.stderr)
        return 2
    try:
        folder = write_tiny(
            arguments.out, arguments.model, seed=arguments.seed, dtype=arguments.dtype, shards=arguments.shards
        )
    except (OSError, ValueError) as error:
        print(f"sparsespan make-tiny: {error}", file=sys.stderr)
        return 2
    checkpoint = Checkpoint(folder)  # what was written is read back as any checkpoint is
    names = list(checkpoint.names())
    size = sum(checkpoint.info(name).end - checkpoint.info(name).begin for name in names)
    summary = {
        "path": str(folder), "model_type": arguments.model, "layers": checkpoint.config.num_hidden_layers,
        "tensors": len(names), "bytes": size, "dtype": arguments.dtype, "seed": arguments.seed,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(f"{folder}: {arguments.model}, {summary['layers']} layers, {len(names)} tensors, {size} bytes counted")
    return 0
