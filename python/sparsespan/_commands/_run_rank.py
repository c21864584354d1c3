"""What each rank of ``sparsespan run`` does, and what it tells of it."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import models

__all__ = ["Job", "fingerprint"]


def fingerprint(checkpoint: models.Checkpoint, *settings: Any) -> str:
    """What ranks must have in common: settings, config, every tensor's name, shape and place, and some values.

    All of the norms, which are small, and a few out of the middle of up to 1024 others: what is read of a large
    checkpoint stays small, and two trainings do not share them.
    """
    seen = hashlib.blake2b(repr((settings, checkpoint.config)).encode(), digest_size=16)
    names = sorted(checkpoint.names())
    every = -(-len(names) // 1024)
    for n, name in enumerate(names):
        info = checkpoint.info(name)
        seen.update(repr((name, info.dtype, info.shape, info.begin, info.end)).encode())
        if len(info.shape) == 1:
            seen.update(checkpoint[name].tobytes())
        elif n % every == 0:
            values = checkpoint[name].reshape(-1)
            seen.update(values[len(values) // 2 :][:32].tobytes())
    return seen.hexdigest()


@dataclasses.dataclass(frozen=True)
class Job:
    """A prompt for a checkpoint on a grid. Called with a rank's communicator, it gives that rank's findings."""

    path: str
    grid: Any  # models.Grid, of a PdJob models.PdGrid
    prompt: tuple[int, ...]
    new: int
    pool_tokens: Any  # of a PdJob a pair: for prefill and for decode ranks
    chunk: int = 0
    temperature: float = 0.0
    seed: int = 0
    stop_at_eos: bool = True
    dense_until: int = 0
    spans: bool = False
    tell: Callable[[int], None] | None = None  # called with tokens as they come, on rank 0
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)  # set: end before the next token

    def __call__(self, world: Any) -> dict[str, Any]:
        begun = time.monotonic()
        ranks, groups = self.grid.join(world)
        model = models.load(self.path, ranks=ranks, dense_until=self.dense_until)
        pool = model.pool(self.pool_tokens, self.grid.page_size)
        for comm in groups.values():  # joining is not part of what is counted
            comm.reset_trace()
        watch, came = self.stopwatch(world, groups), [time.monotonic()]

        def on_token(_: int, token: int) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            came.append(time.monotonic())
            if self.tell is not None and world.rank == 0:
                self.tell(token)

        with watch:
            (tokens,) = model.generate(
                [list(self.prompt)], self.new, pool=pool, chunk=self.chunk, temperature=self.temperature,
                seed=self.seed, stop_at_eos=self.stop_at_eos, on_token=on_token,
            )  # fmt: skip
        phases = {"prefill_seconds": came[1] - came[0], "decode_seconds": came[-1] - came[1]}
        findings = self.findings(world, watch, groups, pool, phases)
        return findings | {"tokens": tokens, "load_seconds": came[0] - begun}

    def stopwatch(self, world: Any, groups: dict[str, Any]) -> models.Stopwatch:
        """Measures this rank's parts; on rank 0 what shows tokens also shows how far the prefill is."""
        shows = getattr(self.tell, "progress", None) if world.rank == 0 else None
        return models.Stopwatch(tuple(groups.values()), self.spans, shows)

    def findings(
        self, world: Any, watch: models.Stopwatch, groups: dict[str, Any], pool: models.KvPool,
        phases: dict[str, float],
    ) -> dict[str, Any]:  # fmt: skip
        """What a rank tells of itself; the phases are its whole time."""
        total = sum(phases.values())
        seconds = {**watch.seconds, "comm": watch.comm_seconds()}
        spans = [["compute", part, start, end, 0] for part, start, end in (*watch.passes, *watch.spans)]
        for group, comm in groups.items() if self.spans else ():
            spans += [["comm", f"{e['op']} {group}", e["start"], e["end"], e["bytes"]] for e in comm.timeline()]
        return {
            "rank": world.rank,
            "place": self.grid.place(world.rank),
            "layers": list(pool.caches.layers),
            **phases,
            "seconds": {**seconds, "rest": max(0.0, total - sum(seconds.values()))},
            "comm": {group: _moved(comm) for group, comm in groups.items()},
            "kv_bytes": pool.caches.nbytes,
            "kv_bytes_per_token": pool.caches.bytes_per_token,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "spans": spans,
        }


def _moved(comm: Any) -> dict[str, dict[str, Any]]:
    """Calls, bytes and seconds of each primitive that was used."""
    return {name: dict(op) for name, op in comm.trace().items() if op["calls"]}
