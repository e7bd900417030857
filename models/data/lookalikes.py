"""Sounds that resemble a threat and are none, made up: claps of thunder, slams, blows on wood, metal, floors.

Recordings of them that may train what ships are few, and a listener that has heard few blows takes a knock at a door
for an explosion. A blow is a sum of damped modes (modal synthesis, van den Doel & Pai 1998) under a burst of noise
that dies sooner the higher it is; what tells it from a blast is how soon all of it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32, I16
from edge_agent.simulate import tones
from models.config import SOUNDS
from models.data.media import Sound
from models.data.records import Recording, Split

Rng = np.random.Generator
F64 = NDArray[np.float64]
#: Set of a blow: heard beside recorded threats, not as what a simulated site sounds like.
_SOURCE = "made"
_PEAK = 20_000  #: of a clap or a slam
#: As many times as of claps and slams.
_BLOWS = 3
_BLOW_S, _LONGEST_S = 0.8, 9.0
#: What is hit: lowest and highest mode (Hz), how long the lowest rings (s), up to where the burst reaches (Hz).
_MATTER = (
    (90.0, 1400.0, 0.05, 4500.0),  # wood
    (45.0, 500.0, 0.09, 2500.0),  # a board, a crate
    (30.0, 220.0, 0.07, 1200.0),  # a floor
    (300.0, 5000.0, 0.18, 7500.0),  # metal
    (250.0, 2500.0, 0.02, 6500.0),  # plastic
)
#: How often, how many blows, how far apart (s): once, a knock, hammering, at leisure.
_SERIES = (
    (0.30, (1, 2), (0.2, 0.5)),
    (0.35, (2, 8), (0.09, 0.4)),
    (0.20, (6, 30), (0.06, 0.2)),
    (0.15, (3, 12), (0.25, 0.9)),
)
#: Bands of the burst: up to where (Hz; 0: as far as the matter), shortest and longest decay (s), level.
_BURST = ((450.0, 0.03, 0.2, 1.0), (2000.0, 0.015, 0.1, 0.8), (0.0, 0.004, 0.06, 0.7))


def lookalikes(split: Split, rate_hz: int, count: int) -> Iterator[Recording]:
    """`count` claps of thunder, as many slams of doors, three times as many blows, each by itself."""
    for name, sound in (("thunder", tones.thunder), ("door_slam", tones.door)):
        for index in range(count):
            wave = sound(np.random.default_rng([split == "dev", 61, index]), rate_hz)
            heard = np.asarray(wave * (_PEAK / (float(np.abs(wave).max()) + 1e-9)), np.int16)
            yield _recording("simulated", f"{name} {index}", split, heard, rate_hz)
    for index in range(_BLOWS * count):
        heard = blows(np.random.default_rng([split == "dev", 62, index]), rate_hz)
        yield _recording(_SOURCE, f"blow {index}", split, heard, rate_hz)


def _recording(source: str, item: str, split: Split, heard: I16, rate_hz: int) -> Recording:
    sound = Sound(held=heard, held_hz=rate_hz)
    return Recording(source, item, split, f"{split} {item}", SOUNDS[0], sound=sound, ships=True)


def blows(rng: Rng, rate_hz: int) -> I16:
    """One blow or a series of them in some room, int16, up to 10 s."""
    lowest, highest, rings_s, reach_hz = _MATTER[int(rng.integers(len(_MATTER)))]
    hz = np.exp(rng.uniform(np.log(lowest), np.log(highest), int(rng.integers(3, 10))))
    fades_s = rings_s * np.exp(rng.normal(0, 0.5, len(hz))) * (lowest / hz) ** 0.25
    level = rng.uniform(0.2, 1, len(hz)) * (lowest / hz) ** 0.3
    steady = rng.uniform(0.05, 0.4)
    times = _series(rng)
    wave = np.zeros(int((min(times[-1] + 2.2, _LONGEST_S) + 1.0) * rate_hz))
    for at_s in times:
        one = _blow(rng, rate_hz, (hz, fades_s, level * np.exp(rng.normal(0, steady, len(hz)))), reach_hz)
        first = int(at_s * rate_hz)
        part = one[: max(len(wave) - first, 0)] * np.exp(rng.normal(0, 0.25))
        wave[first : first + len(part)] += part
    wave = tones.convolved(np.asarray(wave, np.float32), _room(rng, rate_hz))[: len(wave) - rate_hz].astype(
        np.float64
    )
    if rng.random() < 0.6:  # through a wall, or far away
        wave = _below(wave, np.exp(rng.uniform(np.log(1500), np.log(7500))), rate_hz)
    wave = np.concatenate([np.zeros(int(rng.uniform(0, 1.0) * rate_hz)), wave / (np.abs(wave).max() + 1e-9)])
    if rng.random() < 0.5:  # too loud for the microphone
        wave = np.tanh(wave * rng.uniform(1, 2.5))
    hiss = _below(rng.standard_normal(len(wave)), np.exp(rng.uniform(np.log(300), np.log(8000))), rate_hz)
    wave = wave + hiss / hiss.std() * 0.3 * 10 ** (-rng.uniform(25, 70) / 20)
    return np.asarray(wave / np.abs(wave).max() * 28_000 * 10 ** (-rng.uniform(0, 20) / 20), np.int16)


def _series(rng: Rng) -> F64:
    """When each blow falls (s)."""
    _, (fewest, most), apart_s = _SERIES[int(rng.choice(len(_SERIES), p=[share for share, _, _ in _SERIES]))]
    count, gap_s, even = int(rng.integers(fewest, most)), rng.uniform(*apart_s), rng.uniform(0.02, 0.4)
    times = np.concatenate([[0.0], np.cumsum(gap_s * np.exp(rng.normal(0, even, count - 1)))])
    return np.asarray(times[times < _LONGEST_S - _BLOW_S])


def _blow(rng: Rng, rate_hz: int, modes: tuple[F64, F64, F64], reach_hz: float) -> F64:
    time_s = np.arange(int(_BLOW_S * rate_hz)) / rate_hz
    hz, fades_s, level = (column[:, None] for column in modes)
    ring = (level * np.sin(2 * np.pi * hz * time_s) * np.exp(-time_s / fades_s)).sum(0)
    wave: F64 = rng.uniform(0, 0.8) * ring / (np.abs(ring).max() + 1e-9)
    for up_to_hz, shortest_s, longest_s, loud in _BURST:
        noise = _below(rng.standard_normal(len(time_s)), (up_to_hz or reach_hz) * np.exp(rng.normal(0, 0.4)), rate_hz)
        fade_s = np.exp(rng.uniform(np.log(shortest_s), np.log(longest_s)))
        wave += loud * np.exp(rng.normal(0, 0.6)) * noise / (3 * noise.std()) * np.exp(-time_s / fade_s)
    return wave


def _room(rng: Rng, rate_hz: int) -> F32:
    """Impulse response: the direct sound, then a diffuse tail of 0.12 to 1.4 s, from a closet to a stairwell."""
    fades_s = np.exp(rng.uniform(np.log(0.12), np.log(1.4)))
    time_s = np.arange(int(fades_s * rate_hz)) / rate_hz
    tail = rng.standard_normal(len(time_s)) * np.exp(-6.9 * time_s / fades_s)
    tail = _below(tail, np.exp(rng.uniform(np.log(700), np.log(6000))), rate_hz)
    tail[: int(0.004 * rate_hz)] = 0
    tail *= np.exp(rng.uniform(np.log(0.15), np.log(1.5))) / np.sqrt(np.square(tail).sum() + 1e-9)
    tail[0] = 1.0
    return np.asarray(tail, np.float32)


def _below(wave: F64, hz: float, rate_hz: int) -> F64:
    """What is below `hz`, by a soft edge."""
    spectrum = np.fft.rfft(wave)
    spectrum /= 1 + (np.fft.rfftfreq(len(wave), 1 / rate_hz) / hz) ** 4
    return np.asarray(np.fft.irfft(spectrum, len(wave)))
