"""What ``sparsespan run`` prints: tokens as they come, then what each rank spent."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

__all__ = ["TokenPrinter", "table"]

_WHOLE = 4  # bytes of the longest UTF-8 character: what waits longer is none

_EVERY = 0.2  # seconds between two lines of progress
_CLEAR = "\r\x1b[K"  # to the line's begin, and away with it


class TokenPrinter:
    """Writes the text of tokens as they come; the bytes of one character wait for each other."""

    def __init__(self, tokenizer: Any, out: TextIO) -> None:
        self._tokenizer, self._out = tokenizer, out
        self._waiting: list[int] = []
        self._begun = False  # tokens have come
        self._shown = 0.0  # when progress was last written, 0: none stands there

    def progress(self, tokens: int, of_tokens: int, layers: int, of_layers: int) -> None:
        """Show on a terminal how far the prefill is, in one line that the text then takes the place of."""
        now = time.monotonic()
        if self._begun or now - self._shown < _EVERY or not sys.stderr.isatty():
            return
        self._shown = now
        done = f"prefill: {tokens:,} of {of_tokens:,} tokens, layer {layers} of {of_layers}"
        print(f"{_CLEAR}{done} (rank 0)", end="", file=sys.stderr, flush=True)

    def __call__(self, token: int) -> None:
        if not self._begun and self._shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
        self._begun = True
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting)
        if not text.endswith("\ufffd") or len(self._waiting) >= _WHOLE:
            self._write(text)

    def end(self) -> None:
        """Write what still waits, and end the line."""
        self._write(self._tokenizer.decode(self._waiting) + "\n")

    def _write(self, text: str) -> None:
        # A terminal obeys control characters: what a model says must not move its cursor.
        shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        self._out.write(shown.encode(encoding, "replace").decode(encoding))
        self._out.flush()
        self._waiting = []


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [heads, *rows]]


def table(document: dict[str, Any]) -> str:
    """Seconds, bytes and memory of each rank."""
    ranks = document["ranks"]
    parts = list(ranks[0]["seconds"])
    sides = ["side"] if "side" in ranks[0]["place"] else []
    heads = ["rank", *sides, "stage", "layers", "cp", "tp", *(f"{part} s" for part in parts), "KV bytes", "peak MiB"]
    rows = [
        [
            str(r["rank"]), *(r["place"][name] for name in sides), str(r["place"]["stage"]),
            f"{r['layers'][0]}-{r['layers'][-1]}",
            str(r["place"]["cp"]), str(r["place"]["tp"]),
            *(f"{r['seconds'][part]:.3f}" for part in parts),
            str(r["kv_bytes"]), f"{r['peak_memory_bytes'] / 2**20:.0f}",
        ]
        for r in ranks
    ]  # fmt: skip
    lines = [
        f"{document['model_type']} on {document['grid']['words']} ({document['backend']}): {document['prompt_tokens']} "
        f"prompt tokens in {document['prefill_seconds']:.3f} s, {len(document['tokens'])} new ones "
        f"({document['decode_seconds']:.3f} s behind the first)",
        *_columns(heads, rows),
    ]
    if "hand_over" in document:
        one = document["hand_over"]
        lines.append(f"handed over: {one['bytes']:,} bytes of caches, those of the plan, in {one['seconds']:.3f} s")
    moved = [
        [str(r["rank"]), group, primitive, str(op["calls"]), str(op["bytes"]), f"{op['seconds']:.3f}"]
        for r in ranks
        for group, primitives in r["comm"].items()
        for primitive, op in primitives.items()
    ]
    if moved:
        lines += ["", *_columns(["rank", "group", "primitive", "calls", "bytes", "s"], moved)]
    shared = ", which is the whole process's: ranks are its threads" if document["backend"] == "threads" else ""
    if "hand_over" in document:
        lines.append("comm of a decode rank, under hand-over, holds its wait for the prefill")
    lines.append(
        f"seconds measured, a part without what it waited in comm; bytes counted; peak memory measured{shared}"
    )
    return "\n".join(lines)
