"""What each rank does for a row of the table: answer the prompts on a grid, hold the answers against transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ... import models, transform
from ...models._taps import Tap
from .._checks import Traffic
from ._grids import Way
from ._reference import Reference

__all__ = ["Job"]

CHUNK, FORCED = 29, 4


class _Held:
    """Largest error of each stage and a digest of its logits."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self.worst: dict[str, str] = {}
        self.rows: dict[str, set[int]] = {"prefill": set(), "chunked": set()}  # of the prompts, one behind the other
        self._digests: dict[str, Any] = {}

    def hold(self, stage: str, got: np.ndarray, want: Any, where: str) -> None:
        """Rows [prompts, vocab] against those of transformers, and into the digest."""
        self._digests.setdefault(stage, hashlib.blake2b(digest_size=8)).update(np.ascontiguousarray(got).tobytes())
        self.compare(stage, got, np.asarray(want), lambda row: f"prompt {row}, {where}")

    def compare(self, stage: str, got: np.ndarray, want: np.ndarray, where: Callable[[int], str]) -> None:
        """Rows [n, vocab], at least one; a difference counts as a part of the row's largest logit."""
        error = np.abs(got.astype(np.float64) - want).max(1) / np.abs(want).max(1)
        error = np.where(np.isfinite(error), error, np.inf)
        row = int(error.argmax())
        if not error[row] <= self.errors.get(stage, -1.0):
            self.errors[stage], self.worst[stage] = float(error[row]), where(row)

    def digests(self) -> dict[str, str]:
        """Equal for equal bits."""
        return {stage: digest.hexdigest() for stage, digest in self._digests.items()}


class _Place:
    """A rank's model and its groups, on one grid or on a side of two."""

    def __init__(self, folder: Path, way: Way, world: Any) -> None:
        pair = way.pair
        self._here = None if pair is None else pair.join(world)
        if self._here is None:
            self.grid = way.prefill
            ranks, self.groups = self.grid.join(world)
        else:
            self.grid, ranks = self._here.side, self._here.ranks
            side = "prefill" if self._here.prefills else "decode"
            self.groups = {f"{side} {name}": comm for name, comm in self._here.groups.items()} | {"pd": world}
        self.prefills = self._here is None or self._here.prefills
        self.decodes = self._here is None or not self._here.prefills
        self.model = models.load(folder, ranks=ranks)

    def pool(self, lengths: list[int]) -> Any:
        """Room for requests of these lengths in pages of this side's ranks, and for one more of a page."""
        page = self.grid.page_size * self.grid.dcp
        pool = self.model.pool(sum(-(-n // page) * page for n in lengths) + page, self.grid.page_size)
        pool.reserve([pool.open()], [1])  # no request begins at page 0
        return pool

    def open(self, pool: Any, prompts: int) -> list[int]:
        """New requests, where prompts are prefilled."""
        return [pool.open() for _ in range(prompts)] if self.prefills else []

    def carry(self, pool: Any, requests: list[int], logits: Any) -> tuple[list[int], Any]:
        """From the prefill ranks to the decode ranks, where these are others."""
        if self._here is None:
            return requests, logits
        came = self._here.hand_over(self.model, pool, requests, logits)
        return (requests, logits) if self.prefills else (list(came.requests), came.logits)


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
        The final norm has a wrong sign on every rank: the row must fail.
    """

    folder: Path
    way: Way
    reference: Reference
    flip: bool = False

    def __call__(self, world: Any) -> dict[str, Any]:
        place = _Place(self.folder, self.way, world)
        norm: Any = place.model.norm
        if self.flip and norm is not None:  # the last stage's
            place.model.norm = np.concatenate([-norm[:1], norm[1:]])
        traffic = {name: Traffic(comm) for name, comm in place.groups.items()}
        held, begun = _Held(), time.perf_counter()
        tokens = self._generate(place, held, traffic)
        self._in_pieces(place, held)
        return {
            "rank": world.rank,
            "errors": held.errors,
            "worst": held.worst,
            "tokens": tokens,
            "digests": held.digests(),
            "rows": {stage: sorted(rows) for stage, rows in held.rows.items()},
            "bytes": {name: counted.stages for name, counted in traffic.items()},
            "seconds": time.perf_counter() - begun,
        }

    def _generate(self, place: _Place, held: _Held, traffic: dict[str, Traffic]) -> Any:
        """Prefill in one pass, then 64 tokens, each the best of our own logits; bytes are counted here."""
        r, model, count = self.reference, place.model, self.reference.tokens.shape[1]
        pool = place.pool([len(p) + count for p in r.prompts])
        requests = place.open(pool, len(r.prompts))
        with _stages(traffic, "prefill"), self._every_row(model, pool, requests, held, "prefill"):
            logits = model.prefill(pool, requests, r.prompts) if place.prefills else None
        with _stages(traffic, "hand over"):
            requests, logits = place.carry(pool, requests, logits)
        held.hold("prefill", logits, [rows[-1] for rows in r.prompt_logits], "last token")
        if not place.decodes:
            return None
        tokens = [models.sample(logits)]
        with _stages(traffic, "decode"):
            for step in range(1, count):
                logits = model.decode(pool, requests, tokens[-1])
                if np.array_equal(
                    np.stack(tokens, 1), r.tokens[:, :step]
                ):  # other tokens have other logits behind them
                    held.hold("decode", logits, r.logits[step], f"token {step}")
                tokens.append(models.sample(logits))
        return np.stack(tokens, 1).tolist()

    def _every_row(self, model: models.Model, pool: Any, requests: list[int], held: _Held, stage: str) -> Tap:
        """Compares what the last layer makes of every row of the prompts that this rank has; padding rows are left."""
        r, last = self.reference, model.config.num_hidden_layers - 1
        begin, head = np.cumsum([0, *map(len, r.prompts)]), self._head(model)

        def see(layer: int, positions: Any, request: Any, values: dict[str, Any]) -> None:
            rows = np.flatnonzero(request >= 0)
            if layer != last or "layer_out" not in values or not len(rows):
                return
            # A pass has some of the requests: their first pages say which.
            first = pool.table(requests)[:, 0].tolist()
            prompts = [first.index(page) for page in pool.caches.block_table[request[rows], 0]]
            at = list(zip(prompts, positions[rows].tolist()))
            want = np.stack([r.prompt_logits[b][position] for b, position in at])
            got = head(np.ascontiguousarray(values["layer_out"][rows]))
            held.compare(stage, got, want, lambda row: "prompt {}, row {}".format(*at[row]))
            held.rows[stage].update(int(begin[b]) + position for b, position in at)

        return Tap(see)

    def _head(self, model: models.Model) -> Callable[[np.ndarray], np.ndarray]:
        """Logits of rows that only this rank has, where the model's own head is a collective of all ranks."""
        checkpoint = models.Checkpoint(self.folder)
        norm, weight = checkpoint["model.norm.weight"], checkpoint["lm_head.weight"]
        return lambda rows: models.linear(transform.rms_norm(rows, norm, model.config.dims.eps, "before"), weight)

    def _in_pieces(self, place: _Place, held: _Held) -> None:
        """Prompts in two parts, each in chunks, so that pages of requests interleave; then tokens of transformers."""
        r, model, pool = self.reference, place.model, place.pool([len(p) + FORCED for p in self.reference.prompts])
        requests, logits = place.open(pool, len(r.prompts)), None
        cuts = [len(p) * 2 // 5 for p in r.prompts]
        for ends in (cuts, [len(p) for p in r.prompts]) if place.prefills else ():
            held_before = pool.lengths(requests)
            parts = [p[a:b] for p, a, b in zip(r.prompts, held_before, ends)]
            with self._every_row(model, pool, requests, held, "chunked"):
                logits = model.prefill(pool, requests, parts, chunk=CHUNK)
            held.hold("chunked", logits, [rows[n - 1] for rows, n in zip(r.prompt_logits, ends)], "end of a part")
        requests, _ = place.carry(pool, requests, logits)
        for step in range(1, FORCED) if place.decodes else ():
            logits = model.decode(pool, requests, r.tokens[:, step - 1])
            held.hold("forced", logits, r.logits[step], f"token {step} behind chunks")


@contextlib.contextmanager
def _stages(traffic: dict[str, Traffic], name: str) -> Any:
    with contextlib.ExitStack() as stack:
        for counted in traffic.values():
            stack.enter_context(counted.stage(name))
        yield
