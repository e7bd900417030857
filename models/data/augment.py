"""What the field does to signals, as pure functions of an array and a generator; the input is never changed.

Sound that trains is changed in mel *power*, (N, MELS, frames), where mixing two recordings is an addition: mixup,
noise, rooms, codecs, band limits, SpecAugment. Sound that is played is changed as PCM. Pictures: `models.data.lens`
(crop, colour, blur, noise, JPEG). Readings are windows (3, channels, steps) of value, age and mask.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edge_agent.core.records import F32, I16
from models.network.frontend import HOP, MELS, SENSOR_SCALE, log_mel

Rng = np.random.Generator
#: Seconds between two frames at 16 kHz; frames that an echo is followed for.
_FRAME_S, _TAIL = HOP / 16_000, 48
_LOUDEST, _MU = 32768.0, 255.0
_COMPANDED = 0.4


def mix_up(power: Tensor, rng: Rng, share: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Some clips with a part of another at equal level (mixup, Zhang et al. 2018, in power).

    Gives the mixture, which clip was mixed in (N,), and how much of each is the clip's own, 0.5..1 (N,).
    """
    count = len(power)
    part = np.where(rng.random(count) < share, rng.beta(0.4, 0.4, count), 1.0)
    keep = torch.tensor(np.maximum(part, 1 - part), dtype=torch.float32)
    other = torch.from_numpy(rng.permutation(count))
    level = (power.mean((1, 2)) + 1e-10) / (power[other].mean((1, 2)) + 1e-10)
    return power + power[other] * ((1 - keep) / keep * level)[:, None, None], other, keep


def add_noise(power: Tensor, noise: Tensor, rng: Rng, *, snr_db: tuple[float, float], share: float) -> Tensor:
    """Some of the clips with noise at a random signal-to-noise ratio."""
    count = len(power)
    on = rng.random(count) < share
    gain = torch.tensor(on * 10 ** (-rng.uniform(*snr_db, count) / 10), dtype=torch.float32)
    level = power.mean((1, 2)) / (noise.mean((1, 2)) + 1e-10)
    return power + noise * (gain * level)[:, None, None]


def coloured_noise(count: int, frames: int, rng: Rng) -> Tensor:
    """Stationary noise of random slope: what fans, rain and cheap microphones make."""
    slope = torch.tensor(rng.uniform(-8, 2, count), dtype=torch.float32)[:, None, None]
    draw = torch.from_numpy(rng.standard_exponential((count, MELS, frames), np.float32))
    return torch.exp(slope * torch.linspace(0, 1, MELS)[:, None]) * draw


def warped(power: Tensor, rng: Rng, *, share: float) -> Tensor:
    """Another pitch and pace, as of another source or a recorder that ran fast: up to 2 bands and 8 %."""
    on = np.flatnonzero(rng.random(len(power)) < share)
    if not len(on):
        return power
    theta = np.zeros((len(on), 2, 3), np.float32)
    theta[:, 0, 0] = rng.uniform(0.92, 1.08, len(on))
    theta[:, 1, 1] = 1.0
    theta[:, 1, 2] = rng.uniform(-2, 2, len(on)) * 2 / MELS
    images = power[on][:, None]
    grid = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    return power.index_copy(
        0, torch.from_numpy(on), F.grid_sample(images, grid, padding_mode="border", align_corners=False)[:, 0]
    )


def reverberant(power: Tensor, rng: Rng, *, share: float) -> Tensor:
    """A room behind the sound: power that decays by 60 dB in 0.2 to 1.2 s, below the level of the direct sound."""
    count, bands, frames = power.shape
    decay = np.exp(-math.log(1e6) * _FRAME_S / rng.uniform(0.2, 1.2, count))
    room = np.where(rng.random(count) < share, rng.uniform(0.1, 0.6, count), 0.0)
    tail = decay[:, None] ** np.arange(_TAIL)  # newest first
    kernel = room[:, None] * tail / tail.sum(1, keepdims=True)
    kernel[:, 0] += 1.0
    # One group per clip: every clip has a room of its own.
    weight = torch.tensor(kernel[:, ::-1].copy(), dtype=torch.float32)[:, None, None]
    padded = F.pad(power, (_TAIL - 1, 0))[None]
    return F.conv2d(padded, weight, groups=count)[0].reshape(count, bands, frames)


def band_limited(power: Tensor, rng: Rng, *, share: float) -> Tensor:
    """Telephones, small loudspeakers and low sampling rates: little is left below one band and above another."""
    count = len(power)
    on = torch.from_numpy(rng.random(count) < share)[:, None]
    low = torch.tensor(rng.uniform(-4, 9, count), dtype=torch.float32)[:, None]  # up to 350 Hz
    high = torch.tensor(rng.uniform(42, MELS + 8, count), dtype=torch.float32)[:, None]  # from 3 kHz
    slope_db = torch.tensor(rng.uniform(3, 20, count), dtype=torch.float32)[:, None]
    band = torch.arange(MELS, dtype=torch.float32)
    outside = (low - band).clamp(min=0) + (band - high).clamp(min=0)
    loss_db = torch.where(on, (outside * slope_db).clamp(max=70.0), torch.zeros(()))
    return power * torch.pow(10.0, -loss_db / 10)[:, :, None]


def coded(power: Tensor, rng: Rng, *, share: float) -> Tensor:
    """What a lossy codec leaves: bands far below the loudest of their moment are gone, the others coarser."""
    on = np.flatnonzero(rng.random(len(power)) < share)
    if not len(on):
        return power
    clips = power[on]
    depth = torch.tensor(10 ** (-rng.uniform(18, 45, len(on)) / 10), dtype=torch.float32)[:, None, None]
    coarse = torch.from_numpy(rng.standard_normal(clips.shape, np.float32))
    coarse = coarse * torch.tensor(rng.uniform(0, 0.4, len(on)), dtype=torch.float32)[:, None, None]
    audible = clips > clips.amax(1, keepdim=True) * depth
    clips = clips * torch.exp(coarse) * torch.where(audible, 1.0, 1e-3)
    return power.index_copy(0, torch.from_numpy(on), clips)


def heard(power: Tensor, rng: Rng, masked: float = 0.5) -> Tensor:
    """Network input (N, 1, MELS, frames): random gain and tilt; in `masked` of the clips a band is lost, in as many a
    stretch of time (SpecAugment)."""
    count, _, frames = power.shape
    gain = torch.tensor(rng.uniform(-18, 10, count), dtype=torch.float32)[:, None, None]
    tilt = torch.tensor(rng.uniform(-8, 8, count) * (rng.random(count) < 0.6), dtype=torch.float32)[:, None, None]
    change_db = gain + tilt * torch.linspace(-0.5, 0.5, MELS)[:, None]
    x = log_mel(power * torch.exp(change_db * (math.log(10) / 10)))
    for item in x:
        if rng.random() < masked:
            size = int(rng.integers(2, 11))
            start = int(rng.integers(0, MELS - size))
            item[start : start + size] = item.min()
        if rng.random() < masked:
            size = int(rng.integers(4, 20))
            start = int(rng.integers(0, frames - size))
            item[:, start : start + size] = item.min()
    return x.unsqueeze(1)


def companded(pcm: I16) -> I16:
    """Eight bits by the mu-law (ITU-T G.711), as cameras with telephone codecs send it."""
    level = np.sign(pcm) * np.log1p(_MU * np.abs(pcm / _LOUDEST)) / np.log1p(_MU)
    coarse = np.round(level * 127) / 127
    wave = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log1p(_MU)) / _MU
    return np.asarray(np.clip(np.round(wave * _LOUDEST), -32768, 32767), np.int16)


def coarse(pcm: I16, rng: Rng, block: int = 1024) -> I16:
    """As a codec of few bits leaves it: nothing above a limit of 2 to 6 kHz (at 16 kHz), and in every block
    nothing far below its loudest tone."""
    whole = np.pad(pcm, (0, -len(pcm) % block)).reshape(-1, block).astype(np.float64)
    tones = np.fft.rfft(whole, axis=1)
    size = np.abs(tones)
    tones[size < size.max(1, keepdims=True) * 10 ** (-rng.uniform(20, 40) / 20)] = 0
    tones[:, int(block * rng.uniform(0.125, 0.375)) :] = 0
    return np.clip(np.round(np.fft.irfft(tones, block, axis=1)), -32768, 32767).astype(np.int16).ravel()[: len(pcm)]


def narrow(pcm: I16, rng: Rng, rate_hz: int = 16_000) -> I16:
    """Nothing above a limit of 3.2 to 6 kHz, as of telephones, low sampling rates and codecs of few bits; two in five
    then companded."""
    tones = np.fft.rfft(pcm.astype(np.float64))
    tones[int(len(pcm) * rng.uniform(3200.0, 6000.0) / rate_hz) + 1 :] = 0
    limited = np.clip(np.round(np.fft.irfft(tones, len(pcm))), -32768, 32767).astype(np.int16)
    return companded(limited) if rng.random() < _COMPANDED else limited


def shifted(pcm: I16, rng: Rng, most: int) -> I16:
    """Up to `most` samples earlier or later, silence in what is left open."""
    late = int(rng.integers(-most, most + 1))
    out = np.zeros_like(pcm)
    out[max(late, 0) : len(pcm) + min(late, 0)] = pcm[max(-late, 0) : len(pcm) - max(late, 0)]
    return out


def drifted(readings: F32, rng: Rng, share: float = 0.3) -> F32:
    """Some channels with a slope of their own: up to 0.15 of the front end's unit over the window, either way."""
    out = readings.copy()
    slope = np.linspace(-0.5, 0.5, readings.shape[2], dtype=np.float32)
    for channel in np.flatnonzero(rng.random(readings.shape[1]) < share):
        _, scale, logarithmic = SENSOR_SCALE[channel]
        size = np.float32(rng.uniform(-0.15, 0.15) * scale) * slope
        value = out[0, channel]
        moved = np.expm1(np.log1p(np.maximum(value, 0)) + size) if logarithmic else value + size
        # A door is open or shut: what has two values does not drift.
        out[0, channel] = np.where((out[2, channel] > 0) & ~np.isin(value, (0.0, 1.0)), moved, value)
    return out


def dropped(readings: F32, rng: Rng, share: float = 0.25) -> F32:
    """Some of the channels missing, at least one left."""
    out = readings.copy()
    there = np.flatnonzero(out[2].any(1))
    lost = there[rng.random(len(there)) < share]
    if len(lost) < len(there):
        out[:, lost] = 0
    return out


def misread(readings: F32, rng: Rng) -> F32:
    """Poor sensors: every reading is off by 8 % or so, and stays so until the next one."""
    out = readings.copy()
    told = np.diff(readings[1], axis=1, prepend=np.inf) <= 0  # an age that does not grow: a new reading
    off = rng.normal(0, 1, readings.shape[1:]).astype(np.float32)
    last = np.maximum.accumulate(np.where(told, np.arange(readings.shape[2]), 0), axis=1)
    value = readings[0]
    moved = value + np.take_along_axis(off, last, 1) * (0.08 * np.abs(value) + 0.02)
    out[0] = np.where(readings[2] > 0, np.maximum(moved, np.minimum(value, 0)), value)
    return out


def swapped(readings: F32, other: F32, rng: Rng) -> F32:
    """From some moment on the values of another room, where both have the channel."""
    out = readings.copy()
    late = np.arange(readings.shape[2]) >= int(rng.integers(readings.shape[2] // 4, readings.shape[2]))
    out[0] = np.where(late & (readings[2] > 0) & (other[2, :, -1:] > 0), other[0, :, -1:], readings[0])
    return out


def modalities_dropped(mask: F32, rng: Rng, share: float) -> F32:
    """A history's mask (steps, 3) as the field has it: modalities away all along, steps lost here and there, a scene
    that has just begun."""
    steps, count = mask.shape
    out = mask.copy()
    out[:, rng.random(count) < share] = 0
    if rng.random() < 0.2:
        out *= rng.random((steps, count)) < 0.8
    if rng.random() < 0.1:
        out[: int(rng.integers(1, steps))] = 0
    return out
