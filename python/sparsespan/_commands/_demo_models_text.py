"""How the demo shows its models: both sides beside each other, then what was held against what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["PROVES", "facts", "tables"]

NAMES = {"deepseek_v32": "DeepSeek-V3.2", "glm_moe_dsa": "GLM-5"}
_SHOWN = 6  # tokens
PROVES = """\
What this shows: 12 ranks in two grids say what one rank says. The prompt's rows are split over 4 ranks and its layers
over 2 stages, with the bits of one rank; the caches move to 4 ranks that share them, byte for byte as planned; decoding
goes on there. Ranks are threads of this process and share its cores: the seconds are measured, but no speed-up."""


def _some(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens[:_SHOWN])) + (" ..." if len(tokens) > _SHOWN else "")


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    cells = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
        for row in [heads, *rows]
    ]
    return [cells[0], "-" * len(cells[0]), *cells[1:]]


def tables(found: dict[str, Any]) -> str:
    """One model's."""
    one, two = found["one_rank"], found["two_grids"]
    title = (
        f"{NAMES[found['model_type']]} in small ({found['layers']} layers, random weights): "
        f"{found['prompt_tokens']} tokens of prompt, top-{found['index_topk']}, {found['new_tokens']} new tokens"
    )
    sides = [
        ["ranks", "1", " + ".join(map(str, found["ranks"]))],
        ["prefill", f"{one['prefill_seconds']:.2f} s", f"{two['prefill_seconds']:.2f} s"],
        ["hand-over", "", f"{two['hand_over_seconds']:.3f} s"],
        ["decode", f"{one['decode_seconds']:.2f} s", f"{two['decode_seconds']:.2f} s"],
        ["KV cache of a decode rank", _mib(one["kv_bytes"]), _mib(two["kv_bytes"])],
        ["bytes between ranks: prefill", "", f"{two['prefill_bytes']:,}"],
        ["bytes between ranks: hand-over", "", f"{two['hand_over_bytes']:,}"],
        ["bytes between ranks: decode", "", f"{two['decode_bytes']:,}"],
        ["tokens", _some(one["tokens"]), _some(two["tokens"][0])],
    ]
    checks = [
        [c["what"], f"{c['difference']:.2g}", c["wanted"], "pass" if c["passed"] else "FAIL"] for c in found["checks"]
    ]
    return "\n".join(
        [
            title, "", *_lines(["", "one rank", found["grids"]], sides), "",
            *_lines(["held against one rank", "max difference", "wanted", ""], checks),
        ]
    )  # fmt: skip


def facts(found: Sequence[dict[str, Any]]) -> str:
    """KV bytes of the real models."""
    lines = [
        f"  {one['bytes_per_token']:,} bytes: {one['model']}, {one['layers']} layers, "
        f"{one['index_layers']} of them with index keys"
        for one in found
    ]
    return "\n".join(["A token in the fp8 caches of the real models (counted; public logs say the same):", *lines])
