"""The demo's whole models: one rank beside two grids that prefill, hand over and decode, held against each other."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import comm, cp, models
from ..models import Dcp, Grid, PagedCaches, PdGrid, Ranks

__all__ = ["FAMILIES", "GRIDS", "compare", "kv_facts", "text_of"]

GRIDS = PdGrid(Grid(cp=4, pp=2), Grid(tp=4, dcp=4))
WORDS = f"CP{GRIDS.prefill.cp} x PP{GRIDS.prefill.pp} -> DCP{GRIDS.decode.dcp}"
# GLM's layers are full, full, full, shared, shared, shared: the cut between the stages goes through a sharing group.
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v32": {"num_hidden_layers": 4},
    "glm_moe_dsa": {"num_hidden_layers": 6},
}
_A_DAY = 86400.0  # decode ranks wait for the prefill as long as it takes
BOUND = 1e-4  # of the largest logit: float32 sums over a shared cache have another order than over a whole one


def text_of(path: Path | None) -> tuple[str, str]:
    """(name, text): a file's, or else the project's own README."""
    if path is not None:
        return path.name, path.read_text(encoding="utf-8")
    beside = Path(__file__).resolve().parents[3] / "README.md"
    if beside.exists():
        return beside.name, beside.read_text(encoding="utf-8")
    from importlib.metadata import metadata

    return "README.md", str(metadata("sparsespan").json["description"])


def _greedy(model: models.Model, pool: models.KvPool, requests: Any, logits: Any, new: int) -> tuple[list[int], Any]:
    """(tokens, logits behind the prompt and behind each token but the last)."""
    seen, tokens = [logits], [int(logits[0].argmax())]
    while len(tokens) < new:
        seen.append(model.decode(pool, requests, tokens[-1:]))
        tokens.append(int(seen[-1][0].argmax()))
    return tokens, np.concatenate(seen)


def _one_rank(path: Path, prompt: list[int], new: int) -> dict[str, Any]:
    model = models.load(path)
    pool = model.pool(len(prompt) + new)
    requests = [pool.open()]
    start = time.perf_counter()
    logits = model.prefill(pool, requests, [prompt])
    prefilled = time.perf_counter()
    twin = copy.deepcopy(pool)
    between = time.perf_counter()
    tokens, found = _greedy(model, pool, requests, logits, new)
    end = time.perf_counter()
    # The same cache read as ranks that share it would: what they compute has these bits, however many they are.
    dcp = Dcp(cp.dcp_layout(1, 1, pool.caches.page_size))
    shares = models.load(path, ranks=Ranks(tp=comm.ThreadComm(1)[0], dcp=dcp))
    return {
        "prefill_seconds": prefilled - start, "decode_seconds": end - between, "kv_bytes": pool.caches.nbytes,
        "tokens": tokens, "logits": found, "shared": _greedy(shares, twin, requests, logits, new)[1],
    }  # fmt: skip


def _moved(comms: Any) -> int:
    return sum(int(op["bytes"]) for group in comms for op in group.trace().values())


def _rank(world: Any, path: Path, prompt: list[int], new: int) -> dict[str, Any]:
    """One of the ranks of both grids."""
    here = GRIDS.join(world)
    model = models.load(path, ranks=here.ranks)
    pool = model.pool(len(prompt) + new, here.side.page_size)
    for group in here.groups.values():
        group.reset_trace()
    world.barrier()
    start = time.perf_counter()
    requests = [pool.open()] if here.prefills else []
    logits = model.prefill(pool, requests, [prompt]) if here.prefills else None
    prefilled = time.perf_counter()
    came = here.hand_over(model, pool, requests, logits, timeout=_A_DAY)
    handed = time.perf_counter()
    tokens, found = (None, logits) if here.prefills else _greedy(model, pool, came.requests, came.logits, new)
    return {
        "prefill_seconds": prefilled - start, "hand_over_seconds": came.seconds,
        "decode_seconds": time.perf_counter() - handed, "tokens": tokens, "logits": found,
        "bytes": _moved(here.groups.values()), "kv_bytes": pool.caches.nbytes,
        "sent": came.report.sent, "planned": came.plan.total_bytes,
    }  # fmt: skip


def _both_grids(path: Path, prompt: list[int], new: int) -> dict[str, Any]:
    ranks = comm.run_ranks(GRIDS.ranks, lambda world: _rank(world, path, prompt, new))
    senders, takers = ranks[: GRIDS.prefill.ranks], ranks[GRIDS.prefill.ranks :]
    return {
        "prefill_seconds": max(r["prefill_seconds"] for r in senders),
        "hand_over_seconds": max(r["hand_over_seconds"] for r in ranks),
        "decode_seconds": max(r["decode_seconds"] for r in takers),
        "prefill_bytes": sum(r["bytes"] for r in senders), "decode_bytes": sum(r["bytes"] for r in takers),
        "hand_over_bytes": sum(r["sent"] for r in senders), "planned_bytes": ranks[0]["planned"],
        "kv_bytes": max(r["kv_bytes"] for r in takers),
        "tokens": [r["tokens"] for r in takers], "logits": [r["logits"] for r in takers],
    }  # fmt: skip


def _apart(got: list[Any], want: Any) -> float:
    """Largest difference between logits, on any rank."""
    return max(float(np.abs(one.astype(np.float64) - want).max()) for one in got)


def _checks(one: dict[str, Any], grids: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold, and how far off it is."""
    got, want, shared = grids["logits"], one["logits"], one["shared"]
    size = float(np.abs(want).max())
    said = sum(tokens != one["tokens"] for tokens in grids["tokens"])
    rows = [
        ("tokens", said, 0, "equal on all decode ranks"),
        ("logits behind the prompt", _apart([x[:1] for x in got], want[:1]), 0, "same bits"),
        ("logits while decoding", _apart(got, want), BOUND * size, f"at most {BOUND:g} of {size:.2f}"),
        ("the same, from one shared cache", _apart(got, shared), 0, "same bits"),
        ("bytes handed over", abs(grids["hand_over_bytes"] - grids["planned_bytes"]), 0, "those of the plan"),
    ]
    return [
        {"what": what, "difference": off, "bound": bound, "wanted": wanted, "passed": bool(off <= bound)}
        for what, off, bound, wanted in rows
    ]


def compare(
    folder: Path, model: str, text: str, tokens: int, new: int, topk: int, seed: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write a checkpoint, run it on one rank and on both grids, and hold the answers against each other."""
    path = models.write_tiny(folder / model, model, seed=seed, index_topk=topk, **FAMILIES[model])
    prompt = models.open_tokenizer(path).encode(text)[:tokens]
    say(f"{model}: one rank")
    one = _one_rank(path, prompt, new)
    say(f"{model}: {WORDS}")
    grids = _both_grids(path, prompt, new)
    checks = _checks(one, grids)
    for side in (one, grids):
        for name in ("logits", "shared"):
            side.pop(name, None)
    return {
        "model_type": model, "layers": FAMILIES[model]["num_hidden_layers"], "prompt_tokens": len(prompt),
        "index_topk": topk, "new_tokens": new, "grids": WORDS,
        "ranks": [GRIDS.prefill.ranks, GRIDS.decode.ranks], "one_rank": one, "two_grids": grids, "checks": checks,
        "passed": all(check["passed"] for check in checks),
    }  # fmt: skip


def kv_facts() -> list[dict[str, Any]]:
    """Bytes of a token in the fp8 caches of the real models, counted on caches of one page."""
    found = []
    for name, model, layers, draft in (
        ("DeepSeek-V3.2", "deepseek_v32", 61, 0),
        ("GLM-5.2 with its MTP layer", "glm_moe_dsa", 78, 1),
    ):
        config = models.parse_config(models.tiny_config(model, num_hidden_layers=layers))
        index = (*config.index_layers, *range(layers, layers + draft))  # a draft layer has an indexer of its own
        caches = PagedCaches(layers + draft, 1, index_layers=index)
        found.append(
            {
                "model": name, "layers": layers + draft, "index_layers": len(index),
                "bytes_per_token": caches.nbytes // caches.page_size,
            }
        )  # fmt: skip
    return found
