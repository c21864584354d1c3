"""The ``sparsespan`` command: one module of ``_commands`` for each sub-command."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import pkgutil
import sys

from . import _commands
from ._commands._leaving import leave

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 only when what it checks holds."""
    parser = argparse.ArgumentParser(prog="sparsespan", description="DeepSeek Sparse Attention on the CPU")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in sorted(m.name for m in pkgutil.iter_modules(_commands.__path__) if not m.name.startswith("_")):
        importlib.import_module(f"{_commands.__name__}.{module}").register(commands)
    arguments = parser.parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:  # before a command's own work has begun
        print(f"\nsparsespan {arguments.command}: interrupted", file=sys.stderr)
        return leave(130)
    except BrokenPipeError:  # what reads our output has seen enough, as head has: no error, and no more output
        _discard_output()
        return 141  # as a program that SIGPIPE ends
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        print(f"sparsespan {arguments.command}: output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return code


def _discard_output() -> None:
    """The interpreter flushes once more at its end, and that must not fail."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
