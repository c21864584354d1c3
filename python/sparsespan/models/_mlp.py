"""The feed-forward half of a layer: dense, or a mixture of experts. Rows never meet each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._config import ModelConfig
from ._heads import spread_product
from ._linear import Linear
from ._taps import seen
from ._weights import load_linear

__all__ = ["Mlp", "MoE", "route"]


def _silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x) in float32; exp of the negative magnitude only, so that nothing overflows."""
    e = np.exp(-np.abs(x))
    return x * (np.where(x >= 0, np.float32(1), e) / (np.float32(1) + e))


class Mlp:
    """``down(silu(gate(x)) * up(x))``, whole or with the inner width spread over the ranks of ``tp``."""

    def __init__(self, tensors: Mapping[str, Any], prefix: str, tp: Any = None, how: str = "gather") -> None:
        rank, ranks = (0, 1) if tp is None else (tp.rank, tp.size)
        hidden, width = tensors[f"{prefix}.down_proj.weight"].shape
        if width % ranks or hidden % ranks:
            raise ValueError(f"{prefix}: {ranks} ranks do not divide its width of {width} and its output of {hidden}")
        inner, outer = ((rank * n // ranks, (rank + 1) * n // ranks) for n in (width, hidden))
        self.gate = load_linear(tensors, f"{prefix}.gate_proj", rows=inner)
        self.up = load_linear(tensors, f"{prefix}.up_proj", rows=inner)
        part = {"rows": outer} if how == "gather" else {"columns": inner}
        self.down = load_linear(tensors, f"{prefix}.down_proj", **part)
        self._tp, self._how = tp, how

    def __call__(self, x: Any, threads: int = 0) -> Any:
        gate = self.gate(x, threads=threads)
        up = self.up(x, threads=threads)
        # The activation is rounded to the model's dtype, and the product again, as in transformers.
        gate = _silu(gate.astype(np.float32)).astype(gate.dtype)
        return spread_product(gate * up, self.down, self._how, self._tp, threads)


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

    On the ranks of ``tp`` expert e lies on rank ``e % N``; ranks have the same rows and exchange what their experts
    say, [rows, experts a token, hidden] in float32, so that the sum has the bits of one rank.
    """

    def __init__(self, tensors: Mapping[str, Any], config: ModelConfig, tp: Any = None, how: str = "gather") -> None:
        self.config, self._tp = config, None if tp is None or tp.size == 1 else tp
        self.gate = Linear(tensors["mlp.gate.weight"])
        self.bias = np.asarray(tensors["mlp.gate.e_score_correction_bias"], np.float32)
        first, step = (0, 1) if self._tp is None else (tp.rank, tp.size)
        self.experts = {e: Mlp(tensors, f"mlp.experts.{e}") for e in range(first, config.n_routed_experts, step)}
        self.shared = Mlp(tensors, "mlp.shared_experts", tp, how)

    def __call__(self, x: Any, threads: int = 0) -> Any:
        c = self.config
        logits = self.gate(x, out_dtype="float32", threads=threads)
        chosen, weights = route(
            logits, self.bias, groups=c.n_group, keep_groups=c.topk_group, experts=c.num_experts_per_tok,
            normalise=c.norm_topk_prob, scale=c.routed_scaling_factor,
        )  # fmt: skip
        seen(router=chosen, router_weights=weights)
        total = np.zeros(x.shape, np.float32)
        said = None if self._tp is None else np.zeros((len(x), c.num_experts_per_tok, x.shape[1]), np.float32)
        for e in np.unique(chosen):
            if e not in self.experts:
                continue
            row, place = np.nonzero(chosen == e)
            part = self.experts[e](np.ascontiguousarray(x[row]), threads).astype(np.float32)
            part *= weights[row, place, None]
            if said is None:
                total[row] += part
            else:
                said[row, place] = part
        if said is not None and self._tp is not None:  # every place is one rank's; the others add zeros to it
            joined = self._tp.all_reduce(said)
            for i in range(c.num_experts_per_tok):
                total += joined[:, i]
        return total.astype(x.dtype) + self.shared(x, threads)
