"""Generated sensor traces: what rooms do by themselves, and what they do when something is wrong.

Broader than any one site on purpose: any subset of the channels, any reporting period, any climate. Recorded logs
give levels; what goes wrong (fire, blast, blows, leaks) was never recorded with a licence that lets it train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.config import QUANTITIES, Channel
from edge_agent.contract.manifest import SensorSpec
from edge_agent.core.records import F32
from models.data.media import Log

Rng = np.random.Generator
_INDEX = {name: index for index, name in enumerate(QUANTITIES)}
#: Channel sets that sites have; each is thinned at random on top.
_KITS = (
    ("temperature", "humidity", "smoke", "co2", "light", "vibration", "door"),
    ("temperature", "humidity"),
    ("temperature", "humidity", "co2"),
    ("smoke", "temperature"),
    ("vibration", "door", "motion"),
    ("temperature", "humidity", "pressure", "gas", "sound_level"),
    ("power", "temperature", "vibration"),
    QUANTITIES,
)
WRONG = ("fire", "blast", "blows", "forced", "leak", "smoulder")
#: A room that is used is weak evidence, never an alert by itself: the target of an occupied minute.
PRESENCE = 0.3
#: How old a reading may be on a device, if its configuration says nothing else.
_STALE_S = Channel(source="room", channel="temperature", quantity="temperature").stale_s
QUIET = 0.02


@dataclass(frozen=True, slots=True)
class Trace:
    """Channels over time: values, age in s, mask float32 (channels, steps); active (steps,) where it is wrong."""

    readings: F32  #: (3, channels, steps)
    active: NDArray[np.bool_]


def trace(  # noqa: PLR0917
    rng: Rng,
    steps: int,
    step_s: float,
    wrong: str | None,
    tables: Sequence[Log] = (),
    spell: tuple[float, float] | None = None,
    hard: str = "",
) -> Trace:
    """A random site's sensors over `steps` steps; `wrong` (one of WRONG) begins in the second half.

    spell: (at, for so long) in s instead; then normal and wrong traces report equally often, within 4 s. Without one,
    half of the normal ones may report as seldom as once in 70 s.
    hard: what is sure to happen at that time without being wrong, `door_slam` or `dropped_sensor`.
    """
    t = np.arange(steps, dtype=np.float64) * step_s
    values = _ordinary(rng, t, tables)
    kit = set(_KITS[int(rng.integers(len(_KITS)))])
    active = np.zeros(steps, np.bool_)
    if wrong is None:
        _harmless(rng, values, t)
    else:
        onset = float(rng.uniform(0.5, 0.9) * t[-1])
        length = float(rng.uniform(4.0, 30.0))
        if spell is not None:
            onset, length = spell
        kit |= _happen(rng, values, t, wrong, (onset, length))
        # A sensor answers late: the first second is nobody's fault.
        active = (t >= onset + 1.0) & (t <= onset + length + 2.0)
    # In an order of its own: that of a set of names is another one in every process.
    kit = {name for name in sorted(kit) if rng.random() < 0.93} or kit
    if hard and spell is not None:
        kit |= _lookalike(rng, values, t, hard, spell[0], kit)
    # Slow sensors show a cause late or never; but fast ones must not mean that there is one.
    longest_s = 70.0 if spell is None and wrong is None and rng.random() < 0.5 else 4.0
    return Trace(_reported(rng, values, t, kit, longest_s), active)


def minute(rng: Rng, table: Log, row: int, spec: SensorSpec, step_s: float) -> F32:
    """The window in which row `row` of a log with one row a minute is the newest: (3, channels, steps)."""
    out = np.zeros((3, len(spec.quantities), spec.steps), np.float32)
    age_s = float(rng.uniform(0.0, 60.0))
    ages = age_s - np.arange(spec.steps - 1, -1, -1) * step_s
    now, before = table.row(row), table.row(max(row - 1, 0))
    for name, value in now.items():
        channel = spec.quantities.index(name)
        out[0, channel] = np.where(ages >= 0, value, before[name])
        out[1, channel] = np.where(ages >= 0, ages, ages + 60.0)
        out[2, channel] = 1.0
    return out


def _drift(rng: Rng, t: NDArray[np.float64], period_s: float) -> NDArray[np.float64]:
    return np.sin(2 * np.pi * (t / (period_s * rng.uniform(0.6, 2.0)) + rng.random()))


def _ordinary(rng: Rng, t: NDArray[np.float64], tables: Sequence[Log]) -> dict[str, NDArray[np.float64]]:
    def noise(size: float) -> NDArray[np.float64]:
        return rng.normal(0, size, len(t))

    level = {"temperature": rng.uniform(-5, 36), "humidity": rng.uniform(15, 92), "co2": 400 + rng.exponential(200)}
    if tables and rng.random() < 0.5:
        table = tables[int(rng.integers(len(tables)))]
        row = table.row(int(rng.integers(len(table.time_s))))
        level |= {name: value for name, value in row.items() if np.isfinite(value)}  # cells may be empty
    light = float(np.exp(rng.uniform(0, 9.5)))
    return {
        "temperature": level["temperature"] + 0.4 * _drift(rng, t, 300) + noise(0.06),
        "humidity": level["humidity"] + 1.5 * _drift(rng, t, 300) + noise(0.3),
        "smoke": np.maximum(rng.uniform(0, 6) + 0.7 * _drift(rng, t, 120) + noise(0.25), 0),
        "co2": level["co2"] * (1 + 0.04 * _drift(rng, t, 200)) + noise(9),
        "light": light * (1 + 0.05 * _drift(rng, t, 60)) * np.exp(noise(0.02)),
        "vibration": rng.uniform(0.005, 0.06) + np.abs(noise(0.01)) + 0.08 * (rng.random(len(t)) < 0.05),
        "door": np.full(len(t), float(rng.random() < 0.15)),
        "motion": (_drift(rng, t, 30) > rng.uniform(-1, 1.5)).astype(np.float64),
        "pressure": rng.uniform(975, 1040) + 0.5 * _drift(rng, t, 400) + noise(0.1),
        "gas": np.maximum(rng.uniform(0, 8) + noise(0.3), 0),
        "power": np.exp(rng.uniform(0, 8)) * np.exp(noise(0.03)),
        "sound_level": rng.uniform(30, 62) + 3 * _drift(rng, t, 20) + noise(2.0),
    }


def _harmless(rng: Rng, values: dict[str, NDArray[np.float64]], t: NDArray[np.float64]) -> None:
    """Doors, lamps, draughts, heating, a slam, a failing sensor: changes that mean nothing."""
    at = float(rng.uniform(0.1, 1.0) * t[-1])
    after, near = t >= at, (t >= at) & (t < at + 1.0)
    for kind in rng.choice(("door", "slam", "lamp", "draught", "heating", "people", "knock", "machine"), 2, False):
        if kind in ("door", "slam"):
            opened = (t >= at - rng.uniform(2, 6)) & (t < at + (0 if kind == "slam" else rng.uniform(1, 20)))
            values["door"][opened] = 1.0
            if kind == "slam":
                values["vibration"][near] += rng.uniform(0.25, 0.9)
                values["sound_level"][near] += rng.uniform(5, 20)
        elif kind == "lamp":
            values["light"][after] = values["light"][after] + rng.choice([-0.8, 1.0]) * min(
                rng.uniform(20, 400), float(values["light"].min())
            )
        elif kind == "draught":
            values["temperature"] += rng.uniform(-3, 2) * _rise(t, at, rng.uniform(15, 60))
            values["humidity"] += rng.uniform(-6, 6) * _rise(t, at, rng.uniform(15, 60))
        elif kind == "heating":
            values["temperature"] += rng.uniform(0.3, 1.5) * _rise(t, at, rng.uniform(60, 200))
            values["power"][after] += rng.uniform(200, 2000)
        elif kind == "people":
            values["co2"] += rng.uniform(10, 120) * _rise(t, at, rng.uniform(20, 90))
            values["motion"][after] = 1.0
        elif kind == "knock":
            # One reading and then silence is a sensor that fell down, not a blow.
            values["vibration"][near] += rng.uniform(0.3, 9.0)
            values["vibration"][t >= at + 1.0] = np.nan
        else:
            values["vibration"][after] += rng.uniform(0.02, 0.15)
            values["sound_level"][after] += rng.uniform(2, 12)


def _lookalike(  # noqa: PLR0917
    rng: Rng, values: dict[str, NDArray[np.float64]], t: NDArray[np.float64], hard: str, at: float, kit: set[str]
) -> set[str]:
    """Write a slammed door, or sensors that fall silent one after the other; the channels that feel it."""
    if hard == "door_slam":
        near = (t >= at) & (t < at + 1.0)
        values["door"][(t >= at - 3.0) & (t < at)] = 1.0
        values["vibration"][near] += rng.uniform(0.25, 0.9)
        values["sound_level"][near] += rng.uniform(5, 20)
        return {"door", "vibration"}
    for name in sorted(kit):
        if rng.random() < 0.6:
            values[name][t >= at + rng.uniform(0, 2)] = np.nan
    return set()


def _rise(t: NDArray[np.float64], at: float, constant_s: float) -> NDArray[np.float64]:
    return np.where(t > at, 1 - np.exp(-np.maximum(t - at, 0) / constant_s), 0.0)


def _happen(
    rng: Rng, values: dict[str, NDArray[np.float64]], t: NDArray[np.float64], wrong: str, spell: tuple[float, float]
) -> set[str]:
    """Write what goes wrong (at, for so long, in s) into the values; the channels that feel it."""
    at, length = spell
    during = (t >= at) & (t <= at + length)
    fade = np.exp(-np.maximum(t - at - length, 0) / rng.uniform(10, 30))
    burst = np.where(t >= at, np.exp(-np.maximum(t - at, 0) / rng.uniform(0.8, 3)), 0.0)
    if wrong in ("fire", "smoulder"):
        hot = rng.uniform(5, 30) if wrong == "fire" else rng.uniform(0, 1)
        values["temperature"] += hot * _rise(t, at, rng.uniform(6, 25)) * fade
        values["smoke"] += rng.uniform(25, 250) * _rise(t, at, rng.uniform(3, 15)) * fade
        values["co2"] += rng.uniform(100, 900) * _rise(t, at, rng.uniform(6, 25)) * fade
        values["humidity"] -= 0.3 * hot * _rise(t, at, 15) * fade
        values["light"] += during * rng.uniform(0, 200) * rng.uniform(0.5, 1, len(t))
        return {"temperature", "smoke"} if wrong == "fire" else {"smoke"}
    if wrong == "blast":
        values["vibration"] += rng.uniform(2, 14) * burst
        values["temperature"] += rng.uniform(2, 9) * burst
        values["smoke"] += rng.uniform(20, 140) * _rise(t, at, 1.5) * fade
        values["sound_level"] += rng.uniform(30, 60) * burst
        values["pressure"] += rng.uniform(0, 3) * burst
        return {"vibration"}
    if wrong in ("blows", "forced"):
        beats = during & (rng.random(len(t)) < 0.9)
        values["vibration"] += beats * rng.uniform(0.4, 2.6) * rng.uniform(0.5, 1.2, len(t))
        values["sound_level"] += beats * rng.uniform(10, 35)
        if wrong == "forced":
            values["door"][during] = 1.0
        return {"vibration", "door"} if wrong == "forced" else {"vibration"}
    values["gas"] += rng.uniform(30, 400) * _rise(t, at, rng.uniform(3, 20)) * fade
    values["pressure"] -= rng.uniform(0, 1) * _rise(t, at, 10)
    return {"gas"}


def _reported(
    rng: Rng, values: dict[str, NDArray[np.float64]], t: NDArray[np.float64], kit: set[str], longest_s: float
) -> F32:
    """What arrives of the truth: each channel now and then, held in between."""
    out = np.zeros((3, len(QUANTITIES), len(t)), np.float32)
    common_s = float(np.exp(rng.uniform(np.log(0.5), np.log(max(longest_s, 1.0)))))
    for name in sorted(kit):
        period_s = common_s if rng.random() < 0.7 else float(rng.uniform(0.5, max(longest_s, 1.0)))
        phase_s = rng.uniform(0, period_s)
        told_s = np.floor((t + phase_s) / period_s) * period_s - phase_s
        index = np.clip(np.rint(told_s / (t[1] - t[0])).astype(int), 0, len(t) - 1)
        value = values[name][index]
        # A sensor that has fallen silent is known by its last reading, which ages, until a device calls it stale.
        last = np.maximum.accumulate(np.where(np.isfinite(value), np.arange(len(t)), -1))
        age_s = np.maximum(t - told_s[last], 0)
        known = (last >= 0) & (age_s <= _STALE_S)
        channel = _INDEX[name]
        out[0, channel] = np.where(known, value[last], 0)
        out[1, channel] = np.where(known, age_s, 0)
        out[2, channel] = known
    return out
