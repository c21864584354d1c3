"""``sparsespan plan cp`` as plain text tables."""

from __future__ import annotations

from typing import Any

__all__ = ["size", "text"]


def size(value: float) -> str:
    """Bytes with a binary unit and three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return (
                f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
            )
        value /= 1024
    return f"{value:.3g} TiB"


def _work(tflop: float) -> str:
    return f"{tflop:,.4g}" if tflop < 9999.5 else f"{tflop:,.0f}"


def _table(title: str, head: list[str], rows: list[list[str]], words: tuple[int, ...] = (0,)) -> list[str]:
    """Columns in ``words`` are set left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) if i in words else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in [head, ["-" * w for w in widths], *rows]]  # fmt: skip
    return ["", title, *(line.rstrip() for line in lines)]


def _volumes(d: dict[str, Any]) -> list[str]:
    rows = []
    for step in d["steps"]:
        m = step["models"][d["model"]]
        parts = {row["what"]: row["received"] * row["times"] for row in m["cp"]["rows"]}
        head = sum(v for k, v in parts.items() if k.endswith("LM head"))
        calls = sum(row["times"] for row in m["cp"]["rows"]) if step["ranks"] > 1 else 0
        ratio = f"{m['tp_over_cp']:.1f}x" if m["tp_over_cp"] else "-"
        rows.append([str(step["ranks"]), size(m["tp_received"]), size(parts.get("latent KV", 0)),
                     size(parts.get("index-K", 0)), size(head), size(m["cp_received"]), ratio, str(calls)])  # fmt: skip
    head_row = ["ranks", "TP all_reduce", "CP latent KV", "CP index-K", "CP LM head", "CP in all", "TP/CP", "CP calls"]
    title = f"Volume of one step: TP against CP ({d['model']}, {d['scheme']}; bytes into the busiest rank, modelled)"
    return _table(title, head_row, rows)


def _primitives(d: dict[str, Any]) -> list[str]:
    step = max(d["steps"], key=lambda s: s["ranks"])
    both = step["models"][d["model"]]
    rows = [
        [side.upper(), row["what"], row["primitive"], str(row["times"]), size(row["chunk"]), size(row["received"]),
         row["formula"]]
        for side in ("tp", "cp") for row in both[side]["rows"]
    ]  # fmt: skip
    head = ["", "what", "primitive", "per step", "chunk", "received each", "formula"]
    return _table(f"Primitives at {step['ranks']} ranks (modelled)", head, rows, (0, 1, 2, 6))


def _models(d: dict[str, Any]) -> list[str]:
    head = ["ranks"]
    for name in d["models"]:
        head += [f"{name} TP", f"{name} CP"]
    rows = [
        [str(s["ranks"]), *(size(s["models"][m][side]) for m in d["models"] for side in ("tp_received", "cp_received"))]
        for s in d["steps"]
    ]
    lines = _table("Models side by side: bytes into the busiest rank per step (modelled)", head, rows)
    head = ["ranks"]
    for name in d["models"]:
        head += [f"{name} TP idx+attn", f"{name} CP idx+attn"]
    rows = [
        [str(s["ranks"]), *(
            f"{_work(s['models'][m]['work'][side + '_indexer'])} + {_work(s['models'][m]['work'][side + '_attention'])}"
            for m in d["models"] for side in ("tp", "cp"))]
        for s in d["steps"]
    ]  # fmt: skip
    return lines + _table("Work of the busiest rank: TFLOP, indexer + attention (modelled)", head, rows)


def _balance(d: dict[str, Any]) -> list[str]:
    rows, kinds = [], "dense attention"
    for scheme, figures in d["balance"].items():
        cells = [f"{100 * value:.2f}%" for value in figures["all_keys"]]
        if "topk" in figures:
            kinds = "indexer / sparse attention"
            cells = [f"{cell} / {100 * value:.2f}%" for cell, value in zip(cells, figures["topk"])]
        rows.append([scheme, *cells])
    title = f"Load balance: busiest rank over mean, minus 1: {kinds} (modelled)"
    return _table(title, ["scheme", *(f"cp {n}" for n in d["sizes"])], rows)


def _o_proj(d: dict[str, Any]) -> list[str]:
    tokens = sum(d["tokens"])
    rows = []
    for o in d["o_proj"]:
        if "refused" in o:
            rows.append([str(o["ranks"]), o["refused"], "", "", "", ""])
            continue
        verdict = "gather" if o["gather_weight"] <= o["a2a_rs"] else "a2a + rs"
        points = f"{o['break_even_all_reduce']:,} / {o['break_even_a2a_rs']:,}"
        moved = [size(o[key]) for key in ("gather_weight", "a2a_rs", "all_reduce")]
        rows.append([str(o["ranks"]), *moved, points, verdict if o["ranks"] > 1 else "-"])
    head = ["ranks", "gather weights", "a2a + rs", "TP all_reduce", "break-even tokens (ar / a2a)", "moves least"]
    title = f"DSA-CP o_proj with {d['weights']} weights: bytes into a rank per layer at {tokens:,} tokens (modelled)"
    return _table(title, head, rows)


def text(document: dict[str, Any]) -> str:
    """All tables."""
    d = document
    tokens = " + ".join(f"{n:,}" for n in d["tokens"][:4]) + (" + ..." if len(d["tokens"]) > 4 else "")
    lines = [f"plan cp: {d['model']}, {tokens} tokens, {sum(d['prefix']):,} cached, {d['scheme']}, {d['cache']} cache"]
    lines += [f"  {key}: {value}" for key, value in d["definitions"].items()]
    for section in (_volumes, _primitives, _models, _balance, _o_proj):
        lines += section(d)
    return "\n".join(lines)
