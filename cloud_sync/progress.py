"""How far a stream has come: everything up to `upto` but the holes. Rules without I/O.

An outbox deletes what the cloud says it has, so every mistake here has one allowed direction: a row that is here
may be called missing (it is sent again and found to be a duplicate), a row that is missing never passes for here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

#: Holes that one stream may have: they travel in an Ack and are rewritten with every transaction.
MAX_HOLES = 1024


class Progress:
    """High-water mark and holes of one stream; `holes` are [first, last] runs, rising, at or below `upto`."""

    def __init__(self, upto: int = 0, holes: Sequence[Sequence[int]] = ()) -> None:
        self.upto = upto
        self.holes = [[int(first), int(last)] for first, last in holes]

    def settle(self, first: int, last: int) -> None:
        """Everything from `first` to `last` is here, or will never come (a reported gap)."""
        if first > self.upto:
            if first > self.upto + 1:
                self.holes.append([self.upto + 1, first - 1])
            self.upto = last
            return
        start = bisect_left(self.holes, first, key=lambda hole: hole[1])
        end = start
        left: list[list[int]] = []
        while end < len(self.holes) and self.holes[end][0] <= last:
            hole_first, hole_last = self.holes[end]
            if hole_first < first:
                left.append([hole_first, first - 1])
            if hole_last > last:
                left.append([last + 1, hole_last])
            end += 1
        self.holes[start:end] = left
        self.upto = max(self.upto, last)

    def squeeze(self, fresh: Sequence[int], limit: int = MAX_HOLES) -> None:
        """Bring the holes down to `limit` by joining the oldest neighbours; rows between them count as missing.

        `fresh` (rising) are the rows settled just now: holes are not joined over them while `limit` exceeds their
        number, so that the Ack that goes out now frees them on the device.
        """
        excess = len(self.holes) - limit
        if excess <= 0:
            return
        joined: list[list[int]] = []
        for first, last in self.holes:
            if excess > 0 and joined and bisect_right(fresh, joined[-1][1]) == bisect_left(fresh, first):
                joined[-1][1] = last
                excess -= 1
            else:
                joined.append([first, last])
        self.holes = joined

    def as_tuples(self) -> tuple[tuple[int, int], ...]:
        """The holes as an Ack has them."""
        return tuple((first, last) for first, last in self.holes)
