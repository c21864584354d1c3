"""Capture of transformers (eager): hooks on its modules, and on the functions between them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._captured import Captured

__all__ = ["capture_transformers"]


def _canonical(x: np.ndarray, interleaved: bool) -> np.ndarray:
    """transformers leaves turned pairs as halves (all first members, then all second): put them back in pairs."""
    if not interleaved:
        return x
    half = x.shape[-1] // 2
    return np.stack([x[..., :half], x[..., half:]], -1).reshape(x.shape)


class _Watch:
    """Hooks of one model; each forward is of one request."""

    def __init__(self, model: Any, captured: Captured) -> None:
        import torch

        self.torch, self.model, self.captured = torch, model, captured
        self.module = sys.modules[type(model).__module__]
        self.config = model.config
        self.rows = np.zeros(0, np.int64)
        self.layer = 0
        self.k_norm: Any = None  # set while an indexer runs
        self.kept: dict[str, Any] = {}

    def put(self, stage: str, value: Any, layer: int | None = None, rows: Any = None) -> None:
        array = value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()
        at = self.layer if layer is None else layer
        self.captured.add(stage, at, array, self.rows if rows is None else rows)

    # ---- hooks -----------------------------------------------------------------------------------------------------

    def hooks(self) -> Iterator[Any]:
        def after(module: Any, see: Any) -> Any:
            return module.register_forward_hook(lambda _, inputs, output: see(output))

        for n, layer in enumerate(self.model.model.layers):
            yield layer.register_forward_pre_hook(self._entering(n), with_kwargs=True)
            attention = layer.self_attn
            yield after(layer.input_layernorm, lambda x: self.put("input_norm", x[0]))
            yield after(attention.q_a_layernorm, lambda x: self.put("q_latent", x[0]))
            yield after(attention.kv_a_layernorm, lambda x: self.put("kv_latent", x[0]))
            yield after(attention.o_proj, lambda x: self.put("o_proj", x[0]))
            yield after(layer.post_attention_layernorm, lambda x: self.put("mlp_norm", x[0]))
            yield after(layer.mlp, lambda x: self.put("mlp_out", x.reshape(len(self.rows), -1)))
            yield after(layer, lambda x: self.put("layer_out", (x[0] if isinstance(x, tuple) else x)[0]))
            if hasattr(layer.mlp, "gate"):
                yield after(layer.mlp.gate, self._routed)
            indexer = getattr(attention, "indexer", None)
            if indexer is not None:
                yield after(indexer.k_norm, lambda x: self.kept.update(k_norm=x[0]))
                yield after(indexer.weights_proj, self._index_weights)
                yield indexer.register_forward_pre_hook(lambda *_: self.kept.update(indexing=True))
                yield after(indexer, lambda _: self.kept.update(indexing=False))
        last = len(self.model.model.layers)
        yield after(self.model.model.norm, lambda x: self.put("final_norm", x[0], last))

    def _entering(self, layer: int) -> Any:
        def enter(_: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.layer = layer
            hidden = inputs[0] if inputs else options["hidden_states"]
            self.put("layer_in", hidden[0])

        return enter

    def _routed(self, output: tuple[Any, ...]) -> None:
        logits, weights, chosen = output
        order = chosen.argsort(-1)
        self.put("router_logits", logits)
        self.put("router", chosen.gather(1, order))
        self.put("router_weights", weights.gather(1, order))

    def _index_weights(self, raw: Any) -> None:
        heads, dim = self.config.index_n_heads, self.config.index_head_dim
        self.put("index_weights", raw[0].float() * (heads**-0.5 * dim**-0.5))

    # ---- functions between the modules -----------------------------------------------------------------------------

    def rope(self, theirs: Any, interleaved: bool) -> Any:
        def turned(q: Any, k: Any, *args: Any, **options: Any) -> Any:
            q_out, k_out = theirs(q, k, *args, **options)
            if options.get("unsqueeze_dim") == 2:  # the indexer's: [B, S, heads, 64]
                rest = self.kept["k_norm"][:, q.shape[-1] :].float().numpy()
                self.kept["index_q"] = _canonical(q_out[0].float().numpy(), interleaved)
                k_pe = _canonical(k_out[0, :, 0].float().numpy(), interleaved)
                self.captured.add("index_k", self.layer, np.concatenate([k_pe, rest], -1), self.rows)
            else:  # [B, heads, S, 64]
                self.kept["q_pe"] = q_pe = _canonical(q_out[0].float().numpy(), interleaved).swapaxes(0, 1)
                k_pe = _canonical(k_out[0, 0].float().numpy(), interleaved)
                self.captured.add("q_pe", self.layer, q_pe, self.rows)
                self.captured.add("k_pe", self.layer, k_pe, self.rows)
            return q_out, k_out

        return turned

    def attend(self, theirs: Any) -> Any:
        def attended(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any) -> Any:
            out, weights = theirs(module, query, key, value, mask, scaling, **options)
            nope = self.config.qk_nope_head_dim
            self.put("q_nope", query[0, :, :, :nope].transpose(0, 1))
            scores = query[0].float() @ key[0].float().transpose(-1, -2) * scaling + mask[0].float()
            self.put("lse", scores.logsumexp(-1).T)
            self.put("heads", out[0])
            return out, weights

        return attended

    def chosen(self, scores: Any, found: Any) -> None:
        """The indexer's top-k: what it chose from, and the choice without keys that the mask hides."""
        scores, picked = scores[0].float(), found.indices[0]
        floor = self.torch.finfo(self.torch.float32).min / 2
        hidden = scores < floor
        self.put("index_scores", self._wide(scores.masked_fill(hidden, float("-inf"))))
        self.put("indices", picked.masked_fill(hidden.gather(-1, picked), -1))
        q, dim = self.kept["index_q"], self.config.index_head_dim
        rest = self.kept["q_rest"].reshape(len(q), -1, dim)[..., q.shape[-1] :]
        self.captured.add("index_q", self.layer, np.concatenate([q, rest], -1), self.rows)

    def _wide(self, scores: Any) -> Any:
        longest = int(np.diff(self.captured.starts).max())
        wide = scores.new_full((len(scores), longest), float("-inf"))
        wide[:, : scores.shape[1]] = scores
        return wide


@contextlib.contextmanager
def _watching(watch: _Watch) -> Iterator[None]:
    from unittest import mock

    from torch.overrides import TorchFunctionMode

    class TopK(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if watch.kept.get("indexing") and getattr(function, "__name__", "") == "topk":
                watch.chosen(args[0], result)
            return result

    module, hooks = watch.module, list(watch.hooks())
    for layer in watch.model.model.layers:
        indexer = getattr(layer.self_attn, "indexer", None)
        if indexer is not None:
            hooks.append(
                indexer.wq_b.register_forward_hook(
                    lambda _, inputs, x: watch.kept.update(q_rest=x[0].detach().float().numpy())
                )
            )
    try:
        with contextlib.ExitStack() as stack:
            for name, interleaved in (("apply_rotary_pos_emb_interleave", True), ("apply_rotary_pos_emb", False)):
                if hasattr(module, name):
                    theirs = getattr(module, name)
                    stack.enter_context(mock.patch.object(module, name, watch.rope(theirs, interleaved)))
            eager = module.eager_attention_forward
            stack.enter_context(mock.patch.object(module, "eager_attention_forward", watch.attend(eager)))
            stack.enter_context(TopK())
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _run(watch: _Watch) -> None:
    """Each request by itself: nothing is padded."""
    torch, captured = watch.torch, watch.captured
    last = len(watch.model.model.layers)
    for start, prompt, decoded in zip(captured.starts, captured.prompts, captured.decoded):
        past, at = None, int(start)
        for tokens in (prompt, *(decoded[n : n + 1] for n in range(len(decoded)))):
            watch.rows = np.arange(at, at + len(tokens))
            at += len(tokens)
            done = watch.model(torch.from_numpy(tokens)[None], past_key_values=past, use_cache=True)
            past = done.past_key_values
            watch.put("logits", done.logits[0], last)


def capture_transformers(
    path: str | os.PathLike[str], prompts: Sequence[Any], decoded: Sequence[Any] | None = None, dtype: str = "float32"
) -> Captured:
    """Run transformers (eager attention) over the same tokens as :func:`capture`, and keep the same stages.

    Parameters
    ----------
    path : path
        Folder of a checkpoint.
    prompts, decoded
        As of :class:`Captured`; each request runs by itself with a cache of its own.
    dtype : {"float32", "bfloat16"}

    Returns
    -------
    Captured
        In our conventions: turned pairs lie interleaved again (transformers leaves them as halves), index weights have
        both factors in them, ``indices`` are without keys that the mask hides, ``lse`` is computed from the same
        queries and keys.

    Raises
    ------
    ValueError
        Without torch and transformers.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(f"transformers is not installed: pip install torch transformers ({error})") from None
    name = "transformers" if dtype == "float32" else f"transformers@{'bf16' if dtype == 'bfloat16' else dtype}"
    captured = Captured(name, prompts, decoded)
    captured.precision = dtype
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        os.fspath(path), attn_implementation="eager", dtype=getattr(torch, dtype)
    )
    watch = _Watch(model, captured)
    with torch.no_grad(), _watching(watch):
        _run(watch)
    return captured
