"""The still part of a simulated picture, painted once per site: surfaces, and how day and lamps light them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_agent.core.records import F32, U8
from edge_agent.simulate.chance import generator
from edge_agent.simulate.life import FORBIDDEN_M, Life
from edge_agent.simulate.view import Spot, View, shade

Draw = np.random.Generator
Colour = tuple[float, float, float]
#: A wall across the view: its left and right end, its top, its distance (m).
Face = tuple[float, float, float, float]
_FAR_M = 19.0
#: A pillar or lamp post by place: half its width (m), its top (m), its colour.
_POSTS: dict[str, tuple[float, float, Colour]] = {
    "hall": (0.28, 4.4, (178.0, 172.0, 160.0)),
    "warehouse": (0.2, 6.0, (190.0, 150.0, 40.0)),
    "yard": (0.09, 4.6, (88.0, 90.0, 92.0)),
    "street": (0.1, 4.6, (60.0, 66.0, 64.0)),
}


@dataclass(frozen=True, slots=True)
class Occluder:
    """Something that stands before the people behind it: its pixels, where they are, how far away."""

    z: float
    top: int
    left: int
    pixels: U8
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scenery:
    """Surface colours (H, W, 3), and light maps (H/2, W/2, 3) for full daylight and for all lamps on."""

    surface: U8
    day: F32
    lamp: F32
    occluders: tuple[Occluder, ...]


def paint(life: Life, view: View) -> Scenery:
    """The scenery of the site with this seed."""
    draw = generator(life.seed, "scenery")
    large = view.doubled()
    canvas = np.zeros((large.height, large.width, 3), dtype=np.uint8)
    post = (float(draw.uniform(-4.6, -3.2)), float(draw.uniform(10.0, 12.0)))
    lamps = {"hall": _hall, "warehouse": _warehouse, "yard": _yard, "street": _street}[life.place](
        canvas, large, draw
    )
    if life.outdoor:
        lamps.append((post[0], 4.6, post[1]))
    _mark_forbidden(canvas, large, draw)
    surface = np.asarray(cv2.resize(canvas, (view.width, view.height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return Scenery(
        surface, _day_map(life, view, draw), _lamp_map(view, lamps, life.outdoor), _occluders(life, view, draw, post)
    )


def _muted(draw: Draw, low: float, high: float) -> Colour:
    """A colour that somebody would paint a wall with."""
    tone, tint = draw.uniform(low, high), draw.uniform(-1.0, 1.0, 3)
    red, green, blue = (float(np.clip(tone * (1.0 + 0.07 * part), 0, 255)) for part in tint)
    return red, green, blue


def grain(draw: Draw, rows: int, cols: int, colour: Colour, contrast: float) -> U8:
    """A surface of one colour with stains and grain in several sizes."""
    field = np.zeros((rows, cols), dtype=np.float32)
    for size, weight in ((4, 0.5), (12, 0.35), (48, 0.3), (rows, 0.35)):
        small = draw.standard_normal((min(size, rows), min(size * cols // rows + 1, cols))).astype(np.float32)
        large = np.asarray(cv2.resize(small, (cols, rows), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
        field += np.float32(weight) * large
    tones = np.asarray(colour, dtype=np.float32) * (1.0 + contrast * field[..., None])
    return np.asarray(np.clip(tones, 0, 255), dtype=np.uint8)


def _ground(canvas: U8, view: View, texture: U8) -> None:
    view.hang(canvas, texture, [(-14.0, 0.0, 24.0), (14.0, 0.0, 24.0), (14.0, 0.0, 4.0), (-14.0, 0.0, 4.0)])


def _wall(canvas: U8, view: View, texture: U8, face: Face) -> None:
    left, right, top, z = face
    view.hang(canvas, texture, [(left, top, z), (right, top, z), (right, 0.0, z), (left, 0.0, z)])


def _panel(canvas: U8, view: View, colour: Colour, box: tuple[float, float, float, float], z: float) -> None:
    """A flat rectangle (left, right, bottom, top) on the wall at `z`, with a dark frame."""
    left, right, bottom, top = box
    (x0, y0), (x1, y1) = view.pixel(left, top, z), view.pixel(right, bottom, z)
    corners = ((round(x0), round(y0)), (round(x1), round(y1)))
    cv2.rectangle(canvas, *corners, colour, -1)
    cv2.rectangle(canvas, *corners, tuple(0.45 * tone for tone in colour), 2, cv2.LINE_AA)


def _sky(canvas: U8, view: View, draw: Draw) -> None:
    rows = int(view.horizon) + 8
    steps = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    top, low = np.array([120, 165, 225], np.float32), np.array([215, 225, 235], np.float32)
    clouds = grain(draw, 64, 256, (128, 128, 128), 0.35)[..., :1].astype(np.float32) - 128
    clouds = np.asarray(cv2.resize(cv2.GaussianBlur(clouds, (9, 5), 0), (view.width, rows)), dtype=np.float32)[
        ..., None
    ]
    canvas[:rows] = np.clip(top + (low - top) * steps + np.maximum(clouds, -20), 0, 255).astype(np.uint8)


def _tiled(texture: U8, cell: int, tone: float) -> U8:
    texture[::cell] = (texture[::cell] * tone).astype(np.uint8)
    texture[:, ::cell] = (texture[:, ::cell] * tone).astype(np.uint8)
    texture[1::cell] = (texture[1::cell] * (0.5 + tone / 2)).astype(np.uint8)
    return texture


def _vivid(draw: Draw) -> Colour:
    """A colour of something small."""
    red, green, blue = (float(part) for part in 40.0 + 130.0 * draw.dirichlet((2.0, 2.0, 2.0)))
    return red, green, blue


def _hall(canvas: U8, view: View, draw: Draw) -> list[Spot]:
    warm = draw.uniform(0.88, 1.0)
    canvas[:] = (205, 205 * warm, 195 * warm)
    _wall(canvas, view, grain(draw, 128, 512, (196, 192 * warm, 176 * warm), 0.04), (-12, 12, 4.4, _FAR_M))
    view.hang(
        canvas,
        grain(draw, 64, 512, (120, 112, 104), 0.06),
        [(-12, 0.9, 19), (12, 0.9, 19), (12, 0, 19), (-12, 0, 19)],
    )
    floor = _tiled(grain(draw, 640, 896, _muted(draw, 110, 160), 0.06), 32, 0.72)
    _ground(canvas, view, floor)
    for x in draw.permutation([-8.5, -5.4, -2.2, 1.0, 4.2, 7.0])[:4]:
        kind = draw.integers(0, 3)
        if kind == 0:
            _panel(canvas, view, (126, 84, 52), (x, x + 1.3, 0.0, 2.3), _FAR_M)
            _panel(canvas, view, (150, 170, 180), (x + 0.3, x + 0.95, 1.3, 1.95), _FAR_M)
        elif kind == 1:
            _panel(canvas, view, (225, 238, 250), (x, x + 2.2, 1.1, 2.7), _FAR_M)
        else:
            _panel(canvas, view, _vivid(draw), (x, x + 1.1, 1.3, 2.2), _FAR_M)
    bench = grain(draw, 64, 128, (118, 82, 54), 0.1)
    view.block(canvas, bench, (-8.2, -5.8), (17.2, 18.4), 0.8)
    lamps = [(x, 4.3, z) for x in (-3.6, 0.0, 3.6) for z in (9.0, 12.5, 16.5)]
    for x, y, z in lamps:
        quad = [view.pixel(x + dx, y, z + dz) for dx, dz in ((-0.6, 0.5), (0.6, 0.5), (0.6, -0.5), (-0.6, -0.5))]
        cv2.fillConvexPoly(canvas, np.round(quad).astype(np.int32), (250, 250, 245), cv2.LINE_AA)
    return lamps


def _warehouse(canvas: U8, view: View, draw: Draw) -> list[Spot]:
    canvas[:] = (92, 96, 100)
    sheet = grain(draw, 256, 768, _muted(draw, 110, 150), 0.05)
    sheet[:, ::6] = shade(sheet[:, ::6], 0.78)
    _wall(canvas, view, sheet, (-14, 14, 7.0, _FAR_M + 1))
    _panel(canvas, view, (148, 152, 156), (-2.0, 2.2, 0.0, 3.6), _FAR_M + 1)
    floor = grain(draw, 640, 896, _muted(draw, 100, 135), 0.09)
    for column in (300, 306, 560, 566):
        floor[:, column : column + 3] = (205, 175, 60)
    _ground(canvas, view, floor)
    for x in (-11.0, -8.0, -5.2, 3.6, 6.4, 9.2):
        for level in range(3):
            if draw.random() < 0.85:
                tone = draw.uniform(0.75, 1.2)
                box = grain(draw, 48, 64, (168 * tone, 128 * tone, 84 * tone), 0.07)
                if draw.random() < 0.25:
                    box = grain(draw, 48, 64, _vivid(draw), 0.05)
                base = 1.6 * level
                corners = [
                    (x, base + 1.35, 18.6),
                    (x + 1.9, base + 1.35, 18.6),
                    (x + 1.9, base, 18.6),
                    (x, base, 18.6),
                ]
                view.hang(canvas, box, corners)
            _panel(canvas, view, (200, 92, 30), (x - 0.2, x + 2.2, 1.6 * level + 1.4, 1.6 * level + 1.52), 18.5)
        _panel(canvas, view, (40, 70, 130), (x - 0.3, x - 0.15, 0.0, 4.9), 18.5)
    lamps = [(x, 6.4, z) for x in (-4.0, 4.0) for z in (10.0, 15.0, 19.0)]
    for spot in lamps:
        x, y = view.pixel(*spot)
        cv2.ellipse(
            canvas, (round(x), round(y)), (round(0.4 * view.scale(spot[2])), 5), 0, 0, 360, (250, 250, 240), -1
        )
    return lamps


def _brick(draw: Draw, rows: int, cols: int, colour: Colour) -> U8:
    wall = grain(draw, rows, cols, colour, 0.12)
    wall[::8] = shade(wall[::8], 0.75)
    for row in range(0, rows, 8):
        wall[row : row + 8, (row // 8 % 2) * 10 :: 20] = shade(wall[row : row + 8, (row // 8 % 2) * 10 :: 20], 0.78)
    return wall


def _windows(canvas: U8, view: View, draw: Draw, face: Face) -> None:
    left, right, top, z = face
    for y in np.arange(1.2, top - 1.4, 2.6):
        for x in np.arange(left + 0.8, right - 1.4, 2.4):
            tone = draw.uniform(0.5, 1.1)
            _panel(canvas, view, (70 * tone, 88 * tone, 104 * tone), (x, x + 1.1, y, y + 1.4), z)


def _yard(canvas: U8, view: View, draw: Draw) -> list[Spot]:
    _sky(canvas, view, draw)
    _lawn(canvas, view, draw)
    _trees(canvas, view, draw, 26.0)
    colour = ((150, 92, 72), (176, 164, 140), (122, 128, 132))[int(draw.integers(0, 3))]
    edge = float(draw.uniform(-1.0, 3.0))
    _wall(canvas, view, _brick(draw, 256, 640, colour), (-14, edge, 4.6, 23))
    _windows(canvas, view, draw, (-13.5, edge - 3, 4.6, 23))
    _panel(canvas, view, (72, 82, 76), (edge - 2.6, edge - 1.2, 0.0, 2.2), 23)
    _ground(canvas, view, grain(draw, 640, 896, _muted(draw, 100, 140), 0.13))
    for x in np.arange(edge, 14, 0.28):
        a, b = view.pixel(x, 2.1, 23), view.pixel(x, 0.0, 23)
        cv2.line(canvas, (round(a[0]), round(a[1])), (round(b[0]), round(b[1])), (70, 74, 78), 1, cv2.LINE_AA)
    for y in (0.3, 2.0):
        _panel(canvas, view, (76, 80, 84), (edge, 14.0, y, y + 0.06), 23)
    return [(-6.0, 3.4, 22.9)]


def _lawn(canvas: U8, view: View, draw: Draw) -> None:
    first, last = int(view.horizon), int(view.pixel(0.0, 0.0, 22.0)[1])
    canvas[first:last] = grain(draw, last - first, view.width, (92, 104, 70), 0.1)


def _trees(canvas: U8, view: View, draw: Draw, z: float) -> None:
    for x in draw.uniform(-13, 13, 7):
        for _ in range(14):
            px, py = view.pixel(x + draw.normal(0, 0.9), draw.uniform(2.2, 5.0), z)
            tone = draw.uniform(0.6, 1.2)
            radius = round(draw.uniform(0.5, 0.9) * view.scale(z))
            cv2.circle(canvas, (round(px), round(py)), radius, (62 * tone, 84 * tone, 48 * tone), -1, cv2.LINE_AA)


def _street(canvas: U8, view: View, draw: Draw) -> list[Spot]:
    _sky(canvas, view, draw)
    left = -15.0
    while left < 15:
        wide, tall = draw.uniform(4.5, 7.5), draw.uniform(4.8, 8.5)
        _wall(canvas, view, _brick(draw, 192, 192, _muted(draw, 100, 185)), (left, left + wide, tall, 24))
        _windows(canvas, view, draw, (left, left + wide, tall, 24))
        _panel(canvas, view, _vivid(draw), (left + wide / 2, left + wide / 2 + 1.1, 0.0, 2.1), 24)
        left += wide
    paving = _tiled(grain(draw, 640, 896, _muted(draw, 125, 160), 0.08), 22, 0.82)
    road = grain(draw, 640, 896, (84, 85, 88), 0.1)
    near, far = int(640 * (24 - 15.6) / 20), int(640 * (24 - 22) / 20)  # the texture runs from z = 24 to 4
    paving[far:near] = road[far:near]
    paving[near - 6 : near] = paving[far : far + 6] = (170, 168, 160)
    middle = (near + far) // 2
    for column in range(0, 896, 100):
        paving[middle - 3 : middle + 3, column : column + 50] = (215, 215, 210)
    _ground(canvas, view, paving)
    return [(5.5, 5.2, 15.0)]


def _mark_forbidden(canvas: U8, view: View, draw: Draw) -> None:
    """A hatched border on the ground, worn."""
    x0, x1, z0, z1 = FORBIDDEN_M
    corners = [(x0, z0), (x0, z1), (x1 + 1.6, z1)]
    wear = draw.uniform(0.5, 0.9)
    for (ax, az), (bx, bz) in (corners[:2], corners[1:]):
        count = 22
        for n in range(count):
            tone = (226 * wear, 186 * wear, 40 * wear) if n % 2 else (40.0, 40.0, 40.0)
            ends = [(ax + (bx - ax) * k / count, az + (bz - az) * k / count) for k in (n, n + 1)]
            across = (0.09, 0.0) if ax == bx else (0.0, 0.12)
            quad = [view.pixel(x - across[0], 0.0, z - across[1]) for x, z in ends]
            quad += [view.pixel(x + across[0], 0.0, z + across[1]) for x, z in reversed(ends)]
            cv2.fillConvexPoly(canvas, np.round(quad).astype(np.int32), tone, cv2.LINE_AA)


def _vignette(rows: int, cols: int) -> F32:
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : cols * 1j]
    return np.asarray(1.0 - 0.09 * (x * x + y * y), dtype=np.float32)


def _day_map(life: Life, view: View, draw: Draw) -> F32:
    rows, cols = view.height // 2, view.width // 2
    light = np.full((rows, cols), 1.0, dtype=np.float32)
    if life.outdoor:
        patches = draw.standard_normal((3, 5)).astype(np.float32)
        light += 0.1 * np.asarray(cv2.resize(patches, (cols, rows), interpolation=cv2.INTER_CUBIC))
        tint = np.array([1.0, 0.99, 0.97], np.float32)
    else:
        light *= 0.55
        for _ in range(2):  # what the windows throw on the floor
            x, z = draw.uniform(-4, 2), draw.uniform(8, 13)
            spots = [(x, z), (x + 1.6, z), (x + 2.4, z + 2.2), (x + 0.8, z + 2.2)]
            quad = [np.array(view.pixel(a, 0.0, b)) / 2 for a, b in spots]
            patch = np.zeros((rows, cols), dtype=np.float32)
            cv2.fillConvexPoly(patch, np.round(quad).astype(np.int32), (0.55,))
            light += np.asarray(cv2.GaussianBlur(patch, (0, 0), 1.5))
        tint = np.array([0.96, 1.0, 1.06], np.float32)
    return np.asarray((light * _vignette(rows, cols))[..., None] * tint, dtype=np.float32)


def _lamp_map(view: View, lamps: list[Spot], outdoor: bool) -> F32:
    rows, cols = view.height // 2, view.width // 2
    y, x = np.mgrid[0:rows, 0:cols].astype(np.float32)
    light = np.full((rows, cols), 0.1 if outdoor else 0.55, dtype=np.float32)
    for spot in lamps:
        head, foot = view.pixel(*spot), view.pixel(spot[0], 0.0, spot[2])
        scale = view.scale(spot[2]) / 2
        pool = ((x - foot[0] / 2) / (4.2 * scale)) ** 2 + ((y - foot[1] / 2) / (1.6 * scale)) ** 2
        bulb = ((x - head[0] / 2) ** 2 + (y - head[1] / 2) ** 2) / (0.9 * scale) ** 2
        light += (0.7 if outdoor else 0.9 / len(lamps)) / (1.0 + pool) + (1.1 if outdoor else 0.3) * np.exp(-bulb)
    tint = np.array([1.08, 0.98, 0.8], np.float32) if outdoor else np.array([1.0, 0.99, 0.93], np.float32)
    return np.asarray((np.minimum(light, 2.0) * _vignette(rows, cols))[..., None] * tint, dtype=np.float32)


def _occluders(life: Life, view: View, draw: Draw, post: tuple[float, float]) -> tuple[Occluder, ...]:
    found = [_post(view, draw, post, _POSTS[life.place])]
    if life.place == "yard":
        crate = grain(draw, 64, 128, _vivid(draw), 0.08)
        crate[:, ::5] = shade(crate[:, ::5], 0.8)
        found.append(_crate(view, crate, (5.0, 9.5), (12.5, 16.5), 2.5))
    elif life.place == "warehouse":
        found.append(_crate(view, grain(draw, 48, 64, (160, 122, 80), 0.1), (4.9, 6.3), (12.2, 13.4), 1.1))
    return tuple(found)


def _crate(view: View, front: U8, across: tuple[float, float], away: tuple[float, float], top: float) -> Occluder:
    """A box on the ground, cut out of a picture of its own."""
    large = view.doubled()
    size = (view.width, view.height)
    painted, covered = (np.zeros((large.height, large.width, 3), dtype=np.uint8) for _ in range(2))
    large.block(painted, front, across, away, top)
    large.block(covered, np.full_like(front, 255), across, away, top)
    pixels = np.asarray(cv2.resize(painted, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    mask = np.asarray(cv2.resize(covered, size, interpolation=cv2.INTER_AREA))[..., :1] > 60
    rows, cols = np.nonzero(mask[..., 0])
    if not len(rows):  # a narrow view may leave the box outside
        return Occluder(away[0], 0, 0, pixels[:1, :1], mask[:1, :1])
    first, left = int(rows.min()), int(cols.min())
    cut = (slice(first, int(rows.max()) + 1), slice(left, int(cols.max()) + 1))
    return Occluder(away[0], first, left, pixels[cut].copy(), mask[cut].copy())


def _post(view: View, draw: Draw, place: tuple[float, float], make: tuple[float, float, Colour]) -> Occluder:
    (x, z), (half, top, colour) = place, make
    (x0, y0), (x1, y1) = view.pixel(x - half, top, z), view.pixel(x + half, 0.0, z)
    first, last = max(int(y0), 0), min(int(y1) + 1, view.height)
    left = min(max(int(x0), 0), view.width - 2)  # a narrow view has it at its edge
    right = max(min(int(x1) + 1, view.width), left + 2)
    rows, cols = last - first, right - left
    pixels = grain(draw, rows, cols, colour, 0.06)
    round_off = (0.7 + 0.45 * np.sin(np.linspace(0.25, np.pi - 0.1, cols)))[None, :, None]
    pixels = np.clip(pixels * round_off, 0, 255).astype(np.uint8)
    return Occluder(z, first, left, pixels, np.ones((rows, cols, 1), dtype=np.bool_))
