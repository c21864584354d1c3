"""Twins of :func:`sparsespan.cp.rank_grid`: each engine's own way of listing groups, written with NumPy."""

from __future__ import annotations

import numpy as np

__all__ = ["rank_groups"]

Groups = dict[str, list[list[int]]]


def _lists(ranks: np.ndarray, size: int) -> list[list[int]]:
    return [[int(r) for r in row] for row in ranks.reshape(-1, size)]


def _native(tp: int, cp: int, dcp: int, pp: int, dp: int, ep: int) -> Groups:
    ranks = np.arange(dp * pp * cp * tp).reshape(dp, pp, cp, tp // dcp, dcp)
    return {
        "tp": _lists(ranks, tp),
        "dcp": _lists(ranks, dcp),
        "cp": _lists(np.moveaxis(ranks, 2, 4), cp),
        "cp_dcp": _lists(np.swapaxes(ranks, 2, 3), cp * dcp),
        "pp": _lists(np.moveaxis(ranks, 1, 4), pp),
        "dp": _lists(np.moveaxis(ranks, 0, 4), dp),
        "ep": _lists(np.swapaxes(ranks, 0, 1), ep),
    }


def _vllm(tp: int, cp: int, dcp: int, pp: int, dp: int, ep: int, axis: str, attn_cp: int) -> Groups:
    ranks = np.arange(dp * pp * cp * tp).reshape(dp, pp, cp, tp)
    inside = ranks.reshape(dp, pp, cp, attn_cp, tp // attn_cp)
    attention = {
        "attn_tp": _lists(inside, tp // attn_cp),
        "attn_cp": _lists(np.swapaxes(inside, 3, 4), attn_cp),
    }
    return {
        "tp": _lists(ranks, tp),
        "dcp": _lists(ranks if axis == "tp" else ranks.transpose(0, 1, 3, 2), dcp),
        "cp": _lists(np.swapaxes(ranks, 2, 3), cp),
        "pp": _lists(np.swapaxes(ranks, 1, 3), pp),
        "dp": _lists(np.swapaxes(ranks, 0, 3), dp),
        "ep": _lists(np.swapaxes(ranks, 0, 1), ep),
        **(attention if attn_cp > 1 else {}),
    }


def _sglang(tp: int, cp: int, dcp: int, pp: int, dp: int, ep: int, moe_dp: int) -> Groups:
    world, attn_tp, moe_tp = tp * pp, tp // dp // cp, tp // ep // moe_dp
    stages = range(0, world, tp)

    def strided(outer: int, size: int, step: int) -> list[list[int]]:
        """In each stage, ``outer`` blocks of size * step ranks: groups of ``size`` ranks ``step`` apart."""
        return [
            list(range(first + i, first + size * step, step))
            for stage in stages
            for first in range(stage, stage + outer * size * step, size * step)
            for i in range(step)
        ]

    cps = strided(dp, cp, attn_tp)
    return {
        "tp": strided(1, tp, 1),
        "dcp": strided(tp // dcp, dcp, 1),
        "cp": cps,
        "attn_tp": strided(dp * cp, attn_tp, 1),
        "dp": strided(1, dp, cp * attn_tp),
        "moe_dp": cps if cp > moe_dp else strided(1, moe_dp, ep * moe_tp),
        "ep": strided(moe_dp, ep, moe_tp),
        "moe_tp": strided(moe_dp * ep, moe_tp, 1),
        "pp": [list(range(i, world, tp)) for i in range(tp)],
    }


def rank_groups(
    tp: int, cp: int = 1, dcp: int = 1, pp: int = 1, dp: int = 1, ep: int = 1, flavor: str = "native", *,
    moe_dp: int = 1, attn_cp: int = 1, dcp_axis: str = "tp",
) -> Groups:  # fmt: skip
    """Group lists by name, in the order of :attr:`sparsespan.cp.RankGrid.names`. Sizes are taken as valid."""
    if flavor == "native":
        return _native(tp, cp, dcp, pp, dp, ep)
    if flavor == "sglang":
        return _sglang(tp, cp, dcp, pp, dp, ep, moe_dp)
    groups = _vllm(tp, cp, dcp, pp, dp, ep, dcp_axis, attn_cp)
    return groups | ({"dsa_cp": groups["tp"]} if flavor == "vllm_ascend" else {})
