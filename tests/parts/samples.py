"""Samples made by hand: times in seconds, so that a test reads like a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edge_agent.core.records import CLOCK, Reading, Sample

START_S = 100.0
RATE_HZ = 16_000


def ns(time_s: float) -> int:
    """Nanoseconds of a time in seconds, to the microsecond."""
    return round(time_s * 1e6) * 1_000


class Script:
    """Numbers the samples of every source in the order in which they are made."""

    def __init__(self) -> None:
        self._seq: dict[tuple[str, str], int] = {}

    def _sample(self, source: str, kind: Any, time_s: float, data: Any = None, rate_hz: int = 0) -> Sample:
        seq = self._seq[source, kind] = self._seq.get((source, kind), -1) + 1
        return Sample(source, kind, seq, ns(time_s), data, rate_hz)

    def clock(self, time_s: float) -> Sample:
        return self._sample(CLOCK, "tick", time_s)

    def tick(self, time_s: float, source: str = "feed") -> Sample:
        return self._sample(source, "tick", time_s)

    def frame(self, time_s: float, level: int | None = None, source: str = "cam", size: int = 8) -> Sample:
        """A flat picture; without a level, one that the time can be told by."""
        shade = level if level is not None else round(time_s * 100) % 251
        return self._sample(source, "frame", time_s, np.full((size, size, 3), shade, np.uint8))

    def sound(self, time_s: float, length_s: float = 0.1, level: int = 3, source: str = "mic") -> Sample:
        """A square wave from `time_s` on."""
        pcm = np.full(round(length_s * RATE_HZ), level, np.int16)
        pcm[::2] *= -1
        return self._sample(source, "audio", time_s, pcm, RATE_HZ)

    def reading(self, time_s: float, value: float, channel: str = "smoke", source: str = "feed") -> Sample:
        return self._sample(source, "reading", time_s, Reading(channel, value))


def seconds(begin_s: float, end_s: float, rate_hz: float) -> Iterator[float]:
    """Times from begin to end, without the end."""
    for index in range(round((end_s - begin_s) * rate_hz)):
        yield begin_s + index / rate_hz
