"""What lies between a scene and its stored picture, drawn at random: cut, mirror, light, colour, blur, noise, codec.

One `Lens` holds for all pictures of a film, as one camera does.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edge_agent.core.records import U8

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Lens:
    """How one camera shows what it sees."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  #: x0, y0, x1, y1 of what is kept, in 0..1
    mirrored: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)  #: of red, green, blue
    offset: float = 0.0  #: grey levels
    gamma: float = 1.0
    saturation: float = 1.0
    detail: float = 1.0  #: share of the width that survives a smaller picture in between
    blur: float = 0.0  #: pixels
    noise: float = 0.0  #: grey levels
    quality: int = 100  #: of JPEG; 100: no JPEG


def lens(rng: Rng, least_kept: float = 0.6) -> Lens:
    """Another camera. `least_kept`: smallest share of each side that stays in the picture."""

    def often(share: float) -> bool:
        return bool(rng.random() < share)

    width = rng.uniform(least_kept, 1.0)
    height = float(np.clip(width * rng.uniform(0.85, 1.18), least_kept, 1.0))
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    light = float(np.exp(rng.uniform(-0.5, 0.5)))
    tint = np.exp(rng.uniform(-0.14, 0.14, 3)) if often(0.6) else np.ones(3)
    red, green, blue = (float(v) for v in light * tint)
    return Lens(
        box=(x, y, x + width, y + height),
        mirrored=often(0.5),
        gain=(red, green, blue),
        offset=float(rng.uniform(-16, 16)),
        gamma=float(np.exp(rng.uniform(-0.3, 0.3))) if often(0.5) else 1.0,
        saturation=float(rng.uniform(0.4, 1.5)) if often(0.6) else 1.0,
        detail=float(rng.uniform(0.35, 1.0)) if often(0.4) else 1.0,
        blur=float(rng.uniform(0.3, 1.8)) if often(0.3) else 0.0,
        noise=float(rng.uniform(1, 10)) if often(0.4) else 0.0,
        quality=int(rng.integers(15, 85)) if often(0.6) else 100,
    )


def seen(picture: U8, through: Lens, rng: Rng) -> U8:
    """The picture, uint8 (h, w, 3) RGB of any size, as that camera stores it; cropping makes it smaller."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = through.box
    rows = slice(int(y0 * height), max(int(np.ceil(y1 * height)), int(y0 * height) + 1))
    columns = slice(int(x0 * width), max(int(np.ceil(x1 * width)), int(x0 * width) + 1))
    cut = picture[rows, columns]
    if through.mirrored:
        cut = cut[:, ::-1]
    return _stored(_lit(_softened(np.ascontiguousarray(cut), through), through, rng), through.quality)


def _softened(picture: U8, through: Lens) -> U8:
    if through.detail < 1:
        height, width = picture.shape[:2]
        size = (max(int(width * through.detail), 8), max(int(height * through.detail), 8))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        picture = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if through.blur > 0:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), through.blur), np.uint8)
    return picture


def _lit(picture: U8, through: Lens, rng: Rng) -> U8:
    # All that is done to each colour by itself is one table.
    ramp = 255.0 * (np.arange(256) / 255.0) ** through.gamma
    levels = np.clip(ramp[:, None] * np.asarray(through.gain) + through.offset, 0, 255)
    if through.saturation == 1 and through.noise == 0:
        return np.asarray(cv2.LUT(picture, levels.astype(np.uint8)[None]), np.uint8)
    x = np.asarray(cv2.LUT(picture, levels.astype(np.float32)[None]), np.float32)
    if through.saturation != 1:
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * np.float32(through.saturation)
    if through.noise > 0:
        x = x + rng.standard_normal(x.shape, np.float32) * np.float32(through.noise)
    return np.clip(x, 0, 255).astype(np.uint8)


def _stored(picture: U8, quality: int) -> U8:
    if quality >= 100:
        return picture
    # The codec halves the colours, not the light: it must know which channel is which.
    good, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = cv2.imdecode(data, cv2.IMREAD_COLOR) if good else None
    return picture if back is None else np.asarray(cv2.cvtColor(back, cv2.COLOR_BGR2RGB), np.uint8)
