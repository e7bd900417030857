"""What the microphone of a simulated site hears: ambience, life and episodes, mixed in fixed blocks.

Blocks start at whole multiples of half a second, so that a sample has the same value whichever way it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_agent.core.records import F32, I16
from edge_agent.simulate import tones
from edge_agent.simulate.chance import Cache, between, drift, generator, mix, unit
from edge_agent.simulate.episodes import Episode, Script
from edge_agent.simulate.life import STRIDE_M, Life

_LONGEST_CLIP_S = 7.0
_LOUDEST = 31000.0


@dataclass(frozen=True, slots=True)
class _Heard:
    """A clip that starts at `start_s`; `key` picks which of its kind."""

    start_s: float
    kind: str
    key: int
    gain: float


#: Clips by kind: how one is made, and how many different ones a site has (0: each its own).
_CLIPS: dict[str, tuple[Callable[[np.random.Generator, int], F32], int]] = {
    "footstep": (tones.footstep, 12),
    "thud": (tones.thud, 12),
    "door": (tones.door, 6),
    "shot": (tones.shot, 0),
    "explosion": (tones.explosion, 0),
    "glass": (tones.glass, 0),
    "thunder": (tones.thunder, 0),
    "pop": (tones.pop, 24),
    "voice": (lambda draw, rate_hz: tones.voice(draw, rate_hz, shouting=False), 12),
    "shout": (lambda draw, rate_hz: tones.voice(draw, rate_hz, shouting=True), 8),
}
#: Labels that are one clip: which, how late (s), its gain.
_ONCE = {"explosion": ("explosion", 0.0, 1.0), "glass_break": ("glass", 0.2, 1.0), "door_slam": ("door", 0.0, 1.6)}
_DRY = ("pop", "footstep")


class Sound:
    """The microphone of one site."""

    def __init__(self, life: Life, episodes: tuple[Episode, ...], rate_hz: int) -> None:
        self._life = life
        self._seed = life.seed
        self._rate = rate_hz
        self._block = rate_hz // 2
        self._script = Script(episodes, "audio")
        self._room = tones.room(generator(life.seed, "room"), rate_hz, life.outdoor)
        self._blocks: Cache[I16] = Cache(6)
        self._loops: Cache[F32] = Cache(8)
        self._clips: Cache[F32] = Cache(96)

    def sound(self, start_sample: int, n: int) -> I16:
        """int16 (n,) from `start_sample` on."""
        first, last = start_sample // self._block, (start_sample + max(n, 1) - 1) // self._block
        blocks = [self._blocks.get(i, lambda i=i: self._mix(i)) for i in range(first, last + 1)]  # type: ignore[misc]
        offset = start_sample - first * self._block
        return (
            np.concatenate(blocks)[offset : offset + n] if len(blocks) > 1 else blocks[0][offset : offset + n].copy()
        )

    def _mix(self, index: int) -> I16:
        start_s, end_s = index * self._block / self._rate, (index + 1) * self._block / self._rate
        out = self._ambience(index, start_s, end_s)
        for heard in self._heard(start_s - _LONGEST_CLIP_S, end_s):
            self._add(out, index * self._block, heard)
        for episode in self._script.overlapping(start_s, end_s):
            self._add_tone(out, index, episode)
        return np.asarray(_LOUDEST * np.tanh(out / _LOUDEST), dtype=np.int16)

    def _ambience(self, index: int, start_s: float, end_s: float) -> F32:
        seed, outdoor = self._seed, self._life.outdoor
        raining = drift(start_s, 240.0, seed, "rain") > 0.45
        out = between(25, 90, seed, "tone") * self._loop("pink", 7.3, tones.pink, index)
        out += between(5, 60, seed, "hum") * (0.2 if outdoor else 1.0) * self._hum(index)
        gust = [self._gust(t) * between(60, 260, seed, "wind") * (1.0 if outdoor else 0.12) for t in (start_s, end_s)]
        out += self._ramp(*gust) * self._loop("wind", 11.9, tones.wind, index)
        if raining:
            level = between(40, 220, seed, "rain level") * (1.0 if outdoor else 0.3)
            wet = [min(max(drift(t, 240.0, seed, "rain") - 0.45, 0.0) * 6.0, 1.0) * level for t in (start_s, end_s)]
            out += self._ramp(*wet) * self._loop("rain", 5.7, tones.rain, index)
        rides = self._life.rides(start_s - 3.0, end_s + 3.0)
        if rides:
            level = 420.0 if outdoor else 150.0
            near = [sum(level / (1.0 + (ride.x_at(t) / 5.0) ** 2) for ride in rides) for t in (start_s, end_s)]
            out += self._ramp(*near) * self._loop("motor", 6.1, tones.motor, index)
        return out

    def _gust(self, t_s: float) -> float:
        return (0.55 + 0.45 * drift(t_s, 3.1, self._seed, "gust")) * (
            0.6 + 0.4 * drift(t_s, 40.0, self._seed, "blow")
        )

    def _ramp(self, begin: float, end: float) -> F32:
        return np.linspace(begin, end, self._block, endpoint=False, dtype=np.float32)

    def _hum(self, index: int) -> F32:
        return self._slice(self._loops.get("hum", lambda: tones.hum(self._rate)), index)

    def _loop(self, name: str, seconds: float, shape: Callable[[F32], F32], index: int) -> F32:
        def make() -> F32:
            draw = generator(self._seed, "loop", name)
            return tones.shaped_loop(draw, int(seconds * self._rate), self._rate, shape)

        return self._slice(self._loops.get(name, make), index)

    def _slice(self, loop: F32, index: int) -> F32:
        begin = index * self._block % len(loop)
        part = loop[begin : begin + self._block]
        return part if len(part) == self._block else np.concatenate((part, loop[: self._block - len(part)]))

    def _add(self, out: F32, base: int, heard: _Heard) -> None:
        first = round(heard.start_s * self._rate) - base
        if first >= len(out):
            return
        make, variants = _CLIPS[heard.kind]
        key = heard.key % variants if variants else heard.key

        def synthesise() -> F32:
            wave = make(generator(self._seed, heard.kind, key), self._rate)
            return wave if heard.kind in _DRY else tones.convolved(wave, self._room)

        clip = self._clips.get((heard.kind, key), synthesise)
        begin, end = max(first, 0), min(first + len(clip), len(out))
        if begin < end:
            out[begin:end] += np.float32(heard.gain) * clip[begin - first : end - first]

    def _heard(self, start_s: float, end_s: float) -> Iterator[_Heard]:
        """Everything that may still sound, in an order that never changes."""
        yield from self._life_heard(start_s, end_s)
        for episode in self._script.overlapping(start_s, end_s):
            for heard in self._episode_heard(episode, start_s, end_s):
                if start_s <= heard.start_s < end_s:
                    yield heard

    def _life_heard(self, start_s: float, end_s: float) -> Iterator[_Heard]:
        recent_s = end_s - 0.7
        for walk in self._life.walks(recent_s, end_s):
            first = max(math.ceil((recent_s - walk.start_s) * walk.speed / STRIDE_M), 0)
            for step in range(first, math.ceil((min(end_s, walk.end_s) - walk.start_s) * walk.speed / STRIDE_M)):
                at_s = walk.start_s + step * STRIDE_M / walk.speed
                yield _Heard(at_s, "footstep", mix(walk.key, step), 4.0 / walk.at(at_s)[1])
        for opening in self._life.openings(start_s, end_s):
            key = mix(self._seed, "door", round(opening.start_s * 10))
            yield _Heard(opening.start_s, "door", key, 0.03)
            yield _Heard(opening.end_s, "door", key + 1, 0.4 if opening.slam else 0.05)
        for at_s, key in self._life.talks(start_s, end_s):
            yield _Heard(at_s, "voice", key, between(0.15, 0.8, key, "distance"))

    def _episode_heard(self, e: Episode, start_s: float, end_s: float) -> Iterator[_Heard]:
        key = mix(self._seed, e.label, round(e.start_s * 1000))
        loud = between(0.55, 1.0, key, "loud")
        if e.label == "gunshot":
            for at_s in shots(self._seed, e):
                yield _Heard(at_s, "shot", key, loud)
        elif e.label in _ONCE:
            kind, late_s, gain = _ONCE[e.label]
            yield _Heard(e.start_s + late_s, kind, key, gain * loud)
        elif e.label == "thunder":
            for n in range(2):
                yield _Heard(e.start_s + 0.8 + n * 2.2, "thunder", key + n, loud)
        elif e.label == "fight":
            yield from _paced(e, "shout", key, (start_s, end_s), every_s=0.8, often=0.75, gain=loud)
            yield from _paced(e, "thud", key + 1, (start_s, end_s), every_s=0.7, often=0.6, gain=0.5 * loud)
        elif e.label == "intrusion":
            for n in range(4):
                yield _Heard(e.start_s + 0.3 + 0.7 * n, "thud", key + n, 0.8 * loud)
            yield from _paced(
                e, "footstep", key, (max(start_s, e.start_s + 3.0), end_s), every_s=0.34, often=1.0, gain=3.0 * loud
            )
        elif e.label == "fire":
            recent_s = end_s - 0.6
            for n in range(3):
                yield from _paced(e, "pop", key + n, (recent_s, end_s), every_s=0.11 + 0.05 * n, often=0.8, gain=loud)

    def _add_tone(self, out: F32, index: int, e: Episode) -> None:
        time = (np.arange(self._block) + index * self._block) / self._rate
        tau = time - e.start_s
        key = mix(self._seed, e.label, round(e.start_s * 1000))
        edge = np.clip(np.minimum(tau, e.end_s - time) / 0.8, 0.0, 1.0).astype(np.float32)
        loud = np.float32(between(0.5, 1.0, key, "loud"))
        if e.label == "siren":
            echo = 0.25 * tones.siren(tau - 0.083, key % 3, 440.0)
            out += 6000.0 * loud * edge * (tones.siren(tau, key % 3, 440.0) + echo)
        elif e.label == "alarm":
            pitch = between(2900.0, 3300.0, key, "pitch")
            out += 4500.0 * loud * (edge > 0) * (tones.alarm(tau, pitch) + 0.2 * tones.alarm(tau - 0.03, pitch))
        elif e.label == "fire":
            grown = np.clip(tau / 12.0, 0.0, 1.0).astype(np.float32)
            out += 900.0 * loud * edge * grown * self._loop("roar", 4.9, tones.roar, index)


def shots(seed: int, episode: Episode) -> list[float]:
    """When the shots of a `gunshot` episode fall: picture and sound share it."""
    key = mix(seed, "shots", round(episode.start_s * 1000))
    count = 2 + key % 4
    times, at_s = [], episode.start_s + 0.2
    for n in range(count):
        times.append(at_s)
        at_s += between(0.22, 1.1, key, n)
    return [t for t in times if t < episode.end_s - 0.5]


def _paced(
    e: Episode, kind: str, key: int, window_s: tuple[float, float], *, every_s: float, often: float, gain: float
) -> Iterator[_Heard]:
    """Clips about every `every_s`, each left out with 1 − `often`."""
    start_s, end_s = window_s
    first = max(math.ceil((start_s - e.start_s) / every_s) - 1, 0)
    last = math.floor((min(end_s, e.end_s) - e.start_s) / every_s)
    for n in range(first, last):
        if unit(key, "often", n) < often:
            at_s = e.start_s + (n + between(0.0, 0.6, key, "at", n)) * every_s
            yield _Heard(at_s, kind, mix(key, n), gain * between(0.5, 1.0, key, "gain", n))
