"""Episodes from a manifest: pictures, sound and readings of a few seconds, to be played to a device or encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from edge_agent.config import Channel, SceneConfig
from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core import prepare
from edge_agent.core.align import Aligner
from edge_agent.core.records import CLOCK, F32, I16, U8, Prepared, Reading, Sample
from edge_agent.core.scene import unknown
from edge_agent.simulate import tones
from models.bundle import UNCHOSEN, manifest, now
from models.config import Preset
from models.data import augment
from models.data.lens import Lens, seen
from models.data.media import RATE_HZ, Log
from models.data.mixture import MADE, Entry, Part, Shelf
from models.data.records import NORMAL, Recording
from models.data.staging import Stage, Wrong, bounced, cells_of
from models.data.traces import trace

Rng = np.random.Generator
Active = NDArray[np.int8]
_MS = 1_000_000
#: Frames that a step needs: just before its end, and before its two looks back; as `Episode.views` has them.
_FRAMES_MS = (10, 110, 310)
_LATE_MS = 600
#: States in which a cause may or may not be seen.
_HIDING = ("frozen", "contradicting")
#: Steps in which camera and microphone join before those that count.
LEAD = 4
_SOUNDS = {
    "thunder": tones.thunder,
    "door_slam": tones.door,
    "gunshot": tones.shot,
    "explosion": tones.explosion,
}


@dataclass(frozen=True)
class Felt:
    """Readings as they arrive: seconds since the beginning of the lead-in, channel, value; in the order of time."""

    time_s: NDArray[np.float64]
    channel: NDArray[np.int64]
    value: NDArray[np.float64]


@dataclass(frozen=True)
class Episode:
    """What an entry of a manifest looks, sounds and feels like. A modality that is missing is None.

    Its time: `preset.sensor_spec.steps` steps of readings alone, which is how far the sensor graph looks back; in the
    last LEAD of them camera and microphone begin, since a device takes a step to trust a new stream; then the steps
    that count.
    """

    entry: Entry
    preset: Preset
    views: U8 | None  #: (LEAD + steps, 3, H, W, 3) RGB: at the end of each step, 100 ms and 300 ms before
    pcm: I16 | None  #: begins one window before the end of the first step of `views`
    felt: Felt | None
    active: Mapping[Modality, Active]  #: (steps,) each: 1 wrong, 0 not, −1 too little to say
    names: Mapping[Modality, str]  #: class that an active step is evidence for; empty: none

    @property
    def steps(self) -> int:
        """Those that count."""
        return len(self.active["vision"])

    @property
    def present(self) -> tuple[Modality, ...]:
        """Modalities that are there."""
        return tuple(part.modality for part in self.entry.parts if part.state != "missing")

    @property
    def label(self) -> int:
        """1 if something is wrong in a modality that is there, 0 if in none."""
        return int(any((self.active[name] == 1).any() for name in self.present))

    def scene(self) -> SceneConfig:
        """The configuration of a scene that hears `samples`."""
        quantities = self.preset.sensor_spec.quantities
        channels = tuple(Channel(source="air", channel=name, quantity=name) for name in quantities)  # type: ignore[arg-type]
        return SceneConfig(name="episode", camera="camera", microphone="camera", sensors=channels)

    def samples(self) -> Iterator[Sample]:
        """What the sources of a device would deliver, with the tick that closes every step."""
        span, step_ms = self.preset.sensor_spec.steps, self.preset.step_ms
        read = 0
        for step in range(span + self.steps):
            end_ms, index = (step + 1) * step_ms, step - span + LEAD
            if index >= 0:
                yield from self._seen_and_heard(index, end_ms)
            while self.felt is not None and read < len(self.felt.time_s) and self.felt.time_s[read] <= end_ms / 1000:
                name = self.preset.sensor_spec.quantities[int(self.felt.channel[read])]
                reading = Reading(name, float(self.felt.value[read]))
                yield Sample("air", "reading", read, round(self.felt.time_s[read] * 1e9), reading)
                read += 1
            yield Sample(CLOCK, "tick", step, (end_ms + _LATE_MS) * _MS)

    def windows(self) -> list[Prepared]:
        """The steps that count as the device aligns and prepares them: training and device cannot differ here."""
        made = manifest(self.preset, UNCHOSEN, 0, {}, now())
        span = self.preset.sensor_spec.steps
        aligner = Aligner([self.scene()], made, _LATE_MS - 100, span)
        history, found = [], []
        for window in (closed for sample in self.samples() for closed in aligner.push(sample)):
            history.append(window.sensors or unknown(len(self.preset.sensor_spec.quantities)))
            if span <= window.step < span + self.steps:
                found.append(prepare.window(window, history[-span:], made))
        return found

    def _seen_and_heard(self, index: int, end_ms: int) -> Iterator[Sample]:
        if self.views is not None:
            for back in (2, 1, 0):
                captured_ns = (end_ms - _FRAMES_MS[back]) * _MS
                yield Sample("camera", "frame", 3 * index + 2 - back, captured_ns, self.views[index, back])
        if self.pcm is not None:
            spec, hop = self.preset.audio_spec, _hop(self.preset)
            begin = 0 if index == 0 else spec.samples + (index - 1) * hop
            part = self.pcm[begin : spec.samples + index * hop]
            start_ns = end_ms * _MS - len(part) * 1_000_000_000 // spec.rate_hz
            yield Sample("camera", "audio", index, start_ns, part, spec.rate_hz)


def _hop(preset: Preset) -> int:
    return preset.audio_spec.rate_hz * preset.step_ms // 1000


@dataclass
class Renderer:
    """Makes episodes of one split. `stage` shows what is wrong over any film; logs are decoded once."""

    shelf: Shelf
    stage: Stage
    preset: Preset

    def __post_init__(self) -> None:
        self._logs = {name: self.shelf.by_key[name].log() for name in self.shelf.normal["sensors"]}

    def render(self, entry: Entry, steps: int) -> Episode:
        """The episode of one entry. ConfigError for a recording that is not on the shelf or cannot be decoded."""
        # Times of a manifest are those of the steps that count.
        lead_s = LEAD * self.preset.step_ms / 1000
        parts = {part.modality: structs.replace(part, at_s=part.at_s + lead_s) for part in entry.parts}
        steps += LEAD
        views, seen = self._vision(parts["vision"], steps)
        pcm, heard = self._audio(parts["audio"], steps)
        felt, felt_active = self._sensors(parts["sensors"], steps)
        active: dict[Modality, Active] = {"vision": seen, "audio": heard, "sensors": felt_active}
        for name, found in active.items():
            if parts[name].state in _HIDING:
                found[found == 1] = -1
        there = {name: parts[name].state != "missing" for name in MODALITIES}
        return Episode(
            entry,
            self.preset,
            views if there["vision"] else None,
            pcm if there["audio"] else None,
            felt if there["sensors"] else None,
            {name: found[LEAD:] for name, found in active.items()},
            {name: parts[name].label for name in MODALITIES},
        )

    def _spell(self, part: Part, steps: int) -> NDArray[np.bool_]:
        """(steps,): the cause is on."""
        ends = (np.arange(steps) + 1) * self.preset.step_ms / 1000
        return (ends > part.at_s) & (ends <= part.at_s + part.length_s)

    def _vision(self, part: Part, steps: int) -> tuple[U8, Active]:
        if part.state == "missing":
            return np.zeros((0, 3, 1, 1, 3), np.uint8), np.zeros(steps, np.int8)
        recorded = part.cause and not part.cause.startswith(MADE)
        film, marks = self._film(part.cause if recorded else part.background)
        start = self._start(part, len(marks), steps, marks if recorded else None)
        script = self.stage.scene(film, start, part.seed)
        wrong: Wrong = "nothing"
        if part.cause == MADE + "fire":
            wrong = "fire"
        elif part.cause == MADE + "odd":
            wrong = "odd"
        on = self._spell(part, steps)
        active = np.zeros(steps, np.int8)
        found = []
        for step in range(steps):
            views, cells = self.stage.views(replace(script, wrong=wrong if on[step] else "nothing"), step)
            if recorded:
                active[step] = marks[bounced(start + 5 * step, len(marks) - 1)]
            elif on[step] and wrong != "nothing":
                active[step] = 1 if cells_of(cells).max() > 0.5 else -1
            if part.cause == MADE + "shadow":
                views = _shadow(views, part, step)
            elif part.cause == MADE + "thunder" and on[step]:
                views = _flash(views, part, step)
            found.append(views)
        return self._spoilt_pictures(np.stack(found), part), active

    def _film(self, name: str) -> tuple[U8 | None, Active]:
        """Frames at RATE_HZ and, of each, whether something is wrong."""
        if not name:
            return None, np.zeros(1, np.int8)
        recording = self.shelf.by_key[name]
        frames = recording.frames(self.preset.vision_spec)
        return frames, recording.wrong(np.arange(len(frames)) / RATE_HZ)

    @staticmethod
    def _start(part: Part, length: int, steps: int, marks: Active | None) -> int:
        """Frame at which the episode begins; before one that is wrong, so that it begins at `at_s` or earlier."""
        room = max(length - 5 * steps, 1)
        start = int(part.offset_s * room)
        if marks is not None and (marks == 1).any():
            wrong = np.flatnonzero(marks == 1)
            first = int(wrong[int(part.offset_s * (len(wrong) - 1))])
            start = max(first - int(part.at_s * RATE_HZ), 0)
        return max(start, min(3, length - 1))

    def _spoilt_pictures(self, views: U8, part: Part) -> U8:
        rng = np.random.default_rng([part.seed, 16])
        if part.state == "noisy" and rng.random() < 0.5:  # a poor stream
            poor = Lens(quality=int(rng.integers(8, 25)), noise=float(rng.uniform(0, 6)))
            return np.stack([[seen(view, poor, rng) for view in step] for step in views])
        if part.state == "noisy":
            grain = rng.normal(0, rng.uniform(15, 40), views.shape[1:]).astype(np.float32)
            shifts = rng.integers(0, views.shape[3], len(views))
            return np.stack(
                [
                    np.clip(v + np.roll(grain, s, 2), 0, 255).astype(np.uint8)
                    for v, s in zip(views, shifts, strict=True)
                ]
            )
        if part.state == "frozen":
            return np.broadcast_to(views[:1, :1], views.shape).copy()
        if part.state == "contradicting":
            other = self.stage.scene(None, 0, part.seed + 1)
            begin = int(rng.integers(2, len(views)))
            views[begin:] = np.stack([self.stage.views(other, step)[0] for step in range(begin, len(views))])
        return views

    def _audio(self, part: Part, steps: int) -> tuple[I16, Active]:
        spec, hop = self.preset.audio_spec, _hop(self.preset)
        length = spec.samples + hop * (steps - 1)
        rng = np.random.default_rng([part.seed, 17])
        if part.state == "missing":
            return np.zeros(0, np.int16), np.zeros(steps, np.int8)
        sound = self._background(rng, part.background, part.offset_s, length)
        active = np.zeros(steps, np.int8)
        if part.cause:
            name = part.cause.removeprefix(MADE)
            begin = int(part.at_s * spec.rate_hz) + spec.samples - hop
            count = min(int(part.length_s * spec.rate_hz) if part.wrong else length, length - begin)
            cause = _SOUNDS[name](rng, spec.rate_hz) if part.cause.startswith(MADE) else self._heard(part.cause)
            mine = np.asarray(cause[:count], np.float32) if len(cause) else np.zeros(1, np.float32)
            gain = (np.abs(sound).mean() + 30) / (np.abs(mine).mean() + 1) * 10 ** (part.snr_db / 20)
            added = np.zeros(length, np.float32)
            added[begin : begin + len(mine)] = mine * min(gain, 32000 / (np.abs(mine).max() + 1))
            sound = sound + added
            if part.wrong:
                active = audible(added, spec.samples, hop, steps)
        sound = sound * min(10 ** (part.gain_db / 20), 32000 / (float(np.abs(sound).max()) + 1))
        return self._spoilt_sound(rng, sound, part), active

    def _heard(self, name: str) -> I16:
        return self.shelf.by_key[name].pcm(self.preset.audio_spec.rate_hz)

    def _background(self, rng: Rng, name: str, offset: float, length: int) -> F32:
        """Coloured noise, and a recording over it in a loop."""
        white = rng.normal(0, 1, length)
        slope = rng.uniform(0.0, 0.95)
        noise = white if slope < 0.3 else np.convolve(white, slope ** np.arange(32), "same")
        noise = noise / np.abs(noise).mean() * np.exp(rng.uniform(np.log(3), np.log(200)))
        pcm = self._heard(name).astype(np.float64) if name else np.zeros(0)
        if len(pcm):
            noise += np.resize(np.roll(pcm, -int(offset * len(pcm))), length) * 10 ** (rng.uniform(-18, 0) / 20)
        return np.asarray(noise, np.float32)

    def _spoilt_sound(self, rng: Rng, sound: F32, part: Part) -> I16:
        if part.state == "noisy" and rng.random() < 0.5:  # a poor codec, late by up to a quarter of a second
            pcm = np.clip(sound, -32768, 32767).astype(np.int16)
            pcm = augment.companded(pcm) if rng.random() < 0.5 else augment.coarse(pcm, rng)
            return augment.shifted(pcm, rng, self.preset.audio_spec.rate_hz // 4)
        if part.state == "noisy":
            hiss = rng.normal(0, np.sqrt(np.square(sound).mean()) + 30, len(sound)) * rng.uniform(0.3, 1.0)
            sound = np.asarray(sound + hiss, np.float32)
        elif part.state == "frozen":  # a driver that repeats its last buffer
            sound = np.resize(sound[: _hop(self.preset) // 2], len(sound))
        elif part.state == "contradicting":
            begin = int(rng.integers(len(sound) // 4, len(sound)))
            names = self.shelf.normal["audio"]
            other = names[int(rng.integers(len(names)))] if names else ""
            sound = np.concatenate([sound[:begin], self._background(rng, other, 0.5, len(sound) - begin)])
        return np.clip(sound, -32768, 32767).astype(np.int16)

    def _sensors(self, part: Part, steps: int) -> tuple[Felt, Active]:
        span, step_s = self.preset.sensor_spec.steps, self.preset.step_ms / 1000
        rng = np.random.default_rng([part.seed, 18])
        tables: Sequence[Log] = [self._logs[part.background]] if part.background else []
        kind = part.cause.removeprefix(MADE)
        span -= LEAD
        spell = (span * step_s + part.at_s, part.length_s)
        wrong, hard = (kind, "") if part.wrong else (None, kind)
        made = trace(rng, span + steps, step_s, wrong, tables, spell, hard)
        felt = arrivals(made.readings, step_s)
        if part.state == "missing":
            return felt, np.zeros(steps, np.int8)
        return self._spoilt_readings(rng, felt, part, span * step_s), made.active[span:].astype(np.int8)

    def _spoilt_readings(self, rng: Rng, felt: Felt, part: Part, begin_s: float) -> Felt:
        if part.state == "noisy":
            noise = rng.normal(0, 0.08 * np.abs(felt.value) + 0.02)
            return replace(felt, value=np.maximum(felt.value + noise, np.minimum(felt.value, 0)))
        if part.state == "frozen":
            value = felt.value.copy()
            for channel in np.unique(felt.channel):
                mine = np.flatnonzero(felt.channel == channel)
                value[mine] = value[mine[0]]
            return replace(felt, value=value)
        if part.state == "contradicting":  # the gateway delivers another room
            spec, step_s = self.preset.sensor_spec, self.preset.step_ms / 1000
            steps = int(begin_s / step_s) + 16
            other = trace(rng, steps, step_s, None, list(self._logs.values()), (begin_s, 1.0))
            level = {
                c: float(other.readings[0, c, -1]) for c in range(len(spec.quantities)) if other.readings[2, c, -1]
            }
            late = felt.time_s > begin_s + part.at_s
            value = np.array([level.get(int(c), v) for c, v in zip(felt.channel, felt.value, strict=True)])
            return replace(felt, value=np.where(late, value, felt.value))
        return felt


def audible(added: F32, samples: int, hop: int, steps: int) -> Active:
    """Steps whose window holds a good part of a cause's loudest; much less of it is unclear, none is normal.

    A shot is followed by its echo and then by nothing: a label for the whole clip would teach that silence kills.
    """
    energy = np.cumsum(np.square(added.astype(np.float64)))
    ends = np.arange(steps) * hop + samples - 1
    held = energy[ends] - energy[ends - samples + 1]
    share = held / max(float(held.max()), 1e-9)
    return np.where(share >= 0.1, 1, np.where(share > 0.001, -1, 0)).astype(np.int8)


def arrivals(readings: F32, step_s: float) -> Felt:
    """The readings that a trace (3, channels, steps) of held values was made of, in the order of time."""
    found: list[tuple[float, int, float]] = []
    for channel in range(readings.shape[1]):
        told = -1.0
        for step in np.flatnonzero(readings[2, channel]):
            time_s = (int(step) + 1) * step_s - float(readings[1, channel, step])
            if time_s > max(told, 0.0) + 1e-6:
                found.append((time_s, channel, float(readings[0, channel, step])))
                told = time_s
    found.sort()
    return Felt(
        np.array([row[0] for row in found], np.float64),
        np.array([row[1] for row in found], np.int64),
        np.array([row[2] for row in found], np.float64),
    )


def _shadow(views: U8, part: Part, step: int) -> U8:
    """The soft shadow of something that passes outside of the picture."""
    rng = np.random.default_rng([part.seed, 19])
    height, width = views.shape[1:3]
    depth, speed = rng.uniform(0.35, 0.7), rng.uniform(-0.12, 0.12) * width
    corners = rng.uniform(-0.2, 0.6, (5, 2)) * (width, height)
    out = []
    for index, back_s in enumerate((0.0, 0.1, 0.3)):
        mask = np.zeros((height, width), np.float32)
        moved = corners.copy()
        moved[:, 0] += speed * (0.5 * step - back_s - part.at_s)
        cv2.fillPoly(mask, [cv2.convexHull(moved.astype(np.int32))], (1.0,))
        soft = cv2.GaussianBlur(mask, (0, 0), 4.0)[..., None]
        out.append((views[index] * (1 - depth * soft)).astype(np.uint8))
    return np.stack(out)


def _flash(views: U8, part: Part, step: int) -> U8:
    """Lightning: the newest picture of some steps is far brighter than those before."""
    rng = np.random.default_rng([part.seed, 20, step])
    if rng.random() < 0.5:
        return views
    bright = np.clip(views[0].astype(np.float32) * rng.uniform(1.5, 2.6) + 20, 0, 255).astype(np.uint8)
    return np.stack([bright, views[1], views[2]])


def stage_of(recordings: Sequence[Recording], preset: Preset, seed: int, made_up: int) -> Stage:
    """A stage over the films and fires among the recordings."""
    films = [r for r in recordings if r.pictures is not None and r.label == NORMAL and r.pictures.length_s > 1.0]
    fires = [r for r in recordings if r.pictures is not None and r.label == "fire" and r.pictures.boxes]
    return Stage(films, fires, preset.vision_spec, seed, made_up)
