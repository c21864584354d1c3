"""A whole layer: attention and feed-forward, each behind its norm."""

from __future__ import annotations

from typing import Any

from .. import transform
from ..cp import CpPlan
from ._caches import PagedCaches
from ._layer import DsaLayer
from ._mlp import Mlp
from ._moe import MoE
from ._taps import seen

__all__ = ["DecoderLayer"]


class DecoderLayer:
    """Attention and feed-forward of one layer, called as :class:`DsaLayer` is.

    Attributes
    ----------
    attention : DsaLayer
    mlp : Mlp or MoE
    """

    def __init__(self, attention: DsaLayer, norm: Any, mlp: Mlp | MoE, norm_cast: str) -> None:
        self.attention, self.norm, self.mlp, self._norm_cast = attention, norm, mlp, norm_cast
        self.index, self.shared = attention.index, attention.shared

    def _feed_forward(self, hidden: Any, threads: int, split: bool) -> Any:
        x = transform.rms_norm(hidden, self.norm, self.attention.dims.eps, self._norm_cast, threads=threads)
        out = self.mlp(x, threads, split) if isinstance(self.mlp, MoE) else self.mlp(x, threads)
        result = hidden + out
        seen(mlp_norm=x, mlp_out=out, layer_out=result)
        return result

    def prefill(
        self, hidden: Any, plan: CpPlan, caches: PagedCaches, comm: Any = None, *, threads: int = 0, **options: Any
    ) -> tuple[Any, Any]:
        """As :meth:`DsaLayer.prefill`, with the feed-forward part behind it."""
        hidden, indices = self.attention.prefill(hidden, plan, caches, comm, threads=threads, **options)
        return self._feed_forward(hidden, threads, plan.world_size > 1), indices

    def decode(
        self, hidden: Any, context_lens: Any, caches: PagedCaches, comm: Any = None, *, threads: int = 0, **options: Any
    ) -> tuple[Any, Any]:
        """As :meth:`DsaLayer.decode`, with the feed-forward part behind it."""
        hidden, indices = self.attention.decode(hidden, context_lens, caches, comm, threads=threads, **options)
        return self._feed_forward(hidden, threads, False), indices
