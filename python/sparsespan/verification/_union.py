"""The union design has a reference of its own: every rank's local top-k, attended together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import cp, indexer
from ._case import Case
from ._checks import LSE, Check, bits, merge_tolerance, within

if TYPE_CHECKING:
    from ._decode import Oracle, Pair

__all__ = ["checks", "picks"]


def picks(case: Case, want: Oracle) -> list[np.ndarray]:
    """[N] of int32 [T, K]: each rank's best own positions, ascending, from the scores of the whole index cache."""
    setup, model = want.setup, case.model
    layout = cp.dcp_layout(case.interleave, case.dcp, model.page_size)
    longest = int(want.contexts.max(initial=0))
    scores = indexer.paged_mqa_logits(
        want.rows.q_index, want.caches.index, want.rows.weights, want.seen, want.table[setup.requests],
        model.page_size, longest, layout=model.index_layout,
    )  # fmt: skip
    found = []
    for rank in range(case.dcp):
        own = np.flatnonzero(layout.owner(np.arange(longest)) == rank)
        lengths = np.asarray(layout.visible_len(setup.positions, rank), np.int32)
        local = indexer.topk(np.ascontiguousarray(scores[:, own]), setup.dims.topk, lengths=lengths)
        found.append(np.where(local >= 0, layout.logical(rank, local), -1).astype(np.int32))
    return found


def checks(
    case: Case, want: Oracle, rank: int, heads: slice, indices: np.ndarray, got: Pair
) -> tuple[list[Check], dict[str, Any]]:
    """The rank's own picks bit by bit, the result within the merge tolerance, and what the approximation does."""
    by_rank = picks(case, want)
    union = np.sort(np.concatenate(by_rank, axis=1), axis=1)[:, ::-1]
    union = np.where(union >= 0, union, -1).astype(np.int32)
    out, lse = want.attend(np.ascontiguousarray(union))
    kept = [len(np.intersect1d(u[u >= 0], e[e >= 0])) for u, e in zip(union, want.indices)]
    exact = int((want.indices >= 0).sum())
    figures = {
        "recall": sum(kept) / exact if exact else 1.0,
        "attended": int((union >= 0).sum()) / exact if exact else 1.0,
        "off_exact": float(np.abs(out - want.plain[0]).max(initial=0.0)),
    }
    return [
        bits("own picks", indices, by_rank[rank]),
        within("out of the union", got[0], out[:, heads], merge_tolerance(case.payload, want.largest)),
        within("lse of the union", got[1], lse[:, heads], LSE),
    ], {"union": figures}
