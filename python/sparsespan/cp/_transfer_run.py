"""A transfer plan carried out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .._interop import call
from ..comm import Communicator
from ._start import need_comm
from ._transfer_plan import TransferPlan

__all__ = ["TransferCaches", "TransferReport", "run_transfer"]


@dataclasses.dataclass(frozen=True)
class TransferCaches:
    """The caches of one rank on one side of a hand-over.

    Parameters
    ----------
    kv : mapping of layer to array, or sequence of arrays
        Paged latent caches [pages, page_size, width] of the layers that this rank holds; a sequence begins at layer 0
        and has None where it holds none.
    pages : sequence of int arrays [B]
        Page ids of each request on this rank, in the order of its positions here; None for a request without pages.
    index : mapping or sequence, optional
        Paged index caches, by layer.
    index_pages : sequence of int arrays, optional
        Page ids in the index caches where they have a table of their own (index keys replicated beside a sharded latent
        cache). Default: ``pages``.
    """

    kv: Mapping[int, Any] | Sequence[Any]
    pages: Sequence[Any]
    index: Mapping[int, Any] | Sequence[Any] = ()
    index_pages: Sequence[Any] | None = None

    def _core_form(self) -> tuple[Any, ...]:
        def by_layer(arrays: Mapping[int, Any] | Sequence[Any]) -> tuple[Any, ...]:
            if not isinstance(arrays, Mapping):
                return tuple(arrays)
            return tuple(arrays.get(layer) for layer in range(max(arrays, default=-1) + 1))

        def page_ids(values: Any) -> np.ndarray:
            found = np.asarray(values)
            if found.size and found.dtype.kind not in "iu":
                raise TypeError(f"run_transfer: pages has dtype {found.dtype}, needs integers")
            return found.astype(np.int64)

        def ints(lists: Sequence[Any] | None) -> tuple[Any, ...]:
            return tuple(None if v is None else page_ids(v) for v in lists or ())

        return by_layer(self.kv), by_layer(self.index), ints(self.pages), ints(self.index_pages)


class TransferReport(NamedTuple):
    """What one rank moved: bytes of cache rows, bytes of checksums, pages compared. Every figure is counted."""

    sent: int
    received: int
    local: int
    checksums: int
    pages: int


def run_transfer(
    comm: Communicator,
    plan: TransferPlan,
    source: TransferCaches | None = None,
    dest: TransferCaches | None = None,
    *,
    layout: str = "fp8_656",
    index_layout: str = "index_132",
    prefill_ranks: Sequence[int] | None = None,
    decode_ranks: Sequence[int] | None = None,
    timeout: float | None = None,
    threads: int = 0,
) -> TransferReport:
    """Carry out a hand-over: prefill ranks send the rows of their caches, decode ranks store them.

    Parameters
    ----------
    comm : Communicator
        Both sides' ranks are in it; every rank calls this with the same plan.
    plan : TransferPlan
    source : TransferCaches, optional
        This rank's caches if it is a prefill rank.
    dest : TransferCaches, optional
        This rank's caches if it is a decode rank; written.
    layout, index_layout : str
        Of the caches, the same on both sides; a token's bytes are those that the plan counts.
    prefill_ranks, decode_ranks : sequence of int, optional
        The rank of ``comm`` of each prefill and each decode rank. Default: the prefill ranks first, then the decode
        ranks. A rank may be in both: what it gives itself is copied.
    timeout : float, optional
        Seconds that each operation waits for its peer.
    threads : int
        0 takes :func:`sparsespan.num_threads`.

    Returns
    -------
    TransferReport

    Raises
    ------
    ValueError, TypeError, IndexError
        On a rank whose caches or pages do not fit the plan. Nothing has moved; the other ranks get a CommError that
        names it.
    ChecksumMismatch
        On every rank, if a page arrived unlike it was sent; the message names page, request, layer and both ranks. No
        cache has changed on any rank.
    RankMismatch, CommTimeout, CommError
        As any operation between ranks; no cache has changed here.

    Notes
    -----
    Ranks go through the plan's lines in the order of its table. A message holds the tokens of one line, layer by layer,
    byte for byte as the caches store them, then 8 bytes of checksum per layer and destination page. Received pages wait
    in memory of their own until all ranks have compared theirs; then they are stored. Row bytes equal the plan's
    ``sent_bytes()`` and ``received_bytes()``; :meth:`Communicator.trace` counts them with the checksums under
    ``"recv"``. Reference: :func:`sparsespan.reference.cp_transfer.run_transfer`.

    Examples
    --------
    >>> import numpy as np
    >>> from sparsespan import cp
    >>> from sparsespan.comm import run_ranks
    >>> plan = cp.transfer_plan(cp.KvSide(page_size=4), cp.KvSide(page_size=2), [3], num_layers=1, kv_bytes=656,
    ...                         index_bytes=0)
    >>> full, empty = np.full((2, 4, 656), 7, np.uint8), np.zeros((2, 2, 656), np.uint8)
    >>> def rank(comm):
    ...     if comm.rank == 0:
    ...         return cp.run_transfer(comm, plan, source=cp.TransferCaches([full], pages=[[1]]))
    ...     return cp.run_transfer(comm, plan, dest=cp.TransferCaches([empty], pages=[[1, 0]]))
    >>> run_ranks(2, rank)[1]
    TransferReport(sent=0, received=1968, local=0, checksums=16, pages=2)
    >>> empty[:, :, 0]
    array([[7, 0],
           [7, 7]], dtype=uint8)
    """
    op = "run_transfer"
    comm = need_comm(op, comm)
    if not isinstance(plan, TransferPlan):
        raise TypeError(f"{op}: plan is a {type(plan).__name__}, needs a TransferPlan; cp.transfer_plan makes one")
    for name, caches in (("source", source), ("dest", dest)):
        if caches is not None and not isinstance(caches, TransferCaches):
            raise TypeError(f"{op}: {name} is a {type(caches).__name__}, needs a cp.TransferCaches")
    senders, takers = plan.prefill.world_size, plan.decode.world_size
    facts = (
        [plan.prefill.shards(part, False) for part in ("kv", "index")],
        [plan.decode.shards(part, True) for part in ("kv", "index")],
        (plan.prefill.page_size, plan.decode.page_size),
        (plan.kv_bytes, plan.index_bytes),
    )
    report = comm._guard(
        lambda: call(
            _core.cp.run_transfer,
            comm._native,
            np.ascontiguousarray(plan.table).view(np.int64),
            facts,
            layout,
            index_layout,
            None if source is None else source._core_form(),
            None if dest is None else dest._core_form(),
            list(range(senders)) if prefill_ranks is None else list(prefill_ranks),
            list(range(senders, senders + takers)) if decode_ranks is None else list(decode_ranks),
            f"{plan.fingerprint}/{layout}/{index_layout}",
            threads,
            timeout,
        )
    )
    return TransferReport(*report)
