"""``sparsespan doctor``: what this machine gives."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

from .._runtime import build_info

__all__ = ["register"]

ENVIRONMENT = ("OMP_NUM_THREADS", "SPARSESPAN_MAX_ISA", "OPENBLAS_CORETYPE")
PACKAGES = ("numpy", "ml_dtypes", "torch", "transformers", "mpi4py", "rich")


def register(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("doctor", help="say what this machine gives")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_run)


def _field(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown"


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0]


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "absent"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "present"


def _machine() -> dict[str, str]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cpus_allowed": str(cpus),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "memory_available": _field("/proc/meminfo", "MemAvailable"),
        "huge_pages": _huge_pages(),
        "python": platform.python_version(),
    }


def _run(arguments: argparse.Namespace) -> int:
    report = {
        "machine": _machine(),
        "build": build_info(),
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": {name: os.environ.get(name, "not set") for name in ENVIRONMENT},
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
        return 0
    for part, facts in report.items():
        print(part)
        for key, value in facts.items():
            print(f"  {key:18} {value}")
    return 0
