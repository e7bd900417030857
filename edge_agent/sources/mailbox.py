"""What a driver's library thread leaves for `read`: bounded, closable from anywhere, and it remembers the end."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from edge_agent.errors import SourceError

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue of at most `limit` items between one writer and one reader.

    `put` waits while it is full (a file, a demuxer: nothing is lost, the other side is slowed), `drop_in` never
    waits and pushes the oldest out (a sensor feed: only what is new matters). `dropped` counts what was pushed out.
    """

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._items: deque[T] = deque()
        self._change = threading.Condition()
        self._end: SourceError | None = None

    def put(self, item: T) -> bool:
        """Add, waiting for room. False once the box has ended."""
        with self._change:
            self._change.wait_for(lambda: self._end is not None or len(self._items) < self._limit)
            if self._end is not None:
                return False
            self._items.append(item)
            self._change.notify_all()
            return True

    def drop_in(self, item: T) -> None:
        """Add at once; the oldest goes if it is full."""
        with self._change:
            if self._end is None:
                if len(self._items) >= self._limit:
                    self._items.popleft()
                    self.dropped += 1
                self._items.append(item)
                self._change.notify_all()

    def get(self, timeout_s: float) -> T | None:
        """The oldest item, or None if none came in time. Raises what `end` was given once the box is empty."""
        with self._change:
            self._change.wait_for(lambda: self._end is not None or bool(self._items), timeout_s)
            if self._items:
                item = self._items.popleft()
                self._change.notify_all()
                return item
            if self._end is not None:
                raise self._end
            return None

    def end(self, error: SourceError, *, discard: bool = False) -> None:
        """Nothing more will come, for this reason; the first reason stays. `discard` what was not read too."""
        with self._change:
            self._end = self._end or error
            if discard:
                self._items.clear()
            self._change.notify_all()

    def wait_end(self, timeout_s: float) -> bool:
        """Wait for `end`. True if it came in time."""
        with self._change:
            return self._change.wait_for(lambda: self._end is not None, timeout_s)
