"""Sensors of a simulated site: temperature, humidity, smoke, CO2, light, vibration and a door contact.

Each value is a closed formula of time (first-order answers to what happened), never an integration, so that any
moment can be read directly. Units are those of `edge_agent.config.UNITS`.
"""

from __future__ import annotations

import math

from edge_agent.core.records import Reading
from edge_agent.simulate.chance import between, drift, mix, unit
from edge_agent.simulate.episodes import Episode, Script
from edge_agent.simulate.life import Life

CHANNELS = ("temperature", "humidity", "smoke", "co2", "light", "vibration", "door")
#: Seconds between two values of a sensor; in between it repeats the last one.
PERIOD_S = 1.0
_STEP = {"temperature": 0.1, "humidity": 0.5, "smoke": 0.1, "co2": 5.0, "light": 1.0, "vibration": 0.005, "door": 1.0}
#: After this long the answer to an episode has died away (time constants are at most 30 s).
_TAIL_S = 240.0


class Air:
    """The sensor channels of one site."""

    def __init__(self, life: Life, episodes: tuple[Episode, ...]) -> None:
        self._life = life
        self._seed = life.seed
        self._script = Script(episodes, "sensors")
        self._outside = between(2.0, 24.0, life.seed, "outside")
        self._base = self._outside if life.outdoor else between(18.0, 24.0, life.seed, "inside")

    def readings(self, t_s: float) -> tuple[Reading, ...]:
        """What the sensors say at `t_s`; one that says nothing is left out."""
        t_s = math.floor(t_s / PERIOD_S) * PERIOD_S
        near = self._script.overlapping(t_s - _TAIL_S, t_s + 2.0 * PERIOD_S)
        fallen = [e for e in near if e.label == "dropped_sensor" and e.start_s + 2.0 <= t_s < e.end_s]
        warmth = self._warmth(near, t_s)
        values = {
            "temperature": self._temperature(t_s) + warmth,
            "humidity": self._humidity(t_s) - 0.35 * warmth,
            "smoke": self._smoke(near, t_s),
            "co2": self._co2(near, t_s),
            "light": self._light(near, t_s),
            "vibration": self._vibration(near, t_s),
            "door": self._door(near, t_s),
        }
        return tuple(
            Reading(name, round(round(values[name] / _STEP[name]) * _STEP[name], 4))
            for name in CHANNELS
            if not self._life.missing(name, t_s) and not (fallen and name in ("vibration", "temperature"))
        )

    def _noise(self, name: str, t_s: float) -> float:
        """About normal, standard deviation 1: the sum of three uniform draws."""
        key = mix(self._seed, name, round(t_s * 10))
        return 2.0 * (unit(key, 0) + unit(key, 1) + unit(key, 2)) - 3.0

    def _temperature(self, t_s: float) -> float:
        daily = math.sin((self._life.hour(t_s) - 9.0) / 12.0 * math.pi) * (4.0 if self._life.outdoor else 0.6)
        slow = 0.4 * drift(t_s, 400.0, self._seed, "temperature")
        return self._base + daily + slow + self._hvac(t_s) + self._draught(t_s) + 0.05 * self._noise("temp", t_s)

    def _hvac(self, t_s: float) -> float:
        if self._life.outdoor:
            return 0.0
        period = between(420.0, 900.0, self._seed, "hvac")
        part = (t_s / period + unit(self._seed, "hvac phase")) % 1.0
        return 0.5 * (2.0 * abs(2.0 * part - 1.0) - 1.0)

    def _draught(self, t_s: float) -> float:
        """Outside air that came in by the door and leaves with 60 s."""
        if self._life.outdoor:
            return 0.0
        total = 0.0
        for opening in self._life.openings(t_s - 240.0, t_s):
            let_in = _answer(t_s, opening.start_s, opening.end_s, 12.0, 60.0)
            total += 0.25 * (self._outside - self._base) * let_in
        return total

    def _humidity(self, t_s: float) -> float:
        base = between(34.0, 62.0, self._seed, "humidity")
        slow = 3.0 * drift(t_s, 600.0, self._seed, "humidity") - 0.8 * self._hvac(t_s) - 0.5 * self._draught(t_s)
        return min(max(base + slow + 0.25 * self._noise("hum", t_s), 12.0), 95.0)

    def _warmth(self, near: list[Episode], t_s: float) -> float:
        total = 0.0
        for e in near:
            if e.label == "fire":
                total += _strong(self._seed, e, 9.0, 26.0) * _answer(t_s, e.start_s + 3.0, e.end_s, 14.0, 30.0)
            elif e.label == "explosion":
                total += _strong(self._seed, e, 3.0, 8.0) * _answer(t_s, e.start_s, e.start_s + 2.0, 1.5, 15.0)
        return total

    def _smoke(self, near: list[Episode], t_s: float) -> float:
        base = between(1.2, 3.5, self._seed, "smoke") + 0.5 * drift(t_s, 200.0, self._seed, "smoke")
        value = base + 0.2 * self._noise("smoke", t_s)
        for e in near:
            if e.label == "fire":
                value += _strong(self._seed, e, 70.0, 220.0) * _answer(t_s, e.start_s + 2.0, e.end_s, 9.0, 18.0)
            elif e.label == "alarm":
                value += _strong(self._seed, e, 30.0, 70.0) * _answer(t_s, e.start_s, e.end_s, 4.0, 14.0)
            elif e.label == "explosion":
                value += _strong(self._seed, e, 50.0, 140.0) * _answer(
                    t_s, e.start_s + 1.0, e.start_s + 4.0, 1.5, 14.0
                )
        return max(value, 0.0)

    def _co2(self, near: list[Episode], t_s: float) -> float:
        people = 90.0 * (1.0 + drift(t_s, 300.0, self._seed, "breath")) * self._life.busy
        value = 415.0 + (0.15 if self._life.outdoor else 1.0) * (between(60.0, 250.0, self._seed, "co2") + people)
        value += 8.0 * self._noise("co2", t_s)
        for e in near:
            if e.label == "fire":
                value += _strong(self._seed, e, 350.0, 900.0) * _answer(t_s, e.start_s + 3.0, e.end_s, 12.0, 30.0)
            elif e.label == "explosion":
                value += _strong(self._seed, e, 120.0, 300.0) * _answer(
                    t_s, e.start_s + 1.0, e.start_s + 5.0, 2.0, 20.0
                )
        return value

    def _light(self, near: list[Episode], t_s: float) -> float:
        day = self._life.daylight(t_s) * (9000.0 if self._life.outdoor else 260.0)
        lamp = self._life.lamp(t_s) * (25.0 if self._life.outdoor else 310.0)
        extra, dim = 0.0, 1.0
        for e in near:
            if e.label == "fire" and t_s < e.end_s:
                flicker = 0.75 + 0.25 * self._noise("flicker", t_s) / 3.0
                extra += 160.0 * _answer(t_s, e.start_s, e.end_s, 10.0, 1.0) * flicker
            elif e.label == "explosion" and e.start_s - PERIOD_S < t_s <= e.start_s:
                extra += 1500.0
            elif e.label == "warm_lamp" and e.start_s <= t_s < e.end_s:
                extra += 90.0
            elif e.label == "sunset":
                dim *= 1.0 - 0.6 * _hump(t_s, e.start_s, e.end_s)
        noise = 1.0 + 0.004 * self._noise("light", t_s)
        return max((day * dim + lamp) * noise + extra + 1.0, 0.0)

    def _vibration(self, near: list[Episode], t_s: float) -> float:
        """Peak of the last second, m/s²."""
        value = 0.014 + 0.004 * abs(self._noise("vibration", t_s))
        value += 0.012 * len(self._life.walks(t_s - 1.0, t_s)) + 0.07 * len(self._life.rides(t_s - 1.0, t_s))
        for opening in self._life.openings(t_s - 2.0, t_s):
            if opening.slam and t_s - 1.0 <= opening.end_s <= t_s:
                value += between(0.25, 0.6, mix(self._seed, "slam", round(opening.end_s * 10)))
        return value + sum(self._shaken(e, t_s) for e in near)

    def _shaken(self, e: Episode, t_s: float) -> float:
        since = t_s - e.start_s
        key = mix(self._seed, "shaken", e.label, round(t_s))
        if since < 0.0:
            return 0.0
        if e.label == "explosion":
            return _strong(self._seed, e, 5.0, 14.0) * math.exp(-since / 1.2)
        if e.label == "gunshot" and t_s < e.end_s - 1.0:
            return between(0.5, 1.3, key) if since < 2.0 else 0.0
        if e.label == "glass_break":
            return between(1.3, 2.4, key) * math.exp(-since / 0.8)
        if e.label == "fight" and t_s < e.end_s:
            return between(0.4, 1.6, key)
        if e.label == "intrusion" and t_s < e.end_s:
            return between(1.2, 2.6, key) if since < 4.0 else between(0.05, 0.4, key)
        if e.label == "door_slam":
            return between(0.5, 0.9, key) if since < PERIOD_S else 0.0
        if e.label == "dropped_sensor":
            return between(5.0, 9.0, key) if since < PERIOD_S else 0.0
        return 0.0

    def _door(self, near: list[Episode], t_s: float) -> float:
        forced = any(e.label == "intrusion" and e.start_s <= t_s < e.end_s for e in near)
        slammed = any(e.label == "door_slam" and e.start_s - 2.0 <= t_s < e.start_s for e in near)
        return 1.0 if forced or slammed or self._life.openings(t_s, t_s + 0.01) else 0.0


def _answer(t_s: float, start_s: float, end_s: float, up_s: float, down_s: float) -> float:
    """0 to 1: first-order answer to a cause that lasts from start to end."""
    if t_s <= start_s:
        return 0.0
    reached = 1.0 - math.exp(-(min(t_s, end_s) - start_s) / up_s)
    return reached * math.exp(-max(t_s - end_s, 0.0) / down_s)


def _hump(t_s: float, start_s: float, end_s: float) -> float:
    """0 at both ends, 1 in the middle, smooth."""
    part = (t_s - start_s) / (end_s - start_s)
    return math.sin(math.pi * part) ** 2 if 0.0 < part < 1.0 else 0.0


def _strong(seed: int, episode: Episode, low: float, high: float) -> float:
    """How strong this very episode is."""
    return between(low, high, seed, episode.label, round(episode.start_s * 1000))
