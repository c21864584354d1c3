"""A DSA model on grids of ranks against transformers: logits, greedy tokens, bytes.

transformers makes tiny models, saves them, and answers prompts of unequal lengths in eager float32; what
:func:`sparsespan.models.load` answers from the same files, on each grid, is held against that. The command is
``sparsespan verify --models``. torch and transformers are imported only to make a fixture and ask it.
"""

from __future__ import annotations

from ._fixture import LENGTHS, MODELS, SEEDS, TOKENS, Fixture, fixture
from ._grids import GRIDS, Way, ways
from ._reference import LEAST_GAP, NearTie, Reference, find_seed, reference
from ._share import source
from ._table import DEFINITIONS, LIMIT, row, table

__all__ = [
    "DEFINITIONS",
    "GRIDS",
    "LEAST_GAP",
    "LENGTHS",
    "LIMIT",
    "MODELS",
    "SEEDS",
    "TOKENS",
    "Fixture",
    "NearTie",
    "Reference",
    "Way",
    "find_seed",
    "fixture",
    "reference",
    "row",
    "source",
    "table",
    "ways",
]
