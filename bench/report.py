"""The table."""

from __future__ import annotations

HEAD = (
    f"{'op':22} {'shape':38} {'isa':11} {'ours ms':>10} {'peer':36} {'peer ms':>10} {'ratio':>7} {'[q1 - q3]':>15} "
    f"{'GFLOP/s':>8} {'/probe':>6} {'GB/s':>7} {'/copy':>6}  bracket"
)


def line(row: dict) -> str:
    def number(key: str, form: str, width: int) -> str:
        value = row.get(key)
        return " " * width if value is None else format(value, form).rjust(width)

    spread = f"[{row['ratio_q1']:.2f} - {row['ratio_q3']:.2f}]" if "ratio_q1" in row else ""
    return (
        f"{row['op']:22} {row['shape']:38} {row.get('isa', ''):11} {number('ours_ms', '.3f', 10)} "
        f"{row.get('peer', ''):36} {number('peer_ms', '.3f', 10)} {number('ratio', '.2f', 7)} {spread:>15} "
        f"{number('gflops', '.1f', 8)} {number('fraction_of_probe', '.2f', 6)} {number('gbytes_per_s', '.2f', 7)} "
        f"{number('fraction_of_bandwidth', '.2f', 6)}  {row.get('bracket', '')}"
        + (f"  {row['words']}" if "words" in row else "")
    )
