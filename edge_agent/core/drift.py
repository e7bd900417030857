"""How novel a scene usually is, and whether it slowly becomes another: the last hour against the last week.

Both are exponentially weighted means over blocks of five minutes (an EWMA chart, Roberts 1959); the difference is
told in standard deviations of a block. A lamp that was added, a lens that gathers dust, a microphone that begins to
hum show here before they show in alerts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.budget import BLOCKS_A_DAY

_RECENT = 12
_REFERENCE = 7 * BLOCKS_A_DAY
#: Before a day there is nothing to drift from.
_SETTLED = BLOCKS_A_DAY
#: Smallest deviation of a block that counts, in the memory's own deviations.
_LEAST = 0.1
#: A block moves the reference by as much as if it lay this many deviations off, at most.
_MOST = 3.0
_FARTHEST = 1e9
#: The usual highest novelty of a block is this at least: a modality in which nothing ever happens is not news itself.
_LEAST_TOP = 3.0
#: Columns: sum, count, highest of the present block; mean, count of the recent ones; mean, variance, count and mean
#: highest of the reference.
_SUM, _COUNT, _TOP, _NOW, _NOWS, _MEAN, _VARIANCE, _BLOCKS, _TOPS = range(9)


class Drift:
    """Running means for each of a few modalities."""

    def __init__(self, count: int) -> None:
        self._table = np.zeros((count, 9), np.float64)

    def observe(self, novelty: Sequence[float | None]) -> None:
        """One window: novelty of each modality, None where it is missing."""
        for row, value in zip(self._table, novelty, strict=True):
            if value is not None:
                row[_SUM] += min(value, _FARTHEST)
                row[_TOP] = max(row[_TOP], min(value, _FARTHEST))
                row[_COUNT] += 1

    def close(self, *, quiet: bool) -> None:
        """The end of a block. Only quiet ones become part of what drift is held against."""
        for row in self._table:
            if not row[_COUNT]:
                continue
            mean, top = row[_SUM] / row[_COUNT], row[_TOP]
            row[_SUM] = row[_COUNT] = row[_TOP] = 0.0
            row[_NOWS] = min(row[_NOWS] + 1, _RECENT)
            row[_NOW] += (mean - row[_NOW]) / row[_NOWS]
            if quiet:
                row[_BLOCKS] = min(row[_BLOCKS] + 1, _REFERENCE)
                weight, off = 1 / row[_BLOCKS], mean - row[_MEAN]
                if row[_BLOCKS] > _RECENT:  # a change must not widen what it is held against
                    off = float(np.clip(off, -_MOST * _deviation(row), _MOST * _deviation(row)))
                row[_MEAN] += weight * off
                row[_TOPS] += weight * (min(top, _MOST * max(row[_TOPS], _LEAST_TOP)) - row[_TOPS])
                row[_VARIANCE] = (1 - weight) * (row[_VARIANCE] + weight * off * off)

    def values(self) -> list[float]:
        """Drift of each modality, in deviations; 0 in the first day, and where things have become more usual."""
        found = []
        for row in self._table:
            drift = max(0.0, float(row[_NOW] - row[_MEAN]) / _deviation(row))
            found.append(drift if row[_BLOCKS] >= _SETTLED else 0.0)
        return found

    def usual(self) -> list[float]:
        """The highest novelty that a quiet block usually reaches, of each modality."""
        return [max(float(row[_TOPS]), _LEAST_TOP) for row in self._table]

    def to_array(self) -> NDArray[np.float64]:
        """Everything."""
        return self._table.copy()

    def restore(self, table: NDArray[Any]) -> None:
        """What `to_array` gave, checked: ValueError unless it is that."""
        if table.shape != self._table.shape or table.dtype.kind != "f" or not (np.abs(table) <= 1e18).all():
            raise ValueError(f"drift is {table.dtype} {table.shape}")
        if (table[:, [_COUNT, _TOP, _NOWS, _VARIANCE, _BLOCKS, _TOPS]] < 0).any():
            raise ValueError("drift counts below 0")
        self._table[:] = table


def _deviation(row: NDArray[np.float64]) -> float:
    return max(float(np.sqrt(row[_VARIANCE])), _LEAST)
