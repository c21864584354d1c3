"""The proof of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _core
from ._schedule import Schedule

__all__ = ["ScheduleError", "rules", "validate"]

ScheduleError = _core.pipeline.ScheduleError
ScheduleError.__module__ = "sparsespan.pipeline"


def rules(stage_layers: Sequence[int] | None = None, index_layers: Sequence[str] | None = None, **limits: Any) -> Any:
    """The core's rules; None leaves a limit out."""
    made = _core.pipeline.Rules()
    for name, value in limits.items():
        if value is not None:
            setattr(made, name, value)
    if (stage_layers is None) != (index_layers is None):
        raise ValueError("validate: stage_layers and index_layers belong together, needs both or none")
    if index_layers is not None:
        for layer, kind in enumerate(index_layers):
            if kind not in ("full", "shared"):
                raise ValueError(f"validate: index_layers is {kind!r} at {layer}, needs 'full' or 'shared'")
        made.stage_layers = list(stage_layers or [])
        made.shared_indexer = [kind == "shared" for kind in index_layers]
    return made


def validate(
    schedule: Schedule,
    *,
    ranks: int | None = None,
    stages: int | None = None,
    microbatches: int | None = None,
    sends: str = "blocking",
    lockstep: bool = False,
    max_active_stages: int | None = None,
    stage_bytes: Sequence[float] | None = None,
    weight_budget: float | None = None,
    max_activations: int | None = None,
    max_kv_tokens: int | None = None,
    stage_layers: Sequence[int] | None = None,
    index_layers: Sequence[str] | None = None,
) -> None:
    """Prove that a schedule can run and does all its work, or say why not.

    Parameters
    ----------
    schedule : Schedule
    ranks, stages, microbatches : int, optional
        How many there must be.
    sends : {"blocking", "buffered"}
        A blocking send stands still until the receiver stands at its receive; a buffered one goes on. What ends with
        blocking sends ends with buffered ones.
    lockstep : bool
        Take every cell, idle ones too, as one step, and demand that what it needs ended in an earlier step.
    max_active_stages : int, optional
        Stages whose weights a rank may hold at once.
    stage_bytes, weight_budget : [stages] and float, optional
        Weights of each stage in bytes, and how many bytes a rank may hold.
    max_activations : int, optional
        (stage, micro-batch) pairs a rank may hold at once.
    max_kv_tokens : int, optional
        Tokens of KV, summed over its stages, that a rank may hold at once.
    stage_layers : [stages] int, with ``index_layers``
        Layers of each stage.
    index_layers : [layers] of "full" or "shared", optional
        A "shared" layer reuses the top-k indices of the layer below (IndexShare): a stage that starts with one needs
        them handed over by RECV_X.

    Raises
    ------
    ScheduleError
        With the reason and the rank x step grid, the bad cell marked ``>like this<``. Found are: wrong counts; stages
        or micro-batches out of range; a stage on two ranks; malformed brackets; work done twice or never; an action
        before what it needs; messages that are missing, unmatched, crossed, or between stages of one rank; chunks
        with gaps or out of order; batches that differ between stages in content or order; a sample of a chunk that is
        not the last; weights used but not fetched, fetched twice, never evicted; memory over a limit; and deadlock,
        with the cycle of ranks that wait for one another.
    ValueError
        If an argument is malformed.

    Notes
    -----
    Linear in the actions. Messages from one rank to another are taken to share one untagged channel, as with NCCL.

    Examples
    --------
    >>> from sparsespan.pipeline import Schedule, validate
    >>> validate(Schedule([["0F0", "0B0"], ["1B0", "1F0"]]))
    Traceback (most recent call last):
    ...
    sparsespan.pipeline.ScheduleError: validate: rank 1, step 0 (1B0): needs the forward of micro-batch 0 on stage 1...
    step   0     1
    rank 0 0F0   0B0
    rank 1 >1B0< 1F0
    """
    made = rules(
        stage_layers,
        index_layers,
        ranks=ranks,
        stages=stages,
        microbatches=microbatches,
        sends=sends,
        lockstep=lockstep,
        max_active_stages=max_active_stages,
        stage_bytes=None if stage_bytes is None else list(stage_bytes),
        weight_budget=weight_budget,
        max_activations=max_activations,
        max_kv_tokens=max_kv_tokens,
    )
    _core.pipeline.validate(schedule._core, made)
