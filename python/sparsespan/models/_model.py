"""A whole DSA model: embedding, layers, final norm and head, over paged caches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from .. import transform
from ..cp import gather_rows, split_plan
from ._caches import PagedCaches
from ._checkpoint import Checkpoint
from ._decoder import DecoderLayer
from ._layer import DsaLayer
from ._linear import Linear
from ._mlp import Mlp
from ._moe import MoE
from ._pool import KvPool, chunks
from ._ranks import Ranks
from ._sampling import sample
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
    ) -> None:
        self.ranks = ranks or Ranks()
        c = self.config = checkpoint.config
        name = dtype or ("bfloat16" if c.dtype == "bfloat16" else "float32")
        if name not in LAYOUTS:
            raise ValueError(f'load: dtype is {name!r}, needs "float32" or "bfloat16"')
        self.dtype = np.dtype(np.float32 if name == "float32" else ml_dtypes.bfloat16)
        self._norm_cast = norm_cast
        mine = range(c.num_hidden_layers) if layers is None else layers
        if not mine or mine.step != 1 or mine[0] < 0 or mine[-1] >= c.num_hidden_layers:
            raise ValueError(f"load: layers is {mine}, needs neighbours among the {c.num_hidden_layers} of the model")
        self.layers = [self._layer(checkpoint, i, hadamard) for i in mine]
        first, last = mine[0] == 0, mine[-1] == c.num_hidden_layers - 1
        embedding = checkpoint["model.embed_tokens.weight"] if first or (last and c.tie_word_embeddings) else None
        self.embedding = embedding if first else None
        self.norm = load_norm(checkpoint["model.norm.weight"]) if last else None
        head = embedding if c.tie_word_embeddings else checkpoint["lm_head.weight"] if last else None
        self.head = Linear(head) if last else None

    def _layer(self, checkpoint: Checkpoint, index: int, hadamard: bool | None) -> DecoderLayer:
        c, tensors = self.config, checkpoint.under(f"model.layers.{index}.")
        tp, how = self.ranks.tp, self.ranks.how
        weights = LayerWeights(tensors, c.dims, (0, 1) if tp is None else (tp.rank, tp.size), how)
        attention = DsaLayer(c.dims, weights, index, hadamard, self._norm_cast)
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
        caches = PagedCaches(
            mine, pages, page_size, kv_layout or kv, index_layout or index, full,
            index_pages=pages * copies,
        )  # fmt: skip
        return KvPool(caches, pages, held)

    def _pool_for(self, lengths: Sequence[int]) -> KvPool:
        dcp = self.ranks.dcp
        page, held = (64, 64) if dcp is None else (dcp.layout.page_size, dcp.layout.virtual_page_size)
        return self.pool(sum(-(-n // held) * held for n in lengths) or 1, page)

    def embed(self, tokens: Any) -> Any:
        """Rows of the embedding in the dtype of activations; ids outside the vocabulary are refused."""
        if self.embedding is None:
            raise ValueError(f"embed: this part begins with layer {self.layers[0].index}, needs the one with layer 0")
        tokens = np.asarray(tokens)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.config.vocab_size:
            raise ValueError(
                f"embed: token ids lie in {tokens.min()} to {tokens.max()}, needs 0 to {self.config.vocab_size - 1}"
            )
        return np.asarray(self.embedding[tokens]).astype(self.dtype)

    def logits(self, hidden: Any, threads: int = 0) -> Any:
        """Final norm and head: float32 [n, vocab]."""
        if self.head is None:
            raise ValueError(f"logits: this part ends with layer {self.layers[-1].index}, needs the one with the last")
        x = transform.rms_norm(hidden, self.norm, self.config.dims.eps, self._norm_cast, threads=threads)
        return self.head(x, out_dtype="float32", threads=threads)

    def prefill(
        self, pool: KvPool, requests: Sequence[int], tokens: Sequence[Any], *, chunk: int = 0, threads: int = 0
    ) -> np.ndarray:
        """Append tokens to requests, in one batch.

        Parameters
        ----------
        pool : KvPool
        requests : sequence of int
            From ``pool.open()``.
        tokens : sequence of integer sequences
            New tokens of each request, at least one each.
        chunk : int
            Most rows of one pass, spread over the requests in order; 0 takes all at once. The result does not depend
            on it.

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
        rows = [np.asarray(t, np.int64).reshape(-1) for t in tokens]
        self._admit(pool, requests, [len(r) for r in rows])
        for r in rows:
            self.embed(r[:0] if not r.size else np.array([r.min(), r.max()]))
        result = np.empty((len(rows), self.config.vocab_size), np.float32)
        for part in chunks([len(r) for r in rows], chunk):
            batch = [requests[b] for b, _, _ in part]
            ends = self._pass(pool, batch, [rows[b][first:last] for b, first, last in part], threads)
            final = [n for n, (b, _, last) in enumerate(part) if last == len(rows[b])]
            result[[part[n][0] for n in final]] = self.logits(np.ascontiguousarray(ends[final]), threads)
            pool.advance(batch, [last - first for _, first, last in part])
        return result

    def _pass(self, pool: KvPool, requests: Sequence[int], rows: Sequence[np.ndarray], threads: int) -> Any:
        """All layers over one chunk; hidden rows of the requests' last tokens, on every rank."""
        lengths, on = pool.lengths(requests), self.ranks
        pool.caches.block_table = pool.table(requests)
        cu = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        scheme, size, rank = ("contiguous", 1, 0) if on.cp is None else (on.scheme, on.cp.size, on.cp.rank)
        plan = split_plan(scheme, cu, lengths, size)
        mine = plan.rank_rows(rank)
        tokens = np.where(mine >= 0, np.concatenate(rows)[np.maximum(mine, 0)], 0)
        hidden, indices = self.embed(tokens), None
        for layer in self.layers:
            hidden, indices = layer.prefill(
                hidden, plan, pool.caches, on.cp, tp=on.tp, dcp=on.dcp, indices=indices, threads=threads
            )
        return hidden[cu[1:] - 1] if on.cp is None else gather_rows(on.cp, hidden, plan, rows="last")

    def decode(self, pool: KvPool, requests: Sequence[int], tokens: Any, *, threads: int = 0) -> np.ndarray:
        """Append one token to each request; logits behind it, float32 [B, vocab]. Raises as :meth:`prefill`."""
        tokens = np.asarray(tokens, np.int64).reshape(-1)
        self._admit(pool, requests, [1] * len(requests))
        if len(tokens) != len(requests):
            raise ValueError(f"decode: {len(tokens)} tokens for {len(requests)} requests; needs one each")
        hidden, indices = self.embed(tokens), None
        pool.caches.block_table = pool.table(requests)
        lens = pool.lengths(requests) + 1
        for layer in self.layers:
            hidden, indices = layer.decode(
                hidden, lens, pool.caches, self.ranks.tp, dcp=self.ranks.dcp, indices=indices, threads=threads
            )
        logits = self.logits(hidden, threads)
        pool.advance(requests, [1] * len(requests))
        return np.asarray(logits)

    def _admit(self, pool: KvPool, requests: Sequence[int], new: Sequence[int]) -> None:
        if len(requests) != len(new):
            raise ValueError(f"prefill: {len(new)} prompts for {len(requests)} requests; needs one each")
        limit = self.config.max_position_embeddings
        for request, length, n in zip(requests, pool.lengths(requests), new):
            if n == 0:
                raise ValueError(f"request {request}: the prompt is empty, needs at least one token")
            if length + n > limit:
                raise ValueError(
                    f"request {request}: {length + n} tokens, needs at most max_position_embeddings = {limit}"
                )
        pool.reserve(requests, new)

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
        if max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens is {max_new_tokens}, needs at least 1")
        own = pool or self._pool_for([len(p) + max_new_tokens for p in prompts])
        requests = [own.open() for _ in prompts]
        new: list[list[int]] = [[] for _ in prompts]
        try:
            logits, live = self.prefill(own, requests, prompts, chunk=chunk, threads=threads), list(range(len(prompts)))
            while True:
                draws = [(b, len(new[b])) for b in live]
                for b, token in zip(live, sample(logits, temperature, seed, draws)):
                    new[b].append(int(token))
                    if on_token is not None:
                        on_token(b, int(token))
                stop = self.config.eos_token_ids if stop_at_eos else ()
                live = [b for b in live if len(new[b]) < max_new_tokens and new[b][-1] not in stop]
                if not live:
                    return new
                logits = self.decode(own, [requests[b] for b in live], [new[b][-1] for b in live], threads=threads)
        finally:
            for request in requests:
                own.close(request)


def load(
    path: str | os.PathLike[str], *, dtype: str | None = None, norm_cast: str = "before",
    hadamard: bool | None = None, ranks: Ranks | None = None, layers: range | None = None,
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
        The groups that this rank works in; only its part of heads, widths and experts is ever read.
    layers : range, optional
        The layers of a pipeline stage; the first has the embedding, the last the head. Call ``layers[i].prefill`` and
        ``decode`` one after the other, handing on rows and indices.

    Returns
    -------
    Model
        Weights are views of the mapped files; what no token needs is never read. W_UK is the one copy.

    Raises
    ------
    CheckpointError
        Before any weight is read: what config.json or the files say that cannot be.
    """
    return Model(Checkpoint(path), dtype, norm_cast, hadamard, ranks, layers)
