"""``sparsespan doctor``: what this machine gives."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .._runtime import build_info

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="say what this machine gives")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    info = build_info()
    if arguments.json:
        print(json.dumps(info, indent=2))
        return 0
    for key, value in info.items():
        print(f"{key:16} {value}")
    return 0
