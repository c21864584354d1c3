"""Token after token, until every request has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._forward import decode, prefill
from ._pool import KvPool
from ._relay import from_last_stage, giving_up_together
from ._sampling import sample

if TYPE_CHECKING:
    from ._model import Model

__all__ = ["generate", "go_on", "require_new"]


def generate(
    model: Model, prompts: Sequence[Any], max_new_tokens: int, pool: KvPool | None, work: Mapping[str, int],
    sampling: tuple[float, int], stop_at_eos: bool, on_token: Callable[[int, int], None] | None,
) -> list[list[int]]:  # fmt: skip
    """See :meth:`Model.generate`."""
    require_new(max_new_tokens)
    own = pool or model.pool_for([len(p) + max_new_tokens for p in prompts])
    requests = [own.open() for _ in prompts]
    try:
        logits = prefill(model, own, requests, prompts, work["chunk"], work["threads"])
        return go_on(model, own, requests, logits, max_new_tokens, work["threads"], sampling, stop_at_eos, on_token)
    finally:
        for request in requests:
            own.close(request)


def require_new(max_new_tokens: int) -> None:
    """Refuse to generate nothing."""
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens is {max_new_tokens}, needs at least 1")


def go_on(
    model: Model, pool: KvPool, requests: Sequence[int], logits: Any, max_new_tokens: int, threads: int,
    sampling: tuple[float, int], stop_at_eos: bool, on_token: Callable[[int, int], None] | None,
) -> list[list[int]]:  # fmt: skip
    """Token after token behind a prefill's logits. The last stage samples; what travels is a token of each request."""
    new: list[list[int]] = [[] for _ in requests]
    stop = model.config.eos_token_ids if stop_at_eos else ()
    live = list(range(len(requests)))
    while True:
        for b, token in zip(live, _drawn(model, logits, sampling, [(b, len(new[b])) for b in live])):
            new[b].append(int(token))
            if on_token is not None:
                with giving_up_together(model.ranks):
                    on_token(b, int(token))
        live = [b for b in live if len(new[b]) < max_new_tokens and new[b][-1] not in stop]
        if not live:
            return new
        logits = decode(model, pool, [requests[b] for b in live], [new[b][-1] for b in live], threads)


def _drawn(model: Model, logits: Any, sampling: tuple[float, int], draws: list[tuple[int, int]]) -> np.ndarray:
    with giving_up_together(model.ranks):
        tokens = None if logits is None else sample(logits, *sampling, draws)
        return from_last_stage(model.ranks.pp, tokens, (len(draws),), np.int64)
