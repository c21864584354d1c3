"""The end of a command that was interrupted."""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["leave"]


def leave(code: int) -> int:
    """The exit code; where ranks are still busy, the process ends here and now."""
    if any(thread.name.startswith("rank ") for thread in threading.enumerate()):
        # A rank is deep in a long operation; the interpreter cannot end beside it in good order.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
