"""Weights of one attention layer, as a checkpoint names them, and as the layer multiplies by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..cp import CpPlan
from ..pipeline import LayerShard
from ..quant import weight_dequant
from ._dims import LayerDims
from ._kept import CutLinear, Kept
from ._linear import Linear

__all__ = ["LayerWeights", "layer_tensors", "load_linear", "load_norm", "seeded_tensors"]

BF16 = ml_dtypes.bfloat16


def layer_tensors(dims: LayerDims, indexer: bool = True) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of an attention layer; names follow ``model.layers.N.`` in a checkpoint.

    Parameters
    ----------
    dims : LayerDims
    indexer : bool
        False for a "shared" layer, which has no indexer of its own.
    """
    d, attention = dims, "self_attn."
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d.hidden,),
        attention + "q_a_proj.weight": (d.q_lora, d.hidden),
        attention + "q_a_layernorm.weight": (d.q_lora,),
        attention + "q_b_proj.weight": (d.heads * (d.nope + d.rope), d.q_lora),
        attention + "kv_a_proj_with_mqa.weight": (d.kv_lora + d.rope, d.hidden),
        attention + "kv_a_layernorm.weight": (d.kv_lora,),
        attention + "kv_b_proj.weight": (d.heads * (d.nope + d.v_head), d.kv_lora),
        attention + "o_proj.weight": (d.hidden, d.heads * d.v_head),
    }
    if indexer:
        shapes |= {
            attention + "indexer.wq_b.weight": (d.index_heads * d.index_dim, d.q_lora),
            attention + "indexer.wk.weight": (d.index_dim, d.hidden),
            attention + "indexer.k_norm.weight": (d.index_dim,),
            attention + "indexer.k_norm.bias": (d.index_dim,),
            attention + "indexer.weights_proj.weight": (d.index_heads, d.hidden),
        }
    return shapes


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Unit-variance output for unit-variance input; drawn row by row, so that no float32 copy of the whole exists."""
    out = np.empty(shape, dtype)
    scale = np.float32(1.0 / math.sqrt(shape[-1]))
    step = max(1, (1 << 20) // shape[-1])
    for first in range(0, shape[0], step):
        rows = out[first : first + step]
        rows[:] = rng.standard_normal(rows.shape, np.float32) * scale
    return out


def seeded_tensors(dims: LayerDims, seed: int, index: int, dtype: Any = BF16, indexer: bool = True) -> dict[str, Any]:
    """Random tensors of an attention layer, the same for every process: they depend on seed, layer and name alone."""
    tensors = {}
    for name, shape in layer_tensors(dims, indexer).items():
        rng = np.random.default_rng([seed, index, *name.encode()])
        if len(shape) == 2:
            tensors[name] = _normal(rng, shape, dtype)
        else:  # norms: near one, biases near zero
            centre = 0.0 if name.endswith("bias") else 1.0
            tensors[name] = (centre + 0.1 * rng.standard_normal(shape, np.float32)).astype(dtype)
    return tensors


def load_norm(weight: Any) -> Any:
    """Norm weights are float32 or bfloat16 in the ops; halves are widened."""
    return weight.astype(np.float32) if weight.dtype == np.float16 else weight


def load_linear(
    tensors: Mapping[str, Any], name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None
) -> Linear:
    """``name.weight``, or the rows or columns of it that belong to a rank; with its scales, where it is float8."""
    weight, scale = tensors[name + ".weight"], tensors.get(name + ".weight_scale_inv")
    cuts = False
    for axis, part in enumerate((rows, columns)):
        if part is None or part == (0, weight.shape[axis]):
            continue
        first, last = part
        # Parts are of one size: all ranks say the same of a cut through a block of 128.
        if scale is not None and (first % 128 or (last - first) % 128):
            cuts, first, last = True, first // 128 * 128, min(-(-last // 128) * 128, weight.shape[axis])
        weight = _piece(weight, axis, first, last)
        if scale is not None:
            scale = _piece(scale, axis, first // 128, -(-last // 128))
    if not cuts:
        return Linear(weight, scale)
    weight = weight_dequant(weight, scale)  # no more of it than the blocks that hold this part
    for axis, part in enumerate((rows, columns)):
        if part is not None and part[1] - part[0] != weight.shape[axis]:
            weight = _piece(weight, axis, part[0] % 128, part[0] % 128 + part[1] - part[0])
    return Linear(weight)


def _piece(array: Any, axis: int, first: int, last: int) -> Any:
    return array[first:last] if axis == 0 else array[:, first:last]


class LayerWeights:
    """The weights of one layer, of all heads or of the heads of one tensor-parallel rank.

    Parameters
    ----------
    tensors : mapping
        By the names of :func:`layer_tensors`; a float8 weight has its scales beside it under ``..._scale_inv``.
    dims : LayerDims
    tp : (int, int)
        Rank and number of ranks that share the heads.
    o_proj : {"reduce", "gather"}
        Which part of o_proj a rank has: the columns of its heads, or so many rows.
    kept : Kept, optional
        What of this the rank's peers in ``cp`` keep for it.
    index : int
        Which layer it is.
    """

    def __init__(
        self, tensors: Mapping[str, Any], dims: LayerDims, tp: tuple[int, int] = (0, 1), o_proj: str = "reduce",
        kept: Kept | None = None, index: int = 0,
    ) -> None:  # fmt: skip
        self._tensors, self._dims = tensors, dims
        rank, ranks = tp
        if ranks < 1 or not 0 <= rank < ranks or dims.heads % ranks or dims.hidden % ranks:
            raise ValueError(
                f"LayerWeights: tp is {tp}, needs a rank below a number that divides {dims.heads} heads and "
                f"{dims.hidden} columns"
            )
        if o_proj not in ("reduce", "gather"):
            raise ValueError(f'LayerWeights: o_proj is {o_proj!r}, needs "reduce" or "gather"')
        self.heads, self.o_proj = dims.heads // ranks, o_proj
        first, last = rank * self.heads, (rank + 1) * self.heads
        width = dims.nope + dims.rope
        self.norm = load_norm(tensors["input_layernorm.weight"])
        self.q_a, self.q_a_norm = self._linear("q_a_proj"), load_norm(tensors["self_attn.q_a_layernorm.weight"])
        kept, self.index = kept or Kept(), index
        self.lender: LayerShard | None = None
        self.q_b: Any = self._linear("q_b_proj", rows=(first * width, last * width)) if kept.has(index) else None
        self.kv_a, self.kv_a_norm = (
            self._linear("kv_a_proj_with_mqa"),
            load_norm(tensors["self_attn.kv_a_layernorm.weight"]),
        )
        self.w_uk, self.w_uv = self._absorbed(first, last)
        rows, columns = (0, dims.hidden), (0, dims.heads * dims.v_head)
        if o_proj == "reduce":
            columns = (first * dims.v_head, last * dims.v_head)
        else:
            rows = (rank * dims.hidden // ranks, (rank + 1) * dims.hidden // ranks)
        self.o: Any = self._output(kept, rows, columns) if kept.has(index) else None
        self.indexer = "self_attn.indexer.wq_b.weight" in tensors
        if self.indexer:
            self.index_q, self.index_k = self._linear("indexer.wq_b"), self._linear("indexer.wk")
            k_norm = "self_attn.indexer.k_norm."
            self.index_k_norm = load_norm(tensors[k_norm + "weight"]), load_norm(tensors[k_norm + "bias"])
            self.index_weights = self._linear("indexer.weights_proj")

    def _linear(self, name: str, rows: tuple[int, int] | None = None, columns: tuple[int, int] | None = None) -> Linear:
        return load_linear(self._tensors, f"self_attn.{name}", rows, columns)

    def _output(self, kept: Kept, rows: tuple[int, int], columns: tuple[int, int]) -> Linear | CutLinear:
        mine = kept.cut(rows, columns)
        part = self._linear("o_proj", *mine)
        if kept.mode not in ("gather_weight", "a2a_rs"):
            return part
        return CutLinear(kept, part, (mine[1][0] - columns[0], mine[1][1] - columns[0]))

    def begin(self) -> None:
        """The layer begins: what other ranks lend of it is on its way, what the next one needs sets out."""
        if isinstance(self.o, CutLinear):
            self.o.forget()
        if self.lender is not None:
            if self.index == self.lender.layers[0] and self.lender.expected != self.index:
                self.lender.reset()  # a pass ended half-way, on all ranks
            self.lender.reach(self.index)

    def travel(self, plan: CpPlan) -> None:
        """Keys have been gathered: parts of o_proj may follow."""
        if isinstance(self.o, CutLinear):
            self.o.travel(plan)

    def _absorbed(self, first: int, last: int) -> tuple[Linear, Linear]:
        """kv_b as W_UK [H, 512, nope], which takes a query into the latent, and W_UV [H, v, 512], which brings it back.

        W_UK is turned once, here: rows are what the product runs over.
        """
        d = self._dims
        width = d.nope + d.v_head
        part = self._linear("kv_b_proj", rows=(first * width, last * width))
        weight = part.weight if part.weight_scale_inv is None else weight_dequant(part.weight, part.weight_scale_inv)
        heads = np.asarray(weight).reshape(last - first, width, d.kv_lora)
        w_uk = np.ascontiguousarray(heads[:, : d.nope].transpose(0, 2, 1))
        return Linear(w_uk), Linear(heads[:, d.nope :])
