"""A rank's place in a pipeline, and what it computes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .. import _core, cp
from ..comm import Communicator, as_comm
from ._batch import Batch
from ._layer_shard import LayerShard
from ._messages import dtype_of

__all__ = ["Stage", "StageInput", "StageProgram"]


class Stage:
    """A rank's place on a grid of pipeline stages, each of ``cp`` or ``tp`` ranks. Collective to make.

    Ranks are dealt stage by stage, as :func:`sparsespan.cp.rank_grid` does natively: rank ``r`` of ``comm`` is rank
    ``r mod G`` of stage ``r // G``, with ``G = cp * tp``. Rank i of a stage exchanges messages with rank i of others.

    Parameters
    ----------
    comm : Communicator, or what :func:`sparsespan.comm.as_comm` takes
        ``pp * cp * tp`` ranks.
    pp : int
        Stages.
    cp : int
        Ranks of a stage that split the rows of a batch. Hidden states travel as each rank's own rows; nothing is
        gathered on the way.
    tp : int
        Ranks of a stage that all have all rows. Each sends ``ceil(n / tp)`` of them, and the receivers gather.
    scheme : str
        How rows are split under ``cp``, see :func:`sparsespan.cp.split_plan`. ``"contiguous_flat"`` is the sequence
        parallel form of vllm-ascend: ``ceil(n / cp)`` rows each.
    blocking_sends : bool
        A send stands still until it is received, as on backends whose asynchronous send blocks.

    Attributes
    ----------
    index, rank : int
        Which stage, and which rank of it.
    comm : Communicator
        The ranks of the stage. A :class:`LayerShard` of the stage lives here.
    world, lines : Communicator
        All ranks; and the same for the messages between stages alone, with the timeout that ``comm`` had.

    Raises
    ------
    ValueError
        If the ranks do not make the grid, or both ``cp`` and ``tp`` are above 1.

    Examples
    --------
    >>> from sparsespan.comm import run_ranks
    >>> from sparsespan.pipeline import Stage
    >>> [str(s) for s in run_ranks(4, lambda comm: Stage(comm, pp=2, cp=2))]
    ['stage 0 of 2, rank 0 of 2', 'stage 0 of 2, rank 1 of 2', 'stage 1 of 2, rank 0 of 2', 'stage 1 of 2, rank 1 of 2']
    """

    def __init__(
        self,
        comm: Communicator,
        *,
        pp: int,
        cp: int = 1,
        tp: int = 1,
        scheme: str = "zigzag",
        blocking_sends: bool = False,
    ) -> None:
        for name, value in (("pp", pp), ("cp", cp), ("tp", tp)):
            if not isinstance(value, (int, np.integer)):
                raise TypeError(f"Stage: {name} is {value!r}, needs an integer")
            if value < 1:
                raise ValueError(f"Stage: {name} is {value}, needs at least 1")
        if cp > 1 and tp > 1:
            raise ValueError(f"Stage: cp is {cp} and tp {tp}, needs one of them 1: a stage splits rows or repeats them")
        comm = as_comm(comm)
        if pp * cp * tp != comm.size:
            raise ValueError(f"Stage: pp * cp * tp is {pp * cp * tp}, needs {comm.size}, the ranks of comm")
        self.world = comm
        self.pp, self.cp, self.tp = pp, cp, tp
        self.scheme = scheme
        self.blocking_sends = blocking_sends
        self.index, self.rank = divmod(comm.rank, cp * tp)
        part = comm.split(self.index, self.rank)
        if part is None:
            raise ValueError("Stage: the communicator gave no group for this stage")
        self.comm: Communicator = part
        lines = comm.split(0, comm.rank)
        if lines is None:
            raise ValueError("Stage: the communicator gave no group for messages")
        # Messages between stages say what they are: comparing that once more would cost a round trip each, on
        # transports where nothing moves between calls.
        self.lines: Communicator = lines
        _core.comm.trust(lines._native)

    @property
    def first(self) -> bool:
        """Whether this is stage 0."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """Whether no stage follows."""
        return self.index == self.pp - 1

    def peer(self, stage: int) -> int:
        """The rank of the whole that stands on another stage where this one stands on its own."""
        return stage * self.cp * self.tp + self.rank

    def __str__(self) -> str:
        return f"stage {self.index} of {self.pp}, rank {self.rank} of {self.cp * self.tp}"

    def __repr__(self) -> str:
        return f"<Stage: {self}>"


@dataclass
class StageProgram:
    """What the stages compute.

    Parameters
    ----------
    forward : callable
        ``forward(StageInput)`` gives the hidden states after this stage's layers: an array like the one that came in;
        with ``residual`` a mapping of "hidden_states" and "residual"; or a tuple of that and the top-k indices
        [rows, topk] int32 for a next stage that starts with a layer sharing them.
    width : int
        Elements of a row of hidden states.
    dtype : str
        Of hidden states (and residual).
    embed : callable, optional
        First stage: token ids [n] (this rank's) to rows [n, width]. Without it, inputs are rows of hidden states.
    sample : callable, optional
        Last stage: ``sample(rows, batch)`` turns each request's last row [requests, width] into its next token.
        Needed where tokens go round (decode).
    state : callable, optional
        Makes what ``forward`` keeps from batch to batch, such as caches; a fresh one for every run.
    topk : int
        Width of handed over indices.
    residual : bool
        Whether a residual stream travels beside the hidden states.
    shard : LayerShard, optional
        Of this stage. All its broadcasts end before a message to another stage starts.
    """

    forward: Callable[[StageInput], Any]
    width: int
    dtype: str = "bfloat16"
    embed: Callable[[Any], Any] | None = None
    sample: Callable[[Any, Batch], Any] | None = None
    state: Callable[[], Any] | None = None
    topk: int = 0
    residual: bool = False
    shard: LayerShard | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"StageProgram: width is {self.width}, needs at least 1")
        try:
            dtype_of(self.dtype)
        except TypeError:
            raise TypeError(f"StageProgram: dtype is {self.dtype!r}, needs the name of one") from None

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What travels between stages for every batch."""
        names = ("hidden_states", "residual") if self.residual else ("hidden_states",)
        return {name: ((self.width,), self.dtype) for name in names}


@dataclass
class StageInput:
    """One batch on one stage, as ``forward`` sees it.

    Attributes
    ----------
    hidden : array [n, width]
        This rank's rows, in the plan's local order. Valid during the call.
    residual : array [n, width] or None
    indices : int32 array [n, topk] or None
        Handed over by the stage before.
    batch : Batch
    stage : Stage
    state : object
        What the program's ``state`` made.
    """

    hidden: Any
    residual: Any
    indices: Any
    batch: Batch
    stage: Stage
    state: Any
    _run: Any = field(repr=False)

    @property
    def plan(self) -> cp.CpPlan:
        """Derived from the lengths on this stage, the same on all."""
        return self.batch.plan

    @property
    def rank(self) -> int:
        """Which of the plan's ranks this is."""
        return self.stage.rank if self.stage.cp > 1 else 0

    @property
    def comm(self) -> Communicator | None:
        """The ranks of the stage, or None where there is one."""
        return self.stage.comm if self.stage.comm.size > 1 else None

    @cached_property
    def positions(self) -> np.ndarray:
        """[n] logical position of each row."""
        return self.plan.positions(self.rank)

    def allocate(self, shape: Any, dtype: Any) -> np.ndarray:
        """An array that counts towards the peak until ``forward`` returns."""
        array = np.empty(shape, dtype)
        self._run.count(array.nbytes)
        return array

    def poll(self) -> None:
        """Move messages on: nothing moves between calls. :meth:`span` and :meth:`layer` do it at both ends."""
        self._run.poll()

    @contextmanager
    def span(self, name: str, **args: Any) -> Iterator[None]:
        """Show this part of ``forward`` in the trace, inside its batch."""
        self.poll()
        with self._run.recorder.span("compute", name, **args):
            yield
        self.poll()

    @contextmanager
    def layer(self, layer: int) -> Iterator[Mapping[str, Any]]:
        """Reach a layer of the program's shard, wait for its weights, show it in the trace; gives the weights."""
        shard = self._run.program.shard
        if shard is None:
            with self.span(f"layer {layer}"):
                yield {}
            return
        with self._run.recorder.fetched(shard, layer) as fetch:
            shard.reach(layer)
            weights = shard.wait(layer)
        with self.span(f"layer {layer}", uses=fetch):
            yield weights
