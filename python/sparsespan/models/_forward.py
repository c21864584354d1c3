"""One call of a model on this rank: its stage's layers, pass by pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cp import gather_rows
from ._pool import KvPool
from ._relay import Relay, giving_up_together
from ._steps import Step, prefill_steps
from ._stopwatch import layer_done, stage_span

if TYPE_CHECKING:
    from ._model import Model

__all__ = ["decode", "prefill"]


def prefill(
    model: Model, pool: KvPool, requests: Sequence[int], tokens: Sequence[Any], chunk: int, threads: int
) -> np.ndarray | None:
    """What :meth:`Model.prefill` does; logits on the last stage, None on the others."""
    prompts = [np.asarray(t, np.int64).reshape(-1) for t in tokens]
    _admit(model, pool, requests, [len(p) for p in prompts])
    for prompt in prompts:
        model.require_tokens(prompt)
    steps = prefill_steps(prompts, pool.lengths(requests).tolist(), chunk, model.ranks)
    result = np.empty((len(prompts), model.config.vocab_size), np.float32)
    with giving_up_together(model.ranks):
        relay, done, tokens_in_all = _relay(model), 0, sum(len(p) for p in prompts)
        for step in _ahead(steps, relay):
            batch = [requests[b] for b in step.prompts]
            pool.caches.block_table = pool.table(batch)
            came = relay.take()
            with stage_span(relay, f"prefill {step.number}"):
                ends = _pass(model, step, pool, relay, came, threads, (done, tokens_in_all))
                if ends is not None and step.ended:
                    behind = np.ascontiguousarray(ends[step.ended])
                    result[[step.prompts[n] for n in step.ended]] = model.logits(behind, threads)
            pool.advance(batch, step.new)
            done += sum(step.new)
        relay.end()
    return result if relay.last else None


def decode(model: Model, pool: KvPool, requests: Sequence[int], tokens: Any, threads: int) -> np.ndarray | None:
    """What :meth:`Model.decode` does; logits on the last stage, None on the others."""
    tokens = np.asarray(tokens, np.int64).reshape(-1)
    if len(tokens) == len(requests) and model.ranks.splits_decode:
        return prefill(model, pool, requests, tokens[:, None], 0, threads)
    _admit(model, pool, requests, [1] * len(requests))
    if len(tokens) != len(requests):
        raise ValueError(f"decode: {len(tokens)} tokens for {len(requests)} requests; needs one each")
    model.require_tokens(tokens)
    pool.caches.block_table = pool.table(requests)
    lens, on = pool.lengths(requests) + 1, model.ranks
    with giving_up_together(on):
        relay, batch = _relay(model), f"decode {lens.tolist()}"
        relay.expect(0, batch, len(tokens))
        came = relay.take()
        with stage_span(relay, "decode"):
            hidden, indices = came or (model.embed(tokens), None)
            for layer in model.layers:
                hidden, indices = layer.decode(
                    hidden, lens, pool.caches, on.tp, dcp=on.dcp, indices=indices, threads=threads
                )
            logits = np.asarray(model.logits(hidden, threads)) if relay.last else None
        relay.give(0, batch, hidden, indices)
        relay.end()
    pool.advance(requests, [1] * len(requests))
    return logits


def _relay(model: Model) -> Relay:
    """Messages of one call. Indices come along where the first layer behind a cut has no indexer of its own."""
    c, behind = model.config, model.layers[-1].index + 1
    come: dict[str, tuple[int, Any]] = {"hidden_states": (c.dims.hidden, model.dtype)}
    if model.layers[0].shared:
        come["indices"] = (c.dims.topk, np.int32)
    shares = behind < c.num_hidden_layers and c.indexer_types[behind] == "shared"
    return Relay(model.ranks.pp, come, ("hidden_states", "indices") if shares else ("hidden_states",))


def _ahead(steps: Iterable[Step], relay: Relay) -> Iterator[Step]:
    """Each pass, once the rows of the one behind it are awaited as well."""
    ready: Step | None = None
    for step in steps:
        relay.expect(step.number, step.batch, step.rows)
        if ready is not None:
            yield ready
        ready = step
    if ready is not None:
        yield ready


def _pass(
    model: Model, step: Step, pool: KvPool, relay: Relay, came: Any, threads: int, tokens: tuple[int, int]
) -> Any:
    """Run the layers of this rank over one chunk; on the last stage hidden rows of the requests' last tokens."""
    on = model.ranks
    hidden, indices = came or (model.embed(step.mine()), None)
    for n, layer in enumerate(model.layers):
        hidden, indices = layer.prefill(
            hidden, step.plan, pool.caches, on.cp, tp=on.tp, dcp=on.dcp, indices=indices, threads=threads
        )
        relay.poll()
        layer_done(*tokens, n + 1, len(model.layers))
    if not relay.last:
        relay.give(step.number, step.batch, hidden, indices)
        return None
    return hidden[np.cumsum(step.new) - 1] if on.cp is None else gather_rows(on.cp, hidden, step.plan, rows="last")


def _admit(model: Model, pool: KvPool, requests: Sequence[int], new: Sequence[int]) -> None:
    if len(requests) != len(new):
        raise ValueError(f"prefill: {len(new)} prompts for {len(requests)} requests; needs one each")
    limit = model.config.max_position_embeddings
    for request, length, n in zip(requests, pool.lengths(requests), new):
        if n == 0:
            raise ValueError(f"request {request}: the prompt is empty, needs at least one token")
        if length + n > limit:
            raise ValueError(f"request {request}: {length + n} tokens, needs at most max_position_embeddings = {limit}")
    pool.reserve(requests, new)
