"""Which ranks talk to which: group lists in the engines' own orders."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .. import _core

__all__ = ["RankGrid", "rank_grid"]

_SHOWN = 8  # groups per line of the printed table


@dataclass(frozen=True, repr=False)
class RankGrid:
    """Group lists of a TP x CP x DCP x PP x DP x EP grid. Made by :func:`rank_grid`; equal when the numbers are.

    ``print(grid)`` shows a line per kind of group; ``repr`` is the call that made it.
    """

    tp: int | None
    cp: int
    dcp: int
    pp: int
    dp: int
    ep: int
    flavor: str
    moe_dp: int = 1
    attn_cp: int = 1
    dcp_axis: str = "tp"
    cp_strategy: str | None = field(default=None, compare=False)
    heads: int | None = field(default=None, compare=False)
    kv_heads: int = field(default=1, compare=False)
    sparse: bool = field(default=True, compare=False)

    _core: ClassVar[Any]

    def __post_init__(self) -> None:
        core = _core.cp.RankGrid(*(getattr(self, f.name) for f in fields(self)))
        object.__setattr__(self, "_core", core)
        object.__setattr__(self, "tp", core.tp)

    def __repr__(self) -> str:
        return str(self._core.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RankGrid, tuple(getattr(self, f.name) for f in fields(self)))

    def __str__(self) -> str:
        lines = [f"{self!r}: {self.world_size} ranks"]
        for name in self.names:
            groups = self.groups(name)
            shown = " ".join(str(g).replace(" ", "") for g in groups[:_SHOWN])
            more = f" ... ({len(groups)} groups)" if len(groups) > _SHOWN else ""
            lines.append(f"  {name:<8}{len(groups):>5} x {len(groups[0]):<5}{shown}{more}")
        return "\n".join(lines)

    @property
    def world_size(self) -> int:
        """Ranks of the grid."""
        return int(self._core.world_size)

    @property
    def attn_tp(self) -> int:
        """Ranks that share the heads of one attention layer: tp, in SGLang tp / dp / cp, in vLLM tp / attn_cp."""
        return int(self._core.attn_tp)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, the same for equal grids in every process and on every machine."""
        return str(self._core.fingerprint)

    @property
    def names(self) -> list[str]:
        """Kinds of groups, in the order an engine creates them (every rank must use the same order)."""
        return list(self._core.names)

    def groups(self, name: str) -> list[list[int]]:
        """All groups of one kind, in the engine's order; every rank stands in exactly one."""
        return self._core.groups(name)  # type: ignore[no-any-return]

    def group_of(self, name: str, rank: int) -> list[int]:
        """The group of that kind in which a rank stands."""
        return self._core.group_of(name, rank)  # type: ignore[no-any-return]

    def rank_in(self, name: str, rank: int) -> int:
        """A rank's index inside its group of that kind: its tp_rank, cp_rank, dcp_rank, ..."""
        return int(self._core.locate(name, rank)[1])

    def coords(self, rank: int) -> dict[str, int]:
        """:meth:`rank_in` for every kind of group."""
        return {name: self.rank_in(name, rank) for name in self.names}

    def nodes(self, name: str, ranks_per_node: int) -> list[int]:
        """How many nodes each group of that kind touches when ranks fill nodes in order.

        Examples
        --------
        >>> from sparsespan.cp import rank_grid
        >>> rank_grid(tp=32, cp=32, flavor="sglang").nodes("cp", ranks_per_node=16)
        [2]
        """
        if ranks_per_node < 1:
            raise ValueError(f"rank_grid: ranks_per_node is {ranks_per_node}, needs at least 1")
        return [len({rank // ranks_per_node for rank in group}) for group in self.groups(name)]


def rank_grid(
    tp: int | None = None,
    cp: int = 1,
    dcp: int = 1,
    pp: int = 1,
    dp: int = 1,
    ep: int = 1,
    flavor: str = "native",
    *,
    moe_dp: int = 1,
    attn_cp: int = 1,
    dcp_axis: str = "tp",
    cp_strategy: str | None = None,
    heads: int | None = None,
    kv_heads: int = 1,
    sparse: bool = True,
) -> RankGrid:
    """Number the ranks and list who talks to whom, as one of the engines would, or natively.

    Parameters
    ----------
    tp : int, optional
        Ranks that share heads. Natively and in vLLM the attention TP; in SGLang the TP group, which holds DP and CP.
        None takes the smallest: attention TP = ``dcp``.
    cp : int
        Prefill context parallelism: ``prefill_context_parallel_size`` of vLLM, ``attn_cp`` of SGLang.
    dcp : int
        Decode context parallelism: ranks of TP that share one KV cache; adds no ranks.
    pp, dp, ep : int
        Pipeline stages; data parallelism (in SGLang DP attention, inside TP); expert parallelism.
    flavor : {"native", "sglang", "vllm", "vllm_ascend"}
    moe_dp : int
        SGLang's MoE data parallelism.
    attn_cp : int
        vLLM's ``attention_context_parallel_size``: CP inside TP, beside neither PCP nor DCP (newer releases).
    dcp_axis : {"tp", "pcp"}
        vLLM with PCP and DCP: whether DCP groups are chunks of TP, or span PCP first and then TP (newer releases).
    cp_strategy : {"zigzag", "interleave", "contiguous"}, optional
        SGLang's ``--cp-strategy``; zigzag forces ``ep = tp``.
    heads, kv_heads : int, optional
        Query and KV heads, to check that they divide; ``kv_heads=1`` is MLA.
    sparse : bool
        vllm_ascend: the sparse backend (V3.2), whose DCP takes the whole TP group.

    Returns
    -------
    RankGrid

    Raises
    ------
    ValueError
        Where the engine would refuse the sizes: its rule in words and the nearest valid numbers.

    Notes
    -----
    Rank numbers, slowest axis first: native dp, pp, cp, tp (``world = dp * pp * cp * tp``); vLLM dp, pp, pcp, tp;
    SGLang pp, dp, cp, attn_tp (``world = pp * tp``).

    Groups: "tp", "dcp", "cp", "pp", "dp", "ep" everywhere. Native also "cp_dcp": all shards of one KV cache when both
    split it, index ``cp_rank * dcp + dcp_rank``. SGLang also "attn_tp", "moe_dp", "moe_tp"; vLLM with ``attn_cp`` also
    "attn_tp", "attn_cp"; vllm_ascend also "dsa_cp" (DSA-CP takes the TP group). The order of groups is that of the
    engines' ``initialize_model_parallel``. Reference: :func:`sparsespan.reference.cp_grid.rank_groups`.

    Examples
    --------
    >>> from sparsespan.cp import rank_grid
    >>> rank_grid(tp=8, cp=2, flavor="sglang").groups("cp")
    [[0, 4], [1, 5], [2, 6], [3, 7]]
    >>> print(rank_grid(tp=2, cp=2))
    rank_grid(tp=2, cp=2, dcp=1, pp=1, dp=1, ep=1, flavor='native'): 4 ranks
      tp          2 x 2    [0,1] [2,3]
      dcp         4 x 1    [0] [1] [2] [3]
      cp          2 x 2    [0,2] [1,3]
      cp_dcp      2 x 2    [0,2] [1,3]
      pp          4 x 1    [0] [1] [2] [3]
      dp          4 x 1    [0] [1] [2] [3]
      ep          4 x 1    [0] [1] [2] [3]
    """
    return RankGrid(tp, cp, dcp, pp, dp, ep, flavor, moe_dp, attn_cp, dcp_axis, cp_strategy, heads, kv_heads, sparse)
