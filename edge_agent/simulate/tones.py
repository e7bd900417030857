"""Single sounds, each made once from its own generator: float32, int16 scale, starting at their first sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32

Draw = np.random.Generator
F64 = NDArray[np.float64]
#: Stretches of a syllable within which a voice changes evenly.
_PARTS = 8
#: First three formants (Hz) of nine vowels.
_VOWELS = np.array(
    [
        [730, 1090, 2440],
        [270, 2290, 3010],
        [300, 870, 2240],
        [530, 1840, 2480],
        [570, 840, 2410],
        [660, 1720, 2410],
        [440, 1020, 2240],
        [490, 1350, 1690],
        [390, 1990, 2550],
    ],
    dtype=np.float64,
)


def shaped_loop(draw: Draw, samples: int, rate_hz: int, gain_of: Callable[[F32], F32]) -> F32:
    """Noise of RMS 1 whose end runs on into its beginning; `gain_of` maps frequencies (Hz) to amplitudes."""
    hertz = np.fft.rfftfreq(samples, 1.0 / rate_hz).astype(np.float32)
    phase = draw.random(len(hertz), dtype=np.float32) * np.float32(2.0 * np.pi)
    spectrum = gain_of(np.maximum(hertz, 1.0)) * np.exp(1j * phase)
    spectrum[0] = 0.0
    wave = np.fft.irfft(spectrum, samples).astype(np.float32)
    return np.asarray(wave / max(float(np.sqrt(np.mean(np.square(wave)))), 1e-9), dtype=np.float32)


def pink(hertz: F32) -> F32:
    """Room tone."""
    return np.asarray(1.0 / np.sqrt(hertz + 20.0), dtype=np.float32)


def wind(hertz: F32) -> F32:
    """Wind on a microphone: mostly below 200 Hz."""
    return np.asarray(1.0 / (1.0 + (hertz / 90.0) ** 2.2), dtype=np.float32)


def rain(hertz: F32) -> F32:
    """Rain on a roof: broad, strongest at some kHz."""
    return np.asarray((hertz / 2500.0) / (1.0 + (hertz / 2500.0) ** 2), dtype=np.float32)


def motor(hertz: F32) -> F32:
    """Tyres and engine."""
    return np.asarray(1.0 / (1.0 + np.abs(hertz - 110.0) / 70.0) + 0.08 / (1.0 + hertz / 900.0), dtype=np.float32)


def roar(hertz: F32) -> F32:
    """The draught of a fire."""
    return np.asarray((hertz / 120.0) / (1.0 + (hertz / 120.0) ** 2.4), dtype=np.float32)


def hum(rate_hz: int) -> F32:
    """One second of mains hum, RMS 1."""
    time = np.arange(rate_hz) / rate_hz
    wave = sum(a * np.sin(2 * np.pi * 50 * k * time) for k, a in ((1, 0.4), (2, 1.0), (3, 0.3), (4, 0.5), (6, 0.2)))
    return np.asarray(wave / np.sqrt(np.mean(np.square(wave))), dtype=np.float32)


def room(draw: Draw, rate_hz: int, outdoor: bool) -> F32:
    """Impulse response of the place: a diffuse tail indoors, single echoes outdoors. Starts with the direct sound."""
    seconds = float(draw.uniform(0.5, 0.8) if outdoor else draw.uniform(0.35, 0.9))
    time = np.arange(int(seconds * rate_hz)) / rate_hz
    tail = draw.standard_normal(len(time)) * np.exp(-6.9 * time / seconds) * (0.015 if outdoor else 0.05)
    tail[: int(0.012 * rate_hz)] = 0.0
    for _ in range(4 if outdoor else 9):
        tail[int(draw.uniform(0.02, 0.8 * seconds) * len(time) / seconds)] += draw.uniform(-0.35, 0.35)
    tail[0] = 1.0
    return np.asarray(tail, dtype=np.float32)


def convolved(wave: F32, response: F32) -> F32:
    """The sound as it is heard in a room."""
    total = len(wave) + len(response) - 1
    size = 1 << (total - 1).bit_length()
    product = np.fft.rfft(wave, size) * np.fft.rfft(response, size)
    return np.asarray(np.fft.irfft(product, size)[:total], dtype=np.float32)


def footstep(draw: Draw, rate_hz: int) -> F32:
    """Heel, then sole."""
    time = np.arange(int(0.14 * rate_hz)) / rate_hz
    heel = np.sin(2 * np.pi * draw.uniform(70, 130) * time) * np.exp(-time / 0.018)
    sole = draw.standard_normal(len(time)) * np.exp(-np.maximum(time - 0.02, 0) / 0.014) * (time > 0.02)
    return np.asarray(900.0 * heel + 260.0 * _soft(sole, 3), dtype=np.float32)


def thud(draw: Draw, rate_hz: int) -> F32:
    """A body or a fist against something."""
    time = np.arange(int(0.35 * rate_hz)) / rate_hz
    low = np.sin(2 * np.pi * draw.uniform(55, 110) * time) * np.exp(-time / 0.06)
    slap = _soft(draw.standard_normal(len(time)), 2) * np.exp(-time / 0.02)
    return np.asarray(7000.0 * low + 3500.0 * slap, dtype=np.float32)


def door(draw: Draw, rate_hz: int) -> F32:
    """A door that slams: the leaf, the frame, the latch that rattles after."""
    time = np.arange(int(0.7 * rate_hz)) / rate_hz
    leaf = np.sin(2 * np.pi * draw.uniform(55, 95) * time) * np.exp(-time / 0.07)
    frame = _soft(draw.standard_normal(len(time)), 4) * np.exp(-time / 0.035)
    rattle = np.zeros_like(time)
    for start in np.cumsum(draw.uniform(0.03, 0.09, 4)):
        late = np.maximum(time - start, 0.0)
        rattle += (time > start) * np.exp(-late / 0.012) * np.sin(2 * np.pi * draw.uniform(900, 2200) * late)
    return np.asarray(7000.0 * leaf + 6000.0 * frame + 700.0 * rattle, dtype=np.float32)


def shot(draw: Draw, rate_hz: int) -> F32:
    """A muzzle blast: full level within one millisecond, gone in a few more."""
    time = np.arange(int(0.25 * rate_hz)) / rate_hz
    width = draw.uniform(0.0010, 0.0022)
    blast = (1.0 - time / width) * np.exp(-time / width)
    burst = draw.standard_normal(len(time)) * np.exp(-time / draw.uniform(0.008, 0.02))
    thump = np.sin(2 * np.pi * draw.uniform(90, 160) * time) * np.exp(-time / 0.05)
    return np.asarray(26000.0 * blast + 15000.0 * burst + 6000.0 * thump, dtype=np.float32)


def explosion(draw: Draw, rate_hz: int) -> F32:
    """A blast: sharp front, seconds of rumble, debris that comes down."""
    time = np.arange(int(4.0 * rate_hz)) / rate_hz
    noise = draw.standard_normal(len(time))
    front = noise * np.exp(-time / 0.06)
    rumble = _soft(_soft(noise, 60), 60) * 12.0 * np.exp(-time / 0.9)
    wave = 20000.0 * front + 17000.0 * rumble
    for start in draw.exponential(0.9, 40) + 0.3:
        first = int(start * rate_hz)
        piece = draw.standard_normal(240) * np.exp(-np.arange(240) / draw.uniform(15, 60))
        end = min(first + len(piece), len(wave))
        if first < end:
            wave[first:end] += draw.uniform(300, 1500) * piece[: end - first]
    return np.asarray(wave, dtype=np.float32)


def glass(draw: Draw, rate_hz: int) -> F32:
    """A pane that breaks: one impact, then shards that ring between 2 and 7.5 kHz."""
    time = np.arange(int(1.6 * rate_hz)) / rate_hz
    wave = 9000.0 * draw.standard_normal(len(time)) * np.exp(-time / 0.012)
    top = min(7500.0, 0.47 * rate_hz)
    for start in np.concatenate((draw.uniform(0.0, 0.05, 14), draw.exponential(0.28, 40))):
        first = int(start * rate_hz)
        ring = np.arange(int(0.16 * rate_hz)) / rate_hz
        tone = np.sin(2 * np.pi * draw.uniform(2000, top) * ring) * np.exp(-ring / draw.uniform(0.008, 0.035))
        end = min(first + len(tone), len(wave))
        if first < end:
            wave[first:end] += draw.uniform(800, 4200) * math.exp(-1.2 * start) * tone[: end - first]
    return np.asarray(wave, dtype=np.float32)


def thunder(draw: Draw, rate_hz: int) -> F32:
    """A roll of thunder: noise below 200 Hz in several swells, no sharp front."""
    count = int(5.5 * rate_hz)
    noise = shaped_loop(draw, count, rate_hz, lambda f: np.asarray(1.0 / (1.0 + (f / 70.0) ** 1.7), dtype=np.float32))
    time = np.arange(count) / rate_hz
    swell = np.zeros(count)
    for start in np.cumsum(draw.uniform(0.1, 0.9, 5)):
        late = np.maximum(time - start, 0.0)
        swell += draw.uniform(0.4, 1.0) * (late / 0.25) * np.exp(1.0 - late / 0.25) * 0.7 + 0.25 * (late > 0)
    fade = np.clip((5.5 - time) / 3.0, 0.0, 1.0) ** 2
    return np.asarray(2600.0 * noise * swell * fade, dtype=np.float32)


def pop(draw: Draw, rate_hz: int) -> F32:
    """One crackle of burning wood."""
    time = np.arange(int(0.03 * rate_hz)) / rate_hz
    wave = draw.standard_normal(len(time)) * np.exp(-time / draw.uniform(0.001, 0.006))
    return np.asarray(draw.uniform(500, 4500) * wave, dtype=np.float32)


def voice(draw: Draw, rate_hz: int, shouting: bool) -> F32:
    """Speech without words: harmonics of a gliding pitch under moving formants, by syllables."""
    syllables = int(draw.integers(2, 4) if shouting else draw.integers(5, 10))
    rate = draw.uniform(2.2, 3.2) if shouting else draw.uniform(4.0, 5.5)
    length = int(rate_hz / rate / _PARTS)
    spots, grid = np.arange(syllables + 1), np.arange(_PARTS * syllables + 1) / _PARTS
    place = np.arange(length * _PARTS * syllables) / (length * _PARTS)
    low = draw.uniform(170, 260) if shouting else draw.uniform(95, 210)
    pitch = low * np.interp(grid, spots, draw.uniform(0.9, 1.6 if shouting else 1.15, syllables + 1))
    loud = np.interp(place, spots, draw.uniform(0.5, 1.0, syllables + 1)) * np.abs(np.sin(np.pi * place)) ** 0.6
    formants = _VOWELS[draw.integers(0, len(_VOWELS), syllables + 1)]
    order = np.arange(1, 1 + int(3600 / pitch.max()))[:, None]
    gains = order ** (-0.55 if shouting else -0.95) * sum(
        weight / (1.0 + ((order * pitch - np.interp(grid, spots, formants[:, n])) / width) ** 2)
        for n, (weight, width) in enumerate(((1.0, 90.0), (0.6, 120.0), (0.3, 170.0)))
    )
    wave = _harmonics(2 * np.pi * np.cumsum(np.interp(place, grid, pitch)) / rate_hz, np.asarray(gains), length)
    breath = draw.standard_normal(len(place)) * np.maximum(np.cos(2 * np.pi * place), 0.0) ** 6
    wave = loud * wave + 0.05 * breath
    peak = max(float(np.abs(wave).max()), 1e-6)
    if shouting:
        return np.asarray(5200.0 * np.tanh(3.0 * wave / peak), dtype=np.float32)
    return np.asarray(1400.0 * wave / peak, dtype=np.float32)


def _harmonics(phase: F64, gains: F64, length: int) -> F64:
    """Sum over k of gain k times sin(k * phase); gains (K, parts + 1) hold every `length` samples, straight between.

    sin((k + 1) p) = 2 cos(p) sin(k p) - sin((k - 1) p): a multiplication instead of a sine, five times as fast.
    """
    ramp = np.arange(length) / length
    before, now, twice = np.zeros_like(phase), np.sin(phase), 2.0 * np.cos(phase)
    wave = np.zeros_like(phase)
    for gain in gains:
        wave += (gain[:-1, None] + np.diff(gain)[:, None] * ramp).ravel() * now
        before, now = now, twice * now - before
    return wave


def siren(tau: F64, style: int, swing_hz: float) -> F32:
    """A siren at `tau` seconds of its life: 500 to 1500 Hz, wailing, yelping or in two tones."""
    if style == 2:
        high = np.floor(tau / 0.55) % 2
        phase = 2 * np.pi * np.where(high > 0, 960.0, 640.0) * (tau % 0.55)
    else:
        rate = 3.6 if style == 1 else 0.22
        phase = 2 * np.pi * (1000.0 * tau - swing_hz / (2 * np.pi * rate) * np.cos(2 * np.pi * rate * tau))
    return np.asarray(np.sin(phase) + 0.22 * np.sin(3 * phase), dtype=np.float32)


def alarm(tau: F64, pitch_hz: float) -> F32:
    """A smoke alarm at `tau` seconds: three beeps of half a second, a pause, again."""
    beat = tau % 4.0
    on = (beat < 3.0) & (beat % 1.0 < 0.5)
    return np.asarray(on * np.sin(2 * np.pi * pitch_hz * tau), dtype=np.float32)


def _soft(wave: F64, width: int) -> F64:
    """A moving mean: the cheapest low-pass there is."""
    total = np.cumsum(np.concatenate((np.zeros(width), wave)))
    return np.asarray((total[width:] - total[:-width]) / math.sqrt(width))
