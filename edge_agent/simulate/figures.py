"""People and vehicles, drawn into the picture from joints and outlines in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from edge_agent.core.records import U8
from edge_agent.simulate.chance import between, mix, unit
from edge_agent.simulate.life import STRIDE_M, Ride
from edge_agent.simulate.view import View

Colour = tuple[int, int, int]
_SKIN: tuple[Colour, ...] = ((224, 184, 156), (196, 150, 118), (142, 98, 70), (94, 64, 48))
_CLOTH: tuple[Colour, ...] = (
    (52, 60, 84),
    (128, 40, 44),
    (70, 92, 70),
    (168, 164, 152),
    (44, 44, 48),
    (88, 112, 150),
    (176, 150, 96),
    (110, 84, 120),
    (206, 206, 200),
)
_TROUSERS: tuple[Colour, ...] = ((44, 50, 70), (58, 54, 50), (36, 36, 40), (112, 104, 88), (72, 82, 104))
ORANGE: Colour = (255, 120, 20)
DARK: Colour = (26, 26, 32)
_SUB = 4  #: fractional bits of drawing coordinates


@dataclass(frozen=True, slots=True)
class Pose:
    """How a person stands: `swing` of legs and arms (radians), where in the stride, how far fallen, arms raised."""

    phase: float
    swing: float = 0.45
    fallen: float = 0.0  #: 0 upright, 1 on the ground
    crouch: float = 0.0
    arms: tuple[float, float] | None = None  #: angles from hanging down, instead of swinging


@dataclass(frozen=True, slots=True)
class Person:
    """A person on the ground at x, z (m); heading 0 is to the right. `key` picks build and clothes."""

    key: int
    x: float
    z: float
    heading: float
    pose: Pose
    top: Colour | None = None
    legs: Colour | None = None
    hood: Colour | None = None

    @property
    def tall_m(self) -> float:
        return between(1.58, 1.9, self.key, "tall")


def phase_of(walked_m: float) -> float:
    """Where in the stride somebody is who has walked this far."""
    return math.pi * walked_m / STRIDE_M


def draw_person(canvas: U8, view: View, person: Person) -> None:
    """Draw far limbs, body, head, near limbs, in the colours of daylight."""
    body = _Body(view, person)
    key = person.key
    shirt = person.top or _CLOTH[mix(key, "shirt") % len(_CLOTH)]
    trousers = person.legs or _TROUSERS[mix(key, "trousers") % len(_TROUSERS)]
    skin = _SKIN[mix(key, "skin") % len(_SKIN)]
    hair = person.hood or ((40, 30, 24), (96, 70, 44), (150, 144, 136))[mix(key, "hair") % 3]
    for side in (1, 0):
        tone = 0.72 if side else 1.0
        hip, knee, foot, toe = body.leg(side)
        body.limb(canvas, hip, knee, 0.17, _darker(trousers, tone))
        body.limb(canvas, knee, foot, 0.13, _darker(trousers, tone))
        body.limb(canvas, foot, toe, 0.09, _darker((40, 36, 34), tone))
        if side:
            _draw_arm(canvas, body, side, _darker(shirt, tone), _darker(skin, tone))
            body.torso(canvas, shirt)
            body.head(canvas, skin, hair)
    _draw_arm(canvas, body, 0, _darker(shirt, 0.88), skin)


def _draw_arm(canvas: U8, body: _Body, side: int, cloth: Colour, skin: Colour) -> None:
    shoulder, elbow, hand = body.arm(side)
    body.limb(canvas, shoulder, elbow, 0.11, cloth)
    body.limb(canvas, elbow, hand, 0.09, cloth)
    body.limb(canvas, hand, hand, 0.1, skin)


class _Body:
    """Joints of one person, in metres (u to the right on the screen, v up), and how they become pixels."""

    def __init__(self, view: View, person: Person) -> None:
        self._pose = person.pose
        self._tall = person.tall_m / 1.75
        self._scale = view.scale(person.z)
        self._foot = view.pixel(person.x, 0.0, person.z)
        self._along = math.cos(person.heading)
        self._side = abs(math.sin(person.heading))
        self._along = math.copysign(max(abs(self._along), 0.22), self._along)
        self._bob = 0.03 * math.cos(2.0 * person.pose.phase) - 0.42 * person.pose.crouch

    def _hip(self, side: int) -> tuple[float, float]:
        return (0.1 if side else -0.1) * (0.35 + 0.65 * self._side), (0.92 + self._bob) * self._tall

    def leg(self, side: int) -> tuple[tuple[float, float], ...]:
        """Hip, knee, foot, toe."""
        swing = self._pose.phase + math.pi * side
        thigh = self._pose.swing * math.sin(swing) + 0.9 * self._pose.crouch
        bend = self._pose.swing * 1.5 * max(math.cos(swing), 0.0) ** 1.5 + 1.5 * self._pose.crouch
        hip = self._hip(side)
        knee = self._reach(hip, thigh, 0.46)
        foot = self._reach(knee, thigh - bend, 0.45)
        return hip, knee, foot, (foot[0] + 0.14 * self._along, foot[1] - 0.01)

    def arm(self, side: int) -> tuple[tuple[float, float], ...]:
        """Shoulder, elbow, hand."""
        swing = -self._pose.swing * 0.9 * math.sin(self._pose.phase + math.pi * side)
        upper, fore = (swing, swing + 0.35 + self._pose.swing * 0.6)
        if self._pose.arms is not None:
            upper, fore = self._pose.arms[side], self._pose.arms[side] + 0.3
        wide = (0.2 if side else -0.2) * (0.3 + 0.7 * self._side)
        shoulder = (wide + self._lean(), (1.42 + self._bob) * self._tall)
        elbow = self._reach(shoulder, upper, 0.3)
        return shoulder, elbow, self._reach(elbow, fore, 0.28)

    def torso(self, canvas: U8, colour: Colour) -> None:
        wide = 0.13 + 0.09 * self._side
        hip, shoulder = (0.88 + self._bob) * self._tall, (1.47 + self._bob) * self._tall
        lean = self._lean()
        outline = [
            (-0.8 * wide, hip),
            (0.8 * wide, hip),
            (wide + lean, shoulder - 0.06),
            (0.5 * wide + lean, shoulder),
        ]
        outline += [(-0.5 * wide + lean, shoulder), (-wide + lean, shoulder - 0.06)]
        points = np.array([self._fixed(point) for point in outline], dtype=np.int32)
        cv2.fillConvexPoly(canvas, points, colour, cv2.LINE_AA, _SUB)

    def head(self, canvas: U8, skin: Colour, hair: Colour) -> None:
        middle = (1.1 * self._lean() + 0.02 * self._along, (1.63 + self._bob) * self._tall)
        self.limb(canvas, (middle[0], middle[1] - 0.16), middle, 0.1, skin)
        radius = round(0.115 * self._tall * self._scale * (1 << _SUB))
        cv2.circle(canvas, self._fixed((middle[0], middle[1] + 0.025)), radius, hair, -1, cv2.LINE_AA, _SUB)
        face = (middle[0] + 0.045 * self._along, middle[1] - 0.02)
        cv2.circle(canvas, self._fixed(face), round(radius * 0.8), skin, -1, cv2.LINE_AA, _SUB)

    def limb(self, canvas: U8, a: tuple[float, float], b: tuple[float, float], wide_m: float, colour: Colour) -> None:
        thick = max(round(wide_m * self._scale), 1)
        cv2.line(canvas, self._fixed(a), self._fixed(b), colour, thick, cv2.LINE_AA, _SUB)

    def _lean(self) -> float:
        return (0.16 * self._pose.swing + 0.3 * self._pose.crouch) * self._along

    def _reach(self, start: tuple[float, float], angle: float, length: float) -> tuple[float, float]:
        length *= self._tall
        return start[0] + math.sin(angle) * length * self._along, start[1] - math.cos(angle) * length

    def _fixed(self, point: tuple[float, float]) -> tuple[int, int]:
        u, v = point
        if self._pose.fallen:
            turn = self._pose.fallen * 1.45 * (1 if self._along > 0 else -1)
            u, v = u * math.cos(turn) + v * math.sin(turn), v * math.cos(turn) - u * math.sin(turn) + 0.12
        unit_px = self._scale * (1 << _SUB)
        base = 1 << _SUB
        return round(self._foot[0] * base + u * unit_px), round(self._foot[1] * base - v * unit_px)


def draw_ride(canvas: U8, view: View, ride: Ride, t_s: float) -> None:
    """Draw a car, a van or a cart from its side."""
    x = ride.x_at(t_s)
    colour = tuple(int(tone) for tone in np.array(_CLOTH[mix(ride.key, "paint") % len(_CLOTH)]) * 1.1)
    if ride.body == "cart":
        _draw_cart(canvas, view, ride, x, t_s)
        return
    long, tall = (4.3, 1.45) if ride.body == "car" else (5.4, 2.3)
    if ride.body == "car":
        shell = [
            (-2.15, 0.3),
            (2.15, 0.3),
            (2.15, 0.75),
            (1.3, 0.9),
            (0.75, 1.42),
            (-1.1, 1.45),
            (-1.8, 0.95),
            (-2.15, 0.9),
        ]
        panes = [
            [(0.2, 0.95), (1.1, 0.95), (0.68, 1.34), (0.2, 1.36)],
            [(0.08, 0.95), (-1.5, 0.95), (-1.05, 1.37), (0.08, 1.36)],
        ]
    else:
        shell = [(-2.7, 0.35), (2.7, 0.35), (2.7, 1.0), (2.0, 1.35), (1.6, 2.25), (-2.7, 2.3)]
        panes = [[(1.2, 1.35), (1.9, 1.35), (1.58, 2.0), (1.2, 2.0)]]
    _outline(canvas, view, (x, ride.z, ride.direction), shell, colour)
    for pane in panes:
        _outline(canvas, view, (x, ride.z, ride.direction), pane, (46, 58, 70))
    for axle in (-0.32 * long, 0.32 * long):
        px, py = view.pixel(x + ride.direction * axle, 0.32, ride.z)
        radius = 0.33 * view.scale(ride.z)
        cv2.circle(canvas, (round(px * 16), round(py * 16)), round(radius * 16), (24, 24, 26), -1, cv2.LINE_AA, 4)
        cv2.circle(canvas, (round(px * 16), round(py * 16)), round(radius * 8), (140, 140, 144), -1, cv2.LINE_AA, 4)
    for end, light in ((0.48 * long, (255, 250, 225)), (-0.48 * long, (190, 30, 24))):
        px, py = view.pixel(x + ride.direction * end, 0.28 * tall + 0.3, ride.z)
        cv2.circle(canvas, (round(px), round(py)), max(round(0.1 * view.scale(ride.z)), 1), light, -1, cv2.LINE_AA)


def _draw_cart(canvas: U8, view: View, ride: Ride, x: float, t_s: float) -> None:
    crate = [(-0.7, 0.3), (0.7, 0.3), (0.7, 1.2), (-0.7, 1.2)]
    behind = x - 1.15 * ride.direction
    pose = Pose(phase_of(abs(ride.x_at(t_s) - ride.x_at(ride.start_s))), 0.4, arms=(1.2, 1.2))
    draw_person(canvas, view, Person(ride.key, behind, ride.z, 0.0 if ride.direction > 0 else math.pi, pose))
    _outline(canvas, view, (x, ride.z, ride.direction), crate, (150, 116, 78))
    _outline(
        canvas, view, (x, ride.z, ride.direction), [(-0.8, 0.18), (0.8, 0.18), (0.8, 0.3), (-0.8, 0.3)], (60, 62, 66)
    )
    for axle in (-0.5, 0.5):
        px, py = view.pixel(x + axle, 0.1, ride.z)
        cv2.circle(
            canvas, (round(px), round(py)), max(round(0.11 * view.scale(ride.z)), 1), (30, 30, 30), -1, cv2.LINE_AA
        )


def _outline(
    canvas: U8,
    view: View,
    where: tuple[float, float, int],
    points: list[tuple[float, float]],
    colour: tuple[int, ...],
) -> None:
    x, z, direction = where
    pixels = [view.pixel(x + direction * u, v, z) for u, v in points]
    fixed = np.round(np.array(pixels) * (1 << _SUB)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], colour, cv2.LINE_AA, _SUB)


def _darker(colour: Colour, gain: float) -> Colour:
    return int(colour[0] * gain), int(colour[1] * gain), int(colour[2] * gain)


def erratic(key: int, t_s: float, hertz: float) -> float:
    """A jerky value in [-1, 1]: a new one `hertz` times a second, reached in a third of the time."""
    place = t_s * hertz
    cell = math.floor(place)
    ease = min((place - cell) * 3.0, 1.0)
    before, after = unit(key, cell - 1), unit(key, cell)
    return 2.0 * (before + (after - before) * ease) - 1.0
