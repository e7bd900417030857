"""One line that shows how far a long piece of work is: on a terminal it updates, in a log it repeats now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
_LOG_EVERY_S = 15.0


class Progress:
    """One piece of work: `at(done, note)` shows how far it is. Writes to stderr only."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total = title, total
        self._start = self._last = time.monotonic()
        self._live = sys.stderr.isatty()

    def at(self, done: int, note: str = "") -> None:
        """Say that `done` of the total are done."""
        now = time.monotonic()
        end = done >= self._total
        if not end and now - self._last < (0.2 if self._live else _LOG_EVERY_S):
            return
        self._last = now
        line = f"{self._title}: {done}/{self._total} in {now - self._start:.0f} s {note}".rstrip()
        sys.stderr.write(
            f"\r\x1b[K{line}" if self._live and not end else f"\r\x1b[K{line}\n" if self._live else line + "\n"
        )
        sys.stderr.flush()


def tracked(title: str, items: Iterable[T]) -> Iterator[T]:
    """The items, with progress shown."""
    total = len(items) if isinstance(items, Sized) else 0
    shown = Progress(title, total)
    for index, item in enumerate(items, 1):
        yield item
        shown.at(index)
