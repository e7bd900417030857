"""The one place of the drivers that starts a thread: for a library that cannot be interrupted while it waits.

libav and PortAudio are pulled, and a pull that has begun cannot be called off. So each connection has a thread
that pulls, and `read` and `close` only deal with what it puts here: they return in time whatever the library does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from edge_agent.errors import SourceError

T = TypeVar("T")


class Line(Generic[T]):
    """One connection: a thread, at most `limit` items that wait to be read, and the reason of its end.

    Nothing is dropped here: a full line makes the thread wait, and so the sender. Used once.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.closing = threading.Event()  #: for the thread to wait on
        self._name = name
        self._limit = limit
        self._items: deque[T] = deque()
        self._change = threading.Condition()
        self._connected = False
        self._end: SourceError | None = None
        self._thread: threading.Thread | None = None

    def open(self, pull: Callable[[], SourceError], patience_s: float) -> None:
        """Run `pull` in the thread and wait until it says `connected`. SourceError if it does not.

        `pull` returns, or raises as SourceError, the reason for which nothing more will come.
        """
        # A daemon: one that a broken library never lets go of must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(pull,), name=self._name, daemon=True)
        with self._change:
            if self._end is None:
                self._thread = thread
                thread.start()
            self._change.wait_for(lambda: self._connected or self._end is not None, patience_s)
            if not self._connected:
                raise self._end or SourceError(f"{self._name}: no answer within {patience_s:g} s")

    def connected(self) -> None:
        """From the thread: `open` may return."""
        with self._change:
            self._connected = True
            self._change.notify_all()

    def put(self, item: T) -> bool:
        """From the thread: add, waiting for room. False once the line is closed."""
        with self._change:
            self._change.wait_for(lambda: self._end is not None or len(self._items) < self._limit)
            if self._end is not None:
                return False
            self._items.append(item)
            self._change.notify_all()
            return True

    def get(self, timeout_s: float) -> T | None:
        """The oldest item, or None if none came in time. Once all is read: raises the reason of the end."""
        with self._change:
            self._change.wait_for(lambda: bool(self._items) or self._end is not None, timeout_s)
            if self._items:
                item = self._items.popleft()
                self._change.notify_all()
                return item
            if self._end is not None:
                raise self._end.with_traceback(None)  # it may be raised again and again
            return None

    def close(self, wait_s: float) -> bool:
        """End it from any thread, waiting `wait_s` at most. False if the library has not let go by then; the
        thread ends as soon as it does."""
        self.closing.set()
        with self._change:
            self._finish(SourceError(f"{self._name}: closed"))
            self._items.clear()
            thread = self._thread
        if thread is None:
            return True
        thread.join(wait_s)
        return not thread.is_alive()

    def _run(self, pull: Callable[[], SourceError]) -> None:
        end = SourceError(f"{self._name}: ended by a fault of its own; the log has its traceback")
        try:
            end = pull()
        except SourceError as error:
            end = error
        finally:
            with self._change:
                self._finish(end)

    def _finish(self, reason: SourceError) -> None:
        """The first reason stays."""
        self._end = self._end or reason
        self._change.notify_all()
