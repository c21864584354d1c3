"""Two implementations of a model, stage by stage: which row differs first, and which bug it looks like.

For an engine of one's own: run a prompt, keep what its layers compute, and hold it against this model. Values go into
:class:`Captured` under the names and in the conventions of ``STAGES`` (as many stages, layers and rows as there are),
in Python or as ``LAYER/STAGE`` arrays of an .npz file beside ``prompt_0``; ``sparsespan verify --stages one FILE.npz
--checkpoint DIR`` does the same from a shell.

>>> import tempfile
>>> import numpy as np
>>> from sparsespan import models
>>> from sparsespan.verification import stages
>>> folder = tempfile.TemporaryDirectory()
>>> path = models.write_tiny(folder.name + "/model", "deepseek_v32", num_hidden_layers=2)
>>> prompt = np.arange(20)
>>> ours = stages.capture(path, [prompt])

An engine that turns its keys in half-split pairs, as Llama does, where MLA has neighbours:

>>> theirs = stages.Captured("mine", [prompt])
>>> k_pe = ours.get("k_pe", 1)
>>> table = models.rope_table(models.Checkpoint(path).config.dims, 20)[:20]
>>> cos, sin = table[:, :32], table[:, 32:]
>>> even, odd = k_pe[:, 0::2], k_pe[:, 1::2]
>>> raw = np.stack([even * cos + odd * sin, odd * cos - even * sin], -1).reshape(20, 64)
>>> left, right = raw[:, :32], raw[:, 32:]
>>> theirs.add("k_pe", 1, np.concatenate([left * cos - right * sin, right * cos + left * sin], 1))
>>> found = stages.compare(ours, theirs, stages.Facts.load(path)).finding
>>> found.stage, found.layer, found.position, found.bug, found.verdicts[0].sure
('k_pe', 1, 1, 'rope pairing', 'certain')
>>> print(found.verdicts[0].words)
pairs are half-split (i, i+32) where the model has interleaved (2i, 2i+1)
>>> folder.cleanup()
"""

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
