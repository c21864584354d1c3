"""What torch.distributed does not do by itself: ask without waiting, and tell the other ranks."""

from __future__ import annotations

import atexit
import contextlib
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

__all__ = ["Alarm", "Collectives", "Message"]

_PATIENCE = 0.5  # seconds that a failing rank waits for an answer of the store, once


class Collectives:
    """Collectives of one group; wait() after completion raises how they failed."""

    def __init__(self, works: list[Any], *buffers: Any) -> None:
        self._works = works
        self._buffers = buffers

    def test(self) -> bool:
        while self._works:
            if not self._works[0].is_completed():
                return False
            self._works.pop(0).wait()
        return True


_waiting: set[Message] = set()


@atexit.register
def _let_go() -> None:
    """End what still waits for a message: a thread that comes back from torch after Python is gone ends in an abort."""
    for waiter in list(_waiting):
        waiter.let_go()


class Message:
    """A gloo message never says that it is completed before somebody waits for it: a thread does."""

    def __init__(self, work: Any, buffer: Any) -> None:
        self._work = work
        self._buffer = buffer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        _waiting.add(self)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self._work.wait()
        except BaseException as error:
            self._error = error
        finally:
            _waiting.discard(self)

    def let_go(self) -> None:
        with contextlib.suppress(Exception):
            self._work.wait(timedelta(milliseconds=1))  # gloo ends all waits of a group of which one times out
        self._thread.join(_PATIENCE)

    def test(self) -> bool:
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True


class Alarm:
    """One key of the store says who gave the whole up and why; others, where the ranks stand.

    A store may not answer for minutes (its host is gone), so threads ask it, and nobody waits for them for long.
    """

    def __init__(self, store: Any, rank: int) -> None:
        self._store = store
        self._rank = rank
        self._asking: threading.Thread | None = None
        self._told: dict[str, int] = {}  # what this rank has said about its place, by part
        self._mute = False  # the store has let this rank wait in vain
        self.found: tuple[int, str] | None = None

    def _in_thread(self, job: Callable[[], None]) -> threading.Thread:
        def quietly() -> None:
            try:
                job()
            except Exception:  # without a store nobody is told: the timeout is the answer
                self._asking = None

        thread = threading.Thread(target=quietly, daemon=True)
        thread.start()
        return thread

    def look(self, place: str, sequence: int) -> tuple[int, str] | None:
        if self.found is None and (self._asking is None or not self._asking.is_alive()):
            self._asking = self._in_thread(lambda: self._ask(place, sequence))
        return self.found

    def _ask(self, place: str, sequence: int) -> None:
        if self._told.get(place, -1) < sequence:
            self._store.set(place, str(sequence))
            self._told[place] = sequence
        if self._store.check(["alarm"]):
            rank, reason = json.loads(self._store.get("alarm"))
            self.found = (int(rank), str(reason))

    def ring(self, reason: str) -> None:
        def tell() -> None:
            if not self._store.check(["alarm"]):  # the first reason stays
                self._store.set("alarm", json.dumps([self._rank, reason]))

        self._wait(self._in_thread(tell))

    def _wait(self, thread: threading.Thread) -> None:
        if not self._mute:
            thread.join(_PATIENCE)
        self._mute = self._mute or thread.is_alive()

    def places(self, keys: list[str]) -> list[int] | None:
        found: list[int] = []
        thread = self._in_thread(
            lambda: found.extend(int(self._store.get(key)) if self._store.check([key]) else -1 for key in keys)
        )
        self._wait(thread)
        return found if len(found) == len(keys) else None
