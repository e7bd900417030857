"""The alert budget of a scene: how high its own normal life reaches, in blocks of five minutes.

The statistic is what opens an event, the highest level that a score holds for `on_steps` windows, and its maximum
over a block: neighbouring windows are one another's copies, neighbouring blocks much less so. Split conformal
prediction (Vovk et al. 2005) then needs no distribution: of N exchangeable blocks and a new one, the new one is
above the k-th smallest with probability 1 − k/(N + 1) at most. With 288 blocks a day, `alerts a day / 288` of them
may be above.

A block that holds an event has no value: its windows never enter. To leave it out altogether would let the
threshold sink for ever, for what is left is cut off at the threshold, and the next threshold is a quantile of that.
So it is *censored*: all that is known is how many alerts it held, and the level that they were above. Above the
highest fifth of the quiet blocks the tail is taken as exponential, its scale by maximum likelihood for censored
data, and each alert counts with the probability that it would have come all the same. Without alerts this is split
conformal, to the letter.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32

BLOCK_S = 300
BLOCKS_A_DAY = 86_400 // BLOCK_S
#: Two weeks; older blocks are forgotten.
CAPACITY = 14 * BLOCKS_A_DAY
#: Most alerts of one block that are counted.
_MOST_ALERTS = 255
#: Share of the quiet blocks that the tail's scale is taken from, and its bounds (logit units).
_TAIL = 0.2
_SCALE = (0.25, 2.0)
#: Levels beyond this are the same: a sigmoid has long been 0 or 1.
FARTHEST = 60.0


class Blocks:
    """A ring of blocks, oldest first: of a quiet one its highest level; else how many alerts it held, above what."""

    def __init__(self) -> None:
        self._rows = np.zeros((CAPACITY, 2), np.float32)  # level, alerts
        self._begin = 0
        self._count = 0
        self._summary: tuple[NDArray[np.float64], _Tail] | None = None  # quiet levels, sorted, and the tail

    def __len__(self) -> int:
        return self._count

    def add_quiet(self, highest: float) -> None:
        """A block without an event that reached `highest` (logit)."""
        self._add(highest, 0)

    def add_alerts(self, count: int, level: float) -> None:
        """A block in which `count` ≥ 1 alerts came, all of them above `level`."""
        self._add(level, min(max(count, 1), _MOST_ALERTS))

    def rows(self) -> F32:
        """float32 (n, 2), oldest first: level and alerts; of a quiet block 0 alerts."""
        order = (self._begin + np.arange(self._count)) % CAPACITY
        return self._rows[order]

    def restore(self, rows: NDArray[Any]) -> None:
        """What `rows` gave, checked: ValueError unless it is that."""
        if rows.ndim != 2 or rows.shape[1] != 2 or len(rows) > CAPACITY or rows.dtype.kind != "f":
            raise ValueError(f"expected at most {CAPACITY} blocks, got {rows.dtype} {rows.shape}")
        level, alerts = rows.T
        if not (np.abs(level) <= FARTHEST).all() or not ((alerts >= 0) & (alerts <= _MOST_ALERTS)).all():
            raise ValueError("blocks out of range")
        self._begin, self._count, self._summary = 0, len(rows), None
        self._rows[: len(rows)] = rows

    def threshold(self, alerts_a_day: float) -> float | None:
        """The lowest level that normal blocks exceed `alerts_a_day` times a day at most; None while they are too few
        to say so, which are `needed(alerts_a_day)`.

        The last day alone must keep to the budget too: what lasts for hours comes in bursts, which two weeks forgive.
        """
        quiet, tail = self._summarised()
        if self._count < needed(alerts_a_day) or not len(quiet):
            return None
        level = _lowest(quiet, tail, alerts_a_day * (self._count + 1) / BLOCKS_A_DAY)
        rows = self.rows()[-BLOCKS_A_DAY:].astype(np.float64)
        alerts = rows[rows[:, 1] > 0]
        if len(alerts):
            today = np.sort(rows[rows[:, 1] == 0, 0])
            level = max(level, _lowest(today, tail.only(alerts), max(alerts_a_day, 1.0) * (1 + 1 / BLOCKS_A_DAY)))
        return float(np.nextafter(np.float32(min(level, FARTHEST)), np.float32(np.inf)))

    def p_value(self, level: float) -> float:
        """Conformal p-value: with what probability a normal block reaches `level`."""
        quiet, tail = self._summarised()
        reached = len(quiet) - int(np.searchsorted(quiet, level)) + tail.alerts(level)
        return min(reached / (self._count + 1), 1.0)

    def _summarised(self) -> tuple[NDArray[np.float64], _Tail]:
        if self._summary is None:
            rows = self.rows().astype(np.float64)
            quiet = np.sort(rows[rows[:, 1] == 0, 0])
            self._summary = quiet, _Tail(quiet, rows[rows[:, 1] > 0])
        return self._summary

    def _add(self, level: float, alerts: int) -> None:
        at = (self._begin + self._count) % CAPACITY
        self._summary = None
        self._rows[at] = max(-FARTHEST, min(FARTHEST, level)), alerts
        if self._count < CAPACITY:
            self._count += 1
        else:
            self._begin = (self._begin + 1) % CAPACITY


class _Tail:
    """Alerts as exceedances of unknown height: exponential above the highest fifth of the quiet blocks."""

    def __init__(self, quiet: NDArray[np.float64], alerts: NDArray[np.float64]) -> None:
        self._levels, self._counts = alerts[:, 0], alerts[:, 1]
        self._scale = _SCALE[0]
        if len(quiet):
            start = quiet[int((1 - _TAIL) * (len(quiet) - 1))]
            over = quiet[quiet > start] - start
            hidden = np.maximum(self._levels - start, 0.0) * self._counts
            self._scale = float(np.clip((over.sum() + hidden.sum()) / max(len(over), 1), *_SCALE))

    def only(self, alerts: NDArray[np.float64]) -> _Tail:
        """The same tail for some of the alerts."""
        tail = copy(self)
        tail._levels, tail._counts = alerts[:, 0], alerts[:, 1]
        return tail

    def alerts(self, level: float) -> float:
        """How many of the alerts would have come at `level`, and half a one; at least 1, the next block's place."""
        if not len(self._levels):
            return 1.0
        beyond = np.maximum(level - self._levels, 0.0)
        return max(1.0, float((self._counts * np.exp(-beyond / self._scale)).sum()) + 0.5)

    def level(self, allowed: float, low: float) -> float:
        """The level above `low` at which `allowed` of the alerts are left, to 1e-6."""
        high = max(low, float(self._levels.max()))
        high += self._scale * (
            2.0 + math.log(max(self._counts.sum() / allowed, 1.0))
        )  # an eighth of `allowed` is left
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.alerts(middle) <= allowed else (middle, high)
        return high


def _lowest(quiet: NDArray[np.float64], tail: _Tail, allowed: float) -> float:
    """The lowest of the sorted `quiet` levels, or above them, that `allowed` of all blocks exceed at most."""
    allowed *= 1 + 1e-9  # rounding
    low, high = 0, len(quiet)
    while low < high:
        middle = (low + high) // 2
        above = len(quiet) - 1 - middle
        low, high = (low, middle) if above + tail.alerts(quiet[middle]) <= allowed else (middle + 1, high)
    return float(quiet[low]) if low < len(quiet) else tail.level(allowed, float(quiet[-1]) if len(quiet) else 0.0)


def needed(alerts_a_day: float) -> int:
    """Blocks without which a budget cannot be held to: a day of them, more for less than one alert a day."""
    return max(BLOCKS_A_DAY, math.ceil(BLOCKS_A_DAY / alerts_a_day) - 1)
