"""What each rank does for a row of the table: answer the prompts on a grid, hold the answers against transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from ... import models
from .._checks import Traffic
from ._grids import Way
from ._reference import Reference

__all__ = ["Job"]

PAGE, CHUNK, FORCED = 16, 29, 4


class _Held:
    """Largest error of each stage and a digest of all logits."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self.worst: dict[str, str] = {}
        self._digest = hashlib.blake2b(digest_size=8)

    def hold(self, stage: str, got: np.ndarray, want: Any, where: str) -> None:
        """Rows [n, vocab] against those of transformers; a difference counts as a part of the row's largest logit."""
        self._digest.update(np.ascontiguousarray(got).tobytes())
        want = np.asarray(want)
        error = np.abs(got.astype(np.float64) - want).max(1) / np.abs(want).max(1)
        error = np.where(np.isfinite(error), error, np.inf)
        row = int(error.argmax())
        if not error[row] <= self.errors.get(stage, -1.0):
            self.errors[stage], self.worst[stage] = float(error[row]), f"{where}, prompt {row}"

    def digest(self) -> str:
        """Equal for equal bits."""
        return self._digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Job:
    """A checkpoint on a grid. Called with a rank's communicator, it gives that rank's findings, plain JSON data.

    Attributes
    ----------
    folder : Path
        With the checkpoint.
    way : Way
    reference : Reference
    flip : bool
        The last rank's final norm has a wrong sign: the row must fail.
    """

    folder: Path
    way: Way
    reference: Reference
    flip: bool = False

    def __call__(self, world: Any) -> dict[str, Any]:
        grid = dataclasses.replace(self.way.grid, page_size=PAGE)
        ranks, groups = grid.join(world)
        model = models.load(self.folder, ranks=ranks)
        if self.flip and world.rank == world.size - 1 and model.norm is not None:
            model.norm = np.concatenate([-model.norm[:1], model.norm[1:]])
        traffic = {name: Traffic(comm) for name, comm in groups.items()}
        held, begun = _Held(), time.perf_counter()
        tokens = self._generate(model, held, traffic)
        self._in_pieces(model, held)
        return {
            "rank": world.rank,
            "errors": held.errors,
            "worst": held.worst,
            "tokens": tokens.tolist(),
            "digest": held.digest(),
            "bytes": {name: counted.stages for name, counted in traffic.items()},
            "seconds": time.perf_counter() - begun,
        }

    def _pool(self, model: models.Model) -> Any:
        """Room for all requests, in pages of all ranks."""
        r, page = self.reference, PAGE * self.way.grid.dcp
        return model.pool(sum(-(-(len(p) + r.tokens.shape[1]) // page) * page for p in r.prompts), PAGE)

    def _generate(self, model: models.Model, held: _Held, traffic: dict[str, Traffic]) -> np.ndarray:
        """Prefill in one pass, then 64 tokens, each the best of our own logits; bytes are counted here."""
        r, pool = self.reference, self._pool(model)
        requests = [pool.open() for _ in r.prompts]
        with _stages(traffic, "prefill"):
            logits = model.prefill(pool, requests, r.prompts)
        held.hold("prefill", logits, [rows[-1] for rows in r.prompt_logits], "last token")
        tokens = [models.sample(logits)]
        with _stages(traffic, "decode"):
            for step in range(1, r.tokens.shape[1]):
                logits = model.decode(pool, requests, tokens[-1])
                same = np.array_equal(np.stack(tokens, 1), r.tokens[:, :step])
                if same:  # behind another token other logits are right
                    held.hold("decode", logits, r.logits[step], f"token {step}")
                tokens.append(models.sample(logits))
        return np.stack(tokens, 1)

    def _in_pieces(self, model: models.Model, held: _Held) -> None:
        """Prompts in two parts, each in chunks, so that pages of requests interleave; then tokens of transformers."""
        r, pool = self.reference, self._pool(model)
        requests = [pool.open() for _ in r.prompts]
        cuts = [len(p) * 2 // 5 for p in r.prompts]
        logits = model.prefill(pool, requests, [p[:n] for p, n in zip(r.prompts, cuts)], chunk=CHUNK)
        held.hold("chunked", logits, [rows[n - 1] for rows, n in zip(r.prompt_logits, cuts)], "first part")
        logits = model.prefill(pool, requests, [p[n:] for p, n in zip(r.prompts, cuts)], chunk=CHUNK)
        held.hold("chunked", logits, [rows[-1] for rows in r.prompt_logits], "second part")
        for step in range(1, FORCED):
            logits = model.decode(pool, requests, r.tokens[:, step - 1])
            held.hold("chunked", logits, r.logits[step], f"token {step} behind it")


@contextlib.contextmanager
def _stages(traffic: dict[str, Traffic], name: str) -> Any:
    with contextlib.ExitStack() as stack:
        for counted in traffic.values():
            stack.enter_context(counted.stage(name))
        yield
