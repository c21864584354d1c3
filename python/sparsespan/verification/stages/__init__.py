"""Two implementations of a model, stage by stage: which row differs first, and which bug it looks like."""

from __future__ import annotations

from ._captured import Captured
from ._case import CLASSES, Verdict
from ._compare import TOLERANCE, Line
from ._diagnose import Finding, Report, compare
from ._facts import Facts
from ._names import STAGES, Stage
from ._ours import capture
from ._peer import capture_transformers
from ._plants import PLANTS, Plant, planted

__all__ = [
    "CLASSES",
    "PLANTS",
    "STAGES",
    "TOLERANCE",
    "Captured",
    "Facts",
    "Finding",
    "Line",
    "Plant",
    "Report",
    "Stage",
    "Verdict",
    "capture",
    "capture_transformers",
    "compare",
    "planted",
]
