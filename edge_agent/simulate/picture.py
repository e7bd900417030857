"""What the camera of a simulated site sees: scenery, light, people, episodes, then lens and sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from edge_agent.core.records import F32, U8
from edge_agent.simulate.chance import between, drift, generator, mix, unit
from edge_agent.simulate.effects import Effects, Spot
from edge_agent.simulate.episodes import Episode, Script
from edge_agent.simulate.figures import DARK, ORANGE, Person, Pose, draw_person, draw_ride, erratic, phase_of
from edge_agent.simulate.life import FORBIDDEN_M, Life, Ride, Walk
from edge_agent.simulate.scenery import Occluder, Scenery, paint
from edge_agent.simulate.sound import shots
from edge_agent.simulate.view import View

_LIGHT = 100.0  #: light maps are handed on as bytes of light x 100
_TILES = 6
#: Actors walk in before their episode, as anybody would, and are gone this long after it.
_COME_S, _LEAVE_S = 9.0, 4.0


@dataclass(frozen=True, slots=True)
class _Now:
    """One episode at one moment: seconds since its start, its share that is over, and a key of its own."""

    episode: Episode
    key: int
    tau: float
    part: float

    @property
    def envelope(self) -> float:
        """0 at the start, 1 after a quarter, 0 again at the end."""
        return min(4.0 * self.part, 1.0) * min((1.0 - self.part) / 0.15, 1.0)


class Picture:
    """The camera of one site."""

    def __init__(self, life: Life, episodes: tuple[Episode, ...], width: int, height: int) -> None:
        self._life = life
        self._seed = life.seed
        self._view = View(
            width,
            height,
            between(2.8, 3.3, life.seed, "height"),
            between(1.0, 1.15, life.seed, "zoom"),
            between(0.24, 0.32, life.seed, "skyline"),
        )
        self._mirrored = unit(life.seed, "mirrored") < 0.5
        self._script = Script(episodes, "vision")
        self._scenery: Scenery = paint(life, self._view)
        self._effects = Effects(life.seed, width, height)
        self._tiles = _grain_tiles(life.seed, width, height)
        self._contrast = between(1.04, 1.2, life.seed, "contrast")
        self._tint = np.array([between(0.96, 1.04, life.seed, "cast", n) for n in range(3)], dtype=np.float32)

    @property
    def forbidden(self) -> tuple[tuple[float, float], ...]:
        x0, x1, z0, z1 = FORBIDDEN_M
        spots = [self._view.pixel(x, 0.0, z) for x, z in ((x0, z0), (x0, z1), (x1, z1), (x1, z0))]
        places = [(_unit(x / self._view.width), _unit(y / self._view.height)) for x, y in spots]
        return tuple((round(1.0 - x, 4), y) for x, y in places) if self._mirrored else tuple(places)

    def frame(self, t_s: float) -> U8:
        t_s = round(t_s * 1000) / 1000
        now = [self._now(e, t_s) for e in self._script.overlapping(t_s, t_s + 0.001)]
        gain = self._exposure(t_s)
        light = self._light(t_s, now) * (np.float32(gain) * self._tint)
        surface = self._scenery.surface.copy()
        self._populate(surface, light, t_s, now)
        size = (self._view.width, self._view.height)
        gains = np.asarray(cv2.resize(cv2.convertScaleAbs(light, alpha=_LIGHT), size), dtype=np.uint8)
        frame = np.asarray(cv2.multiply(surface, gains, scale=1.0 / _LIGHT), dtype=np.uint8)
        for moment in now:
            self._overlay(frame, moment, t_s)
        return self._camera(frame, t_s, gain, now)

    def _now(self, e: Episode, t_s: float) -> _Now:
        tau = t_s - e.start_s
        return _Now(e, mix(self._seed, e.label, round(e.start_s * 1000)), tau, tau / (e.end_s - e.start_s))

    # Light -------------------------------------------------------------------------------------------------------

    def _light(self, t_s: float, now: list[_Now]) -> F32:
        day, lamp = self._life.daylight(t_s), self._life.lamp(t_s)
        lamp *= 1.0 + 0.015 * math.sin(2 * math.pi * 1.7 * t_s)  # what mains flicker leaves after sampling
        light = np.asarray(
            cv2.addWeighted(self._scenery.day, day + 0.05, self._scenery.lamp, lamp, 0.02), dtype=np.float32
        )
        for moment in now:
            self._throw(light, moment, t_s)
        return np.maximum(light, 0.0)

    def _throw(self, light: F32, moment: _Now, t_s: float) -> None:
        """Light and shadow of an episode."""
        label, tau, key = moment.episode.label, moment.tau, moment.key
        width, height = self._view.width, self._view.height
        if label == "fire":
            x, y, scale = self._hearth(moment)
            flicker = moment.envelope * (0.75 + 0.3 * erratic(key, t_s, 9.0))
            self._effects.glow(
                light, x, y - 0.5 * scale, 3.2 * scale, (0.95 * flicker, 0.42 * flicker, 0.1 * flicker)
            )
        elif label == "explosion":
            flash = 2.4 * math.exp(-tau / 0.16) + 0.7 * math.exp(-tau / 1.4)
            light += np.array([flash, 0.85 * flash, 0.6 * flash], dtype=np.float32)
        elif label == "gunshot":
            for at_s in shots(self._seed, moment.episode):
                if 0.0 <= t_s - at_s < 0.13:
                    x, y = self._view.pixel(*self._muzzle(moment))
                    self._effects.glow(light, x, y, 0.35 * width, (1.6, 1.4, 0.9))
        elif label == "thunder":
            bolt = sum(math.exp(-max(tau - at, 0.0) / 0.09) * (tau >= at) for at in (0.1, 0.34, 0.5))
            light += np.array([0.75, 0.8, 0.95], dtype=np.float32) * np.float32(bolt)
        elif label == "siren":
            for colour, offset in (((0.05, 0.15, 0.9), 0.0), ((0.9, 0.06, 0.05), 0.5)):
                beam = (
                    1.5
                    * max(math.cos(2 * math.pi * (1.9 * tau + offset)), 0.0) ** 2
                    * min(moment.envelope * 3.0, 1.0)
                )
                x = width * (0.15 + 0.7 * ((0.9 * tau + offset) % 1.0))
                self._effects.glow(light, x, 0.35 * height, 0.45 * width, tuple(tone * beam for tone in colour))  # type: ignore[arg-type]
        elif label == "alarm":
            beam = 1.3 if tau % 1.0 < 0.14 else 0.0
            self._effects.glow(light, 0.82 * width, 0.12 * height, 0.2 * width, (beam, 0.12 * beam, 0.1 * beam))
        else:
            self._throw_harmless(light, moment, t_s)

    def _throw_harmless(self, light: F32, moment: _Now, t_s: float) -> None:
        label, key = moment.episode.label, moment.key
        width, height = self._view.width, self._view.height
        if label == "shadow":
            x = width * (1.6 * moment.part - 0.3) * (1 if key & 1 else -1) + (0 if key & 1 else width)
            self._effects.dim(light, x, 0.7 * height, 0.34 * width, 0.6)
        elif label == "warm_lamp":
            steady = min(moment.tau / 0.2, 1.0) * (0.95 + 0.02 * drift(t_s, 0.5, key))
            x, y = self._view.pixel(between(-3.0, 3.0, key, "x"), 1.6, between(10.0, 15.0, key, "z"))
            self._effects.glow(light, x, y, 0.14 * width, (1.1 * steady, 0.62 * steady, 0.18 * steady))
        elif label == "sunset":
            deep = math.sin(math.pi * moment.part) ** 2
            light *= 1.0 - deep * np.array([0.1, 0.38, 0.62], dtype=np.float32)

    # People and things -------------------------------------------------------------------------------------------

    def _populate(self, surface: U8, light: F32, t_s: float, now: list[_Now]) -> None:
        """Draw everyone from far to near, and their shadows into the light."""
        near = self._script.overlapping(t_s - _LEAVE_S, t_s + _COME_S)
        people = [person for e in near for person in self._actors(self._now(e, t_s), t_s)]
        past = self._script.overlapping(t_s - 60.0, t_s - 0.4)
        panic = [self._now(e, t_s) for e in past if e.label in ("gunshot", "explosion")]
        people += [self._walker(walk, t_s, panic) for walk in self._life.walks(t_s, t_s + 0.001)]
        rides = self._life.rides(t_s, t_s + 0.001)
        things: list[tuple[float, Person | Ride | Occluder]] = [(person.z, person) for person in people]
        things += [(ride.z, ride) for ride in rides]
        things += [(post.z, post) for post in self._scenery.occluders]
        shadow = np.zeros(light.shape[:2], dtype=np.uint8)
        for _, thing in sorted(things, key=lambda item: -item[0]):
            if isinstance(thing, Person):
                self._cast(shadow, thing.x, thing.z, 0.3 + 0.6 * thing.pose.fallen)
                draw_person(surface, self._view, thing)
            elif isinstance(thing, Ride):
                self._cast(shadow, thing.x_at(t_s), thing.z, 2.4 if thing.body != "cart" else 1.0)
                draw_ride(surface, self._view, thing, t_s)
            else:
                rows, cols = thing.pixels.shape[:2]
                part = surface[thing.top : thing.top + rows, thing.left : thing.left + cols]
                np.copyto(part, thing.pixels, where=thing.mask)
        left, top, cols, rows = cv2.boundingRect(shadow)
        if cols:
            cut = (slice(max(top - 3, 0), top + rows + 3), slice(max(left - 3, 0), left + cols + 3))
            light[cut] *= 1.0 - np.asarray(cv2.GaussianBlur(shadow[cut], (5, 5), 0))[..., None] * np.float32(
                0.5 / 255
            )

    def _cast(self, shadow: U8, x: float, z: float, half_m: float) -> None:
        slant = between(-0.9, 0.9, self._seed, "sun")
        px, py = self._view.pixel(x + 0.5 * slant, 0.0, z)
        scale = self._view.scale(z) / 2
        axes = (max(round((half_m + 0.45 * abs(slant)) * scale), 1), max(round(0.13 * scale), 1))
        cv2.ellipse(shadow, (round(px / 2), round(py / 2)), axes, -4.0 * slant, 0, 360, (230,), -1)

    def _walker(self, walk: Walk, t_s: float, panic: list[_Now]) -> Person:
        """Somebody of normal life; after a shot or a blast they run."""
        ran = sum(min(moment.tau - 0.4, 8.0) * 2.0 / walk.speed for moment in panic)
        x, z, heading, walked = walk.at(t_s + ran)
        pose = Pose(phase_of(walked), 0.85 if any(moment.tau < 8.4 for moment in panic) else 0.42)
        return Person(walk.key, x, z, heading, pose)

    def _actors(self, moment: _Now, t_s: float) -> list[Person]:
        label, key = moment.episode.label, moment.key
        if label == "fight":
            return self._fighters(moment, t_s)
        if label == "gunshot":
            return [self._shooter(moment), *self._runners(moment)]
        if label == "explosion":
            return self._runners(moment)
        if not 0.0 <= moment.part < 1.0:
            return []
        if label == "intrusion":
            return [self._intruder(moment)]
        if label == "orange_person":
            edge = 8.5
            x = (-edge + 2 * edge * moment.part) * (1 if key & 1 else -1)
            pose = Pose(phase_of(2 * edge * moment.part), 0.42)
            return [Person(key, x, 14.0, 0.0 if key & 1 else math.pi, pose, top=ORANGE)]
        return []

    def _intruder(self, moment: _Now) -> Person:
        """Comes in from the right, darts about in the forbidden area, leaves the way they came."""
        x0, x1, z0, z1 = FORBIDDEN_M
        spots = [(x1 + 1.4, z1 - 0.6)]
        for n in range(6):
            spots.append(
                (between(x0 + 0.3, x1 - 1.0, moment.key, "x", n), between(z0 + 0.4, z1 - 0.3, moment.key, "z", n))
            )
        spots.append((x1 + 1.6, z1 - 0.4))
        lengths = Walk(moment.key, 0.0, tuple(spots), 1.0).length_m
        speed = lengths / (moment.episode.end_s - moment.episode.start_s)
        run = Walk(moment.key, 0.0, tuple(spots), speed)
        x, z, heading, walked = run.at(moment.tau)
        crouch = 0.5 if unit(moment.key, "crouch", int(moment.tau / 2.5)) < 0.3 else 0.0
        return Person(
            moment.key, x, z, heading, Pose(phase_of(walked), 0.5 + 0.12 * speed, crouch=crouch), DARK, DARK, DARK
        )

    def _fighters(self, moment: _Now, t_s: float) -> list[Person]:
        key, people = moment.key, []
        middle, z = between(-1.9, 0.0, key, "x"), between(7.4, 9.5, key, "z")
        falls = between(0.45, 0.75, key, "falls")
        if not 0.0 <= moment.part < 1.0:
            return [self._passing(moment, key + n, middle - 0.42 + 0.84 * n, z - 0.1 * n) for n in range(2)]
        for n in range(2):
            side = -1 if n else 1
            x = middle + side * (0.42 + 0.22 * erratic(key + n, t_s, 3.1)) + 0.3 * erratic(key, t_s, 1.3)
            arms = (1.3 + 1.3 * erratic(key + 5 + n, t_s, 4.3), 1.2 + 1.4 * erratic(key + 9 + n, t_s, 3.7))
            fallen = min(max((moment.part - falls) * 18.0, 0.0), 1.0) if n else 0.0
            pose = Pose(
                3.0 * erratic(key + 3 + n, t_s, 2.9), 0.6, fallen, 0.15 + 0.15 * erratic(key + n, t_s, 2.0), arms
            )
            people.append(Person(key + n, x, z - 0.1 * n, math.pi if n == 0 else 0.0, pose))
        return people

    def _runners(self, moment: _Now) -> list[Person]:
        """Two people who had come this way run off."""
        people: list[Person] = []
        for n in range(2):
            key = mix(moment.key, "runner", n)
            x, z = between(-3.5, 0.2, key, "x"), between(8.0, 12.0, key, "z")
            if moment.tau < 0.0:
                people.append(self._passing(moment, key, x, z))
                continue
            ran = 4.2 * max(moment.tau - 0.5 - 0.3 * n, 0.0)
            way = -1 if n else (1 if z > 11.0 else -1)
            swing = 0.85 if ran else 0.05
            people.append(
                Person(key, x + way * ran, z, 0.0 if way > 0 else math.pi, Pose(phase_of(0.6 * ran), swing))
            )
        return people

    def _shooter(self, moment: _Now) -> Person:
        x, _, z = self._muzzle(moment)
        if not 0.0 <= moment.part < 1.0:
            return self._passing(moment, moment.key, x - 0.75, z)
        aim = (0.15, 1.5) if moment.tau < 5.0 else None
        return Person(moment.key, x - 0.75, z, 0.0, Pose(0.4, 0.15, arms=aim), top=DARK)

    def _passing(self, moment: _Now, key: int, x: float, z: float) -> Person:
        """Somebody who walks in from the left before the episode, and runs off to the left after it."""
        top = DARK if moment.episode.label == "gunshot" and key == moment.key else None
        if moment.tau < 0.0:
            return Person(key, x + 1.3 * moment.tau, z, 0.0, Pose(phase_of(1.3 * moment.tau), 0.42), top)
        ran = 3.2 * (moment.tau - (moment.episode.end_s - moment.episode.start_s))
        return Person(key, x - ran, z, math.pi, Pose(phase_of(0.7 * ran), 0.8), top)

    def _muzzle(self, moment: _Now) -> tuple[float, float, float]:
        return between(-2.0, 0.2, moment.key, "muzzle"), 1.4, between(9.5, 12.0, moment.key, "muzzle z")

    # What lies over the picture ----------------------------------------------------------------------------------

    def _hearth(self, moment: _Now) -> tuple[float, float, float]:
        """Foot of a fire in pixels, and pixels per metre there."""
        x, z = between(-2.2, 2.4, moment.key, "x"), between(9.0, 14.0, moment.key, "z")
        return *self._view.pixel(x, 0.0, z), self._view.scale(z)

    def _overlay(self, frame: U8, moment: _Now, t_s: float) -> None:
        label, key = moment.episode.label, moment.key
        if label == "fire":
            x, y, scale = self._hearth(moment)
            self._burn(frame, (x, y, scale * moment.envelope), t_s, key)
            haze = min(moment.tau / 10.0, 1.0) * min((1.0 - moment.part) / 0.1, 1.0)
            grown = 0.4 + 0.6 * haze
            tone = 50.0 + 110.0 * self._brightness(t_s)
            plume = Spot(x, y - scale * moment.envelope, 4.5 * scale * grown, 5.5 * scale * grown)
            self._effects.smoke(frame, plume, t_s, density=haze, tone=tone)
        elif label == "explosion":
            x, y, scale = self._hearth(moment)
            ball = 3.6 * scale * min(moment.tau / 0.25, 1.0) * math.exp(-max(moment.tau - 0.5, 0.0) / 2.2)
            self._effects.flames(frame, Spot(x, y + 0.2 * ball, 1.5 * ball, 1.4 * ball), t_s, key % 64)
            self._effects.flames(frame, Spot(x - 0.3 * ball, y, ball, ball), t_s, key % 61)
            size = scale * (2.0 + 5.0 * (1.0 - math.exp(-moment.tau / 1.2)))
            density = 1.3 * math.exp(-moment.tau / 7.0) * min((1.0 - moment.part) / 0.2, 1.0)
            tone = 40.0 + 90.0 * self._brightness(t_s)
            self._effects.smoke(frame, Spot(x, y + 0.3 * scale, 1.5 * size, size), t_s, density=density, tone=tone)
        elif label == "warm_lamp":
            x, y = self._view.pixel(between(-3.0, 3.0, key, "x"), 1.6, between(10.0, 15.0, key, "z"))
            radius = round(self._view.width * 0.012)
            cv2.circle(frame, (round(x), round(y)), radius, (255, 214, 140), -1, cv2.LINE_AA)
        elif label == "gunshot":
            x, y = self._view.pixel(*self._muzzle(moment))
            if any(0.0 <= t_s - at_s < 0.09 for at_s in shots(self._seed, moment.episode)):
                cv2.circle(
                    frame, (round(x), round(y)), max(self._view.width // 50, 2), (255, 244, 200), -1, cv2.LINE_AA
                )

    def _burn(self, frame: U8, hearth: tuple[float, float, float], t_s: float, key: int) -> None:
        x, y, size = hearth
        breath = 1.0 + 0.13 * erratic(key, t_s, 7.0)
        for offset, wide, tall, n in ((-0.5, 0.9, 0.9, 5), (0.45, 1.0, 1.1, 23), (0.0, 1.5, 1.7, 41)):
            spot = Spot(x + offset * size, y, wide * size, tall * size * breath)
            self._effects.flames(frame, spot, t_s, n + key % 50)

    # Lens and sensor ---------------------------------------------------------------------------------------------

    def _brightness(self, t_s: float) -> float:
        day, lamp = self._life.daylight(t_s), self._life.lamp(t_s)
        return min((1.0 if self._life.outdoor else 0.6) * day + (0.25 if self._life.outdoor else 0.65) * lamp, 1.2)

    def _exposure(self, t_s: float) -> float:
        """Exposure follows the light late: what it measured over the last two seconds."""
        level = sum(self._brightness(t_s - late) for late in (0.3, 1.0, 2.0)) / 3.0
        return float((0.85 / max(level, 0.08)) ** 0.45 * (1.0 + 0.03 * drift(t_s, 9.0, self._seed, "exposure")))

    def _camera(self, frame: U8, t_s: float, gain: float, now: list[_Now]) -> U8:
        shake = (
            sum(6.0 * math.exp(-m.tau / 0.7) for m in now if m.episode.label == "explosion") * self._view.width / 320
        )
        if shake > 0.2:
            dx, dy = (shake * erratic(self._seed + n, t_s, 14.0) for n in (1, 2))
            move = np.array([[1, 0, dx], [0, 1, dy]], dtype=np.float32)
            size = (self._view.width, self._view.height)
            frame = np.asarray(cv2.warpAffine(frame, move, size, borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)
        frame = np.asarray(cv2.GaussianBlur(frame, (3, 3), 0.55), dtype=np.uint8)
        if self._mirrored:
            frame = np.asarray(cv2.flip(frame, 1), dtype=np.uint8)
        key = mix(self._seed, "grain", round(t_s * 1000))
        tile = self._tiles[key % _TILES]
        top, left = 8 * (key >> 8 & 7), 8 * (key >> 16 & 7)
        cut = tile[top : top + self._view.height, left : left + self._view.width]
        strength = 0.3 + 0.35 * min(gain, 2.6)
        offset = -128.0 * strength - 90.0 * (self._contrast - 1.0)
        return np.asarray(cv2.addWeighted(frame, self._contrast, cut, strength, offset), dtype=np.uint8)


def _grain_tiles(seed: int, width: int, height: int) -> list[U8]:
    """Noise around 128: grain of the sensor, and the 8x8 blocks that compression leaves."""
    tiles = []
    for n in range(_TILES):
        draw = generator(seed, "grain", n)
        rows, cols = height + 64, width + 64
        fine = draw.normal(0.0, 3.2, (rows, cols, 1)) + draw.normal(0.0, 1.6, (rows, cols, 3))
        blocks = draw.normal(0.0, 1.1, (rows // 8 + 1, cols // 8 + 1, 1))
        fine += np.repeat(np.repeat(blocks, 8, axis=0), 8, axis=1)[:rows, :cols]
        tiles.append(np.clip(np.round(fine + 128.0), 0, 255).astype(np.uint8))
    return tiles


def _unit(value: float) -> float:
    return round(min(max(value, 0.0), 1.0), 4)
