"""N ranks against one: run the distributed operators, compare every byte, count what moves.

:func:`check` is for tests, :func:`verify` and the command ``sparsespan verify`` for tables. The tensors are seeded and
have the real dims of a model's latent, index key and index heads. The one-rank answer comes from plain ops: cache
writers, ``select``, ``sparse_mla``.
"""

from __future__ import annotations

from ._batches import BATCHES, Batch, batch
from ._case import COMBINES, INDEX_KS, O_PROJS, PARTS, SCHEMES, Case
from ._report import check, reasons, trace, verify
from ._run import FAULTS, Fault
from ._setup import INDEX_LAYOUTS, Model
from ._suite import TABLE, Options, cases
from ._teams import BACKENDS, Team, Threads, open_team

__all__ = [
    "BACKENDS",
    "BATCHES",
    "COMBINES",
    "FAULTS",
    "INDEX_KS",
    "INDEX_LAYOUTS",
    "O_PROJS",
    "PARTS",
    "SCHEMES",
    "TABLE",
    "Batch",
    "Case",
    "Fault",
    "Model",
    "Options",
    "Team",
    "Threads",
    "batch",
    "cases",
    "check",
    "open_team",
    "reasons",
    "trace",
    "verify",
]
