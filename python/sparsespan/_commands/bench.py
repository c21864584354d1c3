"""``sparsespan bench``: ratios to the peers and to the silicon, measured in one process."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["register"]


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("bench", help="measure every op against its peers and against this CPU")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and turns: below three minutes")
    parser.add_argument("--only", default="", metavar="NAMES", help="families, comma separated")
    parser.add_argument("--json", action="store_true", help="print one JSON document; the table goes to stderr")
    parser.add_argument("--svg", metavar="FILE", help="write the roofline as a picture")
    parser.add_argument("--check", action="store_true", help="fail when a ratio fell below the checked-in baseline's")
    parser.add_argument("--write-baseline", action="store_true", help="make this run's ratios the baseline")
    parser.set_defaults(run=_run)


def _folder() -> Path | None:
    """The benches: beside the sources in a checkout, inside the package in an install."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parents[1] / "bench", package / "_bench"):
        if (folder / "run.py").is_file():
            return folder
    return None


def _run(arguments: argparse.Namespace) -> int:
    folder = _folder()
    if folder is None:
        print("sparsespan bench: this install holds no benches", file=sys.stderr)
        return 2
    sys.path.insert(0, str(folder))
    return int(importlib.import_module("run").run(arguments))
