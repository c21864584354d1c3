"""What one implementation computed, stage by stage."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import transform
from ._names import ORDER, STAGES

__all__ = ["TURNED", "Captured", "Piece", "turn_back"]


TURNED = ("index_q", "index_k", "index_cache")


def turn_back(x: np.ndarray) -> np.ndarray:
    """Rows of 128 through the Hadamard transform, which undoes itself."""
    turned = transform.hadamard_transform(np.ascontiguousarray(x, np.float32), x.shape[-1] ** -0.5)
    return np.asarray(turned, np.float64)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows that one rank computed: numbers into ``Captured.rows``, and the values in float64 (or int64)."""

    rank: int
    rows: np.ndarray
    values: np.ndarray


class Captured:
    """Rows of intermediate values by stage and layer.

    Parameters
    ----------
    name : str
        What findings call it.
    prompts : sequence of integer sequences
        Tokens of each request.
    decoded : sequence of integer sequences, optional
        Tokens that were fed one at a time behind each prompt.

    Attributes
    ----------
    rows : int64 [R, 2]
        (request, position) of each row: request after request, positions from 0.
    decode : bool [R]
        Whether the row was computed in a decode step.
    precision : {"float32", "bfloat16", "float8"}
        The coarsest rounding on the way; tolerances follow it.
    turned : bool
        Whether the indexer's q and k went through the Hadamard transform.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan.verification.stages import Captured
    >>> mine = Captured("my engine", prompts=[[5, 6, 7]])
    >>> mine.add("k_pe", 0, np.zeros((3, 64), np.float32))
    >>> mine
    <Captured my engine: 1 requests, 3 rows, 1 stages of 1 layers>
    """

    def __init__(self, name: str, prompts: Sequence[Any], decoded: Sequence[Any] | None = None) -> None:
        self.name = name
        self.prompts = [np.asarray(p, np.int64).reshape(-1) for p in prompts]
        behind = [[]] * len(self.prompts) if decoded is None else decoded
        self.decoded = [np.asarray(d, np.int64).reshape(-1) for d in behind]
        if len(self.decoded) != len(self.prompts):
            raise ValueError(f"Captured: decoded has {len(self.decoded)} requests, needs {len(self.prompts)}")
        lengths = [len(p) + len(d) for p, d in zip(self.prompts, self.decoded)]
        self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        request = np.repeat(np.arange(len(lengths)), lengths)
        self.rows = np.stack([request, np.arange(self.starts[-1]) - self.starts[request]], 1)
        prompt = np.array([len(p) for p in self.prompts], np.int64)
        self.decode = self.rows[:, 1] >= prompt[request]
        self.precision, self.turned = "float32", False
        self.pieces: dict[tuple[str, int], list[Piece]] = {}

    def __repr__(self) -> str:
        stages, layers = ({key[i] for key in self.pieces} for i in (0, 1))
        return (
            f"<Captured {self.name}: {len(self.prompts)} requests, {len(self.rows)} rows, {len(stages)} stages of "
            f"{len(layers)} layers>"
        )

    def add(self, stage: str, layer: int, values: Any, rows: Any = None, rank: int = 0) -> None:
        """Add rows of a stage; several calls may add several parts, and several ranks their copies.

        Parameters
        ----------
        stage : str
            One of ``STAGES``.
        layer : int
            As in the checkpoint; for ``final_norm`` and ``logits`` the number of layers.
        values : array [n, ...]
            In the shape and the conventions of ``STAGES[stage]``.
        rows : integers [n], optional
            Numbers into ``self.rows``; default all of them in order. -1 is a padding row and is dropped.
        rank : int
            Which rank computed them.
        """
        if stage not in STAGES:
            raise ValueError(f"add: stage is {stage!r}, needs one of {', '.join(STAGES)}")
        values = np.asarray(values)
        places = np.arange(len(self.rows)) if rows is None else np.asarray(rows, np.int64).reshape(-1)
        if values.ndim < 2 or len(values) != len(places):
            raise ValueError(
                f"add: {stage} of layer {layer} has shape {list(values.shape)}, needs {len(places)} rows of "
                f"{STAGES[stage].shape}"
            )
        if places.size and not -1 <= places.min() <= places.max() < len(self.rows):
            raise IndexError(f"add: rows lie in {places.min()} to {places.max()}, needs -1 to {len(self.rows) - 1}")
        if stage == "index_scores":  # engines pad to widths of their own
            longest = int(np.diff(self.starts).max(initial=0))
            values = values[:, :longest]
            values = np.pad(values, ((0, 0), (0, longest - values.shape[1])), constant_values=-np.inf)
        kept = places >= 0
        kind = np.int64 if STAGES[stage].ids else np.float64
        piece = Piece(rank, places[kept].copy(), values[kept].astype(kind))
        self.pieces.setdefault((stage, int(layer)), []).append(piece)

    def get(self, stage: str, layer: int) -> np.ndarray | None:
        """One copy of all rows, in order, NaN (or -1) for rows that were not captured; None without any."""
        pieces = self.pieces.get((stage, layer))
        if not pieces:
            return None
        width = max(p.values.shape[-1] for p in pieces)
        shape = (len(self.rows), *pieces[0].values.shape[1:-1], width)
        fill = -1 if STAGES[stage].ids else np.nan
        whole = np.full(shape, fill, pieces[0].values.dtype)
        for piece in reversed(pieces):  # the first copy counts
            whole[piece.rows, ..., : piece.values.shape[-1]] = piece.values
        return whole

    def names(self) -> list[tuple[str, int]]:
        """(stage, layer) pairs in the order of computation."""
        return sorted(self.pieces, key=lambda key: (key[1], ORDER[key[0]]))

    def turned_back(self) -> Captured:
        """The same with the indexer's q and k as they were before the Hadamard transform, which undoes itself."""
        if not self.turned:
            return self
        made = Captured(self.name, self.prompts, self.decoded)
        made.precision = self.precision
        made.pieces = {
            (stage, layer): [
                dataclasses.replace(p, values=turn_back(p.values)) if stage in TURNED else p for p in pieces
            ]
            for (stage, layer), pieces in self.pieces.items()
        }
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file: ``prompt_0``, ``decoded_0``, ..., ``3/k_pe/rank0``, ``3/k_pe/rank0/rows``, ..."""
        arrays: dict[str, np.ndarray] = {}
        for n, (prompt, decoded) in enumerate(zip(self.prompts, self.decoded)):
            arrays |= {f"prompt_{n}": prompt, f"decoded_{n}": decoded}
        for (stage, layer), pieces in self.pieces.items():
            for n, piece in enumerate(pieces):
                narrow = piece.values.astype(np.int32 if STAGES[stage].ids else np.float32)
                exact = np.array_equal(narrow, piece.values, equal_nan=not STAGES[stage].ids)
                arrays[f"{layer}/{stage}/{n}"] = narrow if exact else piece.values
                arrays[f"{layer}/{stage}/{n}/rows"] = piece.rows
                arrays[f"{layer}/{stage}/{n}/rank"] = np.array(piece.rank)
        settings = {"precision": np.array(self.precision), "turned": np.array(self.turned)}
        with open(path, "wb") as file:
            np.savez(file, **arrays, **settings)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Captured:
        """Read what :meth:`save` writes, or another program in its form.

        Needed are ``prompt_0``, ... and ``LAYER/STAGE`` (or ``LAYER/STAGE/0``) arrays; rows default to all rows, the
        rank to 0. Nothing is unpickled.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}: is no .npz file of plain arrays ({error})") from None
        count = sum(name.startswith("prompt_") for name in arrays)
        if not count or any(f"prompt_{n}" not in arrays for n in range(count)):
            raise ValueError(f"{path}: needs prompt_0, prompt_1, ... with the tokens of each request")
        empty = np.zeros(0, np.int64)
        made = cls(
            os.fspath(path), [arrays[f"prompt_{n}"] for n in range(count)],
            [arrays.get(f"decoded_{n}", empty) for n in range(count)],
        )  # fmt: skip
        made.precision = str(arrays.get("precision", made.precision))
        made.turned = bool(arrays.get("turned", False))
        for name, values in arrays.items():
            parts = name.split("/")
            if len(parts) < 2 or parts[-1] in ("rows", "rank"):
                continue
            if not parts[0].isdigit() or len(parts) > 3:
                raise ValueError(f"{path}: {name!r} is no LAYER/STAGE or LAYER/STAGE/PART")
            made.add(parts[1], int(parts[0]), values, arrays.get(f"{name}/rows"), int(arrays.get(f"{name}/rank", 0)))
        return made
