"""A mixture of experts: the router, the experts that this rank keeps, and the shared one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._config import ModelConfig
from ._experts import ExpertRanks
from ._linear import Linear
from ._mlp import Mlp
from ._taps import seen

__all__ = ["MoE", "route"]


def route(
    logits: np.ndarray, bias: np.ndarray, *, groups: int, keep_groups: int, experts: int, normalise: bool, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose experts for each row.

    Parameters
    ----------
    logits : float32 [T, E]
    bias : float32 [E]
        Added to the sigmoid scores for the choice, not for the weights.
    groups, keep_groups : int
        Experts stand in ``groups`` equal groups; the ``keep_groups`` with the largest sum of their two best stay.
    experts : int
        Chosen per row.
    normalise : bool
        Whether the chosen weights are divided by their sum.
    scale : float
        Factor on the weights at the end.

    Returns
    -------
    chosen : int64 [T, experts]
        Ascending. Of equal scores the smaller index wins.
    weights : float32 [T, experts]

    Notes
    -----
    Source: DeepSeek-V3 ``Gate`` (noaux_tc), transformers ``DeepseekV32TopkRouter``.
    """
    rows, count = logits.shape
    e = np.exp(-np.abs(logits))
    scores = np.where(logits >= 0, np.float32(1), e) / (np.float32(1) + e)
    choice = scores + bias.astype(np.float32)
    if groups > 1:
        best = np.sort(choice.reshape(rows, groups, count // groups), axis=-1)[..., -2:]
        group_scores = best[..., 1] + best[..., 0]
        kept = np.argsort(-group_scores, axis=-1, kind="stable")[:, :keep_groups]
        stays = np.zeros((rows, groups), bool)
        np.put_along_axis(stays, kept, True, axis=1)
        choice = np.where(np.repeat(stays, count // groups, axis=1), choice, np.float32(-np.inf))
    chosen = np.sort(np.argsort(-choice, axis=-1, kind="stable")[:, :experts], axis=-1)
    weights = np.take_along_axis(scores, chosen, axis=1)
    if normalise:
        total = weights[:, :1].copy()
        for i in range(1, experts):  # one after the other: the same order for every row and batch
            total += weights[:, i : i + 1]
        weights = weights / (total + np.float32(1e-20))
    return chosen, weights * np.float32(scale)


class MoE:
    """Routed experts and the shared one. A row adds its experts in ascending order, in float32.

    Parameters
    ----------
    tensors : mapping
        Of the layer, by the names behind ``model.layers.N.``.
    config : ModelConfig
    tp : Communicator, optional
        The ranks that share heads and widths; they always have the same rows.
    how : {"gather", "reduce"}
        How these join the shared expert's parts.
    experts : Communicator, optional
        The ranks that share the routed experts, default those of ``tp``: expert e lies on rank ``e % N``, and its
        tensors are read there alone. Rank ``i * tp.size + j`` is rank j of the i-th group of ``tp``.

    Notes
    -----
    A row has the bits that it has on one rank: its experts speak in the dtype of the rows, and the rank that answers
    for the row weighs and adds them.
    """

    def __init__(
        self, tensors: Mapping[str, Any], config: ModelConfig, tp: Any = None, how: str = "gather", experts: Any = None
    ) -> None:
        self.config = config
        self.gate = Linear(tensors["mlp.gate.weight"])
        self.bias = np.asarray(tensors["mlp.gate.e_score_correction_bias"], np.float32)
        if not np.isfinite(self.bias).all():  # it only orders experts: no later value would show it
            raise ValueError("load: mlp.gate.e_score_correction_bias holds NaN or infinity, needs finite numbers")
        self._ranks = ExpertRanks(experts or tp, tp)
        self.experts = {e: Mlp(tensors, f"mlp.experts.{e}") for e in self._ranks.mine(config.n_routed_experts)}
        self.shared = Mlp(tensors, "mlp.shared_experts", tp, how)

    def __call__(self, x: Any, threads: int = 0, split: bool = False) -> Any:
        """Rows [t, hidden] to rows. Collective over ``experts``.

        ``split`` says that groups of ``tp`` have rows of their own, any number of them; else all ranks have the same.
        """
        c = self.config
        logits = self.gate(x, out_dtype="float32", threads=threads)
        chosen, weights = route(
            logits, self.bias, groups=c.n_group, keep_groups=c.topk_group, experts=c.num_experts_per_tok,
            normalise=c.norm_topk_prob, scale=c.routed_scaling_factor,
        )  # fmt: skip
        seen(router_logits=logits, router=chosen, router_weights=weights)
        routed = self._ranks.apply(x, chosen, weights, lambda e, rows: self.experts[e](rows, threads), split)
        return routed + self.shared(x, threads)
