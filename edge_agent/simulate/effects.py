"""Fire, smoke and light that comes and goes: everything in the picture that has no outline."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from edge_agent.core.records import F32, U8
from edge_agent.simulate.chance import generator

_ROWS, _COLS = 56, 40
_SIZE = 128  #: side of the noise field that flames and smoke scroll through


class Spot(NamedTuple):
    """Where an effect stands: the middle of its foot, its width and its height, in pixels."""

    x: float
    y: float
    wide: float
    tall: float


class Effects:
    """Flames, smoke and glows for pictures of one size."""

    def __init__(self, seed: int, width: int, height: int) -> None:
        draw = generator(seed, "effects")
        self._noise = _periodic(draw, 2.2)
        self._soft = _periodic(draw, 3.2)
        v, u = np.mgrid[1 : 0 : _ROWS * 1j, -1 : 1 : _COLS * 1j].astype(np.float32)
        self._u, self._v = u, v
        self._x = np.arange(width // 2, dtype=np.float32)[None, :]
        self._y = np.arange(height // 2, dtype=np.float32)[:, None]

    def flames(self, frame: U8, spot: Spot, t_s: float, key: int) -> None:
        """Paint flames; they lick upwards and flicker at some hertz."""
        if spot.tall < 3.0:
            return
        lick = self._window(self._noise, t_s, 62.0, key) * 0.6 + self._window(self._noise, t_s, 110.0, key + 37) * 0.4
        sway = 0.2 * math.sin(5.1 * t_s + key) * self._v + 1.1 * (lick - 0.5) * self._v
        body = 1.0 - np.abs(self._u + sway) / (0.22 + 0.62 * (1.0 - self._v) ** 0.6)
        heat = np.clip(0.95 * body + 2.3 * (lick - 0.47) * (0.25 + self._v) - 0.62 * self._v + 0.12, 0.0, 1.0)
        heat *= np.clip(6.0 * self._v + 0.4, 0.0, 1.0)
        glow = np.stack((2.6 * heat + 0.35, 2.5 * heat - 0.35, 3.4 * heat - 2.2), axis=2)
        layer = np.clip(glow, 0.0, 1.0).astype(np.float32) * 255.0
        self._blend(frame, layer, np.clip(heat * 3.4 - 0.2, 0.0, 1.0), spot)

    def smoke(self, frame: U8, spot: Spot, t_s: float, *, density: float, tone: float) -> None:
        """Lay a rising plume of smoke over the picture; `tone` is its grey, 0..255."""
        if density <= 0.01:
            return
        field = self._window(self._soft, t_s, 22.0, 11) * 0.6 + self._window(self._noise, t_s, 31.0, 71) * 0.4
        spread = 0.16 + 0.8 * self._v
        body = np.exp(-(((self._u + 0.35 * (field - 0.5) + 0.2 * self._v) / spread) ** 2) * 1.6)
        fade = np.clip(5.0 * self._v, 0.0, 1.0) * np.clip(3.0 * (1.0 - self._v), 0.0, 1.0)
        fade = fade * np.clip(3.0 * (1.0 - np.abs(self._u)), 0.0, 1.0)
        alpha = np.clip(1.5 * density * body * fade * (0.15 + 1.3 * field), 0.0, 0.94)
        grey = tone * (0.75 + 0.5 * field)
        self._blend(frame, np.repeat(grey[..., None], 3, axis=2).astype(np.float32), alpha, spot)

    def dim(self, light: F32, x: float, y: float, radius: float, share: float) -> None:
        """Take up to `share` of the light away around pixel (x, y)."""
        distance = self._distance(x, y, radius)
        light *= (1.0 - np.float32(share) / (1.0 + distance * distance))[..., None]

    def glow(self, light: F32, x: float, y: float, radius: float, colour: tuple[float, float, float]) -> None:
        """Add light around pixel (x, y) to a light map of half the picture's size."""
        share = 1.0 / (1.0 + self._distance(x, y, radius))
        for channel, gain in enumerate(colour):
            light[..., channel] += share * np.float32(gain)

    def _distance(self, x: float, y: float, radius: float) -> F32:
        """Squared distance from pixel (x, y) in radii, for every cell of the light map."""
        per_radius = np.float32(2.0 / radius)
        across = ((self._x - np.float32(x / 2)) * per_radius) ** 2
        return np.asarray(across + ((self._y - np.float32(y / 2)) * (per_radius * np.float32(1.3))) ** 2)

    def _window(self, field: F32, t_s: float, speed: float, key: int) -> F32:
        """A part of the noise field that scrolls: what was below is above a moment later."""
        place = t_s * speed + key * 17.3
        first = math.floor(place)
        part = np.float32(place - first)
        rows = (np.arange(_ROWS + 1) + first) % _SIZE
        cols = (np.arange(_COLS) + key * 29) % _SIZE
        rows_of = field[rows][:, cols]
        return np.asarray(rows_of[:-1] * (1 - part) + rows_of[1:] * part, dtype=np.float32)

    @staticmethod
    def _blend(frame: U8, layer: F32, alpha: F32, spot: Spot) -> None:
        cols, rows = max(round(spot.wide), 2), max(round(spot.tall), 2)
        left, top = round(spot.x - spot.wide / 2), round(spot.y - spot.tall)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + cols, frame.shape[1]), min(top + rows, frame.shape[0])
        if x0 >= x1 or y0 >= y1:
            return
        cut = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        colours = np.asarray(cv2.resize(layer, (cols, rows), interpolation=cv2.INTER_LINEAR))[cut]
        share = np.asarray(cv2.resize(alpha.astype(np.float32), (cols, rows)))[cut][..., None]
        under = frame[y0:y1, x0:x1]
        frame[y0:y1, x0:x1] = (under + (colours - under) * share).astype(np.uint8)


def _periodic(draw: np.random.Generator, slope: float) -> F32:
    """Noise in 0..1 that repeats without a seam; a higher slope is smoother."""
    lines = np.fft.fftfreq(_SIZE)
    size = np.hypot(lines[:, None], lines[None, :])
    size[0, 0] = 1.0
    spectrum = size ** (-slope / 1.4) * np.exp(2j * np.pi * draw.random((_SIZE, _SIZE)))
    spectrum[0, 0] = 0.0
    field = np.fft.ifft2(spectrum).real
    ranks = np.argsort(np.argsort(field, axis=None)).reshape(field.shape)
    return np.asarray(ranks / ranks.size, dtype=np.float32)
