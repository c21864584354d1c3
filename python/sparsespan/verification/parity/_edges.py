"""How close a model of transformers comes to a tie, wherever it chooses: keys, groups of experts, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Edges", "gaps"]

_MASKED = -1e30  # what masks leave of a score lies far below


def gaps(scores: np.ndarray, k: int) -> np.ndarray:
    """[rows] the gap between the k-th best score and the next, as a part of the row's spread; inf where all are taken.

    Examples
    --------
    >>> gaps(np.array([[1.0, 5.0, 4.0, -np.inf], [1.0, 5.0, -np.inf, -np.inf]]), 2).tolist()
    [0.75, inf]
    """
    best = np.sort(np.where(scores > _MASKED, scores, -np.inf).astype(np.float64), axis=1)[:, ::-1]
    seen = np.isfinite(best).sum(1)
    result = np.full(len(best), np.inf)
    rows = np.flatnonzero(seen > k)
    if len(rows):
        edge = best[rows, k - 1] - best[rows, k]
        result[rows] = edge / np.maximum(best[rows, 0] - best[rows, seen[rows] - 1], np.finfo(np.float64).tiny)
    return result


class Edges(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every top-k of a model's indexers and routers while active.

    Parameters
    ----------
    peer : transformers.PreTrainedModel
    tell : callable(where, gaps)
        Told the smallest gaps [rows] of rows of tokens that are no padding.

    Attributes
    ----------
    live : bool [B, S]
        Which rows of a pass with S tokens are no padding; other passes have none.
    """

    def __init__(self, peer: Any, live: np.ndarray, tell: Callable[[str, np.ndarray], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self._tell, self._where = live, tell, ""
        self._hooks = []
        for name, module in peer.named_modules():
            if name.endswith((".indexer", ".mlp.gate")):
                self._hooks += [
                    module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)),
                    module.register_forward_hook(lambda *_: self._enter("")),
                ]

    def _enter(self, name: str) -> None:
        self._where = name

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.topk.default and self._where:
            self._look(args[0].detach().numpy(), int(args[1]))
        return func(*args, **(kwargs or {}))

    def _look(self, scores: np.ndarray, k: int) -> None:
        router = self._where.endswith(".gate")
        if router and scores.ndim == 3:
            return  # the two best of each group are added: who they are makes no difference at a tie
        flat = scores.reshape(-1, scores.shape[-1])
        batch = len(self.live)
        rows = self.live.reshape(-1) if len(flat) == self.live.size else np.ones(batch, bool)
        self._tell(self._where, gaps(flat[rows], k))
