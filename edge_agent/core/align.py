"""Samples → windows, one per scene and step, the same ones for any order in which the sources' samples arrive.

**When a window closes.** Window k of a scene covers [k·step, (k+1)·step) of monotonic time; call its end e.

1. It closes when every stream of the scene (frames, audio, each sensor source) has delivered past e: a frame at or
   after e, sound up to e, a reading or a tick of the sensor source at or after e. No tick of the clock is needed.
2. At the latest it closes when the clock says e + lateness. What comes later for it is dropped and counted `late`;
   a late reading still sets its channel's state, from the next window on.
3. It does not wait for a stream that is *not live*: one that had delivered nothing for `LIVE_NS` when the clock,
   less the lateness, reached the window's start. (A stream that never delivered counts from the first clock tick.)

Rule 3 alone would let the order of arrival decide whether a stream that comes back is in a window that others have
already passed. So who was away for more than `LIVE_NS` is heard again from the first window that starts a lateness
after its first new sample; the samples before are counted `rejoining`. With that, the content of every window
depends on the samples alone, provided that each arrives before the clock passes its time by the lateness.

**Silence.** A window in which nothing arrived is a window too (events must end); after as many of them in a row as
the sensor history is long, every memory is empty, and windows are skipped (counted) until something arrives: an hour
of suspended device costs a few dozen windows, not 7,200.

**Frozen.** A camera or microphone that delivers the same again and again, to the last bit, shows what was and not
what is: a decoder that hangs, a driver that gives its last buffer. After `FROZEN_NS` of it the modality is missing,
until something else comes. A live sensor's noise never does that for so long, however still the scene is; a picture
that does (a lens cap, a codec that sends nothing) has nothing to tell either. Readings may repeat for hours: a room
is so.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import Channel, SceneConfig
from edge_agent.contract.event import Modality
from edge_agent.contract.manifest import Manifest
from edge_agent.core.gate import AHEAD_NS, Gate
from edge_agent.core.records import CLOCK, I16, U8, Box, Sample, SensorStep, Window

MS = 1_000_000
LIVE_NS = 2_000 * MS
#: A picture older than this is not the scene of now.
FRAME_STALE_NS = 1_000 * MS
#: The earlier frame may be this much too new: frame intervals jitter, and 10 frames/s sits on d1 = 100 ms exactly.
FRAME_SLACK_NS = 20 * MS
#: Of three frames within this the middle one goes: two differences need no 30 frames/s of memory.
FRAME_THIN_NS = 80 * MS
#: Pictures or sound that repeat for so long are frozen. Codecs send a still scene anew every few seconds.
FROZEN_NS = 30_000 * MS
#: Every so many rows and columns are compared first: of a live picture they differ already.
_PROBE = 16
#: Changes of a stream that are remembered: those of the windows that are still open.
_MAX_CHANGES = 256
#: Sound this near to where the last chunk ended is its continuation: stamps jitter, sound does not.
AUDIO_JOIN_NS = 20 * MS

MAX_FRAMES = 64
MAX_FRAME_BYTES = 192 << 20
MAX_AUDIO_S = 30
MAX_CHUNKS = 4096
MAX_READINGS = 4096
#: A value beyond this is no measurement, and would not fit float32.
MAX_VALUE = 1e30
MAX_HEARD_STEPS = 512

COUNTERS = (
    "samples",
    "windows",
    "late",
    "duplicate",
    "future",
    "invalid",
    "unknown",
    "rejoining",
    "overflow",
    "skipped",
    "resolution",
    "frozen",
    "unscored",
)


class Aligner:
    """All scenes' windows out of one stream of samples. Never raises for a bad sample."""

    def __init__(self, scenes: Sequence[SceneConfig], manifest: Manifest, lateness_ms: int, quiet_steps: int) -> None:
        """`quiet_steps`: so many windows in a row without a sample are given before silence is skipped."""
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._scenes = [_Scene(scene, manifest, lateness_ms * MS, quiet_steps, self.counters) for scene in scenes]
        self._gate = Gate({name for scene in self._scenes for name in scene.sources}, manifest.audio.rate_hz)

    def push(self, sample: Sample) -> list[Window]:
        """Windows that this sample closes, by step, then by scene in the order of the configuration."""
        verdict = self._gate.verdict(sample)
        self.counters[verdict or "samples"] += 1
        if verdict == "unknown":
            return []
        windows: list[Window] = []
        for scene in self._scenes:
            if sample.source != CLOCK and sample.source not in scene.sources:
                continue
            if verdict:
                scene.lost(sample.source)
                continue
            scene.take(sample)
            windows += scene.close()
        return sorted(windows, key=lambda window: window.step)

    def flush(self) -> list[Window]:
        """Every window whose end the newest sample or tick has passed, complete or not."""
        windows = [window for scene in self._scenes for window in scene.close(everything=True)]
        return sorted(windows, key=lambda window: window.step)

    def frozen(self) -> dict[str, tuple[Modality, ...]]:
        """By scene: what its newest window lacks because it only repeats."""
        return {scene.name: scene.frozen for scene in self._scenes}

    def respecify(self, manifest: Manifest, quiet_steps: int) -> None:
        """Make the coming windows as another manifest asks. What is buffered stays."""
        self._gate.rate_hz = manifest.audio.rate_hz
        for scene in self._scenes:
            scene.respecify(manifest, quiet_steps)


@dataclass(slots=True)
class _Stream:
    """How far one stream of a scene has delivered."""

    progress_ns: int | None = None  #: it will deliver nothing older
    joined_ns: int = 0  #: heard in windows that start at or after this

    def deliver(self, since_ns: int | None, start_ns: int, end_ns: int, lateness_ns: int) -> None:
        last_ns = self.progress_ns if self.progress_ns is not None else since_ns
        if last_ns is not None and start_ns - last_ns > LIVE_NS:
            self.joined_ns = start_ns + lateness_ns
        self.progress_ns = max(end_ns, self.progress_ns or 0)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A reading that waits for its window."""

    from_ns: int  #: windows that end after this know of it
    captured_ns: int
    channel: int
    value: float


class _Repeats:
    """Since when a stream has delivered the same again and again."""

    def __init__(self) -> None:
        self._last: NDArray[Any] | None = None
        self._last_ns = 0
        self._changes: deque[int] = deque(maxlen=_MAX_CHANGES)  # times at which it differed from what came before

    def note(self, captured_ns: int, data: NDArray[Any]) -> None:
        """A picture or a chunk of sound, in the order of time."""
        away = captured_ns - self._last_ns > LIVE_NS
        if self._last is None or away or not _same(self._last, data):
            self._changes.append(captured_ns)
        self._last, self._last_ns = data, captured_ns

    def frozen(self, end_ns: int) -> bool:
        """Whether what was captured before `end_ns` has been repeating for too long. Never falls back in time."""
        while len(self._changes) > 1 and self._changes[1] < end_ns:
            self._changes.popleft()
        return bool(self._changes) and end_ns - self._changes[0] >= FROZEN_NS


def _same(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Whether pictures are the same to the last bit, or chunks of sound as far as both reach."""
    if one.ndim == 1:
        length = min(len(one), len(two))
        return bool(np.array_equal(one[:length], two[:length]))
    return np.array_equal(one[::_PROBE, ::_PROBE], two[::_PROBE, ::_PROBE]) and np.array_equal(one, two)


@dataclass(slots=True)
class _ChannelState:
    captured_ns: int
    value: float


class _Scene:
    def __init__(
        self, config: SceneConfig, manifest: Manifest, lateness_ns: int, quiet_steps: int, counters: Counter[str]
    ) -> None:
        self.name = config.name
        self.frozen: tuple[Modality, ...] = ()  #: what the newest window lacks because it only repeats
        self._channels = config.sensors
        self._lateness_ns = lateness_ns
        self._counters = counters
        self._streams: dict[tuple[str, str], _Stream] = {}
        if config.camera is not None:
            self._streams[config.camera, "frame"] = _Stream()
        if config.microphone is not None:
            self._streams[config.microphone, "audio"] = _Stream()
        for channel in config.sensors:
            self._streams[channel.source, "reading"] = _Stream()
        self._camera = config.camera
        self.sources = frozenset(source for source, _ in self._streams)
        self._frames = _Frames(counters)
        self._audio = _Audio(counters)
        self._readings: deque[_Pending] = deque()
        self._states: dict[int, _ChannelState] = {}  # by index of the configured channel
        self._objects: deque[tuple[int, tuple[Box, ...]]] = deque(maxlen=MAX_FRAMES)
        self._heard: set[int] = set()  # steps that are not closed and in which something arrived
        self._dropped: dict[str, int] = {}
        self._next: int | None = None  # step to close
        self._quiet = 0  # windows in a row without a sample
        self._origin_ns: int | None = None  # first clock tick
        self._clock_ns: int | None = None
        self.respecify(manifest, quiet_steps)

    def respecify(self, manifest: Manifest, quiet_steps: int) -> None:
        step_ns = manifest.step_ms * MS
        if self._next is not None:
            boundary_ns = self._next * self._step_ns
            self._next = -(-boundary_ns // step_ns)
            self._heard = {max(self._next, step * self._step_ns // step_ns) for step in self._heard}
        self._step_ns: int = step_ns
        self._past_ns = (manifest.vision.past_ms[0] * MS, manifest.vision.past_ms[1] * MS)
        self._audio.respecify(manifest.audio.rate_hz, manifest.audio.samples)
        self._slots = _slots(self._channels, manifest.sensors.quantities)
        self._width = len(manifest.sensors.quantities)
        self._quiet_steps = quiet_steps

    def lost(self, source: str) -> None:
        """Note one lost sample, to be told with the next window."""
        self._dropped[source] = self._dropped.get(source, 0) + 1

    def take(self, sample: Sample) -> None:
        """Buffer an admitted sample."""
        if sample.source == CLOCK:
            self._tick(sample.captured_ns)
        elif sample.kind == "tick":
            self._tick_of_source(sample)
        elif sample.kind == "objects":
            self._objects.append((sample.captured_ns, sample.data))
        else:
            stream = self._streams.get((sample.source, sample.kind))
            if stream is None:
                return  # a camera's sound that this scene does not listen to
            if sample.kind == "reading":
                self._read(sample, stream)
            else:
                self._record(sample, stream)

    def close(self, everything: bool = False) -> list[Window]:
        """Windows that can be closed now; with `everything`, all that lie in the past of the newest sample."""
        newest_ns = max([stream.progress_ns or 0 for stream in self._streams.values()] + [self._clock_ns or 0])
        windows: list[Window] = []
        while (step := self._coming()) is not None:
            end_ns = (step + 1) * self._step_ns
            if not (self._closable(end_ns) or (everything and end_ns <= newest_ns)):
                break
            if self._next is not None:
                self._counters["skipped"] += step - self._next
            windows.append(self._window(step, end_ns))
            self._quiet = 0 if step in self._heard else self._quiet + 1
            self._heard.discard(step)
            self._next = step + 1
        return windows

    def _tick(self, now_ns: int) -> None:
        if self._origin_ns is None:
            self._origin_ns = now_ns
        self._clock_ns = max(now_ns, self._clock_ns or 0)
        for stream in self._streams.values():
            # A stamp from the future that came before the first tick must not speak for its stream until then.
            if stream.progress_ns is not None and stream.progress_ns > self._clock_ns + 2 * AHEAD_NS:
                stream.progress_ns = self._clock_ns

    def _tick_of_source(self, sample: Sample) -> None:
        for (source, _), stream in self._streams.items():
            if source == sample.source:
                stream.deliver(self._origin_ns, sample.captured_ns, sample.captured_ns, self._lateness_ns)
                if self._fate(stream, sample.captured_ns) == "":
                    self._hear(sample.captured_ns // self._step_ns)

    def _record(self, sample: Sample, stream: _Stream) -> None:
        """Buffer a frame or a chunk of sound."""
        captured_ns = sample.captured_ns
        length_ns = len(sample.data) * 1_000 * MS // sample.rate_hz if sample.kind == "audio" else 0
        stream.deliver(self._origin_ns, captured_ns, captured_ns + length_ns, self._lateness_ns)
        fate = self._fate(stream, captured_ns)
        if fate == "late" and length_ns and self._fate(stream, captured_ns + length_ns - 1) == "":
            fate = ""  # a chunk that began before the last closed window's end and goes on after it
        if fate:
            self._counters[fate] += 1
            self.lost(sample.source)
            return
        self._hear(max(captured_ns // self._step_ns, self._next or 0))
        if sample.kind == "frame":
            self._frames.add(captured_ns, sample.data, self._step_ns)
        else:
            self._audio.add(captured_ns, sample.data)

    def _coming(self) -> int | None:
        """The step to close next; None while nothing has been heard, at first or after a long silence."""
        asleep = self._next is None or self._quiet >= self._quiet_steps
        if not asleep:
            return self._next
        return min(self._heard, default=None)

    def _closable(self, end_ns: int) -> bool:
        now_ns = self._clock_ns
        if now_ns is not None and now_ns >= end_ns + self._lateness_ns:
            return True
        passed = 0
        for stream in self._streams.values():
            last_ns = stream.progress_ns if stream.progress_ns is not None else self._origin_ns
            if stream.progress_ns is not None and stream.progress_ns >= end_ns:
                passed += 1
            elif (
                now_ns is None
                or last_ns is None
                or last_ns > now_ns - LIVE_NS - self._lateness_ns
                or end_ns - self._step_ns > now_ns
            ):
                return False
        return passed > 0

    def _fate(self, stream: _Stream, captured_ns: int) -> str:
        """Empty if a sample of this time can still be in its window; else why it cannot.

        `rejoining` comes first: it depends on the samples alone, while their windows may or may not be closed.
        """
        start_ns = captured_ns // self._step_ns * self._step_ns
        if start_ns < stream.joined_ns:
            return "rejoining"
        if self._next is not None and start_ns < self._next * self._step_ns:
            return "late"
        if self._clock_ns is not None and start_ns + self._step_ns + self._lateness_ns <= self._clock_ns:
            return "late"
        return ""

    def _hear(self, step: int) -> None:
        self._heard.add(step)
        if len(self._heard) > MAX_HEARD_STEPS:
            self._heard.remove(min(self._heard))

    def _read(self, sample: Sample, stream: _Stream) -> None:
        from_ns = sample.captured_ns
        stream.deliver(self._origin_ns, from_ns, from_ns, self._lateness_ns)
        fate = self._fate(stream, from_ns)
        if fate == "rejoining":
            from_ns = -(-stream.joined_ns // self._step_ns) * self._step_ns
        elif fate == "late":
            self._counters["late"] += 1
            from_ns = (self._next or 0) * self._step_ns
        known = False
        for index, channel in enumerate(self._channels):
            if channel.source != sample.source or channel.channel != sample.data.channel:
                continue
            known = True
            value = float(sample.data.value) * channel.scale + channel.offset
            if not math.isfinite(value) or abs(value) > MAX_VALUE:
                self._counters["invalid"] += 1
                continue
            self._readings.append(_Pending(from_ns, sample.captured_ns, index, value))
        if not known:
            self._counters["unknown"] += 1
        while len(self._readings) > MAX_READINGS:
            self._readings.popleft()
            self._counters["overflow"] += 1
        if fate != "late":
            self._hear(max(from_ns // self._step_ns, self._next or 0))

    def _window(self, step: int, end_ns: int) -> Window:
        self._counters["windows"] += 1
        frames = self._frames.pick(end_ns, self._step_ns, self._past_ns)
        audio = self._audio.cut(end_ns, self._step_ns)
        frozen: list[Modality] = []
        if frames is not None and self._frames.repeats.frozen(end_ns):
            frames = None
            frozen.append("vision")
        if audio is not None and self._audio.repeats.frozen(end_ns):
            audio = None
            frozen.append("audio")
        self.frozen = tuple(frozen)
        self._counters["frozen"] += len(frozen)
        objects = [boxes for captured_ns, boxes in self._objects if end_ns - self._step_ns <= captured_ns < end_ns]
        while self._objects and self._objects[0][0] < end_ns:
            self._objects.popleft()
        return Window(
            scene=self.name,
            step=step,
            end_ns=end_ns,
            frames=frames,
            audio=audio,
            sensors=self._sensors(end_ns) if self._channels else None,
            objects=objects[-1] if objects else (),
            dropped=dict(self._dropped),
        )

    def _sensors(self, end_ns: int) -> SensorStep:
        waiting: deque[_Pending] = deque()
        for reading in self._readings:
            if reading.from_ns >= end_ns:
                waiting.append(reading)
                continue
            state = self._states.get(reading.channel)
            if state is None or reading.captured_ns >= state.captured_ns:
                self._states[reading.channel] = _ChannelState(reading.captured_ns, reading.value)
        self._readings = waiting
        value, age_s, mask = (np.zeros(self._width, np.float32) for _ in range(3))
        for index, state in self._states.items():
            slot = self._slots.get(index)
            # A channel of the site's that this bundle has no place for is not an error: bundles change.
            if slot is None:
                continue
            age = max(0.0, (end_ns - state.captured_ns) / 1e9)
            if age <= self._channels[index].stale_s:
                value[slot], age_s[slot], mask[slot] = state.value, age, 1.0
        return SensorStep(value, age_s, mask)


class _Frames:
    """The newest frames of one camera, bounded in number and bytes."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._items: list[tuple[int, U8]] = []
        self._bytes = 0
        self._kept = (-1, -1)  # times of the two frames kept last, whether or not they still are
        self.repeats = _Repeats()

    def add(self, captured_ns: int, frame: U8, step_ns: int) -> None:
        items = self._items
        self.repeats.note(captured_ns, frame)
        if items and items[-1][1].shape != frame.shape:
            self._counters["resolution"] += 1
        before_ns, last_ns = self._kept
        # The last frame before a step's end stays: it may be the I(t) of a window that has been given already.
        between = 0 <= before_ns <= last_ns <= captured_ns <= before_ns + FRAME_THIN_NS
        if between and last_ns // step_ns == captured_ns // step_ns and items and items[-1][0] == last_ns:
            self._bytes -= items.pop()[1].nbytes
            last_ns = before_ns
        self._kept = (last_ns, captured_ns)
        items.append((captured_ns, frame))
        self._bytes += frame.nbytes
        while len(items) > 1 and (len(items) > MAX_FRAMES or self._bytes > MAX_FRAME_BYTES):
            self._bytes -= items.pop(0)[1].nbytes
            self._counters["overflow"] += 1

    def pick(self, end_ns: int, step_ns: int, past_ns: tuple[int, int]) -> tuple[U8, U8, U8] | None:
        """I(t), I(t − d1), I(t − d2) for the window that ends at `end_ns`; frames no later window needs are let go.

        Each earlier frame is the nearest that is not newer (within `FRAME_SLACK_NS`); where there is none of the
        same size within reach, the oldest that there is, so that at worst the differences are zero.
        """
        now = max((item for item in self._items if item[0] < end_ns), key=lambda item: item[0], default=None)
        if now is not None and now[0] < end_ns - max(step_ns, FRAME_STALE_NS):
            now = None
        anchor_ns = end_ns - FRAME_STALE_NS if now is None else now[0]
        reach_ns = anchor_ns - past_ns[1]
        if now is None:
            self._forget(reach_ns)
            return None
        past = [
            item
            for item in self._items
            if reach_ns - FRAME_STALE_NS <= item[0] <= now[0] and item[1].shape == now[1].shape
        ]
        picked = []
        for distance_ns in past_ns:
            limit_ns = now[0] - distance_ns + FRAME_SLACK_NS
            earlier = [item for item in past if item[0] <= limit_ns and item[0] < now[0]]
            picked.append(max(earlier, key=lambda item: item[0]) if earlier else min(past, key=lambda item: item[0]))
        self._forget(min(picked[0][0], picked[1][0]))
        return now[1], picked[0][1], picked[1][1]

    def _forget(self, before_ns: int) -> None:
        self._items = [item for item in self._items if item[0] >= before_ns]
        self._bytes = sum(frame.nbytes for _, frame in self._items)


class _Audio:
    """The newest sound of one microphone by absolute sample number, bounded in seconds."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._chunks: deque[tuple[int, I16]] = deque()
        self._size = 0
        self._end = -1  # sample number behind the last chunk
        self._rate_hz = self._samples = 0
        self.repeats = _Repeats()

    def respecify(self, rate_hz: int, samples: int) -> None:
        if rate_hz != self._rate_hz:
            self._chunks.clear()
            self._size, self._end = 0, -1
        self._rate_hz, self._samples = rate_hz, samples

    def add(self, captured_ns: int, pcm: I16) -> None:
        at = self._number(captured_ns)
        self.repeats.note(captured_ns, pcm)
        if abs(at - self._end) <= self._rate_hz * AUDIO_JOIN_NS // (1_000 * MS):
            at = self._end
        self._chunks.append((at, pcm))
        self._end = at + len(pcm)
        self._size += len(pcm)
        while self._size > self._rate_hz * MAX_AUDIO_S or len(self._chunks) > MAX_CHUNKS:
            self._size -= len(self._chunks.popleft()[1])
            self._counters["overflow"] += 1

    def cut(self, end_ns: int, step_ns: int) -> I16 | None:
        """The sound that ends at `end_ns`, zeros where unheard; None where less than half was heard. What no later
        window needs is let go."""
        last = self._number(end_ns)
        first = last - self._samples
        out = np.zeros(self._samples, np.int16)
        heard = np.zeros(self._samples, np.bool_)
        for at, pcm in self._chunks:
            begin, end = max(at, first), min(at + len(pcm), last)
            if begin < end:
                out[begin - first : end - first] = pcm[begin - at : end - at]
                heard[begin - first : end - first] = True
        needed = self._number(end_ns + step_ns) - self._samples
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= needed:
            self._size -= len(self._chunks.popleft()[1])
        return out if 2 * int(heard.sum()) >= self._samples else None

    def _number(self, time_ns: int) -> int:
        return (time_ns * self._rate_hz + 500 * MS) // (1_000 * MS)


def _slots(channels: Sequence[Channel], quantities: Sequence[str]) -> Mapping[int, int]:
    """Which place of the manifest each configured channel takes: the next free one of its quantity."""
    free: dict[str, list[int]] = {}
    for slot, quantity in enumerate(quantities):
        free.setdefault(quantity, []).append(slot)
    slots: dict[int, int] = {}
    for index, channel in enumerate(channels):
        places = free.get(channel.quantity)
        if places:
            slots[index] = places.pop(0)
    return slots
