"""A checkpoint and its reference, made once and brought to every process of a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .._teams import Processes, Team
from ._fixture import fixture
from ._reference import Reference, reference

__all__ = ["source"]


def _make(model: str, folder: Path, seed: int | None) -> None:
    made = fixture(model, seed)
    answers = reference(made)
    made.save(folder)
    answers.save(folder)


def source(model: str, folder: Path, team: Team | None = None, seed: int | None = None) -> tuple[Path, Reference]:
    """Make a fixture in a folder, with the answers of transformers; collective.

    Parameters
    ----------
    model : {"deepseek_v32", "glm_moe_dsa"}
    folder : Path
        New or empty, on this machine.
    team : Team, optional
        Of processes: the first makes it and sends the files to the others, which need no torch and no transformers.
    seed : int, optional

    Returns
    -------
    folder : Path
    reference : Reference

    Raises
    ------
    ValueError
        On every process alike: torch or transformers are not installed, or the seed is no good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ""
    if team is None or team.leader:
        try:
            _make(model, folder, seed)
        except (ValueError, OSError) as error:
            if not isinstance(team, Processes):
                raise
            words = str(error)
    if isinstance(team, Processes):
        _send(team, folder, words)
    return folder, Reference.open(folder)


def _send(team: Processes, folder: Path, words: str) -> None:
    """The leader's files, to everybody; or why there are none."""
    files = sorted(folder.iterdir()) if team.leader and not words else []
    told: dict[str, Any] = team.share({"words": words, "files": [[f.name, f.stat().st_size] for f in files]})[0]
    if told["words"]:
        raise ValueError(told["words"])
    for name, size in told["files"]:
        data = np.fromfile(folder / name, np.uint8) if team.leader else np.empty(size, np.uint8)
        team.comm.broadcast(data)
        if not team.leader:
            data.tofile(folder / name)
