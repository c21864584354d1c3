"""The ``sparsespan`` command: one module of ``_commands`` for each sub-command."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

from . import _commands

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 only when what it checks holds."""
    parser = argparse.ArgumentParser(prog="sparsespan", description="DeepSeek Sparse Attention on the CPU")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in sorted(m.name for m in pkgutil.iter_modules(_commands.__path__) if not m.name.startswith("_")):
        importlib.import_module(f"{_commands.__name__}.{module}").register(commands)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
