"""What goes wrong with one modality in the field, done to a stream of the device's own samples.

Every function of this file is pure and seeded; what it yields are valid samples, so that a disturbed session goes
through the same pipeline as a clean one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from edge_agent.contract.event import Modality
from edge_agent.core.records import I16, U8, Kind, Reading, Sample

How = Literal["missing", "noisy", "frozen", "contradicting"]
HOWS: tuple[How, ...] = ("missing", "noisy", "frozen", "contradicting")
KINDS: dict[Modality, Kind] = {"vision": "frame", "audio": "audio", "sensors": "reading"}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One modality, disturbed in one way."""

    modality: Modality
    how: How


#: Sensor noise of a small camera at night, in grey levels; of a bad microphone line against the sound itself, in dB.
_GRAIN_LEVELS, _HISS_DB = 20.0, 6.0
#: Noise of a reading as a part of its size, and its least.
_JITTER, _JITTER_LEAST = 0.05, 0.2
#: For so long a gateway tells the last reading of a sensor of another place.
_HELD_NS = 5_000_000_000

Rng = np.random.Generator


def disturbed(
    samples: Iterable[Sample], modality: Modality, how: How, rng: Rng, other: Iterable[Sample] = ()
) -> Iterator[Sample]:
    """The same stream with one modality disturbed.

    missing        its samples never come
    noisy          grain on the pictures, hiss 6 dB below the sound, jitter on the readings
    frozen         the first picture, the first piece of sound, the first value of each channel, again and again
    contradicting  its samples carry the data of `other`, a stream of another place with the same timing: what is
                   heard does not belong to what is seen. A reading that `other` had not for a while is left out;
                   ValueError if its pictures or its sound end before those of the stream
    """
    change = changes(modality, how, rng, other)
    for sample in samples:
        found = change(sample)
        if found is not None:
            yield found


def changes(
    modality: Modality, how: How, rng: Rng, other: Iterable[Sample] = ()
) -> Callable[[Sample], Sample | None]:
    """The same for one sample after the other; None for one that never comes."""
    kind = KINDS[modality]
    change = _CHANGES[how](kind, rng, iter(other))

    def changed(sample: Sample) -> Sample | None:
        if sample.kind != kind:
            return sample
        data = change(sample)
        return None if data is None else replace(sample, data=data)

    return changed


_Change = Callable[[Sample], Any]


def _missing(kind: Kind, rng: Rng, other: Iterator[Sample]) -> _Change:
    return lambda sample: None


def _noisy(kind: Kind, rng: Rng, other: Iterator[Sample]) -> _Change:
    changes: dict[Kind, Callable[[Rng, Any], Any]] = {"frame": _grain, "audio": _hiss, "reading": _jitter}
    return lambda sample: changes[kind](rng, sample.data)


def _frozen(kind: Kind, rng: Rng, other: Iterator[Sample]) -> _Change:
    first: dict[str, Any] = {}

    def hold(sample: Sample) -> Any:
        data = sample.data
        if kind == "audio":
            held = first.setdefault(f"{len(data)}", data)
        elif kind == "reading":
            held = first.setdefault(data.channel, data)
        else:
            held = first.setdefault("", data)
        return held.copy() if isinstance(held, np.ndarray) else held

    return hold


def _contradicting(kind: Kind, rng: Rng, other: Iterator[Sample]) -> _Change:
    foreign = (sample for sample in other if sample.kind == kind)
    return _foreign_readings(foreign) if kind == "reading" else _foreign_data(kind, foreign)


def _foreign_data(kind: Kind, foreign: Iterator[Sample]) -> _Change:
    def swap(sample: Sample) -> Any:
        found = next(foreign, None)
        if found is None:
            raise ValueError(f"the contradicting stream has fewer samples of kind {kind!r} than the stream")
        return found.data

    return swap


def _foreign_readings(foreign: Iterator[Sample]) -> _Change:
    """By channel and time, not by count: a sensor that has dropped out there is missing here."""
    now: dict[str, Sample] = {}  # the newest of each channel that is no newer than the reading asked for
    ahead = next(foreign, None)

    def swap(sample: Sample) -> Any:
        nonlocal ahead
        while ahead is not None and ahead.captured_ns <= sample.captured_ns:
            now[ahead.data.channel] = ahead
            ahead = next(foreign, None)
        found = now.get(sample.data.channel)
        return found.data if found is not None and sample.captured_ns - found.captured_ns < _HELD_NS else None

    return swap


_CHANGES: dict[How, Callable[[Kind, Rng, Iterator[Sample]], _Change]] = {
    "missing": _missing,
    "noisy": _noisy,
    "frozen": _frozen,
    "contradicting": _contradicting,
}


def _grain(rng: Rng, frame: U8) -> U8:
    grain = rng.standard_normal(frame.shape, np.float32)
    grain *= np.float32(_GRAIN_LEVELS)
    grain += frame
    noisy: U8 = np.clip(grain, 0, 255, out=grain).astype(np.uint8)
    return noisy


def _hiss(rng: Rng, pcm: I16) -> I16:
    loud = float(np.sqrt(np.square(pcm.astype(np.float32)).mean())) + 1.0
    hiss = rng.normal(0.0, loud * 10 ** (-_HISS_DB / 20), pcm.shape)
    noisy: I16 = np.clip(pcm + hiss, -32768, 32767).astype(np.int16)
    return noisy


def _jitter(rng: Rng, reading: Reading) -> Reading:
    spread = max(abs(reading.value) * _JITTER, _JITTER_LEAST)
    return Reading(reading.channel, float(reading.value + rng.normal(0.0, spread)))
