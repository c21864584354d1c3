"""Text to tokens and back, as a checkpoint's tokenizer.json says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._safetensors import CheckpointError

__all__ = ["ByteTokenizer", "byte_alphabet", "open_tokenizer"]


def byte_alphabet() -> list[str]:
    """A printable character for each byte: itself where it is one, else the next free one from 256 on (GPT-2's)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    fresh = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(fresh)) for b in range(256)]


class ByteTokenizer:
    """A byte is a token; special tokens are found in the text by their names.

    Parameters
    ----------
    ids : sequence of int
        Token of each byte.
    special : mapping from str to int
    """

    def __init__(self, ids: Sequence[int], special: Mapping[str, int]) -> None:
        self._ids, self._special = list(ids), dict(special)
        self._bytes = {token: byte for byte, token in enumerate(self._ids)}

    @classmethod
    def of(cls, document: Any) -> ByteTokenizer | None:
        """The tokenizer of a parsed tokenizer.json, None where that asks for more than bytes."""
        try:
            model, added = document["model"], document["added_tokens"]
            plain = model["type"] == "BPE" and not model["merges"] and document["normalizer"] is None
            plain = plain and document["pre_tokenizer"]["type"] == "ByteLevel" and document["post_processor"] is None
            plain = plain and not document["pre_tokenizer"]["add_prefix_space"]
            if not plain:
                return None
            ids, special = [model["vocab"][c] for c in byte_alphabet()], {t["content"]: t["id"] for t in added}
            plain = all(type(token) is int and token >= 0 for token in [*ids, *special.values()])
            return cls(ids, special) if plain and all(text and isinstance(text, str) for text in special) else None
        except (KeyError, TypeError):
            return None

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        parts = [text]
        if self._special:
            parts = re.split("(" + "|".join(map(re.escape, self._special)) + ")", text)
        tokens: list[int] = []
        for part in parts:
            tokens += [self._special[part]] if part in self._special else [self._ids[b] for b in part.encode()]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, without the special ones; bytes that are no UTF-8 become U+FFFD."""
        return bytes(self._bytes[t] for t in tokens if t in self._bytes).decode(errors="replace")


class _Package:
    """What the tokenizers package reads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))


def open_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Open the tokenizer of a checkpoint; it has ``encode(text)`` and ``decode(tokens)``.

    Parameters
    ----------
    path : path
        The checkpoint's folder.

    Raises
    ------
    CheckpointError
        There is no tokenizer.json, it cannot be read, or it needs the tokenizers package and that is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from sparsespan.models import open_tokenizer, write_tiny
    >>> tokenizer = open_tokenizer(write_tiny(tempfile.mkdtemp(), "glm_moe_dsa"))
    >>> tokenizer.encode("hi</s>"), tokenizer.decode([104, 105, 257])
    ([104, 105, 257], 'hi')
    """
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{path}: has no tokenizer.json, needs it to read the prompt")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is no JSON that can be read ({error})") from None
    plain = ByteTokenizer.of(document)
    if plain is not None:
        return plain
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise CheckpointError(
            f"{file}: is no plain byte-level tokenizer, needs the tokenizers package: pip install tokenizers"
        ) from None
    try:
        return _Package(Tokenizer.from_file(str(file)))
    except Exception as error:  # the package raises no more precise one
        raise CheckpointError(f"{file}: the tokenizers package refuses it ({error})") from None
