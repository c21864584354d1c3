"""Prefill on one grid of ranks, decode on another (PD disaggregation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ._config import ModelConfig
from ._generate import go_on, require_new
from ._grid import Grid
from ._hand_over import HandOver, hand_over
from ._model import Model
from ._pool import KvPool
from ._ranks import Ranks

__all__ = ["PdGrid", "PdRanks"]


@dataclasses.dataclass(frozen=True)
class PdGrid:
    """Two grids of one program: the prefill ranks come first, the decode ranks behind them.

    Attributes
    ----------
    prefill, decode : Grid
        Of any shapes, with page sizes of their own; ``decode.cp`` is 1.

    Examples
    --------
    >>> from sparsespan.models import Grid, PdGrid
    >>> grid = PdGrid(Grid(cp=4), Grid(tp=2, dcp=2))
    >>> grid.ranks, grid.words
    (6, 'CP4 zigzag -> TP2 x DCP2 a2a, index-K replicated')
    """

    prefill: Grid
    decode: Grid

    def __post_init__(self) -> None:
        if self.decode.cp > 1:
            raise ValueError(
                f"grid: the decode side has cp = {self.decode.cp}, needs 1: a step's rows stand on all its ranks; "
                f"dcp = {self.decode.cp} shares the KV cache, tp the heads"
            )

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.prefill.ranks + self.decode.ranks

    @property
    def words(self) -> str:
        """Both grids in a few letters."""
        return f"{self.prefill.words} -> {self.decode.words}"

    def require(self, config: ModelConfig) -> None:
        """Refuse a model that either grid does not divide, as :meth:`Grid.require`."""
        self.prefill.require(config)
        try:
            self.decode.require(config)
        except ValueError as refusal:
            raise ValueError(f"decode {refusal}") from None

    def place(self, rank: int) -> dict[str, Any]:
        """Where a rank stands: its ``side``, and its place in that grid as of :meth:`Grid.place`."""
        prefills = rank < self.prefill.ranks
        side = self.prefill if prefills else self.decode
        at = side.place(rank if prefills else rank - self.prefill.ranks)
        return {"side": "prefill" if prefills else "decode", **at}

    def require_room(self, config: ModelConfig, prompt: int, new: int, pool: int = 0) -> tuple[int, int]:
        """Tokens that the caches of a prefill rank and of a decode rank need, as :meth:`Grid.require_room`."""
        room = self.decode.require_room(config, prompt, new, pool)
        try:  # what is generated stands on the decode ranks alone
            return self.prefill.require_room(config, prompt, 1, pool), room
        except ValueError as refusal:
            raise ValueError(f"prefill ranks: {refusal}") from None

    def join(self, world: Any) -> PdRanks:
        """Make this rank's groups. Collective."""
        if world.size != self.ranks:
            raise ValueError(f"grid: {self.words} has {self.ranks} ranks, the program {world.size}; needs the same")
        prefills = world.rank < self.prefill.ranks
        ranks, groups = (self.prefill if prefills else self.decode).join(world.split(0 if prefills else 1))
        return PdRanks(self, world, prefills, ranks, groups)


@dataclasses.dataclass(frozen=True)
class PdRanks:
    """A rank of a :class:`PdGrid`; made by :meth:`PdGrid.join`.

    Attributes
    ----------
    grid : PdGrid
    world : Communicator
        All ranks of both grids.
    prefills : bool
        Whether this rank is one of the prefill grid's.
    ranks : Ranks
        What :func:`load` takes.
    groups : dict of {str: Communicator}
        The groups of this rank's side, by name, as of :meth:`Grid.join`.
    """

    grid: PdGrid
    world: Any
    prefills: bool
    ranks: Ranks
    groups: dict[str, Any]

    @property
    def side(self) -> Grid:
        """The grid that this rank is in."""
        return self.grid.prefill if self.prefills else self.grid.decode

    def hand_over(
        self, model: Model, pool: KvPool, requests: Sequence[int] = (), logits: Any = None, *,
        timeout: float | None = None, threads: int = 0,
    ) -> HandOver:  # fmt: skip
        """Carry requests from the prefill ranks' pools to the decode ranks': caches, lengths and logits. Collective.

        Parameters
        ----------
        model : Model
            This rank's; all ranks have parts of the same one.
        pool : KvPool
            This rank's, with pages of its grid's size and the cache layouts of all others.
        requests : sequence of int
            On a prefill rank: which ones, of ``pool``; the same on all prefill ranks. On a decode rank none: it opens
            as many in ``pool`` as come.
        logits : float32 array [B, vocab], optional
            On a prefill rank that has them: what :meth:`Model.prefill` gave. They go to every decode rank.
        timeout : float, optional
            Seconds to wait until all ranks have come; default the communicator's. Decode ranks that call early wait for
            the whole prefill, which may take longer.
        threads : int

        Returns
        -------
        HandOver

        Raises
        ------
        PoolFull
            On every rank, if some decode rank has too few free pages. Nothing has moved.
        ValueError
            On every rank: pools, requests or models of ranks that do not go together. Nothing has moved.
        ChecksumMismatch, CommError
            As :func:`sparsespan.cp.run_transfer`; no decode rank has new requests.

        Notes
        -----
        The prefill ranks keep the requests until they close them. Every rank first tells its pool and its layers, so
        that all come to the same verdict before anything moves; then :func:`sparsespan.cp.transfer_plan` says who sends
        which rows, each decode rank gets every row that it needs once, and the rows keep their bytes: what a decode
        rank computes has the bits that it would have over the prefill ranks' caches.

        Examples
        --------
        >>> import tempfile
        >>> from sparsespan import comm, models
        >>> path = models.write_tiny(tempfile.mkdtemp() + "/tiny", "glm_moe_dsa", num_hidden_layers=2, index_topk=8)
        >>> grid, prompts = models.PdGrid(models.Grid(cp=2), models.Grid(tp=2, dcp=2)), [[1, 2, 3], [4] * 20]
        >>> def rank(world):
        ...     here = grid.join(world)
        ...     model = models.load(path, ranks=here.ranks)
        ...     pool = model.pool(256)
        ...     if here.prefills:
        ...         requests = [pool.open() for _ in prompts]
        ...         here.hand_over(model, pool, requests, model.prefill(pool, requests, prompts))
        ...         return None
        ...     came = here.hand_over(model, pool)
        ...     return model.decode(pool, came.requests, came.logits.argmax(1)).argmax(1).tolist()
        >>> whole = models.load(path)
        >>> comm.run_ranks(4, rank)[2] == [t[1] for t in whole.generate(prompts, 2, stop_at_eos=False)]
        True
        """
        grids = (self.grid.prefill, self.grid.decode)
        return hand_over(self.world, grids, model.config, pool, requests, logits, timeout, threads)

    def generate(
        self, model: Model, prompts: Sequence[Any], max_new_tokens: int, *, pool: KvPool | None = None, chunk: int = 0,
        temperature: float = 0.0, seed: int = 0, stop_at_eos: bool = True,
        on_token: Callable[[int, int], None] | None = None, on_hand_over: Callable[[HandOver], None] | None = None,
        timeout: float | None = None, threads: int = 0,
    ) -> list[list[int]] | None:  # fmt: skip
        """Prefill prompts on one side, hand them over, and generate on the other. Collective, the same call everywhere.

        Parameters
        ----------
        model, timeout
            As in :meth:`hand_over`.
        prompts, max_new_tokens, pool, chunk, temperature, seed, stop_at_eos, threads
            As in :meth:`Model.generate`; the default pool of each side is of just the size that it needs.
        on_token : callable, optional
            Called with (number of the prompt, token) on the decode ranks.
        on_hand_over : callable, optional
            Called with the :class:`HandOver` once this rank has it.

        Returns
        -------
        list of list of int, or None
            New tokens of each prompt on a decode rank, those of :meth:`Model.generate`; None on a prefill rank.
        """
        require_new(max_new_tokens)
        page = self.side.page_size
        held = page * self.side.dcp
        wanted = [len(p) + (0 if self.prefills else max_new_tokens) for p in prompts]
        own = pool or model.pool(sum(-(-n // held) * held for n in wanted) or 1, page)
        requests = [own.open() for _ in prompts] if self.prefills else []
        try:
            logits = None
            if self.prefills:
                logits = model.prefill(own, requests, prompts, chunk=chunk, threads=threads)
            came = self.hand_over(model, own, requests, logits, timeout=timeout, threads=threads)
            requests = list(came.requests)
            if on_hand_over is not None:
                on_hand_over(came)
            if self.prefills:
                return None
            return go_on(
                model, own, requests, came.logits, max_new_tokens, threads, (temperature, seed), stop_at_eos, on_token
            )
        finally:
            for request in requests:
                own.close(request)
