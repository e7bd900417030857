"""Normal life of a site: where the camera stands, who walks by, what is switched on, which door opens.

Metres and seconds only. Picture, sound and sensors all read from here, so that a person who is seen is heard
too. Things that come and go are drawn per cell of time, so that any moment can be asked for directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

from edge_agent.simulate.chance import Cache, between, drift, mix, unit

Place = Literal["hall", "warehouse", "yard", "street"]
PLACES: tuple[Place, ...] = ("hall", "yard", "warehouse", "street")

#: The forbidden area on the ground: x0, x1 (across, right positive), z0, z1 (away from the camera). Nobody walks here
#: in normal life, and nobody who stands behind it is drawn over it.
FORBIDDEN_M = (1.0, 4.6, 6.6, 10.6)
STRIDE_M = 0.72
_WALK_CELL_S, _LONGEST_WALK_S = 14.0, 42.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Walk:
    """Someone who goes along `path` (x, z in metres) at `speed` (m/s) from `start_s` on."""

    key: int
    start_s: float
    path: tuple[tuple[float, float], ...]
    speed: float

    @property
    def length_m(self) -> float:
        return sum(math.dist(a, b) for a, b in zip(self.path, self.path[1:], strict=False))

    @property
    def end_s(self) -> float:
        return self.start_s + self.length_m / self.speed

    def at(self, t_s: float) -> tuple[float, float, float, float]:
        """x, z, heading (radians, 0 is to the right, π/2 away from the camera) and metres walked."""
        left = walked = min(max(t_s - self.start_s, 0.0) * self.speed, self.length_m)
        for a, b in zip(self.path, self.path[1:], strict=False):
            length = math.dist(a, b)
            if left <= length or b == self.path[-1]:
                part = min(left / max(length, 1e-6), 1.0)
                heading = math.atan2(b[1] - a[1], b[0] - a[0])
                return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part, heading, walked
            left -= length
        return *self.path[-1], 0.0, walked


@dataclass(frozen=True, slots=True)
class Ride:
    """A car, van or cart that crosses the picture far behind."""

    key: int
    start_s: float
    end_s: float
    z: float
    direction: int
    body: Literal["car", "van", "cart"]

    def x_at(self, t_s: float) -> float:
        part = (t_s - self.start_s) / (self.end_s - self.start_s)
        return self.direction * (2.0 * part - 1.0) * (self.z * 0.5 + 3.5)


@dataclass(frozen=True, slots=True)
class Opening:
    """A door that opens and closes again, with a bang or without."""

    start_s: float
    end_s: float
    slam: bool


class _Grid(NamedTuple):
    """How things of one sort are drawn: per cell of time, and how long one may last past its cell (s)."""

    name: str
    cell_s: float
    reach_s: float


@dataclass(frozen=True)
class Life:
    """Everything normal about the site with this seed."""

    seed: int
    _cells: Cache[tuple[object, ...]] = field(default_factory=lambda: Cache(64), compare=False)

    @cached_property
    def place(self) -> Place:
        return PLACES[mix(self.seed, "place") % len(PLACES)]

    @cached_property
    def outdoor(self) -> bool:
        return self.place in ("yard", "street")

    @cached_property
    def busy(self) -> float:
        """People per cell, 0.2 to 1.3."""
        return between(0.2, 1.3, self.seed, "busy")

    @cached_property
    def _starts(self) -> float:
        at_night = unit(self.seed, "night") < 0.34
        return between(20.5, 28.5, self.seed, "hour") if at_night else between(6.5, 19.0, self.seed, "hour")

    def hour(self, t_s: float) -> float:
        """Time of day. Sites start between 0 and 24 h; every third one at night."""
        return (self._starts + t_s / 3600.0) % 24.0

    def daylight(self, t_s: float) -> float:
        """0 (night) to 1 (noon), clouds included."""
        height = math.sin((self.hour(t_s) - 6.0) / 12.0 * math.pi)
        bright = min(max(0.5 + 1.6 * height, 0.0), 1.0)
        clouds = 1.0 - 0.22 * (1.0 + drift(t_s, 45.0, self.seed, "cloud"))
        return bright * bright * clouds

    def lamp(self, t_s: float) -> float:
        """0 to 1: the site's own lamps, on when it is dark, and switched now and then."""
        cell = math.floor(t_s / 150.0)
        switched = unit(self.seed, "switch", cell) < 0.3
        begin = cell * 150.0 + between(20.0, 60.0, self.seed, "switch on", cell)
        end = begin + between(20.0, 80.0, self.seed, "switch off", cell)
        usual = 1.0 if not self.outdoor or self.daylight(t_s) < 0.25 else 0.0
        other = (0.35 if not self.outdoor else 0.5) if usual else 1.0
        if not (switched and begin <= t_s < end):
            return usual
        settle = t_s - begin
        if settle < 0.6 and other > usual:  # a fluorescent tube catches on its third try
            return other if math.sin(settle * 37.0) > 0.2 else usual
        return other

    def walks(self, start_s: float, end_s: float) -> list[Walk]:
        """Everyone who is on the site at some time of [start_s, end_s)."""
        found = self._around(_Grid("walk", _WALK_CELL_S, _LONGEST_WALK_S), start_s, end_s, self._walks_of)
        return [walk for walk in found if walk.start_s < end_s and walk.end_s > start_s]

    def rides(self, start_s: float, end_s: float) -> list[Ride]:
        """Every vehicle that passes at some time of [start_s, end_s)."""
        found = self._around(_Grid("ride", 40.0, 20.0), start_s, end_s, self._rides_of)
        return [ride for ride in found if ride.start_s < end_s and ride.end_s > start_s]

    def openings(self, start_s: float, end_s: float) -> list[Opening]:
        """Every door opening that touches [start_s, end_s)."""
        found = self._around(_Grid("door", 70.0, 20.0), start_s, end_s, self._openings_of)
        return [opening for opening in found if opening.start_s < end_s and opening.end_s > start_s]

    def talks(self, start_s: float, end_s: float) -> list[tuple[float, int]]:
        """Start and key of everything said in or just before [start_s, end_s)."""
        found = self._around(_Grid("talk", 11.0, 4.0), start_s, end_s, self._talks_of)
        return [talk for talk in found if talk[0] < end_s]

    def missing(self, channel: str, t_s: float) -> bool:
        """Whether this sensor says nothing at this moment."""
        cell = math.floor(t_s / 90.0)
        if unit(self.seed, "missing", channel, cell) >= 0.05:
            return False
        begin = cell * 90.0 + between(0.0, 60.0, self.seed, "missing from", channel, cell)
        return begin <= t_s < begin + between(4.0, 28.0, self.seed, "missing for", channel, cell)

    def _around(self, grid: _Grid, start_s: float, end_s: float, make: Callable[[int], tuple[T, ...]]) -> list[T]:
        first = math.floor((start_s - grid.reach_s) / grid.cell_s)
        last = math.floor(end_s / grid.cell_s)
        found: list[T] = []
        for cell in range(first, last + 1):
            found.extend(self._cells.get((grid.name, cell), lambda c=cell: make(c)))  # type: ignore[misc, arg-type]
        return found

    def _walks_of(self, cell: int) -> tuple[Walk, ...]:
        expected = self.busy * (1.0 + 0.6 * drift(cell, 6.0, self.seed, "crowd"))
        count = sum(unit(self.seed, "walk", cell, n) < expected / 3.0 for n in range(3))
        return tuple(self._walk(mix(self.seed, "walker", cell, n), cell) for n in range(count))

    def _walk(self, key: int, cell: int) -> Walk:
        start = cell * _WALK_CELL_S + between(0.0, _WALK_CELL_S, key, "start")
        speed = between(0.95, 1.55, key, "speed")
        if unit(key, "way") < 0.45:  # across, behind the forbidden area
            z = between(12.2, 16.5, key, "z")
            edge = z * 0.5 + 0.7
            path: tuple[tuple[float, float], ...] = ((-edge, z), (edge, z + between(-0.4, 0.8, key, "slant")))
        else:  # between the far door and the near left
            near, far = between(5.8, 9.0, key, "near"), between(12.5, 17.0, key, "far")
            turn = (between(-2.4, -0.6, key, "turn"), between(8.0, 11.5, key, "turn z"))
            path = ((-near * 0.5 - 0.7, near), turn, (between(-1.5, 3.0, key, "door"), far), (far * 0.5 + 0.7, far))
        return Walk(key, start, path if unit(key, "back") < 0.5 else path[::-1], speed)

    def _rides_of(self, cell: int) -> tuple[Ride, ...]:
        often = {"street": 0.75, "yard": 0.3, "warehouse": 0.35, "hall": 0.12}[self.place]
        if unit(self.seed, "ride", cell) >= often:
            return ()
        key = mix(self.seed, "ride of", cell)
        start = cell * 40.0 + between(0.0, 35.0, key, "start")
        if not self.outdoor:
            return (Ride(key, start, start + between(8.0, 12.0, key, "takes"), 16.8, _sign(key), "cart"),)
        body: Literal["car", "van"] = "car" if unit(key, "body") < 0.75 else "van"
        return (Ride(key, start, start + between(3.5, 7.0, key, "takes"), 18.5 - 1.5 * _sign(key), _sign(key), body),)

    def _openings_of(self, cell: int) -> tuple[Opening, ...]:
        if unit(self.seed, "door", cell) >= 0.35:
            return ()
        start = cell * 70.0 + between(0.0, 65.0, self.seed, "opens", cell)
        end = start + between(2.5, 9.0, self.seed, "closes", cell)
        return (Opening(start, end, unit(self.seed, "slams", cell) < 0.5),)

    def _talks_of(self, cell: int) -> tuple[tuple[float, int], ...]:
        if unit(self.seed, "talk", cell) >= 0.15 + 0.25 * self.busy:
            return ()
        key = mix(self.seed, "talks", cell)
        start = cell * 11.0 + between(0.0, 3.0, key, "start")
        count = 1 + mix(key, "count") % 3
        return tuple((start + n * between(2.2, 2.9, key, "pause"), mix(key, n)) for n in range(count))


def _sign(key: int) -> int:
    return 1 if mix(key, "direction") & 1 else -1
