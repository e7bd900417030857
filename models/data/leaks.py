"""Does anything stand in two splits? Groups, equal content, and sounds that are one another's near copies.

A figure measured over a leak is a lie that looks like a success, so a run stops here before anything is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core.records import F32, I16
from edge_agent.errors import ConfigError
from models.data.records import Recording
from models.network.frontend import mel_bank
from models.progress import tracked

#: Cosine of two fingerprints, at the best shift in time, from which two sounds are one.
ALIKE = 0.9
_RATE_HZ, _FRAME, _BANDS = 16_000, 1024, 16
#: Longest sound that is compared, in frames (16 s); at least so much of it must overlap.
_LONGEST, _SHORTEST = 256, 8
#: Decades of power below the loudest band and frame that still count.
_RANGE = 4.0
_SHOWN, _CHUNK = 5, 64


@dataclass(frozen=True, slots=True)
class Leak:
    """Two recordings of different splits that are one."""

    kind: str  #: group | content | sound
    first: str
    second: str
    likeness: float

    def __str__(self) -> str:
        words = {
            "group": "are of one group",
            "content": "hold the same",
            "sound": f"sound alike ({self.likeness:.2f})",
        }
        return f"{self.first} and {self.second} {words[self.kind]}"


def check(recordings: Sequence[Recording], spec: VisionSpec | None = None) -> None:
    """ConfigError that names the first leaks, if there are any. `spec` as in `leaks`."""
    found = leaks(recordings, spec)
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"{len(found)} leaks between splits: {'; '.join(map(str, found[:_SHOWN]))}{more}. Nothing can be "
            "measured over a leak: give both the same split or the same group, or leave one out"
        )


def leaks(recordings: Sequence[Recording], spec: VisionSpec | None = None) -> list[Leak]:
    """All pairs of different splits that share a group, their content, or (nearly) their sound. Decodes everything;
    films at the size of `spec`, or not at all for None. Recordings without a split are left out."""
    known = [recording for recording in recordings if recording.split]
    found = _shared("group", [(r, f"{r.source}/{r.group}") for r in known])
    contents = [(r, key) for r in tracked("leak check", known) for key in _contents(r, spec)]
    found += _shared("content", contents)
    copies = {frozenset((leak.first, leak.second)) for leak in found}
    return found + [leak for leak in _alike(known) if frozenset((leak.first, leak.second)) not in copies]


def _name(recording: Recording) -> str:
    return f"{recording.source}/{recording.item} ({recording.split})"


def _shared(kind: str, keyed: Sequence[tuple[Recording, str]]) -> list[Leak]:
    """One leak for every further split that a key is found in."""
    first: dict[str, dict[str, Recording]] = {}
    found = []
    for recording, key in keyed:
        splits = first.setdefault(key, {})
        if recording.split not in splits:
            splits[recording.split] = recording
            earlier = next(iter(splits.values()))
            if earlier is not recording:
                found.append(Leak(kind, _name(earlier), _name(recording), 1.0))
    return found


def _contents(recording: Recording, spec: VisionSpec | None) -> list[str]:
    """Hashes of what is decoded: another container or name does not hide a copy. Silence has none."""
    found = []
    if recording.sound is not None:
        pcm = np.trim_zeros(recording.pcm(_RATE_HZ))
        if len(pcm):
            found.append(_hash("sound", pcm))
    if recording.pictures is not None and spec is not None:
        found.append(_hash("pictures", recording.frames(spec)))
    if recording.readings is not None:
        found.append(_hash("readings", recording.log().values))
    return found


def _hash(kind: str, array: NDArray[np.generic]) -> str:
    return kind + hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@cache
def _bank() -> F32:
    return np.ascontiguousarray(mel_bank(_RATE_HZ).T)


def fingerprint(pcm: I16) -> F32:
    """(frames, 16): how the sound divides over 16 mel bands every 64 ms, at unit length; empty for hardly any sound.

    Of each frame the mean over the bands is taken out, of each band the mean over the frames, and what lies 40 dB
    under the loudest counts as silence: gain, a steady filter and the shape of a lone event in silence say nothing.
    """
    count = min(len(pcm) // _FRAME, _LONGEST)
    if count < _SHORTEST:
        return np.zeros((0, _BANDS), np.float32)
    wave = pcm[: count * _FRAME].reshape(count, _FRAME).astype(np.float32) / 32768
    power = np.square(np.abs(np.fft.rfft(wave * np.hanning(_FRAME).astype(np.float32))[:, ::2]))
    mel = np.log10(power @ _bank() + 1e-7)
    bands = mel.reshape(count, _BANDS, -1).mean(2)
    bands = np.maximum(bands, bands.max() - _RANGE)
    loud = bands.max(1) > bands.max() - _RANGE
    if int(loud.sum()) < _SHORTEST:
        return np.zeros((0, _BANDS), np.float32)
    bands -= bands.mean(1, keepdims=True)
    bands -= bands[loud].mean(0)
    bands[~loud] = 0
    return np.asarray(bands / max(float(np.linalg.norm(bands)), 1e-9), np.float32)


def _alike(recordings: Sequence[Recording]) -> list[Leak]:
    heard = [r for r in recordings if r.sound is not None]
    prints = [fingerprint(r.pcm(_RATE_HZ)) for r in heard]
    found = []
    for one, other in combinations(sorted({recording.split for recording in heard}), 2):
        mine, theirs = (
            [i for i, recording in enumerate(heard) if recording.split == split and len(prints[i])]
            for split in (one, other)
        )
        for start in range(0, len(mine) if theirs else 0, _CHUNK):
            part = mine[start : start + _CHUNK]
            likeness = _likeness([prints[i] for i in part], [prints[i] for i in theirs])
            found += [
                Leak("sound", _name(heard[part[i]]), _name(heard[theirs[j]]), float(likeness[i, j]))
                for i, j in np.argwhere(likeness >= ALIKE)
            ]
    return found


def _likeness(mine: Sequence[F32], theirs: Sequence[F32]) -> F32:
    """(mine, theirs): correlation at every shift at once, by FFT; its largest is the cosine at the best shift."""
    ours, other = (
        np.stack([np.fft.rfft(one, 2 * _LONGEST, axis=0) for one in group], 1).astype(np.complex64)
        for group in (mine, theirs)
    )
    cross = ours @ other.conj().transpose(0, 2, 1)
    return np.asarray(np.fft.irfft(np.ascontiguousarray(cross.transpose(1, 2, 0))).max(2), np.float32)
