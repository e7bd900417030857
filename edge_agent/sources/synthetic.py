"""A simulated site as a source: picture, sound and sensors of one place, in real time, without any hardware.

A scene may name the same source as its camera, its microphone and the source of its sensors. There are no packets:
evidence is encoded from the frames.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edge_agent.clock import Clock
from edge_agent.contract.event import Modality
from edge_agent.core.records import Kind, Packet, Sample
from edge_agent.errors import ConfigError, SourceError
from edge_agent.simulate import Episode, Site, demo, quiet

CHUNK_S = 0.1  #: of sound in one sample
_LATE_NS = 1_000_000_000  # further behind than this, what is due is skipped instead of rendered
_SECOND = 1_000_000_000
#: What is given, in this order at the same moment.
_KINDS = ("vision", "audio", "sensors", "tick")
_TICK = 3


class SyntheticOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which site, and what happens there."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1
    #: `demo` (something every minute), `quiet` (normal life and hard negatives), or a list of episodes
    episodes: Literal["demo", "quiet"] | tuple[Episode, ...] = "demo"
    mute: tuple[Modality, ...] = ()  #: modalities that this source does not give
    width: Annotated[int, Meta(ge=64, le=1920)] = 320
    height: Annotated[int, Meta(ge=48, le=1080)] = 240
    fps: Annotated[float, Meta(gt=0, le=60)] = 10.0
    rate_hz: Annotated[int, Meta(ge=8000, le=48000)] = 16_000
    loop_s: Annotated[int, Meta(ge=10, le=86_400)] = 14_400  #: after this the site begins again
    #: samples are handed out this much faster than they happen, their times running ahead of the clock; 0: at once
    speed: Annotated[float, Meta(ge=0, le=1000)] = 1.0


class Synthetic:
    """Frames at `fps`, sound in blocks of 100 ms, and readings once a second, stamped as if the site were here.

    Every 100 ms a tick in its own name says that all before has been given: a window need not wait for a reading.
    """

    Options = SyntheticOptions
    stamps_on_arrival = False

    def __init__(self, name: str, options: SyntheticOptions, clock: Clock) -> None:
        if set(options.mute) >= {"vision", "audio", "sensors"}:
            raise ConfigError("every modality is muted: leave at least one of vision, audio, sensors", "mute")
        self.counters = {"skipped": 0}
        self._name, self._options, self._clock = name, options, clock
        self._closed = threading.Event()
        self._site: Site | None = None
        self._start_ns = 0
        self._next = [0, 0, 0, 0]  # index of the next frame, block of sound, second of readings, tick
        self._seq: Counter[Kind] = Counter()  # goes on when the source is opened again
        self._pending: list[Sample] = []

    def open(self) -> None:
        """Build the site; the time of its seed begins now."""
        options = self._options
        self._site = Site(
            options.seed,
            self._episodes(),
            width=options.width,
            height=options.height,
            fps=options.fps,
            rate_hz=options.rate_hz,
        )
        self._closed.clear()
        self._start_ns = self._clock.monotonic_ns()
        self._next = [0, 0, 0, 0]
        self._pending = []

    def read(self, timeout_s: float) -> Sample | Packet | None:
        """The next sample once it has happened; None if that is later than `timeout_s`. SourceError after close."""
        site = self._site
        if site is None or self._closed.is_set():
            raise SourceError(f"{self._name}: the simulated site is not open; call open() first")
        if self._pending:
            return self._pending.pop()
        kind, due_ns = self._due()
        if self._options.speed:
            early_ns = self._happens_ns(due_ns) - self._clock.monotonic_ns()
            if early_ns > 0:
                self._closed.wait(min(timeout_s, early_ns / _SECOND))
                if self._clock.monotonic_ns() < self._happens_ns(due_ns):
                    return None
            elif -early_ns > _LATE_NS:
                self._skip(due_ns + int(-early_ns * self._options.speed))
                kind, due_ns = self._due()
        index = self._next[kind]
        self._next[kind] += 1
        return (self._frame, self._sound, self._sensors, self._tick)[kind](site, index)

    def close(self) -> None:
        """Wake a read that waits, and let the site go."""
        self._closed.set()
        self._site = None

    def _episodes(self) -> tuple[Episode, ...]:
        options = self._options
        if options.episodes == "demo":
            return demo(options.seed, options.loop_s)
        if options.episodes == "quiet":
            return quiet(options.seed, options.loop_s)
        return options.episodes

    def _due(self) -> tuple[int, int]:
        """Which kind is next, and when it is whole (ns since open): a block of sound ends 100 ms after it began."""
        frame, block, second, tick = self._next
        times = {
            0: round(frame * _SECOND / self._options.fps),
            1: round((block + 1) * CHUNK_S * _SECOND),
            2: second * _SECOND,
            3: round((tick + 1) * CHUNK_S * _SECOND),
        }
        kind = min(self._given(), key=lambda kind: (times[kind], kind))
        return kind, times[kind]

    def _given(self) -> list[int]:
        """The kinds that are not muted, ticks last: at the same moment they come after what they speak of."""
        return [kind for kind, name in enumerate(_KINDS) if name not in self._options.mute]

    def _happens_ns(self, due_ns: int) -> int:
        return self._start_ns + round(due_ns / self._options.speed)

    def _skip(self, now_ns: int) -> None:
        """Leave out what a machine that is too slow would only pile up."""
        per_second = (self._options.fps, 1.0 / CHUNK_S, 1.0, 1.0 / CHUNK_S)
        for kind, rate in enumerate(per_second):
            following = max(int(now_ns / _SECOND * rate), self._next[kind])
            if kind in self._given() and kind != _TICK:
                self.counters["skipped"] += following - self._next[kind]
            self._next[kind] = following

    def _frame(self, site: Site, index: int) -> Sample:
        since_ns = round(index * _SECOND / self._options.fps)
        picture = site.frame(since_ns / _SECOND % self._options.loop_s)
        return self._sample("frame", self._start_ns + since_ns, picture)

    def _sound(self, site: Site, index: int) -> Sample:
        rate_hz = self._options.rate_hz
        count = round(CHUNK_S * rate_hz)
        wave = site.sound(index * count % (self._options.loop_s * rate_hz), count)
        captured_ns = self._start_ns + index * count * _SECOND // rate_hz
        return self._sample("audio", captured_ns, wave, rate_hz)

    def _tick(self, _: Site, index: int) -> Sample:
        captured_ns = self._start_ns + round((index + 1) * CHUNK_S * _SECOND)
        return self._sample("tick", captured_ns)

    def _sensors(self, site: Site, index: int) -> Sample | None:
        readings = site.readings(float(index % self._options.loop_s))
        captured_ns = self._start_ns + index * _SECOND
        self._pending = [self._sample("reading", captured_ns, reading) for reading in readings][::-1]
        return self._pending.pop() if self._pending else None

    def _sample(self, kind: Kind, captured_ns: int, data: Any = None, rate_hz: int = 0) -> Sample:
        self._seq[kind] += 1
        return Sample(self._name, kind, self._seq[kind], captured_ns, data, rate_hz)
