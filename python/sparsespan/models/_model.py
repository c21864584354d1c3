"""A whole DSA model: embedding, layers, final norm and head, over paged caches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .. import transform
from ._caches import PagedCaches
from ._checkpoint import Checkpoint
from ._decoder import DecoderLayer
from ._forward import decode, prefill
from ._generate import generate
from ._head import Head
from ._kept import Kept, lend
from ._layer import DsaLayer
from ._mlp import Mlp
from ._moe import MoE
from ._pool import KvPool
from ._ranks import Ranks, place
from ._relay import from_last_stage, giving_up_together
from ._weights import LayerWeights, load_norm

__all__ = ["Model", "load"]

LAYOUTS = {"float32": ("f32_576", "index_f32"), "bfloat16": ("bf16_576", "index_bf16")}


class Model:
    """A DSA model on one rank, or this rank's part of it; made by :func:`load`.

    Attributes
    ----------
    config : ModelConfig
    layers : list of DecoderLayer
    dtype : numpy.dtype
        Of activations.
    ranks : Ranks
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str | None = None,
        norm_cast: str = "before",
        hadamard: bool | None = None,
        ranks: Ranks | None = None,
        layers: range | None = None,
        dense_until: int = 0,
    ) -> None:
        self.ranks = ranks or Ranks()
        c = self.config = checkpoint.config
        name = dtype or ("bfloat16" if c.dtype == "bfloat16" else "float32")
        if name not in LAYOUTS:
            raise ValueError(f'load: dtype is {name!r}, needs "float32" or "bfloat16"')
        self.dtype = np.dtype(np.float32 if name == "float32" else ml_dtypes.bfloat16)
        self._norm_cast, self._dense_until = norm_cast, dense_until
        mine = self.ranks.layers_of(c.num_hidden_layers) if layers is None else layers
        if layers is not None and self.ranks.pp is not None:
            raise ValueError(f"load: layers is {layers} and ranks has stages, which have theirs; needs one of the two")
        if not mine or mine.step != 1 or mine[0] < 0 or mine[-1] >= c.num_hidden_layers:
            raise ValueError(f"load: layers is {mine}, needs neighbours among the {c.num_hidden_layers} of the model")
        self._kept = Kept(self.ranks.cp, self.ranks.o_proj)
        self.layers = [self._layer(checkpoint, i, hadamard) for i in mine]
        lend({layer.index: layer.attention.weights for layer in self.layers}, self._kept)
        first, last = mine[0] == 0, mine[-1] == c.num_hidden_layers - 1
        embedding = checkpoint["model.embed_tokens.weight"] if first or (last and c.tie_word_embeddings) else None
        self.embedding = embedding if first else None
        self.norm = load_norm(checkpoint["model.norm.weight"]) if last else None
        head = embedding if c.tie_word_embeddings else checkpoint["lm_head.weight"] if last else None
        self.head = Head(head, self.ranks.experts or self.ranks.tp) if last else None

    def _layer(self, checkpoint: Checkpoint, index: int, hadamard: bool | None) -> DecoderLayer:
        c, tensors = self.config, checkpoint.under(f"model.layers.{index}.")
        tp, how = self.ranks.tp, self.ranks.how
        weights = LayerWeights(tensors, c.dims, place(tp), how, self._kept, index)
        attention = DsaLayer(c.dims, weights, index, hadamard, self._norm_cast, self._dense_until)
        dense = c.mlp_layer_types[index] == "dense"
        mlp = Mlp(tensors, "mlp", tp, how) if dense else MoE(tensors, c, tp, how, self.ranks.experts)
        return DecoderLayer(attention, load_norm(tensors["post_attention_layernorm.weight"]), mlp, self._norm_cast)

    def __repr__(self) -> str:
        c = self.config
        return f"<Model {c.model_type}, {c.num_hidden_layers} layers, {self.dtype.name} activations>"

    def pool(
        self, tokens: int, page_size: int = 64, kv_layout: str | None = None, index_layout: str | None = None
    ) -> KvPool:
        """Make paged caches for ``tokens`` tokens; layouts follow the dtype unless they are named.

        Where ranks share the KV cache, these are this rank's parts, and a page of a request is a virtual page.
        """
        if tokens < 1 or page_size < 1:
            raise ValueError(f"pool: tokens is {tokens}, page_size {page_size}; both need at least 1")
        dcp = self.ranks.dcp
        if dcp is not None and dcp.layout.page_size != page_size:
            raise ValueError(f"pool: page_size is {page_size}, needs {dcp.layout.page_size}, that of the DCP layout")
        held = page_size if dcp is None else dcp.layout.virtual_page_size
        pages = -(-tokens // held)
        copies = self.ranks.tp.size if dcp is not None and dcp.index_k == "replicated" else 1
        kv, index = LAYOUTS[self.dtype.name]
        mine = [layer.index for layer in self.layers]
        full = [layer.index for layer in self.layers if not layer.shared]
        try:
            caches = PagedCaches(
                mine, pages, page_size, kv_layout or kv, index_layout or index, full,
                index_pages=pages * copies,
            )  # fmt: skip
        except (MemoryError, OverflowError) as error:
            raise MemoryError(f"pool: {tokens} tokens of {len(mine)} layers: {error}; needs a smaller pool") from None
        return KvPool(caches, pages, held)

    def pool_for(self, lengths: Sequence[int]) -> KvPool:
        """Caches that requests of these lengths fit into."""
        dcp = self.ranks.dcp
        page, held = (64, 64) if dcp is None else (dcp.layout.page_size, dcp.layout.virtual_page_size)
        return self.pool(sum(-(-n // held) * held for n in lengths) or 1, page)

    def embed(self, tokens: Any) -> Any:
        """Rows of the embedding in the dtype of activations; ids outside the vocabulary are refused."""
        if self.embedding is None:
            raise ValueError(f"embed: this part begins with layer {self.layers[0].index}, needs the one with layer 0")
        tokens = np.asarray(tokens)
        self.require_tokens(tokens)
        return np.asarray(self.embedding[tokens]).astype(self.dtype)

    def require_tokens(self, tokens: np.ndarray) -> None:
        """Refuse ids outside the vocabulary."""
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            raise ValueError(
                f"embed: token ids lie in {tokens.min()} to {tokens.max()}, needs 0 to {self.config.vocab_size - 1}"
            )

    def logits(self, hidden: Any, threads: int = 0) -> Any:
        """Final norm and head: float32 [n, vocab]. All ranks of the stage call with the same rows."""
        if self.head is None:
            raise ValueError(f"logits: this part ends with layer {self.layers[-1].index}, needs the one with the last")
        x = transform.rms_norm(hidden, self.norm, self.config.dims.eps, self._norm_cast, threads=threads)
        return self.head(x, threads)

    def prefill(
        self, pool: KvPool, requests: Sequence[int], tokens: Sequence[Any], *, chunk: int = 0, threads: int = 0
    ) -> np.ndarray:
        """Append tokens to requests, in one batch; on stages of a pipeline all make the same call.

        Parameters
        ----------
        pool : KvPool
        requests : sequence of int
            From ``pool.open()``.
        tokens : sequence of integer sequences
            New tokens of each request, at least one each.
        chunk : int
            Most rows of one pass, spread over the requests in order; 0 takes all at once. The result does not depend
            on it. A stage of a pipeline goes on with the next pass while the one behind it computes this one.

        Returns
        -------
        float32 [B, vocab]
            Logits behind each request's last token.

        Raises
        ------
        ValueError
            An empty prompt, a token outside the vocabulary, more than ``max_position_embeddings``.
        PoolFull
            Nothing has been changed then.
        """
        logits = prefill(self, pool, requests, tokens, chunk, threads)
        return self._everywhere(logits, len(requests))

    def decode(self, pool: KvPool, requests: Sequence[int], tokens: Any, *, threads: int = 0) -> np.ndarray:
        """Append one token to each request; logits behind it, float32 [B, vocab]. Raises as :meth:`prefill`."""
        return self._everywhere(decode(self, pool, requests, tokens, threads), len(requests))

    def _everywhere(self, logits: np.ndarray | None, requests: int) -> np.ndarray:
        with giving_up_together(self.ranks):
            return from_last_stage(self.ranks.pp, logits, (requests, self.config.vocab_size), np.float32)

    def generate(
        self, prompts: Sequence[Any], max_new_tokens: int, *, pool: KvPool | None = None, chunk: int = 0,
        temperature: float = 0.0, seed: int = 0, stop_at_eos: bool = True,
        on_token: Callable[[int, int], None] | None = None, threads: int = 0,
    ) -> list[list[int]]:  # fmt: skip
        """Prefill prompts and generate tokens for all of them, side by side.

        Parameters
        ----------
        prompts : sequence of integer sequences
        max_new_tokens : int
        pool : KvPool, optional
            Default: one of just the size that is needed.
        chunk, threads
            As in :meth:`prefill`.
        temperature, seed
            As in :func:`sample`.
        stop_at_eos : bool
            Whether a request ends with the config's eos token (which is then its last).
        on_token : callable, optional
            Called with (number of the prompt, token) as tokens come.

        Returns
        -------
        list of list of int
            New tokens of each prompt. A request's tokens do not depend on the prompts beside it.
        """
        return generate(
            self, prompts, max_new_tokens, pool, {"chunk": chunk, "threads": threads}, (temperature, seed),
            stop_at_eos, on_token,
        )  # fmt: skip


def load(
    path: str | os.PathLike[str], *, dtype: str | None = None, norm_cast: str = "before",
    hadamard: bool | None = None, ranks: Ranks | None = None, layers: range | None = None,
    dense_until: int = 0,
) -> Model:  # fmt: skip
    """Open a Hugging Face checkpoint of ``deepseek_v32`` or ``glm_moe_dsa``.

    Parameters
    ----------
    path : path
        Folder with config.json and safetensors, one file or shards with their index.
    dtype : {"float32", "bfloat16"}, optional
        Of activations; default the checkpoint's (float32 for float16).
    norm_cast : {"before", "after"}
        "before" rounds in norms as transformers does, "after" as DeepSeek's code; no difference in float32.
    hadamard : bool, optional
        As in :func:`dsa_layer`.
    ranks : Ranks, optional
        The groups that this rank works in; only its part of layers, heads, widths and experts is ever read.
    layers : range, optional
        Without stages among ``ranks``: only these layers; the first has the embedding, the last the head. Call
        ``layers[i].prefill`` and ``decode`` one after the other, handing on rows and indices.

    dense_until : int
        Rows that see at most so many keys, themselves included (up to ``index_topk``), take them all without a choice,
        through :func:`sparsespan.attention.dense_mla`; what the indexer would choose for them, for they are too few.
        Their index queries and scores are not computed. A row's own matter: batch, chunks and ranks change nothing.
        Default 0: every row is scored. Where ranks share the KV cache only the choice is left out.

    Returns
    -------
    Model
        Weights are views of the mapped files; what no token needs is never read. W_UK is the one copy.

    Raises
    ------
    CheckpointError
        Before any weight is read: what config.json or the files say that cannot be.
    """
    return Model(Checkpoint(path), dtype, norm_cast, hadamard, ranks, layers, dense_until)
