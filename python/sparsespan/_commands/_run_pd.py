"""What a rank of ``sparsespan run`` does where one grid prefills and another decodes."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from .. import models
from ._run_rank import Job

__all__ = ["PdJob"]

_TAG = 7002  # of the messages with tokens
_END = -1
_A_DAY = 86400.0  # decode ranks wait for a prefill as long as it takes; of one that failed they are told


@dataclasses.dataclass(frozen=True)
class PdJob(Job):
    """A prompt for a checkpoint on two grids. The first decode rank tells rank 0 its tokens as they come."""

    def __call__(self, world: Any) -> dict[str, Any]:
        begun = time.monotonic()
        here = self.grid.join(world)
        model = models.load(self.path, ranks=here.ranks, dense_until=self.dense_until)
        pool = model.pool(self.pool_tokens[not here.prefills], here.side.page_size)
        groups = {**here.groups, "hand-over": here.world}
        for comm in groups.values():
            comm.reset_trace()
        watch, came = self.stopwatch(world, groups), [time.monotonic()]
        moved: list[models.HandOver] = []

        def on_hand_over(one: models.HandOver) -> None:
            moved.append(one)
            came.append(time.monotonic())

        def on_token(_: int, token: int) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self._pass_on(here, token)
            came.append(time.monotonic())

        with watch:
            said = here.generate(
                model, [list(self.prompt)], self.new, pool=pool, chunk=self.chunk, temperature=self.temperature,
                seed=self.seed, stop_at_eos=self.stop_at_eos, on_token=on_token, on_hand_over=on_hand_over,
                timeout=_A_DAY,
            )  # fmt: skip
        before, handed = came[1] - came[0] - moved[0].seconds, moved[0].seconds
        phases = {
            "prefill_seconds": before if here.prefills else 0.0,
            "wait_seconds": 0.0 if here.prefills else before,  # for the prefill ranks
            "hand_over_seconds": handed, "decode_seconds": came[-1] - came[1],
        }  # fmt: skip
        report, planned = moved[0].report, moved[0].plan.total_bytes
        findings = self.findings(world, watch, groups, pool, phases) | {
            "load_seconds": came[0] - begun,
            "hand_over": {"sent": report.sent, "received": report.received, "planned": planned, "seconds": handed},
        }
        self._pass_on(here, _END)
        return findings | {"tokens": self._told(here) if world.rank == 0 else said and said[0]}

    def _pass_on(self, here: models.PdRanks, token: int) -> None:
        if here.world.rank == self.grid.prefill.ranks:
            here.world.send(np.array([token]), 0, _TAG)

    def _told(self, here: models.PdRanks) -> list[int]:
        """The tokens, on rank 0, which writes them."""
        tokens: list[int] = []
        while (token := int(here.world.recv(np.empty(1, np.int64), self.grid.prefill.ranks, _TAG)[0])) != _END:
            tokens.append(token)
            if self.tell is not None:
                self.tell(token)
        return tokens
