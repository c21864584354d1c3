"""Threads, ISA level and build facts; picks the OpenMP runtime to share with torch."""

from __future__ import annotations

import glob
import importlib.util
import os

from . import _core
from ._interop import call

__all__ = ["available_isas", "build_info", "max_isa", "num_threads", "set_max_isa", "set_num_threads"]


def _torch_openmp() -> str:
    """Path of the OpenMP copy inside an installed torch, found without importing torch.

    If this process imports torch later, both then run on that one runtime: two copies of libgomp in one process
    spin against each other.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    package = next(iter(spec.submodule_search_locations))
    for folder in (os.path.join(package, "lib"), package + ".libs"):
        for name in sorted(glob.glob(os.path.join(glob.escape(folder), "libgomp*.so*"))):
            return name
    return ""


_core.set_openmp_hint(_torch_openmp())


def build_info() -> dict[str, str]:
    """What this binary is and what it chose on this machine.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``build_type``, ``isa_available``, ``isa_refused`` (with the reason for each),
        ``isa_cap``, ``isa`` (the level in use), ``threads`` and ``thread_runtime``.

    Examples
    --------
    >>> import sparsespan
    >>> sparsespan.build_info()["version"]
    '0.1.0'
    """
    return dict(_core.build_info())


def num_threads() -> int:
    """Threads used by a call with ``threads=0``: set_num_threads, else OMP_NUM_THREADS, else the CPUs available."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Use ``n`` threads in calls that do not say ``threads=``; 0 goes back to the environment's choice.

    Only sparsespan's ops are affected: no global OpenMP state changes.

    Raises
    ------
    ValueError
        If ``n`` is negative.
    """
    call(_core.set_num_threads, n)


def max_isa() -> str:
    """The cap on the ISA level: ``"generic"``, ``"avx2"``, ``"avx512"``, ``"avx512_bf16"`` or ``"amx"``."""
    return _core.max_isa()


def set_max_isa(isa: str) -> None:
    """Cap the ISA level for this process; the environment variable SPARSESPAN_MAX_ISA sets it at start.

    Parameters
    ----------
    isa : {"generic", "avx2", "avx512", "avx512_bf16", "amx"}
        Ops use the best level up to this one that was built and that the CPU offers (see :func:`build_info`).
        An op that runs meanwhile ends at the level at which it began.

    Raises
    ------
    ValueError
        If ``isa`` is none of the five.
    """
    call(_core.set_max_isa, isa)


def available_isas() -> list[str]:
    """The levels that can run here, lowest first."""
    return _core.available_isas()
