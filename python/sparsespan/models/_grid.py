"""A grid of ranks for a whole model: what it asks of the model, and the groups it makes."""

from __future__ import annotations

import dataclasses
from typing import Any

from .. import cp
from ._config import ModelConfig
from ._dcp import Dcp
from ._ranks import O_PROJ, Ranks, split_stages
from ._relay import trusted_line

__all__ = ["Grid"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """``pp x cp x tp`` ranks: ``r = (stage * cp + part of the rows) * tp + part of the heads``.

    Attributes
    ----------
    tp, cp : int
        Ranks that share heads, widths and experts; ranks that share the rows of a prefill.
    dcp : int
        Ranks that share the KV cache: 1, or all of ``tp``.
    scheme, combine, index_k : str
        As in :class:`Ranks` and :class:`Dcp`.
    page_size : int
        Tokens of a page of the caches.
    pp : int
        Stages, each with some of the layers.
    stage_layers : sequence of int, optional
        Layers of each stage, as in :class:`Ranks`.
    o_proj : str
        How the ranks of ``cp`` keep o_proj, as in :class:`Ranks`.
    """

    tp: int = 1
    cp: int = 1
    dcp: int = 1
    scheme: str = "zigzag"
    combine: str = "a2a"
    index_k: str = "replicated"
    page_size: int = 64
    pp: int = 1
    stage_layers: tuple[int, ...] | None = None
    o_proj: str = "full"

    def __post_init__(self) -> None:
        for name in ("tp", "cp", "dcp", "page_size", "pp"):
            if getattr(self, name) < 1:
                raise ValueError(f"grid: {name} is {getattr(self, name)}, needs at least 1")
        if self.dcp > 1 and self.cp > 1:
            raise ValueError(
                f"grid: cp is {self.cp} and dcp {self.dcp}, needs one of them to be 1: rows are shared, or the KV "
                "cache is"
            )
        if self.o_proj not in O_PROJ:
            raise ValueError(f"grid: o_proj is {self.o_proj!r}, needs one of {', '.join(map(repr, O_PROJ))}")
        if self.o_proj != "full" and self.cp == 1:
            raise ValueError(f'grid: o_proj is {self.o_proj!r} and cp 1, needs ranks that share it, or "full"')
        if self.dcp not in (1, self.tp):
            raise ValueError(f"grid: dcp is {self.dcp} and tp {self.tp}, needs dcp = {self.tp} (or 1): all ranks of tp")

    @classmethod
    def of(cls, flavor: str, tp: int | None = None, cp: int = 1, dcp: int = 1, pp: int = 1, **options: Any) -> Grid:
        """Make a grid from the numbers that an engine would be started with.

        Parameters
        ----------
        flavor : {"native", "vllm", "sglang"}
            "native" and "vllm" mean by ``tp`` the ranks that share heads: ``pp * cp * tp`` ranks in all. For "sglang"
            ``tp`` is all ranks of a stage, and ``cp`` lies inside it: heads are shared by ``tp / cp`` ranks.
        tp : int, optional
            Default ``dcp``, for "sglang" ``cp * dcp``.
        cp, dcp, pp : int
        **options
            Further fields of the grid.

        Raises
        ------
        ValueError
            Numbers that make no grid.

        Notes
        -----
        Both engines deal ranks stage by stage, and inside a stage by parts of the rows, then of the heads. SGLang's
        rank is ``pp_rank * tp + cp_rank * (tp / cp) + attn_tp_rank``, vLLM's ``(pp_rank * pcp + pcp_rank) * tp +
        tp_rank``.
        The groups are those of :func:`sparsespan.cp.rank_grid`.

        Examples
        --------
        >>> from sparsespan.models import Grid
        >>> Grid.of("sglang", tp=8, cp=8, pp=2).words, Grid.of("vllm", tp=8, cp=8, pp=2).ranks
        ('CP8 zigzag x PP2', 128)
        """
        if flavor not in ("native", "vllm", "sglang"):
            raise ValueError(f'grid: flavor is {flavor!r}, needs "native", "vllm" or "sglang"')
        if flavor != "sglang":
            return cls(dcp if tp is None else tp, cp, dcp, pp=pp, **options)
        whole = cp * dcp if tp is None else tp
        if cp < 1 or whole < 1 or whole % cp:
            good = [n for n in range(1, max(whole, 1) + 1) if whole % n == 0]
            near = min(good, key=lambda n: abs(n - cp))
            raise ValueError(
                f"grid: tp is {whole} and cp {cp}; sglang's cp lies inside tp, needs one that divides it: "
                f"{', '.join(map(str, good))}; nearest is --tp {whole} --cp {near}"
            )
        shared = whole // cp
        if dcp not in (1, shared):
            raise ValueError(
                f"grid: tp is {whole}, cp {cp} and dcp {dcp}: heads are shared by tp / cp = {shared} ranks, needs "
                f"dcp = {shared} (or 1), all of them; nearest is --tp {cp * dcp} --cp {cp} --dcp {dcp}"
            )
        return cls(shared, cp, dcp, pp=pp, **options)

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.pp * self.cp * self.tp

    def place(self, rank: int) -> dict[str, int]:
        """Where a rank stands: its stage, its part of the rows (``cp``) and of the heads (``tp``)."""
        if not 0 <= rank < self.ranks:
            raise ValueError(f"grid: rank is {rank}, needs 0 to {self.ranks - 1}: {self.words}")
        return {"stage": rank // (self.cp * self.tp), "cp": rank // self.tp % self.cp, "tp": rank % self.tp}

    @property
    def words(self) -> str:
        """The grid in a few letters, such as ``TP2 x CP2 zigzag``."""
        parts = [f"TP{self.tp}"] if self.tp > 1 else []
        kept = "" if self.o_proj == "full" else f", o_proj {self.o_proj}"
        parts += [f"CP{self.cp} {self.scheme}{kept}"] if self.cp > 1 else []
        parts += [f"DCP{self.dcp} {self.combine}, index-K {self.index_k}"] if self.dcp > 1 else []
        parts += [f"PP{self.pp}"] if self.pp > 1 else []
        return " x ".join(parts) or "one rank"

    def require(self, config: ModelConfig) -> None:
        """Refuse a model that ``tp`` does not divide, or that has fewer layers than stages.

        Raises
        ------
        ValueError
            Which dimension it is, and what divides them all.
        """
        try:
            split_stages(config.num_hidden_layers, self.pp, self.stage_layers)
        except ValueError as error:
            raise ValueError(f"grid: {error}") from None
        spread = {"num_attention_heads": config.dims.heads, "hidden_size": config.dims.hidden}
        if "dense" in config.mlp_layer_types:
            spread["intermediate_size"] = config.intermediate_size
        if "sparse" in config.mlp_layer_types:
            spread["the shared experts' width"] = config.moe_intermediate_size * config.n_shared_experts
        wrong = [f"{name} = {n}" for name, n in spread.items() if n % self.tp]
        if wrong:
            good = [n for n in range(1, config.dims.heads + 1) if not any(m % n for m in spread.values())]
            nearest = dataclasses.replace(self, tp=min(good, key=lambda n: abs(n - self.tp)), dcp=1)
            raise ValueError(
                f"grid: tp is {self.tp}, which does not divide {', '.join(wrong)}; needs one of "
                f"{', '.join(map(str, good))}: nearest is {nearest.words}"
            )

        self._require_o_proj(config)

    def _require_o_proj(self, config: ModelConfig) -> None:
        n = {"gather_weight": config.dims.hidden, "a2a_rs": config.dims.heads * config.dims.v_head}.get(self.o_proj, 0)
        if self.o_proj == "gather_weight":
            n //= self.tp
        if n % self.cp:
            good = ", ".join(str(c) for c in range(1, min(n, 64) + 1) if n % c == 0)
            what = "rows" if self.o_proj == "gather_weight" else "columns"
            raise ValueError(
                f"grid: {self.o_proj!r} cuts {n} {what} of o_proj over {self.cp} ranks that share rows, needs cp {good}"
            )

    def join(self, world: Any) -> tuple[Ranks, dict[str, Any]]:
        """Make this rank's groups, and the communicators of those that have more than one rank, by name. Collective."""
        if world.size != self.ranks:
            raise ValueError(f"grid: {self.words} has {self.ranks} ranks, the program {world.size}; needs the same")
        at = self.place(world.rank)
        groups: dict[str, Any] = {}
        if self.cp > 1:
            groups["cp"] = world if self.cp == self.ranks else world.split(at["stage"] * self.tp + at["tp"])
        if self.tp > 1:
            groups["tp"] = world if self.tp == self.ranks else world.split(at["stage"] * self.cp + at["cp"])
        if self.cp > 1 and self.tp > 1:
            groups["experts"] = world.split(at["stage"])
        if self.pp > 1:
            groups["pp"] = trusted_line(world.split(at["cp"] * self.tp + at["tp"]))
        dcp = None
        if self.dcp > 1:
            layout = cp.dcp_layout(1, self.dcp, self.page_size)
            dcp = Dcp(layout, combine=self.combine, index_k=self.index_k)
        experts = groups.get("experts", groups.get("cp"))
        stages = {"pp": groups["pp"], "stage_layers": self.stage_layers} if self.pp > 1 else {}
        ranks = Ranks(
            groups.get("cp"), self.scheme, groups.get("tp"), dcp=dcp, experts=experts, o_proj=self.o_proj, **stages
        )
        return ranks, groups

    def require_room(self, config: ModelConfig, prompt: int, new: int, pool: int = 0) -> int:
        """Tokens that the caches need for a prompt and what is generated behind it, in whole pages.

        The last token is never read back, so that it takes no room.

        Raises
        ------
        ValueError
            An empty prompt, more than ``max_position_embeddings``, more than ``pool`` tokens (0: as many as needed).
        """
        limit, needs, page = config.max_position_embeddings, prompt + new - 1, self.page_size * self.dcp
        if prompt < 1:
            raise ValueError("the prompt is empty, needs at least one token")
        if needs > limit:
            raise ValueError(
                f"the prompt has {prompt} tokens and {new} are wanted, "
                f"needs at most max_position_embeddings = {limit}: "
                + (f"shorten the prompt to {limit - new + 1}" if prompt > limit else f"ask for {limit - prompt + 1}")
            )
        if pool and needs > self._held(pool):
            raise ValueError(
                f"the prompt has {prompt} tokens and {new} are wanted: {self._held(needs)} in pages of {page}, "
                f"the pool has {self._held(pool)}; needs a larger pool, a shorter prompt or fewer new tokens"
            )
        return self._held(pool or needs)

    def _held(self, tokens: int) -> int:
        """The tokens that whole pages hold."""
        page = self.page_size * self.dcp
        return -(-tokens // page) * page
