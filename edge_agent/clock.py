"""The one place of the device that reads a clock. Everything below `services` is handed its time."""

from __future__ import annotations

import ctypes
import time
from typing import Protocol

from edge_agent.contract.event import WallQuality

_STA_UNSYNC = 0x0040  # linux/timex.h


class Clock(Protocol):
    """Monotonic and wall time of this machine."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary start of this boot; never goes back."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may jump."""

    def wall_quality(self) -> WallQuality:
        """How far the wall time can be trusted."""


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        # Loaded once: every message asks for the quality of its time.
        self._adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        return time.time_ns()

    def wall_quality(self) -> WallQuality:
        """`ntp` where the kernel says that the clock is disciplined (adjtimex), else `unsynced`."""
        if self._adjtimex is None:
            return "unsynced"
        timex = ctypes.create_string_buffer(512)  # struct timex is 208 bytes; modes=0 only reads
        state = self._adjtimex(timex)
        status = int.from_bytes(timex.raw[40:44], "little")
        return "ntp" if state >= 0 and not status & _STA_UNSYNC else "unsynced"
