"""The first boundary: what may not enter the core is refused here, by kind of fault, and never raises."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from edge_agent.core.records import CLOCK, Box, Reading, Sample

#: A sample this far ahead of the clock has a broken stamp: ticks and samples share one queue.
AHEAD_NS = 5_000_000_000
#: A lower sequence number comes from a source that started anew if its time is this much newer; else it is a repeat.
RESTART_NS = 2_000_000_000
_MAX_SIDE = 8192
_MAX_AUDIO_S = 10

Verdict = Literal["", "unknown", "invalid", "duplicate", "future"]


class Gate:
    """Admits samples of known sources that are well-formed, new, and not from the future."""

    def __init__(self, sources: Iterable[str], rate_hz: int) -> None:
        self._sources = frozenset(sources) | {CLOCK}
        self._newest: dict[tuple[str, str], tuple[int, int]] = {}  # (seq, captured_ns): bounded by sources x kinds
        self._clock_ns: int | None = None
        self.rate_hz = rate_hz  #: of audio

    def verdict(self, sample: Sample) -> Verdict:
        """Empty if the sample may enter, which is then taken note of; else the counter that it falls under."""
        if not isinstance(sample.source, str) or sample.source not in self._sources:
            return "unknown"
        if not self._well_formed(sample):
            return "invalid"
        key = (sample.source, sample.kind)
        seq, captured_ns = self._newest.get(key, (-1, sample.captured_ns))
        if sample.seq <= seq and sample.captured_ns < captured_ns + RESTART_NS:
            return "duplicate"
        if sample.source == CLOCK:
            self._clock_ns = max(sample.captured_ns, self._clock_ns or 0)
        elif self._clock_ns is not None and sample.captured_ns > self._clock_ns + AHEAD_NS:
            return "future"
        self._newest[key] = (sample.seq, sample.captured_ns)
        return ""

    def _well_formed(self, sample: Sample) -> bool:
        if not (_int63(sample.seq) and _int63(sample.captured_ns)):
            return False
        if sample.source == CLOCK:
            return sample.kind == "tick"
        match sample.kind:
            case "frame":
                return _frame(sample.data)
            case "audio":
                return sample.rate_hz == self.rate_hz and _audio(sample.data, sample.rate_hz)
            case "reading":
                return _reading(sample.data)
            case "objects":
                return isinstance(sample.data, tuple) and all(isinstance(box, Box) for box in sample.data)
            case "tick":
                return True
        return False


def _int63(value: Any) -> bool:
    # Exactly int: numpy's integers overflow in the arithmetic that follows.
    return type(value) is int and 0 <= value < 1 << 63


def _frame(data: Any) -> bool:
    return (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 3
        and data.shape[2] == 3
        and 0 < data.shape[0] <= _MAX_SIDE
        and 0 < data.shape[1] <= _MAX_SIDE
    )


def _audio(data: Any, rate_hz: int) -> bool:
    return (
        isinstance(data, np.ndarray)
        and data.dtype == np.int16
        and data.ndim == 1
        and 0 < data.size <= rate_hz * _MAX_AUDIO_S
    )


def _reading(data: Any) -> bool:
    return (
        isinstance(data, Reading)
        and isinstance(data.channel, str)
        and isinstance(data.value, int | float | np.floating | np.integer)
        and math.isfinite(data.value)
    )
