"""DeepSeek Sparse Attention on the CPU inside Hugging Face transformers.

>>> from sparsespan.integrations import transformers as sparsespan_hf       # doctest: +SKIP
>>> sparsespan_hf.register()                                                # doctest: +SKIP
>>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sparsespan")  # doctest: +SKIP

The model keeps its projections, caches and generation loop. What changes: the indexer's scores are never written out
([B, S, heads, T] in float32 otherwise), attention reads only the keys that the indexer chose, and a causal mask is kept
as one range of keys per row instead of [B, 1, S, T]. Inference only. How much time and memory that saves on a machine:
``sparsespan bench --only transformers`` (a layer of DeepSeek-V3.2 beside eager and sdpa; some minutes, 16 GB).
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from . import torch as ops

__all__ = ["NAME", "attention", "mask", "register"]

NAME = "sparsespan"
# The models with an indexer, and how each turns the rope part of the indexer's q and k.
_INDEXERS = {
    "deepseek_v32": ("DeepseekV32Indexer", "apply_rotary_pos_emb"),
    "glm_moe_dsa": ("GlmMoeDsaIndexer", "apply_rotary_pos_emb_interleave"),
}


def register() -> None:
    """Make ``attn_implementation="sparsespan"`` known. Calling it again changes nothing.

    Registers the attention and the mask function under one name, and lets the indexers of ``deepseek_v32`` and
    ``glm_moe_dsa`` choose keys with :func:`sparsespan.indexer.select` in models that use this name; models with
    another implementation run as before.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    for family, (name, rope) in _INDEXERS.items():
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        _teach(getattr(module, name), getattr(module, rope))


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: Any = "cpu",
    **kwargs: Any,
) -> torch.Tensor:
    """Say which keys each query row sees.

    Returns
    -------
    torch.Tensor
        int32 [B, 1, S, 2], first key and end of a row's keys, where they are one range: causal, with padding on the
        left or the right. Otherwise bool [B, 1, S, T].
    """
    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if mask_function is causal_mask_function and (padding is None or padding.ndim == 2):
        ranges = _ranges(batch_size, q_length, kv_length, q_offset, kv_offset, padding, device)
        if ranges is not None:
            return ranges
    kwargs.pop("allow_is_causal_skip", None)
    made: Any = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=None if attention_mask is None else attention_mask.to(torch.bool),
        allow_is_causal_skip=False,
        device=device,
        **kwargs,
    )
    return made


def _ranges(
    batch: int, rows: int, keys: int, q_offset: Any, kv_offset: int, padding: torch.Tensor | None, device: Any
) -> torch.Tensor | None:
    end = torch.arange(rows, device=device) + (q_offset - kv_offset) + 1
    ends = end.clamp(0, keys).expand(batch, rows)
    first = torch.zeros((batch, 1), dtype=torch.long, device=device)
    if padding is not None:
        if torch.compiler.is_compiling():  # whether the padding is one run of keys would have to be looked up
            return None
        real = padding[:, kv_offset : kv_offset + keys].to(device=device, dtype=torch.bool)
        count = real.sum(-1, keepdim=True)
        first = torch.where(count > 0, real.to(torch.uint8).argmax(-1, keepdim=True), 0)
        places = torch.arange(real.shape[1], device=device)
        if bool((real != ((places >= first) & (places < first + count))).any()):
            return None
        ends = torch.minimum(ends, first + count)
    return torch.stack([torch.minimum(first.expand_as(ends), ends), ends], -1).to(torch.int32)[:, None]


def _is_ranges(seen: torch.Tensor) -> bool:
    return seen.dtype == torch.int32 and seen.shape[-1] == 2


def _drop_unseen(indices: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Indices [B, S, K] with -1 for keys that the row does not see; ``seen`` is [B, S, 2] ranges or bool [B, S, T]."""
    if _is_ranges(seen):
        visible = (indices >= seen[..., :1]) & (indices < seen[..., 1:])
    else:
        visible = seen.expand(*indices.shape[:2], -1).gather(-1, indices.clamp(min=0).long())
    return indices.masked_fill(~visible, -1)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Sparse attention on expanded heads, as transformers calls it.

    Parameters
    ----------
    query, key, value : [B, H, S, 192], [B, Hk, T, 192], [B, Hk, T, 128]
    attention_mask : [B, 1, S, 2] ranges as :func:`mask` gives them, bool [B, 1, S, T] or additive float
    scaling : float
    indices : int32 [B, S, K]
        logical keys that the indexer chose; those that the mask hides, and -1, are left out.

    Returns
    -------
    (out [B, S, H, 128], None)

    Raises
    ------
    ValueError
        Without ``indices`` (a model without an indexer), without ``scaling``, or with dropout.
    """
    if indices is None:
        raise ValueError(
            f'attn_implementation="{NAME}" needs indices from an indexer, '
            f'and {type(module).__name__} gives none: use "sdpa" for this model'
        )
    if dropout:
        raise ValueError(f'attn_implementation="{NAME}" has no backward and no dropout: call model.eval()')
    if scaling is None:
        raise ValueError(f'attn_implementation="{NAME}" needs scaling: it is never guessed from the head size')
    if attention_mask is not None:
        seen = attention_mask[:, 0]
        if seen.is_floating_point():
            seen = seen > torch.finfo(seen.dtype).min / 2
        indices = _drop_unseen(indices, seen)
    q, k, v = (x.detach().transpose(1, 2) for x in (query, key, value))
    outs = [ops.sparse_mha(q[b], k[b], v[b], indices[b], scaling)[0] for b in range(q.shape[0])]
    return (outs[0][None] if len(outs) == 1 else torch.stack(outs)), None


def _teach(indexer: Any, rope: Any) -> None:
    """Let the class choose keys with our ``select`` in models whose implementation is ours."""
    theirs = indexer.forward
    if hasattr(theirs, "_sparsespan"):
        return

    @functools.wraps(theirs)
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        q_resid: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
    ) -> torch.Tensor:
        if self.config._attn_implementation != NAME:
            return theirs(
                self,
                hidden_states,
                q_resid,
                position_embeddings,
                attention_mask,
                position_ids,
                past_key_values=past_key_values,
            )
        q, k = _rotated(self, rope, hidden_states, q_resid, position_embeddings)
        if past_key_values is not None:
            k = past_key_values.update_indexer(k, self.layer_idx)
        weights = self.weights_proj(hidden_states.to(self.weights_proj.weight.dtype)).float()
        weights = weights * (self.n_heads**-0.5 * self.softmax_scale)  # a positive factor passes through relu
        return _choose(q.detach(), k.detach(), weights.detach(), attention_mask, self.index_topk)

    forward._sparsespan = True  # type: ignore[attr-defined]
    indexer.forward = forward


def _rotated(
    self: Any, rope: Any, hidden: torch.Tensor, q_resid: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The indexer's queries [B, S, H, D] and keys [B, S, D], their first ``qk_rope_head_dim`` dimensions rotated."""
    q = self.wq_b(q_resid).unflatten(-1, (self.n_heads, self.head_dim))
    k = self.k_norm(self.wk(hidden)).unsqueeze(2)
    n = self.qk_rope_head_dim
    q_rope, k_rope = rope(q[..., :n], k[..., :n], *cos_sin, unsqueeze_dim=2)
    return torch.cat([q_rope, q[..., n:]], -1), torch.cat([k_rope, k[..., n:]], -1).squeeze(2)


def _choose(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, seen: torch.Tensor, topk: int) -> torch.Tensor:
    """int32 [B, S, min(topk, T)]: keys in ascending order, -1 where a row sees fewer."""
    topk = min(topk, k.shape[1])
    chosen = []
    for b in range(q.shape[0]):
        if _is_ranges(seen):
            ks, ke = seen[b, :, 0].contiguous(), seen[b, :, 1].contiguous()
            chosen.append(ops.select(q[b], k[b], weights[b], ks, ke, topk))
        else:
            chosen.append(_choose_masked(q[b], k[b], weights[b], seen[b], topk))
    return torch.stack(chosen)


def _choose_masked(
    q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor, seen: torch.Tensor, topk: int
) -> torch.Tensor:
    """Any mask: scores of 256 rows at a time, so that memory stays linear in the number of keys."""
    if seen.is_floating_point():
        seen = seen > torch.finfo(seen.dtype).min / 2
    chosen = []
    for i in range(0, q.shape[0], 256):
        rows = slice(i, i + 256)
        part = q[rows]
        ks = torch.zeros(part.shape[0], dtype=torch.int32)
        scores = ops.mqa_logits(part, k, weights[rows], ks, torch.full_like(ks, k.shape[0]))
        best = scores.masked_fill(~seen[rows], float("-inf")).topk(topk, -1)
        picked = best.indices.to(torch.int32).masked_fill(best.values == float("-inf"), k.shape[0])
        picked = picked.sort(-1).values
        chosen.append(picked.masked_fill(picked == k.shape[0], -1))
    return torch.cat(chosen)
