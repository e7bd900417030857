"""Changes to sound in mel *power*, where mixing two recordings is an addition. Arrays are (N, MELS, frames)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from models.frontend import MELS, log_mel

Rng = np.random.Generator


def mix_up(power: Tensor, target: Tensor, rng: Rng, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """Each clip with a share of another at equal level, targets in proportion."""
    count = len(power)
    part = np.where(rng.random(count) < share, rng.beta(0.4, 0.4, count), 1.0)
    keep = torch.tensor(np.maximum(part, 1 - part), dtype=torch.float32)
    other = torch.from_numpy(rng.permutation(count))
    level = (power.mean((1, 2)) + 1e-10) / (power[other].mean((1, 2)) + 1e-10)
    mixed = power + power[other] * ((1 - keep) / keep * level)[:, None, None]
    return mixed, target * keep[:, None] + target[other] * (1 - keep)[:, None]


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
    draw = torch.tensor(rng.exponential(1.0, (count, MELS, frames)), dtype=torch.float32)
    return torch.exp(slope * torch.linspace(0, 1, MELS)[:, None]) * draw


def heard(power: Tensor, rng: Rng) -> Tensor:
    """Network input (N, 1, MELS, frames): random gain and tilt, at times a masked band and a masked stretch."""
    count, _, frames = power.shape
    gain = torch.tensor(rng.uniform(-12, 8, count), dtype=torch.float32)[:, None, None]
    tilt = torch.tensor(rng.uniform(-8, 8, count) * (rng.random(count) < 0.6), dtype=torch.float32)[:, None, None]
    change_db = gain + tilt * torch.linspace(-0.5, 0.5, MELS)[:, None]
    x = log_mel(power * torch.exp(change_db * (math.log(10) / 10)))
    for item in x:
        if rng.random() < 0.5:
            size = int(rng.integers(2, 11))
            start = int(rng.integers(0, MELS - size))
            item[start : start + size] = item.min()
        if rng.random() < 0.5:
            size = int(rng.integers(4, 20))
            start = int(rng.integers(0, frames - size))
            item[:, start : start + size] = item.min()
    return x.unsqueeze(1)
