"""The part of each graph that turns raw input into normalised features: inside the graph, so that training
and device cannot differ. All of it stays float32 in every engine."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_agent.contract.manifest import AudioSpec

LUMA = (0.299, 0.587, 0.114)  #: BT.601, full range, as `VisionSpec.luma` says
MELS, WINDOW, HOP, BINS = 64, 400, 160, 257
#: Bins of one of four interleaved transforms; samples that a window and a hop are whole numbers of.
FOURTH, BLOCK = 65, 80
#: (offset, scale, logarithmic) per quantity, in the order of `edge_agent.config.QUANTITIES` and its units.
SENSOR_SCALE = (
    (20.0, 10.0, False),  # temperature, °C
    (50.0, 25.0, False),  # humidity, %
    (1.0, 1.5, True),  # smoke, ppm
    (6.3, 0.5, True),  # co2, ppm: log(545)
    (4.0, 2.0, True),  # light, lx
    (0.3, 0.5, True),  # vibration, m/s²
    (0.5, 0.5, False),  # door
    (0.5, 0.5, False),  # motion
    (1013.0, 15.0, False),  # pressure, hPa
    (1.0, 1.5, True),  # gas, ppm
    (4.0, 2.0, True),  # power, W
    (50.0, 20.0, False),  # sound level, dB
)
#: A change within the 32 s of a window means more than the same distance between two places.
CHANGE_GAIN = 4.0


#: Grey level that becomes zero: what is left of a byte is a whole number that int8 holds exactly.
MIDDLE = 128.0


class Centred(nn.Module):
    """uint8 (N, 5, H, W) → the same as float, −128..127."""

    def forward(self, frames: Tensor) -> Tensor:
        return frames.float() - MIDDLE


class VisionFront(nn.Module):
    """uint8 (N, 5, H, W) → float (N, 5, H, W): R, G, B around zero and two differences of luma over time.

    All five are sums of the planes around mid-grey, without an offset: `absorbed` makes them part of the convolution
    that comes next. What that pads with, zero, is mid-grey at rest on either side.
    """

    mix: Tensor

    def __init__(self) -> None:
        super().__init__()
        mix = torch.zeros(5, 5, 1, 1)
        mix[:3, :3, 0, 0] = torch.eye(3) / 64.0
        mix[3:, :3, 0, 0] = torch.tensor(LUMA) / 32.0
        mix[3:, 3:, 0, 0] = -torch.eye(2) / 32.0
        self.register_buffer("mix", mix, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(frames.float() - MIDDLE, self.mix)

    def absorbed(self, stem: nn.Conv2d) -> nn.Conv2d:
        """A copy of `stem` that gives of `Centred` frames what `stem` gives of this module's output."""
        large = copy.deepcopy(stem)
        with torch.no_grad():
            large.weight.copy_(torch.einsum("omhw,mc->ochw", stem.weight, self.mix[:, :, 0, 0]))
        return large


def mel_bank(rate_hz: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Triangular mel filters, 60–7800 Hz, float32 (MELS, BINS), rows summing to one."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60.0, min(7800.0, rate_hz / 2 - 200)))
    edges = 700 * (10 ** (np.linspace(low, high, MELS + 2) / 2595) - 1)
    frequency = np.linspace(0, rate_hz / 2, BINS)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = np.maximum(0, np.minimum((frequency - left) / (centre - left), (right - frequency) / (right - centre)))
    # The lowest filters are narrower than a bin: give each at least its nearest one.
    empty = bank.sum(1) == 0
    bank[empty, np.abs(frequency - centre[empty]).argmin(1)] = 1
    return np.asarray(bank / bank.sum(1, keepdims=True), np.float32)


class MelPower(nn.Module):
    """Float PCM (N, samples), full scale 1 → mel power (N, MELS, frames); a full-scale sine is near 0 dB.

    Torch computes the STFT as one product with windowed sines and cosines. What is exported are strided convolutions,
    which every engine has, over each fourth sample: those of the lowest quarter of the bins, added and subtracted,
    give all others too (a radix-4 step), with a quarter of the multiplications and of the constants.
    """

    basis: Tensor
    bank: Tensor
    fourths: Tensor
    fourth_bank: Tensor

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        angle = 2 * np.pi * np.arange(BINS)[:, None] * np.arange(WINDOW) / (2 * (BINS - 1))
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
        # Sum of the window is 200: divided by half of it, a sine of amplitude one has power one.
        basis = np.concatenate([np.cos(angle), np.sin(angle)]) * hann / (WINDOW / 4)
        bank = mel_bank(spec.rate_hz)
        self._blocks = spec.samples // BLOCK
        self.register_buffer("basis", torch.tensor(basis[:, None], dtype=torch.float32), persistent=False)
        self.register_buffer("bank", torch.tensor(bank), persistent=False)
        self.register_buffer("fourths", torch.tensor(fourths()), persistent=False)
        self.register_buffer("fourth_bank", torch.tensor(_fourth_bank(bank)), persistent=False)

    def forward(self, pcm: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self.exported(pcm)
        wave = torch.matmul(pcm.unfold(1, WINDOW, HOP), self.basis[:, 0].T).transpose(1, 2)
        square = wave * wave
        return torch.matmul(self.bank, square[:, :BINS] + square[:, BINS:])

    def exported(self, pcm: Tensor) -> Tensor:
        """The same by four transforms P_p of the samples 4n + p: bins k and 256 − k are |P0 + P2 ± (P1 + P3)|²,
        bins 128 ± k are |P0 − P2 ∓ i (P1 − P3)|²."""
        blocks = pcm[:, : self._blocks * BLOCK].reshape(-1, self._blocks, BLOCK // 4, 4).transpose(1, 2)
        p0, p1, p2, p3 = (
            torch.nn.functional.conv1d(blocks[..., p], self.fourths[p], stride=HOP // BLOCK) for p in range(4)
        )
        even, odd, across, over = p0 + p2, p1 + p3, p0 - p2, p1 - p3
        low, high = (even + odd) ** 2, (even - odd) ** 2
        real, imaginary = across[:, :FOURTH], across[:, FOURTH:]
        over_real, over_imaginary = over[:, :FOURTH], over[:, FOURTH:]
        power = [
            low[:, :FOURTH] + low[:, FOURTH:],
            high[:, :FOURTH] + high[:, FOURTH:],
            (real + over_imaginary) ** 2 + (imaginary - over_real) ** 2,
            (real - over_imaginary) ** 2 + (imaginary + over_real) ** 2,
        ]
        return torch.matmul(self.fourth_bank, torch.cat(power, 1))


def fourths() -> NDArray[np.float32]:
    """Kernels (4, 2 · FOURTH, BLOCK / 4, WINDOW / BLOCK) of the lowest bins: cosines, then minus the sines, at the
    samples 4n + p, told by place in a block of samples and block of the window."""
    angle = 2 * np.pi * np.arange(FOURTH)[:, None] * np.arange(WINDOW) / (2 * (BINS - 1))
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)) / (WINDOW / 4)
    basis = np.concatenate([np.cos(angle), -np.sin(angle)]) * hann
    told = basis.reshape(2 * FOURTH, WINDOW // BLOCK, BLOCK // 4, 4).transpose(3, 0, 2, 1)
    return np.ascontiguousarray(told, np.float32)


def _fourth_bank(bank: NDArray[np.float32]) -> NDArray[np.float32]:
    """(MELS, 4 · FOURTH): the filters at bins k, 256 − k, 128 + k and 128 − k, each bin once."""
    k, last = np.arange(FOURTH), BINS - 1
    parts = [bank[:, k], bank[:, last - k], bank[:, last // 2 + k], bank[:, last // 2 - k]]
    for part, again in ((2, -1), (3, 0), (3, -1)):
        parts[part][:, again] = 0.0
    return np.concatenate(parts, 1)


def log_mel(power: Tensor) -> Tensor:
    """Network input from mel power: −60 dB is 0, 20 dB are one unit, clipped to −2..3."""
    return ((torch.log10(power + 1e-10) * 10.0 + 60.0) / 20.0).clamp(-2.0, 3.0)


class AudioFront(nn.Module):
    """int16 PCM (N, samples) → log-mel (N, 1, MELS, frames)."""

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        self.power = MelPower(spec)

    def forward(self, pcm: Tensor) -> Tensor:
        return log_mel(self.power(pcm.float() / 32768.0)).unsqueeze(1)


class SensorFront(nn.Module):
    """float (N, 3, channels, steps) = value, age, mask → (N, 4 * channels, steps): level, change, age, mask.

    What is masked is zero in all four: a value that nobody measured cannot leak in.
    """

    offset: Tensor
    scale: Tensor
    logarithmic: Tensor
    before: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        offset, scale, logarithmic = (torch.tensor([row[i] for row in SENSOR_SCALE]) for i in range(3))
        self.register_buffer("offset", offset.float()[:, None], persistent=False)
        self.register_buffer("scale", scale.float()[:, None], persistent=False)
        self.register_buffer("logarithmic", logarithmic.float()[:, None], persistent=False)
        # x @ before = how many were valid strictly before each step.
        self.register_buffer("before", torch.triu(torch.ones(steps, steps), diagonal=1), persistent=False)

    def forward(self, readings: Tensor) -> Tensor:
        valid = readings[:, 2] > 0.5
        mask = valid.float()
        nothing = torch.zeros_like(mask)
        value = torch.where(valid, readings[:, 0], nothing)
        age = torch.where(valid, readings[:, 1], nothing)
        logarithm = torch.log(value.clamp(min=0.0) + 1.0)
        plain = value * (1.0 - self.logarithmic) + logarithm * self.logarithmic
        level = ((plain - self.offset) / self.scale).clamp(-4.0, 4.0) * mask
        first = mask * (torch.matmul(mask, self.before) < 0.5).float()
        start = (level * first).sum(2, keepdim=True)
        change = ((level - start) * CHANGE_GAIN).clamp(-4.0, 4.0) * mask
        aged = torch.log(age.clamp(0.0, 3600.0) + 1.0) * 0.25
        return torch.cat([level, change, aged, mask], 1)
