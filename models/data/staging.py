"""Pictures with known answers: backgrounds (filmed, made up, simulated) with and without something wrong in them.

Normal: people walking, light that changes, lamps, orange clothes, sunsets, noise. Wrong and named: fire.
Wrong without a name: things of odd shape or size, or far too fast, made from normal film (pseudo-anomalies).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import F32, U8
from models.data import flames
from models.data.flames import Layer, Rng
from models.data.records import Recording

Wrong = Literal["nothing", "fire", "odd"]
STRIDE = 8  #: pixels of one cell of the heat map
_IGNORED = -1.0

_FILMED = 0.5  #: of the backgrounds; the others are made up
_HURRIED = 0.3  #: of the films are played at twice their pace
_RENEWED = 0.4  #: how often a made-up still gives way to a new one when it would be used
#: Kinds of fire: cut from the real film; up to the second, painted; the others shine.
_CUT_OUT, _PAINTED = 0.25, 0.45
#: Views (now, 100 ms and 300 ms before) that have another light than the others.
_SWITCHED = ([0], [2], [0, 1])
#: Grey levels by which a fire that shines must change a place to be seen there for sure.
_SHOWN = 60.0
#: Fire is cut from the real film where red leads and it is bright: (red − blue) above the first, full at the second.
_FLAME_EDGE, _FLAME_CORE = 60.0, 130.0


@dataclass(frozen=True, slots=True)
class Picture:
    """One training picture: frames uint8 (5, H, W), cells float (H/8, W/8) in {0, 1, −1 ignore}, what is wrong."""

    frames: U8
    cells: F32
    wrong: Wrong


@dataclass(frozen=True, slots=True)
class Script:
    """What a staged picture keeps over the steps of one track: where it is filmed and what goes wrong."""

    film: U8  #: (n, H, W, 3); a made-up still is a film of one frame
    start: int
    flip: bool
    zoom: tuple[float, float, float]
    gain: tuple[float, float, float]
    wrong: Wrong
    seed: int
    frozen: bool
    pace: int = 1  #: how much faster than filmed it is played


@dataclass
class Stage:
    """Makes pictures of one split. `moments_ms` are the model's two looks back."""

    footage: Sequence[Recording]
    fires: Sequence[Recording]
    spec: VisionSpec
    seed: int
    made_up: int = 200  #: stills to make up
    stills: list[U8] = field(default_factory=list)
    films: list[U8] = field(default_factory=list)  #: the footage, decoded
    cutouts: list[Layer] = field(default_factory=list)
    people: list[Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, 1])
        self.stills = [self._still(rng) for _ in range(self.made_up)]
        self.films = [film.frames(self.spec) for film in self.footage]
        self.cutouts = [layer for film in self.fires for layer in _burning(film, self.spec)]
        self.people = [layer for film in self.films for layer in _moving(film)]

    def script(self, rng: Rng, wrong: Wrong, *, filmed: float | None = None) -> Script:
        """A random scene; `filmed` is how often it is filmed rather than made up."""
        if self.films and rng.random() < (_FILMED if filmed is None else filmed):
            film = self.films[int(rng.integers(len(self.films)))]
        else:
            index = int(rng.integers(len(self.stills)))
            if rng.random() < _RENEWED:
                self.stills[index] = self._still(rng)
            film = self.stills[index]
        start = int(rng.integers(3, max(len(film), 4)))
        # Cars, and people near the camera, are fast at other places, and not wrong for it.
        pace = 2 if rng.random() < _HURRIED else 1
        return replace(_filmed(rng, film, start, wrong, still=True), pace=pace)

    def _still(self, rng: Rng) -> U8:
        return flames.still(rng, self.spec.height, self.spec.width)[None]

    def scene(self, film: U8 | None, start: int, seed: int) -> Script:
        """A scene before a film of one's own choosing, or a made-up still; the seed tells how it is filmed."""
        rng = np.random.default_rng([seed, 6])
        chosen = self.stills[int(rng.integers(len(self.stills)))] if film is None else film
        return _filmed(rng, chosen, start, "nothing", still=len(chosen) == 1)

    def picture(self, script: Script, step: int = 0) -> Picture:
        """The scene of a script at its n-th step (500 ms apart), as the graph wants it."""
        views, cells = self.views(script, step)
        return Picture(prepare.vision((views[0], views[1], views[2]), self.spec), cells_of(cells), script.wrong)

    def views(self, script: Script, step: int = 0) -> tuple[U8, F32]:
        """The scene at its n-th step: now and at the two looks back, uint8 (3, H, W, 3); and where it is wrong."""
        rng = np.random.default_rng([script.seed, 7])
        views = self._background(script, step)
        cells = np.zeros(views.shape[1:3], np.float32)
        if rng.random() < 0.35:
            self._distract(rng, views)
        if script.wrong == "fire":
            self._burn(rng, views, cells, script, step)
        elif script.wrong == "odd":
            self._disturb(rng, views, cells, step)
        filmed = _camera(np.random.default_rng([script.seed, 8, step]), views, script.frozen)
        return _graded(np.random.default_rng([script.seed, 9]), filmed), cells

    def _background(self, script: Script, step: int) -> F32:
        film = script.film
        # Ten frames a second: a step is five, the two looks back are one and three. Back and forth at the end.
        last = len(film) - 1
        index = [bounced(script.start + script.pace * (5 * step - back), last) for back in (0, 1, 3)]
        views = np.stack([film[index[0 if script.frozen else i]] for i in range(3)])
        zoom, x, y = script.zoom
        height, width = views.shape[1:3]
        h, w = int(height / zoom), int(width / zoom)
        top, left = int(y * (height - h)), int(x * (width - w))
        part = views[:, top : top + h, left : left + w]
        out = np.stack([cv2.resize(view, (width, height), interpolation=cv2.INTER_LINEAR) for view in part]).astype(
            np.float32
        )
        if script.flip:
            out = out[:, :, ::-1]
        return np.clip(out * np.array(script.gain, np.float32), 0, 255)

    def _distract(self, rng: Rng, views: F32) -> None:
        """What is warm or bright or new without being wrong, in all three views alike."""
        height, width = views.shape[1:3]
        if rng.random() < 0.4:
            lit = views[0].copy()
            flames.lamp(rng, lit)
            views += (lit - views[0])[None]
            return
        patch = np.zeros((height, width, 3), np.float32)
        mask = np.zeros((height, width), np.float32)
        size = float(rng.uniform(4, 30))
        place = rng.uniform(0.1, 0.9, 2) * (width, height)
        ink = flames.colour(rng, 0.8)
        axes = (int(size * rng.uniform(0.4, 1) + 1), int(size + 1))
        cv2.ellipse(mask, (int(place[0]), int(place[1])), axes, 0, 0, 360, 1.0, -1)
        patch[:] = ink
        patch *= 0.6 + 0.6 * flames.clouds(rng, height, width)[..., None]
        drift = rng.uniform(-2, 2)
        for index, back in enumerate((0, 1, 3)):
            moved = np.roll(mask, round(-drift * back), 1)[..., None]
            views[index] = views[index] * (1 - moved) + patch * moved

    def _burn(self, rng: Rng, views: F32, cells: F32, script: Script, step: int) -> None:
        """Lay a fire over the views: made, or cut from the real film; with night, glow and smoke at times."""
        height, width = views.shape[1:3]
        if rng.random() < 0.4:
            views *= rng.uniform(0.15, 0.7)
        moments = (0.0, 0.0, 0.0) if script.frozen else (0.0, -0.1, -0.3)
        times = tuple(0.5 * step + moment for moment in moments)
        tall = int(np.exp(rng.uniform(np.log(14), np.log(height * 1.2))))
        wide = int(np.clip(tall * np.exp(rng.uniform(-0.8, 1.2)), 12, width))
        kind, fire = rng.random(), None
        if self.cutouts and kind < _CUT_OUT:
            layer = self.cutouts[(int(rng.integers(len(self.cutouts))) + step) % len(self.cutouts)]
            layer = _scaled(layer, rng.uniform(0.6, 4.0), height, width)
            tall, wide = layer.alpha.shape[1:]
        elif kind < _PAINTED:
            layer = flames.flame(rng, tall, wide, times)
        else:
            fire = flames.blaze(rng, tall, wide, times)
        h, w = tall, wide
        x = int(rng.integers(-w // 4, max(width - 3 * w // 4, 1 - w // 4)))
        y = int(np.clip(rng.normal(0.65, 0.2) * height - h / 2, -h // 4, height - h // 2))
        if rng.random() < 0.5:
            _glow(views, (x + w / 2, y + h / 2), max(w, h) * rng.uniform(0.8, 2.5), rng.uniform(0.2, 1.2))
        if rng.random() < 0.4:
            _smoke(rng, views, (x + w // 2, y), (h, w), moments)
        if fire is None:
            _lay(views, layer, x, y, still=script.frozen, strength=rng.uniform(0.75, 1.0), cells=cells)
        else:
            _shine(rng, views, fire, (x, y), cells)

    def _disturb(self, rng: Rng, views: F32, cells: F32, step: int) -> None:
        """Something that does not belong: too large, misshapen, or far too fast."""
        height, width = views.shape[1:3]
        for _ in range(int(rng.integers(1, 3))):
            layer = (
                self.people[int(rng.integers(len(self.people)))]
                if self.people and rng.random() < 0.6
                else _thing(rng)
            )
            stretch = (rng.uniform(1.2, 3.0), rng.uniform(0.5, 1.6))
            layer = _scaled(layer, stretch[0], height, width, stretch[1])
            speed = rng.uniform(5, 22) * rng.choice([-1, 1])
            w = layer.alpha.shape[2]
            x, y = rng.uniform(0.1, 0.8) * width, rng.uniform(0.05, 0.75) * height
            mark = np.zeros_like(cells)
            for index, back in enumerate((0, 1, 3)):
                at = int((x + speed * (5 * step - back)) % (width + w) - w)
                still = Layer(layer.colour[:1].repeat(3, 0), layer.alpha[:1].repeat(3, 0))
                _lay(
                    views[index : index + 1],
                    still,
                    at,
                    int(y),
                    still=True,
                    strength=1.0,
                    cells=mark if index == 0 else None,
                )
            np.maximum(cells, mark, out=cells)


def _filmed(rng: Rng, film: U8, start: int, wrong: Wrong, *, still: bool) -> Script:
    """Where the camera stands and how it sees; one that may film a still does not move in 0.4 of the cases."""
    zoom = rng.uniform(1.0, 1.8)
    gains = rng.uniform(0.55, 1.3) * rng.uniform(0.9, 1.1, 3)
    return Script(
        film,
        start,
        bool(rng.random() < 0.5),
        (zoom, rng.random(), rng.random()),
        (float(gains[0]), float(gains[1]), float(gains[2])),
        wrong,
        int(rng.integers(1 << 31)),
        bool(rng.random() < 0.4) and still,
    )


def bounced(index: int, last: int) -> int:
    """Play back and forth: index folded into 0..last."""
    index = abs(index) % (2 * last) if last else 0
    return index if index <= last else 2 * last - index


def _burning(film: Recording, spec: VisionSpec) -> list[Layer]:
    """Cut-outs of the real fire, three frames each."""
    layers = []
    frames, marks = film.frames(spec), film.marks(spec)
    height, width = frames.shape[1:3]
    for index in range(3, len(marks), 4):
        for x0, y0, x1, y1 in marks[index]:
            left, top, right, bottom = (
                int(x0 * width),
                int(y0 * height),
                int(np.ceil(x1 * width)),
                int(np.ceil(y1 * height)),
            )
            if right - left < 8 or bottom - top < 8:
                continue
            part = frames[[index, index - 1, index - 3], top:bottom, left:right].astype(np.float32)
            lead = part[..., 0] - part[..., 2]
            alpha = np.clip((lead - _FLAME_EDGE) / (_FLAME_CORE - _FLAME_EDGE), 0, 1) * (part[..., 0] > 175)
            if alpha[0].mean() > 0.06:
                layers.append(Layer(part, np.asarray(alpha, np.float32)))
    return layers


def _moving(frames: U8) -> list[Layer]:
    """Cut-outs of what moves in normal film, one frame each (as three equal ones)."""
    ground = np.median(frames[:: max(len(frames) // 25, 1)], 0).astype(np.float32)
    layers = []
    for index in range(0, len(frames), max(len(frames) // 12, 1)):
        frame = frames[index].astype(np.float32)
        mask = (cv2.GaussianBlur(np.abs(frame - ground).max(2), (0, 0), 1) > 26).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        count, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        for x, y, w, h, area in stats[1:count]:
            if 80 < area < 6000 and 6 <= w <= 90 and 8 <= h <= 100:
                soft = np.asarray(
                    cv2.GaussianBlur(mask[y : y + h, x : x + w].astype(np.float32), (3, 3), 0), np.float32
                )
                part = frame[y : y + h, x : x + w]
                layers.append(Layer(part[None].repeat(3, 0), soft[None].repeat(3, 0)))
    return layers


def _thing(rng: Rng) -> Layer:
    """A rigid object of no known kind."""
    size = int(rng.integers(14, 60))
    mask = np.zeros((size, size), np.float32)
    for _ in range(int(rng.integers(1, 4))):
        points = rng.uniform(0, size, (int(rng.integers(3, 7)), 2)).astype(np.int32)
        cv2.fillPoly(mask, [cv2.convexHull(points)], 1.0)
    colour = np.array(flames.colour(rng, 0.15), np.float32) * (0.5 + flames.clouds(rng, size, size)[..., None])
    return Layer(np.clip(colour, 0, 255)[None].repeat(3, 0).astype(np.float32), mask[None].repeat(3, 0))


def _scaled(layer: Layer, factor: float, height: int, width: int, aspect: float = 1.0) -> Layer:
    h, w = layer.alpha.shape[1:]
    size = (int(np.clip(w * factor, 6, width)), int(np.clip(h * factor * aspect, 6, height)))
    colour = np.stack([cv2.resize(part, size) for part in layer.colour])
    return Layer(colour, np.stack([cv2.resize(part, size) for part in layer.alpha]))


def _lay(views: F32, layer: Layer, x: int, y: int, *, still: bool, strength: float, cells: F32 | None) -> None:
    height, width = views.shape[1:3]
    h, w = layer.alpha.shape[1:]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right - left < 2 or bottom - top < 2:
        return
    part = (slice(top - y, bottom - y), slice(left - x, right - x))
    for index in range(len(views)):
        moment = 0 if still else index
        alpha = layer.alpha[moment][part][..., None] * strength
        area = views[index, top:bottom, left:right]
        area += (layer.colour[moment][part] - area) * alpha
    if cells is not None:
        area = cells[top:bottom, left:right]
        np.maximum(area, layer.alpha[0][part], out=area)


def _shine(rng: Rng, views: F32, fire: flames.Blaze, place: tuple[int, int], cells: F32) -> None:
    """Add the light of a fire, with what a lens spreads of it; a camera's curve may bend before it is full."""
    height, width = views.shape[1:3]
    (x, y), (h, w) = place, fire.density.shape[1:]
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right - left < 2 or bottom - top < 2:
        return
    part = (slice(top - y, bottom - y), slice(left - x, right - x))
    reach, spread = 1 + max(h, w) * rng.uniform(0.05, 0.3), rng.uniform(0, 0.5)
    knee = rng.uniform(140, 250)
    before = views[0, top:bottom, left:right].copy()
    for index in range(len(views)):
        light = np.zeros((height, width, 3), np.float32)
        light[top:bottom, left:right] = fire.light[index][part]
        light += cv2.GaussianBlur(np.minimum(light, 500), (0, 0), reach) * spread
        views[index, top:bottom, left:right] *= (1 - fire.hidden[index][part])[..., None]
        total = views[index] + light
        over = np.maximum(total - knee, 0)
        views[index] = np.minimum(total, knee) + (255 - knee) * (1 - np.exp(-over / (255 - knee)))
    # What adds nothing to a bright wall is not to be seen.
    shown = np.abs(views[0, top:bottom, left:right] - before).max(2) / _SHOWN * (fire.density[0][part] > 0.05)
    area = cells[top:bottom, left:right]
    np.maximum(area, np.clip(shown, 0, 1), out=area)


def _glow(views: F32, centre: tuple[float, float], reach: float, strength: float) -> None:
    y, x = np.ogrid[: views.shape[1], : views.shape[2]]
    light = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * reach * reach)).astype(np.float32)[..., None]
    views *= 1 + strength * light * np.array([1.0, 0.6, 0.25], np.float32)
    np.clip(views, 0, 255, out=views)


def _smoke(
    rng: Rng, views: F32, top: tuple[int, int], size: tuple[int, int], moments: tuple[float, float, float]
) -> None:
    height, width = views.shape[1:3]
    y, x = np.ogrid[:height, :width]
    spread = max(size) * rng.uniform(0.6, 2.0)
    rise = np.clip((top[1] + size[0] * 0.6 - y) / max(size[0], 1), 0, 1)
    plume = np.exp(-(((x - top[0]) / spread) ** 2)) * rise
    fabric = flames.clouds(rng, height * 2, width, cells=5)
    grey = rng.uniform(20, 230)
    depth = rng.uniform(0.3, 1.0)
    for index, moment in enumerate(moments):
        shift = int(-moment * rng.uniform(10, 60)) % height
        alpha = np.clip(plume * fabric[shift : shift + height] * 1.6, 0, 1)[..., None] * depth
        views[index] += (grey - views[index]) * alpha


def _camera(rng: Rng, views: F32, frozen: bool) -> U8:
    """What a camera adds: noise, blur, compression, exposure that changes from frame to frame."""
    views = views * (1.0 if frozen else rng.normal(1.0, 0.015, (3, 1, 1, 1)).astype(np.float32))
    if not frozen and rng.random() < 0.2:  # a light is switched, a while ago or just now; or lightning
        light = np.ones(3, np.float32)
        light[_SWITCHED[int(rng.integers(len(_SWITCHED)))]] = np.exp(rng.uniform(-0.5, 1.0))
        views = views * light[:, None, None, None]
    blur = rng.uniform(0.4, 1.4) if rng.random() < 0.3 else 0.0
    sigma = rng.uniform(0, 5)
    out = []
    grain = rng.normal(0, sigma, views.shape[1:]).astype(np.float32)
    for view in views:
        soft = cv2.GaussianBlur(view, (0, 0), blur) if blur else view
        noise = grain if frozen else np.roll(grain, int(rng.integers(1, 90)), 1)
        out.append(np.clip(soft + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        quality = [int(cv2.IMWRITE_JPEG_QUALITY), int(rng.integers(35, 90))]
        packed = [cv2.imencode(".jpg", view, quality)[1] for view in out]
        out = [np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8) for data in packed]
    return np.stack(out)


def _graded(rng: Rng, views: U8) -> U8:
    """As another camera renders colour: saturation, gamma, white balance; the same in all three views."""
    curve = 255 * (np.arange(256) / 255) ** np.exp(rng.normal(0, 0.2))
    table = np.stack([np.clip(curve * rng.uniform(0.88, 1.12), 0, 255) for _ in range(3)], -1).astype(np.uint8)
    saturation = rng.uniform(0.7, 1.4)
    mix = np.full((3, 3), (1 - saturation) / 3) + saturation * np.eye(3)
    return np.stack([cv2.transform(cv2.LUT(view, table[None]), mix) for view in views])


def cells_of(mask: F32) -> F32:
    """A mask (height, width) as cells of the heat map: 1 marked, 0 not, −1 where too little of a cell is."""
    height, width = mask.shape
    share = cv2.resize(mask, (width // STRIDE, height // STRIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(np.where(share >= 0.2, 1.0, np.where(share > 0.03, _IGNORED, 0.0)), np.float32)
