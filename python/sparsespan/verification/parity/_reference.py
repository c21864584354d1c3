"""What transformers answers: logits at every place of the prompts, and greedy tokens with theirs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ._fixture import TOKENS, Fixture, fixture, libraries

__all__ = ["LEAST_GAP", "NearTie", "Reference", "find_seed", "reference"]

LEAST_GAP = 1e-5  # of a row's spread: rounding in another order moves scores by less
_ARRAYS, _REST = "reference.npz", "reference.json"


class NearTie(ValueError):  # noqa: N818 - what is wrong with the seed, not with a program
    """Some choice hangs on less than :data:`LEAST_GAP`: other rounding would choose otherwise."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The answers of transformers, and how far they are from a tie.

    Attributes
    ----------
    model : str
    seed : int
    versions : dict of {str: str}
        Of torch and transformers.
    prompts : list of int64 [n]
    prompt_logits : list of float32 [n, vocab]
        Behind every token of each prompt.
    tokens : int64 [B, 64]
        Greedy.
    logits : float32 [64, B, vocab]
        Of which these tokens are the best.
    gaps : dict of {str: float}
        Smallest gap at the edge of each choice, as a part of its row's spread: "keys" at index_topk, "experts" at the
        router, "tokens" at the argmax.
    """

    model: str
    seed: int
    versions: dict[str, str]
    prompts: list[np.ndarray]
    prompt_logits: list[np.ndarray]
    tokens: np.ndarray
    logits: np.ndarray
    gaps: dict[str, float]

    def save(self, folder: Path) -> None:
        """Write two files beside the checkpoint."""
        rest = {name: getattr(self, name) for name in ("model", "seed", "versions", "gaps")}
        (folder / _REST).write_text(json.dumps({**rest, "prompts": len(self.prompts)}), encoding="utf-8")
        arrays: dict[str, Any] = {f"prompt{b}": prompt for b, prompt in enumerate(self.prompts)}
        arrays |= {f"prompt_logits{b}": logits for b, logits in enumerate(self.prompt_logits)}
        np.savez(folder / _ARRAYS, tokens=self.tokens, logits=self.logits, **arrays)

    @classmethod
    def open(cls, folder: Path) -> Reference:
        """Read what :meth:`save` wrote."""
        rest = json.loads((folder / _REST).read_text(encoding="utf-8"))
        count = range(rest.pop("prompts"))
        with np.load(folder / _ARRAYS) as a:
            return cls(
                prompts=[a[f"prompt{b}"] for b in count], prompt_logits=[a[f"prompt_logits{b}"] for b in count],
                tokens=a["tokens"], logits=a["logits"], **rest,
            )  # fmt: skip


class _Least:
    """The smallest gap of each kind; raises at the first that is too small."""

    def __init__(self, model: str, seed: int, least: float) -> None:
        self._of, self._least = f"{model}, seed {seed}", least
        self.gaps: dict[str, float] = {}

    def __call__(self, where: str, gaps: np.ndarray) -> None:
        kind = "experts" if where.endswith(".gate") else "keys" if where.endswith(".indexer") else where
        least = float(gaps.min(initial=np.inf))
        if not least >= self._least:
            raise NearTie(
                f"{self._of}: {where} decides by {least:.1e} of the row's spread, needs {self._least:g}: take another "
                "seed, sparsespan verify --models --find-seeds finds one"
            )
        self.gaps[kind] = min(least, self.gaps.get(kind, np.inf))


@contextlib.contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Tiny products are slower on several threads, and their sums may differ from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reference(made: Fixture, least_gap: float = LEAST_GAP) -> Reference:
    """Ask transformers, all prompts in one batch with padding on the left.

    Raises
    ------
    NearTie
        The seed is no good: a choice of keys, experts or tokens would hang on rounding.
    """
    from ._edges import Edges, gaps

    torch, transformers = libraries()
    least, longest = _Least(made.model, made.seed, least_gap), max(map(len, made.prompts))
    live = np.arange(longest) >= longest - np.array([[len(p)] for p in made.prompts])
    ids = np.full(live.shape, made.peer.config.pad_token_id)
    ids[live] = np.concatenate(made.prompts)
    given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(live.astype(np.int64))}
    positions = torch.from_numpy(np.maximum(live.cumsum(1) - 1, 0))
    edges = Edges(made.peer, live, least)
    try:
        with _one_thread(torch), torch.no_grad(), edges:
            prompt_logits = made.peer(**given, position_ids=positions).logits.numpy()
            said = made.peer.generate(
                **given, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
                pad_token_id=made.peer.config.pad_token_id, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
    finally:
        edges.close()
    logits = torch.stack(said.logits).numpy()
    for step in logits:
        least("tokens", gaps(step, 1))
    return Reference(
        model=made.model, seed=made.seed,
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        prompts=made.prompts, prompt_logits=[rows[mask] for rows, mask in zip(prompt_logits, live)],
        tokens=said.sequences[:, longest:].numpy(), logits=logits, gaps=least.gaps,
    )  # fmt: skip


def find_seed(
    model: str, first: int = 0, last: int = 1000, tell: Callable[[str], None] | None = None
) -> tuple[int, Reference]:
    """Search the first seed with which no choice is close to a tie; that is how :data:`SEEDS` were found.

    It asks for twice :data:`LEAST_GAP`, so that a machine that rounds otherwise finds the seed good as well.

    Parameters
    ----------
    model : {"deepseek_v32", "glm_moe_dsa"}
    first, last : int
        Seeds to try, in order.
    tell : callable(str), optional
        Told why a seed was passed over.

    Raises
    ------
    ValueError
        None of them is good.
    """
    for seed in range(first, last + 1):
        try:
            return seed, reference(fixture(model, seed), 2 * LEAST_GAP)
        except NearTie as why:
            if tell is not None:
                tell(str(why))
    raise ValueError(f"parity: no seed of {first} to {last} keeps {model} away from ties, needs other seeds")
