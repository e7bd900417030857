"""Clips as mel power, ready to be cut into windows and mixed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_agent.contract.manifest import AudioSpec
from edge_agent.core.records import F32, I16
from models.network.frontend import HOP, WINDOW, MelPower

Rng = np.random.Generator
#: Power of the energy that a window's vote weighs; a plain mean loses 10 points of accuracy at 10 dB of noise.
_LOUDNESS = 0.7


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip as mel power (MELS, frames), at least one window long."""

    power: Tensor
    loudness: np.ndarray[tuple[int], np.dtype[np.float64]]  #: cumulative power, (frames + 1,)


def frames_of(spec: AudioSpec) -> int:
    """Mel frames in one window."""
    return (spec.samples - WINDOW) // HOP + 1


def listen(clips: Iterable[I16], spec: AudioSpec) -> list[Heard]:
    """Mel power of every clip; one that is shorter than a window is filled up with silence behind."""
    front = MelPower(spec)
    found = []
    with torch.inference_mode():
        for pcm in clips:
            power = front(torch.from_numpy(padded(pcm, spec).astype(np.float32))[None] / 32768.0)[0].contiguous()
            loudness = np.concatenate([[0.0], np.cumsum(power.mean(0).double().numpy())])
            found.append(Heard(power, loudness))
    return found


def padded(pcm: I16, spec: AudioSpec) -> I16:
    """The clip, at least one window long."""
    short = spec.samples - len(pcm)
    return np.pad(pcm, (0, short)) if short > 0 else pcm


def windows_of(pcm: I16, spec: AudioSpec, every_s: float = 0.5) -> I16:
    """Every window of a clip, one each `every_s`: int16 (n, samples), n ≥ 1; the last one ends with the clip."""
    pcm = padded(pcm, spec)
    last = len(pcm) - spec.samples
    starts = [*range(0, last, int(spec.rate_hz * every_s)), last]
    return np.stack([pcm[start : start + spec.samples] for start in starts])


def pooled(values: F32, windows: I16) -> F32:
    """One value per clip from those of its windows, (n, …) → (…): the loud ones count most.

    The weight is the energy to the power 0.7, a softmax over the level: an event stands out of the noise about it,
    and silence behind a clip says nothing.
    """
    energy = np.square(windows.astype(np.float32)).mean(1) + 1.0
    weight = (energy / energy.max()) ** _LOUDNESS
    return np.asarray(np.tensordot(weight / weight.sum(), values, 1), np.float32)


def cut(clips: Sequence[Heard], frames: int, rng: Rng, loud: float) -> Tensor:
    """One window of each clip, (N, MELS, frames); in `loud` of the cases the loudest of three tries."""
    parts = []
    for heard in clips:
        starts = rng.integers(0, heard.power.shape[1] - frames + 1, 3)
        energy = heard.loudness[starts + frames] - heard.loudness[starts]
        start = int(starts[int(np.argmax(energy))] if rng.random() < loud else starts[0])
        parts.append(heard.power[:, start : start + frames])
    return torch.stack(parts)
