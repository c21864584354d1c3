"""Who has which pages of the caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._caches import PagedCaches

__all__ = ["KvPool", "PoolFull", "chunks"]


class PoolFull(RuntimeError):  # noqa: N818 - a state of the pool, named as people say it
    """There are not enough free pages. Nothing was changed: free a request, or ask for less."""


class KvPool:
    """Paged caches and the requests that live in them.

    A request is a number given by :meth:`open`. Its length grows when a call of the model has ended well; a call that
    fails leaves lengths as they were (pages may have been handed out already; they stay with the request).

    Parameters
    ----------
    caches : PagedCaches
    pages : int
        Pages that may be handed out: those of the caches.
    page_tokens : int, optional
        Tokens of a request that one page takes; default the caches' page size. More where ranks share the pages.
    """

    def __init__(self, caches: PagedCaches, pages: int, page_tokens: int | None = None) -> None:
        self.caches = caches
        self.pages = pages
        self.page_tokens = caches.page_size if page_tokens is None else page_tokens
        self._free = list(range(pages - 1, -1, -1))
        self._tables: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0

    def __repr__(self) -> str:
        used, tokens = self.pages - len(self._free), self.caches.bytes_per_token
        return f"<KvPool {used} of {self.pages} pages used by {len(self._tables)} requests, {tokens:,} bytes a token>"

    @property
    def free_pages(self) -> int:
        """Pages that no request has."""
        return len(self._free)

    def open(self) -> int:
        """Begin a request, with no tokens."""
        request, self._next = self._next, self._next + 1
        self._tables[request], self._lengths[request] = [], 0
        return request

    def close(self, request: int) -> None:
        """End a request and take its pages back."""
        self._require([request])
        self._free.extend(reversed(self._tables.pop(request)))
        del self._lengths[request]

    def length(self, request: int) -> int:
        """Tokens of a request in the caches."""
        self._require([request])
        return self._lengths[request]

    def lengths(self, requests: Sequence[int]) -> np.ndarray:
        """The same for several."""
        self._require(requests)
        return np.array([self._lengths[r] for r in requests], np.int64)

    def reserve(self, requests: Sequence[int], new: Sequence[int]) -> None:
        """Give each request the pages that ``new`` more tokens need; all of them, or none.

        Raises
        ------
        PoolFull
            With the pages that are needed and free.
        """
        self._require(requests)
        size = self.page_tokens
        wanted = [max(0, -(-(self._lengths[r] + n) // size) - len(self._tables[r])) for r, n in zip(requests, new)]
        if sum(wanted) > len(self._free):
            raise PoolFull(
                f"{sum(new)} more tokens of {len(requests)} requests need {sum(wanted)} pages of {size} tokens, "
                f"{len(self._free)} of {self.pages} are free; nothing was changed"
            )
        for request, count in zip(requests, wanted):
            self._tables[request].extend(self._free.pop() for _ in range(count))

    def table(self, requests: Sequence[int]) -> np.ndarray:
        """Block table of these requests, int32 [B, blocks], -1 behind a request's last page."""
        self._require(requests)
        width = max((len(self._tables[r]) for r in requests), default=0)
        table = np.full((len(requests), width), -1, np.int32)
        for row, request in enumerate(requests):
            table[row, : len(self._tables[request])] = self._tables[request]
        return table

    def advance(self, requests: Sequence[int], new: Sequence[int]) -> None:
        """Count tokens that have been written."""
        for request, n in zip(requests, new):
            self._lengths[request] += int(n)

    def _require(self, requests: Sequence[int]) -> None:
        for request in requests:
            if request not in self._lengths:
                raise ValueError(f"KvPool: request {request} is not open; open are {sorted(self._lengths)}")
        if len(set(requests)) != len(requests):
            raise ValueError(f"KvPool: requests {list(requests)} name one twice")


def chunks(lengths: Sequence[int], chunk: int) -> list[list[tuple[int, int, int]]]:
    """Passes of at most ``chunk`` rows: (request, first, last) each, requests in order."""
    if chunk < 0:
        raise ValueError(f"prefill: chunk is {chunk}, needs at least 0")
    passes: list[list[tuple[int, int, int]]] = []
    room = 0
    for b, length in enumerate(lengths):
        at = 0
        while at < length:
            if room == 0 or not passes:
                passes.append([])
                room = chunk or sum(lengths)
            take = min(room, length - at)
            passes[-1].append((b, at, at + take))
            at, room = at + take, room - take
    return passes
