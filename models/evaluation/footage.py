"""Normal footage of real places as quiet sessions: recorded pictures, with everyday sounds and room logs beside them.

Films are short, so they are played to and fro, and each pass begins a little later against the windows: hours of such
footage hold no more places than there are films, which is why it is told by set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_agent.config import Channel, SceneConfig
from edge_agent.contract.manifest import Manifest
from edge_agent.core.records import CLOCK, I16, Reading, Sample
from models.config import Preset
from models.data import sets
from models.data.corpus import CASUAL, read_corpus
from models.data.media import RATE_HZ, Log
from models.data.records import Recording
from models.data.staging import bounced
from models.evaluation.sessions import LATE_MS, Session
from models.progress import tracked

_MS = 1_000_000
#: A film that is shorter than this is no footage; how many times it is played, and for how long at least and at most.
_SHORTEST_S, _PASSES, _LEAST_S, _MOST_S = 5.0, 2, 40.0, 180.0
#: Every so many seconds the room is measured: between two rows of a log the values in between.
_READ_S = 10
#: Clips of sound follow each other at the same loudness, with a cross-fade of this length.
_FADE_S, _LEVEL = 0.5, 800.0
_HALVES = 2


@dataclass(frozen=True)
class Footage:
    """Every `stride`-th film, from the `first` on: what one process plays."""

    films: Sequence[Recording]
    sounds: Sequence[Recording]
    rooms: Sequence[Log]
    shape: Preset
    first: int = 0
    stride: int = 1

    def halves(self) -> list[Footage]:
        """The two of which this is made."""
        return [replace(self, first=first, stride=_HALVES) for first in range(_HALVES)]

    def sessions(self) -> Iterator[tuple[Session, Session]]:
        """(session, the one that contradicts it: the next film, for as long as the session)."""
        for index in tracked("films", range(self.first, len(self.films), self.stride)):
            seconds = self._seconds(index)
            yield self._session(index, seconds), self._session((index + 1) % len(self.films), seconds)

    def _seconds(self, index: int) -> float:
        length_s = self.films[index].length_s("vision")
        return float(int(min(max(_PASSES * length_s, _LEAST_S), _MOST_S)))

    def _session(self, index: int, seconds: float) -> Session:
        film = self.films[index]
        names = self.rooms[0].names if self.rooms else ()
        channels = tuple(Channel(source="air", channel=name, quantity=name) for name in names)  # type: ignore[arg-type]
        trained = film.ships and film.split == "train"
        return Session(
            name=f"{film.source} {film.item}",
            kind=f"{film.source}, {'parts that trained' if trained else 'trained nothing'}",
            seconds=seconds,
            scene=SceneConfig(
                name="place", camera="camera", microphone="camera" if self.sounds else None, sensors=channels
            ),
            causes=(),
            samples=lambda manifest: self._samples(index, seconds, manifest),
        )

    def _samples(self, index: int, seconds: float, manifest: Manifest) -> Iterator[Sample]:
        step_ms, spec = manifest.step_ms, manifest.audio
        frames = self.films[index].frames(self.shape.vision_spec)
        rng = np.random.default_rng([index, 71])
        pcm = _heard(rng, self.sounds, int(seconds * spec.rate_hz), spec.rate_hz)
        per_step = max(round(step_ms / 1000 * RATE_HZ), 1)
        looked_at = {per_step - 1 - round(back_ms / 1000 * RATE_HZ) for back_ms in (0, *manifest.vision.past_ms)}
        for step in range(int(seconds * 1000) // step_ms):
            begin_ms, end_ms = step * step_ms, (step + 1) * step_ms
            for i in (i for i in range(per_step) if i in looked_at):  # no others are looked at
                at_ms = begin_ms + i * step_ms // per_step
                number = step * per_step + i
                again = number // max(len(frames), 1)
                frame = frames[bounced(number + again, len(frames) - 1)]
                yield Sample("camera", "frame", number, at_ms * _MS, frame)
            if len(pcm):
                first, last = (spec.rate_hz * ms // 1000 for ms in (begin_ms, end_ms))
                yield Sample("camera", "audio", step, begin_ms * _MS, pcm[first:last], spec.rate_hz)
            if begin_ms % (1000 * _READ_S) == 0:
                yield from self._readings(index, begin_ms)
            yield Sample(CLOCK, "tick", step, (end_ms + LATE_MS) * _MS)

    def _readings(self, index: int, at_ms: int) -> Iterable[Sample]:
        if not self.rooms:
            return
        log = self.rooms[index % len(self.rooms)]
        # Each place begins elsewhere in the log.
        at_s = (at_ms / 1000 + 3600.0 * index) % float(log.time_s[-1])
        for column, name in enumerate(log.names):
            value = float(np.interp(at_s, log.time_s, log.values[:, column]))
            seq = at_ms // 1000 * len(log.names) + column
            yield Sample("air", "reading", seq, at_ms * _MS, Reading(name, value))


def _heard(rng: np.random.Generator, sounds: Sequence[Recording], samples: int, rate_hz: int) -> I16:
    """Everyday sounds one after the other; none for no sounds."""
    if not sounds:
        return np.zeros(0, np.int16)
    fade = int(_FADE_S * rate_hz)
    ramp = np.linspace(0, 1, fade)
    out = np.zeros(samples + fade)
    at = 0
    while at < samples:
        clip = sounds[int(rng.integers(len(sounds)))].pcm(rate_hz).astype(np.float64)
        if len(clip) <= 2 * fade:
            clip = np.resize(clip, 2 * fade + 1)
        clip = clip * min(_LEVEL / (np.abs(clip).mean() + 1), 32000 / (np.abs(clip).max() + 1))
        clip[:fade] *= ramp
        clip[-fade:] *= ramp[::-1]
        part = clip[: len(out) - at]
        out[at : at + len(part)] += part
        at += len(clip) - fade
    return np.clip(out[:samples], -32768, 32767).astype(np.int16)


def gather(root: Path, shape: Preset) -> Footage:
    """Normal films of every set under `root` that has some, with sounds and logs of the dev parts."""
    films = [film for film in sets.sample_videos(root) if film.length_s("vision") >= _SHORTEST_S]
    if (root / "ucsd_ped2").is_dir():
        films += [film for film in sets.ucsd_ped2(root) if film.split == "train"]
    corpus = read_corpus(root)
    sounds = [clip for clip in corpus.clips if clip.split == "dev" and clip.label == CASUAL]
    rooms = [table.log() for table in corpus.tables if table.split == "dev" and table.source == "occupancy"]
    return Footage(films, sounds, rooms, shape)
