"""Each label shows what it stands for, measurably, in the modalities it is meant for, and in no other.

Every site is compared with the same site without the episode: what differs is the episode's doing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.simulate import NATURE, Episode, Site, quiet

Array = NDArray[np.float64]
START, RATE = 60.0, 16_000
#: A warehouse, a street at night, a hall and a yard by day.
SEEDS = (1, 2, 3, 12)
seeds = pytest.mark.parametrize("seed", SEEDS)


def episode(label: str, *modalities: str) -> Episode:
    length = NATURE[label].longest_s
    return Episode(label, START, START + length, modalities or NATURE[label].modalities)  # type: ignore[arg-type]


@lru_cache(maxsize=4)  # a site is pure: it may be asked again
def pair(seed: int, label: str) -> tuple[Site, Site]:
    """The site with the episode, and without."""
    return Site(seed, [episode(label)]), Site(seed)


def difference(seed: int, label: str, t: float) -> Array:
    """(H, W, 3): what the episode adds to the picture."""
    shown, calm = pair(seed, label)
    return shown.frame(t).astype(float) - calm.frame(t).astype(float)


def heard(seed: int, label: str, begin: float, end: float) -> tuple[Array, Array]:
    """Sound of [begin, end) s of the episode, with it and without."""
    shown, calm = pair(seed, label)
    first, count = int((START + begin) * RATE), int((end - begin) * RATE)
    return shown.sound(first, count).astype(float), calm.sound(first, count).astype(float)


def rms(wave: Array) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


def band(wave: Array, low: float, high: float) -> float:
    """Share of the power between low and high Hz."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return float(power[(hertz >= low) & (hertz < high)].sum() / power.sum())


def felt(seed: int, label: str, channel: str, begin: float, end: float) -> tuple[Array, Array]:
    """Values of a channel over the episode's seconds, with it and without; a drop-out repeats the last value."""
    out = []
    for site in pair(seed, label):
        values: list[float] = []
        for t in np.arange(START + begin, START + end, 1.0):
            found = [r.value for r in site.readings(float(t)) if r.channel == channel]
            values.append(found[0] if found else (values[-1] if values else 0.0))
        out.append(np.array(values))
    return out[0], out[1]


# --- where it does not show, nothing is different -------------------------------------------------------------------


@pytest.mark.parametrize("label", NATURE)
def test_an_episode_changes_only_the_modalities_it_is_visible_in(label: str) -> None:
    calm = Site(3)
    moments = START + np.linspace(0.3, NATURE[label].longest_s - 1, 6)
    for modality in NATURE[label].modalities:
        site = Site(3, [episode(label, modality)])
        views: dict[str, Callable[[Site, float], object]] = {
            "vision": lambda s, t: s.frame(t).tobytes(),
            "audio": lambda s, t: s.sound(int(t * RATE), 8000).tobytes(),
            "sensors": lambda s, t: s.readings(t),
        }
        for name, view in views.items():
            differs = any(view(site, float(t)) != view(calm, float(t)) for t in moments)
            assert differs == (name == modality), f"{label} in {modality} changes {name}"


def test_a_quiet_hour_has_no_smoke_no_blast_and_no_heat() -> None:
    for seed in SEEDS:
        site = Site(seed, quiet(seed, 3600))
        values: dict[str, list[float]] = {}
        for t in range(0, 3600, 2):
            for reading in site.readings(float(t)):
                values.setdefault(reading.channel, []).append(reading.value)
        assert max(values["smoke"]) < 8
        assert max(np.abs(np.diff(values["temperature"]))) < 3, "a door, and a drop-out of half a minute"
        loud = [np.abs(site.sound(t * RATE, RATE)).max() for t in range(0, 600, 2)]
        assert np.quantile(loud, 0.9) < 6000


# --- fire -----------------------------------------------------------------------------------------------------------


def flames(frame: Array) -> Array:
    """(H, W) bool: bright, more red than green, more green than blue."""
    red, green, blue = (frame[..., n].astype(float) for n in range(3))
    return (red > 215) & (red - green > 25) & (green - blue > 40)


@seeds
def test_fire_is_reddish_grows_and_flickers(seed: int) -> None:
    shown, calm = pair(seed, "fire")
    late = [flames(shown.frame(START + 12 + 0.1 * n)) for n in range(10)]
    usual = flames(calm.frame(START + 12)).sum()
    assert min(mask.sum() for mask in late) > usual + 60
    assert np.mean([mask.sum() for mask in late]) > flames(shown.frame(START + 1.0)).sum() + 60
    once, always = np.any(late, axis=0), np.all(late, axis=0)
    assert (once & ~always).sum() > 0.3 * once.sum(), "its edge is never the same"


@seeds
def test_fire_raises_smoke_then_heat(seed: int) -> None:
    smoke, calm = felt(seed, "fire", "smoke", 0, 30)
    assert abs(smoke[1] - calm[1]) < 1, "it takes seconds to reach the sensor"
    assert smoke[-1] > calm[-1] + 40
    heat, usual = felt(seed, "fire", "temperature", 0, 30)
    assert heat[-1] - usual[-1] > 4
    assert (heat - usual)[6] < (heat - usual)[-1] / 3
    co2, air = felt(seed, "fire", "co2", 0, 30)
    assert co2[-1] > air[-1] + 150


@seeds
def test_smoke_clears_after_the_fire(seed: int) -> None:
    after = NATURE["fire"].longest_s + 120
    smoke, calm = felt(seed, "fire", "smoke", after, after + 5)
    assert np.all(np.abs(smoke - calm) < 2)


@seeds
def test_fire_crackles(seed: int) -> None:
    wave, calm = heard(seed, "fire", 15, 21)
    added = wave - calm
    assert rms(added) > 100
    steps = np.abs(np.diff(added, prepend=0.0)).reshape(-1, 160).max(axis=1)
    assert steps.max() > 8 * np.median(steps), "single cracks stand out"


# --- people ---------------------------------------------------------------------------------------------------------


@seeds
def test_an_intruder_forces_the_door(seed: int) -> None:
    door, _ = felt(seed, "intrusion", "door", 0, 10)
    vibration, calm = felt(seed, "intrusion", "vibration", 0, 4)
    assert door.mean() > 0.8
    assert vibration.max() > max(1.0, 2 * calm.max())
    wave, usual = heard(seed, "intrusion", 0.2, 3)
    assert rms(wave) > 1.5 * rms(usual)


@seeds
def test_a_fight_moves_more_than_walking(seed: int) -> None:
    shown, calm = pair(seed, "fight")

    def moved(site: Site) -> float:
        shares = []
        for t in START + np.arange(1.0, 9.0, 0.5):
            change = np.abs(site.frame(t + 0.1).astype(float) - site.frame(t)).mean(axis=2)
            shares.append((change > 30).mean())
        return float(np.mean(shares))

    assert moved(shown) > moved(calm) + 0.004


@seeds
def test_a_fight_is_loud_and_shakes(seed: int) -> None:
    wave, calm = heard(seed, "fight", 1, 8)
    assert rms(wave) > 3 * rms(calm)
    assert band(wave - calm, 80, 4000) > 0.7
    vibration, usual = felt(seed, "fight", "vibration", 1, 8)
    assert vibration.mean() > usual.mean() + 0.3


# --- shots and blasts -----------------------------------------------------------------------------------------------


@seeds
def test_a_shot_is_an_impulse_with_a_tail_and_a_flash(seed: int) -> None:
    wave, _ = heard(seed, "gunshot", 0.0, 1.0)
    onset = int(0.2 * RATE)
    assert np.abs(wave[onset : onset + 80]).max() > 8 * np.abs(wave[:onset]).max(), "within 5 ms"
    ms = RATE // 1000
    early, tail = rms(wave[onset : onset + 15 * ms]), rms(wave[onset + 60 * ms : onset + 180 * ms])
    assert early > 1.8 * tail > 0, "a hall rings on, a yard less"
    assert difference(seed, "gunshot", START + 0.24).mean() > 8
    assert felt(seed, "gunshot", "vibration", 0, 2)[0].max() > 0.4


@seeds
def test_people_run_from_a_shot(seed: int) -> None:
    changes = [np.abs(difference(seed, "gunshot", START + t)).mean(axis=2) > 30 for t in (1.5, 1.7, 1.9)]
    assert (changes[0] ^ changes[2]).sum() > 60


@seeds
def test_an_explosion_flashes_shakes_and_rumbles(seed: int) -> None:
    assert difference(seed, "explosion", START + 0.05).mean() > 25
    shown, calm = pair(seed, "explosion")
    shaken = [shown.frame(START + 0.3 + 0.1 * n).astype(float) for n in range(3)]
    still = [calm.frame(START + 0.3 + 0.1 * n).astype(float) for n in range(3)]
    rows = slice(-20, None)
    assert np.abs(shaken[0] - shaken[1])[rows].mean() > 1.3 * np.abs(still[0] - still[1])[rows].mean()
    wave, usual = heard(seed, "explosion", 0.0, 2.0)
    assert np.abs(wave[: RATE // 50]).max() > 5000
    assert rms(wave[RATE : 3 * RATE // 2]) > 5 * rms(usual)
    assert band(wave[RATE // 2 :], 0, 300) > 0.6
    assert felt(seed, "explosion", "vibration", 0, 3)[0].max() > 4


# --- warnings -------------------------------------------------------------------------------------------------------


@seeds
def test_a_siren_sweeps_between_500_and_1500_hz(seed: int) -> None:
    wave, _ = heard(seed, "siren", 1.5, 7.5)
    assert band(wave, 500, 1500) > 0.7
    pieces = wave.reshape(-1, 800)
    peaks = np.abs(np.fft.rfft(pieces * np.hanning(800), 4096)).argmax(axis=1) * RATE / 4096
    assert np.ptp(peaks) > 250
    assert np.all((peaks > 400) & (peaks < 1600))


@seeds
def test_a_siren_comes_with_blue_and_red_light(seed: int) -> None:
    added = [difference(seed, "siren", START + 5 + 0.1 * n) for n in range(12)]
    assert max((d[..., 2] - d[..., 0]).mean() for d in added) > 2
    assert max((d[..., 0] - d[..., 2]).mean() for d in added) > 2


@seeds
def test_a_smoke_alarm_beeps_near_3_khz_and_has_its_reason(seed: int) -> None:
    wave, _ = heard(seed, "alarm", 1.0, 9.0)
    assert band(wave, 2800, 3400) > 0.7
    level = np.abs(wave).reshape(-1, 800).max(axis=1)
    assert 0.2 < (level > 1000).mean() < 0.6, "half a second on, half a second off, a pause"
    smoke, calm = felt(seed, "alarm", "smoke", 6, 10)
    assert (smoke - calm).min() > 15


@seeds
def test_an_alarm_blinks_red(seed: int) -> None:
    on, off = difference(seed, "alarm", START + 4.05), difference(seed, "alarm", START + 4.6)
    assert (on[..., 0] - on[..., 2]).mean() > (off[..., 0] - off[..., 2]).mean() + 1


@seeds
def test_glass_breaks_high_and_rings(seed: int) -> None:
    wave, calm = heard(seed, "glass_break", 0.2, 1.2)
    assert band(wave - calm, 2000, 8000) > 0.6
    assert rms(wave[RATE // 10 : RATE // 2]) > 2 * rms(calm)
    assert felt(seed, "glass_break", "vibration", 0, 2)[0].max() > 1


# --- hard negatives -------------------------------------------------------------------------------------------------


@seeds
def test_thunder_rolls_low_and_late_after_a_short_flash(seed: int) -> None:
    wave, calm = heard(seed, "thunder", 0.0, 6.0)
    assert np.array_equal(wave[: RATE // 2], calm[: RATE // 2]), "sound comes after light"
    assert band(wave[RATE:] - calm[RATE:], 0, 250) > 0.8
    assert difference(seed, "thunder", START + 0.12).mean() > 8
    assert abs(difference(seed, "thunder", START + 1.5).mean()) < 1


@seeds
def test_a_shadow_passes_and_only_darkens(seed: int) -> None:
    dark = [difference(seed, "shadow", START + t).mean(axis=2) for t in (3.0, 5.0, 7.0)]
    places = [np.average(np.arange(320), weights=np.maximum(-d, 0).sum(axis=0)) for d in dark]
    assert all(d.mean() < -1.5 for d in dark)
    assert abs(places[2] - places[0]) > 60


@seeds
def test_a_slammed_door_is_short_and_open_before(seed: int) -> None:
    wave, calm = heard(seed, "door_slam", 0.0, 2.5)
    added = wave - calm
    assert np.abs(added).max() > 1500
    assert rms(added[2 * RATE :]) < 0.02 * rms(added[: RATE // 4])
    door, _ = felt(seed, "door_slam", "door", -2, 0)
    assert door.max() == 1
    assert 0.4 < felt(seed, "door_slam", "vibration", 0, 2)[0].max() < 2


@seeds
def test_a_dropped_sensor_shakes_once_and_falls_silent(seed: int) -> None:
    shown, _ = pair(seed, "dropped_sensor")
    hits = [r.value for t in (0, 1) for r in shown.readings(START + t) if r.channel == "vibration"]
    assert max(hits) > 4
    for t in (4, 8, 12):
        assert "vibration" not in {r.channel for r in shown.readings(START + t)}
    assert felt(seed, "dropped_sensor", "smoke", 0, 10)[0].max() < 8


@seeds
def test_orange_clothes_are_orange_and_walk(seed: int) -> None:
    added = [difference(seed, "orange_person", START + t) for t in (6.0, 8.0, 10.0)]
    orange = [(d[..., 0] - d[..., 2]) > 60 for d in added]
    middles = [np.nonzero(mask)[1].mean() for mask in orange if mask.sum() > 8]
    assert len(middles) >= 2
    assert np.ptp(middles) > 15
    smoke, calm = felt(seed, "orange_person", "smoke", 0, 10)
    assert np.array_equal(smoke, calm)


@seeds
def test_a_warm_lamp_is_warm_and_steady(seed: int) -> None:
    added = [difference(seed, "warm_lamp", START + 5 + 0.3 * n) for n in range(5)]
    assert all((d[..., 0] - d[..., 2]).mean() > 0.8 for d in added)
    levels = np.array([d.mean() for d in added])
    assert np.ptp(levels) < 0.15 * levels.mean() + 0.3
    light, calm = felt(seed, "warm_lamp", "light", 2, 8)
    assert np.median(light - calm) > 60


@seeds
def test_a_sunset_turns_the_picture_red_slowly(seed: int) -> None:
    early, middle = difference(seed, "sunset", START + 4), difference(seed, "sunset", START + 30)
    assert middle[..., 2].mean() < middle[..., 0].mean() - 15
    assert abs(early[..., 2].mean()) < abs(middle[..., 2].mean()) / 3
