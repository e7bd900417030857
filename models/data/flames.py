"""Generated pictures: flames over any background, and stills that look warm without burning.

Only one real fire may train what ships, so variety has to be made: palettes, shapes, sizes, smoke, glow,
night. The stills are the other half of the lesson: sunsets, lamps, autumn leaves, red cars, wooden rooms.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32, U8

Rng = np.random.Generator
#: Colour of a flame from its cool edge to its core, RGB.
_PALETTE = np.array(
    [(60, 8, 0), (150, 30, 2), (215, 70, 8), (250, 125, 20), (255, 180, 50), (255, 225, 120), (255, 252, 225)],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class Layer:
    """Something to lay over a picture at three moments: RGB float (3, h, w, 3) and opacity (3, h, w)."""

    colour: F32
    alpha: F32


@dataclass(frozen=True, slots=True)
class Blaze:
    """A fire as light at three moments, which a camera adds to what it sees: RGB float (3, h, w, 3), any size of
    value; how much of the background it hides (3, h, w); how dense it burns there, 0..1 (3, h, w)."""

    light: F32
    hidden: F32
    density: F32


def clouds(rng: Rng, height: int, width: int, *, cells: int = 4, octaves: int = 4) -> F32:
    """Smooth noise in 0..1 with detail at every scale, float32 (height, width)."""
    total = np.zeros((height, width), np.float32)
    weight = 0.0
    for octave in range(octaves):
        rows = min(cells * 2**octave, height)
        columns = min(max(cells * 2**octave * width // max(height, 1), 2), width)
        grid = rng.random((max(rows, 2), columns), np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 0.55**octave
        weight += 0.55**octave
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / max(high - low, 1e-6), np.float32)


def flame(rng: Rng, height: int, width: int, moments_s: tuple[float, ...]) -> Layer:
    """A flame that rises and flickers; equal moments give a still."""
    detail = _fabric(rng, height * 3, width)
    outline = _outline(rng, height, width)
    curl = (
        (clouds(rng, height, width, cells=int(rng.integers(2, 7)), octaves=3) - 0.5) * width * rng.uniform(0.05, 0.5)
    )
    across = (np.arange(width, dtype=np.float32)[None] + curl).astype(np.float32)
    speed = rng.uniform(0.5, 2.5) * height
    contrast, brightness = rng.uniform(1.0, 3.2), rng.uniform(0.5, 1.4)
    tint = np.array([1.0, rng.uniform(0.7, 1.12), rng.uniform(0.5, 1.3)], np.float32)
    softness, hottest, gamma = rng.uniform(2.5, 12.0), rng.uniform(0.5, 1.0), rng.uniform(0.6, 1.4)
    colours, alphas = [], []
    for moment in moments_s:
        shift = int(speed * moment) % height
        rows = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None] + shift, (height, width))
        noise = cv2.remap(detail, across, rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        heat = outline * brightness + (noise - 0.55) * contrast * np.clip(outline * 2.5, 0, 1) - 0.08
        heat = np.clip(heat, 0, 1)
        colours.append(_lookup(_PALETTE * tint, hottest * heat**gamma) * (0.75 + 0.4 * noise)[..., None])
        alphas.append(np.clip((heat - 0.06) * softness, 0, 1))
    return Layer(np.clip(np.stack(colours), 0, 255), np.asarray(np.stack(alphas), np.float32))


def blaze(rng: Rng, height: int, width: int, moments_s: tuple[float, ...]) -> Blaze:
    """A fire that shines: soot glows red before all, and what a sensor cannot hold turns yellow, then white. `flame`
    paints a fire opaquely; this one has no edge of its own."""
    shape = _tongues(rng, height, width) if rng.random() < 0.75 else _outline(rng, height, width)
    detail = _fabric(rng, height * 3, width)
    curl = (clouds(rng, height, width, cells=int(rng.integers(2, 6))) - 0.5) * width * rng.uniform(0.05, 0.35)
    across = (np.arange(width, dtype=np.float32)[None] + curl).astype(np.float32)
    speed = rng.uniform(0.5, 2.5) * height
    rough, power = rng.uniform(0.4, 1.8), rng.uniform(1.0, 2.6)
    tone = np.array([1.0, rng.uniform(0.3, 0.65), rng.uniform(0.03, 0.25)], np.float32)
    exposure = 255 * np.exp(rng.uniform(np.log(0.8), np.log(5.0)))
    lights, densities = [], []
    for moment in moments_s:
        shift = int(speed * moment) % height
        rows = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None] + shift, (height, width))
        noise = cv2.remap(detail, across, rows.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        dense = np.clip(shape * 1.25 + (noise - 0.5) * rough * np.clip(shape * 2, 0, 1) - 0.12, 0, 1)
        lights.append((dense**power)[..., None] * tone * exposure)
        densities.append(dense)
    density = np.asarray(np.stack(densities), np.float32)
    hidden = np.clip(density * 1.6, 0, 1) * rng.uniform(0, 0.75)
    return Blaze(np.asarray(np.stack(lights), np.float32), np.asarray(hidden, np.float32), density)


def _tongues(rng: Rng, height: int, width: int) -> F32:
    """Tongues side by side that bend as they rise, over an uneven ground; 0..1 (height, width)."""
    y = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    shape = np.zeros((height, width), np.float32)
    bend = (clouds(rng, height, width, cells=int(rng.integers(1, 4))) - 0.5) * rng.uniform(0.2, 1.0)
    count = int(rng.integers(1, 3)) if rng.random() < 0.35 else int(rng.integers(3, 12))
    for _ in range(count):
        centre = 0.0 if count == 1 else rng.uniform(-0.85, 0.85)
        wide, top = rng.uniform(0.3, 0.8) / count**0.6, rng.uniform(0.35, 1.0)
        across = (x - centre - rng.uniform(-0.3, 0.3) * y - bend * y**0.7) / np.maximum(wide * (1.05 - y / top), 0.02)
        shape = np.maximum(shape, np.exp(-across * across) * np.clip((top - y) / top * 1.6, 0, 1))
    ground = clouds(rng, 2, width, cells=int(rng.integers(2, 8)))[:1] * rng.uniform(0.02, 0.3)
    return np.asarray(shape * np.clip((y - ground) * rng.uniform(5, 30), 0, 1), np.float32)


def _fabric(rng: Rng, height: int, width: int) -> F32:
    """Filaments: noise that is drawn out upwards, folded where it crosses the middle, fine down to the pixel."""
    drawn = max(width * int(rng.integers(1, 4)), 2)
    base = cv2.resize(clouds(rng, height, drawn, cells=int(rng.integers(4, 16)), octaves=6), (width, height))
    folded = 1 - np.abs(2 * base - 1) * 1.6
    mix = rng.uniform(0, 1)
    fine = cv2.resize(clouds(rng, height, drawn, cells=int(rng.integers(20, 60)), octaves=3), (width, height))
    return np.asarray(0.7 * (mix * folded + (1 - mix) * base) + 0.3 * fine, np.float32)


def _outline(rng: Rng, height: int, width: int) -> F32:
    """Where the fire may be: one tongue, many tongues, or patches all over."""
    y = np.linspace(1, 0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    kind = rng.random()
    if kind < 0.4:
        patches = clouds(rng, height, width, cells=int(rng.integers(1, 6)), octaves=4)
        # Fading out on all sides: a straight edge would give the patch away.
        border = np.clip(np.minimum(1 - np.abs(x), np.minimum(y, 1 - y) * 2) * rng.uniform(3, 8), 0, 1)
        return np.asarray(np.clip((patches - rng.uniform(0.3, 0.65)) * rng.uniform(2, 5), 0, 1) * border, np.float32)
    count = 1 if kind < 0.6 else int(rng.integers(2, 9))
    shape = np.zeros((height, width), np.float32)
    for _ in range(count):
        centre, spread = (0.0 if count == 1 else rng.uniform(-0.8, 0.8)), rng.uniform(0.25, 0.7) / count**0.6
        top = rng.uniform(0.5, 1.0)
        lean = rng.uniform(-0.4, 0.4)
        across = (x - centre - lean * y * y) / np.maximum(spread * (1.1 - y / top), 0.03)
        shape = np.maximum(shape, np.exp(-across * across) * np.clip((top - y) / top * 2, 0, 1))
    if rng.random() < 0.3:  # nothing burns at the very bottom: a flame floats over what it eats
        shape *= np.clip(y * rng.uniform(4, 10), 0, 1)
    return np.asarray(shape, np.float32)


def _lookup(palette: F32, heat: F32) -> F32:
    position = heat * (len(palette) - 1)
    low = np.minimum(position.astype(np.int32), len(palette) - 2)
    part = (position - low)[..., None]
    return np.asarray(np.clip(palette[low] * (1 - part) + palette[low + 1] * part, 0, 255), np.float32)


def still(rng: Rng, height: int, width: int) -> U8:
    """A made-up photograph without fire: uint8 (height, width, 3)."""
    makers = (_collage, _collage, _room, _landscape, _night, _texture)
    picture = makers[int(rng.integers(len(makers)))](rng, height, width)
    grain = rng.normal(0, rng.uniform(0, 6), (height, width, 1))
    if rng.random() < 0.5:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.5)), np.float32)
    return np.asarray(np.clip(picture + grain, 0, 255), np.uint8)


def colour(rng: Rng, warm: float = 0.3) -> tuple[float, float, float]:
    """A colour of things; `warm` of them red, orange or yellow."""
    if rng.random() < warm:
        hue, saturation = rng.uniform(-10, 35) % 180, rng.uniform(90, 255)
    else:
        hue, saturation = rng.uniform(0, 180), rng.uniform(0, 130)
    pixel = np.array([[[hue, saturation, rng.uniform(20, 255)]]]).astype(np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]
    return float(red), float(green), float(blue)


def _gradient(rng: Rng, height: int, width: int, warm: float) -> F32:
    top, bottom = np.array(colour(rng, warm)), np.array(colour(rng, warm))
    slope = np.linspace(0, 1, height)[:, None, None]
    return np.broadcast_to(top * (1 - slope) + bottom * slope, (height, width, 3)).astype(np.float32).copy()


def _shape(rng: Rng, picture: F32, ink: tuple[float, float, float], size: float) -> None:
    height, width = picture.shape[:2]
    x, y = int(rng.uniform(-0.1, 1.1) * width), int(rng.uniform(-0.1, 1.1) * height)
    w, h = (int(max(2, size * rng.uniform(0.3, 1.5))) for _ in range(2))
    kind = rng.random()
    if kind < 0.5:
        cv2.rectangle(picture, (x, y), (x + w, y + h), ink, -1)
    elif kind < 0.8:
        cv2.ellipse(picture, (x, y), (w, h), float(rng.uniform(0, 180)), 0, 360, ink, -1)
    else:
        points = rng.normal(0, size, (int(rng.integers(3, 7)), 2)) + np.array([x, y])
        cv2.fillPoly(picture, [points.astype(np.int32)], ink)


def _collage(rng: Rng, height: int, width: int) -> F32:
    """Rooms, shelves, crowds: shapes over shapes, larger ones first."""
    warm = float(rng.choice([0.1, 0.3, 0.7]))
    picture = _gradient(rng, height, width, warm)
    for size in np.sort(rng.pareto(1.2, int(rng.integers(15, 90))) * 4 + 3)[::-1]:
        _shape(rng, picture, colour(rng, warm), min(float(size), 90.0))
    for _ in range(int(rng.integers(0, 60))):
        _shape(rng, picture, colour(rng, warm + 0.2), float(rng.uniform(1, 9)))
    shade = clouds(rng, height, width, octaves=5)[..., None]
    picture = picture * (1 - rng.uniform(0, 0.7) * (1 - shade))
    if rng.random() < 0.5:
        picture = picture * (
            0.7 + 0.6 * clouds(rng, height, width, cells=int(rng.integers(20, 70)), octaves=2)[..., None]
        )
    if rng.random() < 0.4:
        _lights(rng, picture, int(rng.integers(1, 8)))
    return np.asarray(picture, np.float32)


def _landscape(rng: Rng, height: int, width: int) -> F32:
    """Sky, ground, skyline; some at sunset with the sun in the picture."""
    picture = _gradient(rng, height, width, 0.15)
    horizon = int(height * rng.uniform(0.25, 0.8))
    if rng.random() < 0.5:
        red = np.array([rng.uniform(200, 255), rng.uniform(90, 190), rng.uniform(20, 120)])
        glow = np.exp(-((np.arange(height) - horizon) ** 2) / (2 * (height * rng.uniform(0.08, 0.4)) ** 2))
        picture += (red - picture) * glow[:, None, None] * rng.uniform(0.5, 1)
        if rng.random() < 0.6:
            _lamp(
                picture,
                (int(rng.uniform(0, width)), horizon - int(rng.uniform(0, 25))),
                rng.uniform(3, 14),
                red,
                rng.uniform(1, 4),
            )
    ground = np.array(colour(rng, 0.2)) * rng.uniform(0.15, 0.9)
    line = horizon + (clouds(rng, 2, width, octaves=5)[0] - 0.5) * rng.uniform(5, 70)
    below = (np.arange(height)[:, None] > line)[..., None]
    texture = clouds(rng, height, width, cells=12, octaves=4)[..., None]
    return np.asarray(
        np.where(below, ground * (0.5 + texture), picture * (0.85 + 0.3 * clouds(rng, height, width)[..., None])),
        np.float32,
    )


def _night(rng: Rng, height: int, width: int) -> F32:
    picture = _gradient(rng, height, width, 0.2) * rng.uniform(0.02, 0.25)
    for _ in range(int(rng.integers(0, 12))):
        _shape(rng, picture, tuple(v * 0.25 for v in colour(rng)), float(rng.uniform(5, 40)))  # type: ignore[arg-type]
    _lights(rng, picture, int(rng.integers(3, 50)))
    return np.asarray(picture * (0.6 + 0.6 * clouds(rng, height, width)[..., None]), np.float32)


def _texture(rng: Rng, height: int, width: int) -> F32:
    """Leaves, stone, carpet, flowers: one or two colours at every scale, without a burning core."""
    first, second = np.array(colour(rng, 0.5)), np.array(colour(rng, 0.5))
    mix = clouds(rng, height, width, cells=int(rng.integers(2, 20)), octaves=5)[..., None]
    mix = np.clip((mix - 0.5) * rng.uniform(1, 6) + 0.5, 0, 1)
    shade = clouds(rng, height, width, cells=int(rng.integers(4, 30)), octaves=4)[..., None]
    return np.asarray((first * mix + second * (1 - mix)) * (0.4 + 0.8 * shade), np.float32)


def _lights(rng: Rng, picture: F32, count: int) -> None:
    height, width = picture.shape[:2]
    for _ in range(count):
        tone = (
            np.array([255.0, rng.uniform(150, 250), rng.uniform(60, 240)])
            if rng.random() < 0.7
            else np.array(colour(rng))
        )
        place = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        _lamp(picture, place, rng.uniform(0.7, 7), tone, rng.uniform(1.5, 5))


def _lamp(picture: F32, place: tuple[int, int], radius: float, tone: NDArray[np.float64], halo: float) -> None:
    """A round light with a soft halo: bright and warm, but smooth and still."""
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    distance = np.sqrt((x - place[0]) ** 2 + (y - place[1]) ** 2)
    core = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    glow = np.exp(-np.maximum(distance - radius, 0) / (radius * halo))[..., None] * 0.6
    picture += (tone - picture) * np.clip(glow, 0, 1)
    picture += (np.minimum(tone * 0.3 + 190, 255) - picture) * core


def _room(rng: Rng, height: int, width: int) -> F32:
    """Walls, ceiling and floor that meet in corners, furniture in a few strong colours, windows and lamps."""
    warm = float(rng.choice([0.2, 0.6, 0.9]))
    picture = _gradient(rng, height, width, warm)
    left, right = rng.uniform(0.05, 0.45) * width, rng.uniform(0.55, 0.95) * width
    top, bottom = rng.uniform(0.05, 0.35) * height, rng.uniform(0.55, 0.85) * height
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    edges = [(0, 0), (width, 0), (width, height), (0, height)]
    for index in range(4):
        after = (index + 1) % 4
        plane = np.array([edges[index], edges[after], corners[after], corners[index]]).astype(np.int32)
        cv2.fillPoly(picture, [plane], tuple(value * rng.uniform(0.5, 1.0) for value in colour(rng, warm)))
    for size in np.sort(rng.uniform(6, 70, int(rng.integers(3, 25))))[::-1]:
        _shape(rng, picture, colour(rng, warm), float(size))
    for _ in range(int(rng.integers(0, 30))):
        _shape(rng, picture, colour(rng, warm), float(rng.uniform(1, 9)))
    light = 0.5 + 0.9 * clouds(rng, height, width, cells=2, octaves=2)
    grain = 0.8 + 0.4 * clouds(rng, height, width, cells=int(rng.integers(15, 60)), octaves=3)
    picture = np.asarray(np.clip(picture * (light * grain)[..., None], 0, 255), np.float32)
    _lights(rng, picture, int(rng.integers(0, 6)))
    return picture


def lamp(rng: Rng, picture: F32) -> None:
    """Put one lamp into a float picture, in place."""
    _lights(rng, picture, 1)
