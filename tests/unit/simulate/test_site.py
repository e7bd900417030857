"""A site is a pure function of its seed and of time."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from edge_agent.simulate import CHANNELS, NATURE, Episode, Site, demo, schedule

EVERYTHING = tuple(
    Episode(label, 20.0 + 45.0 * n, 20.0 + 45.0 * n + nature.shortest_s, nature.modalities)
    for n, (label, nature) in enumerate(NATURE.items())
)


@pytest.mark.parametrize("seed", [0, 2, 3, 5])
def test_the_same_seed_gives_the_same_bytes_in_any_order(seed: int) -> None:
    times = [0.0, 0.1, 21.3, 66.7, 155.0, 203.25, 4000.0, 86_399.9]
    first, second = Site(seed, EVERYTHING), Site(seed, reversed(EVERYTHING))
    forward = [
        (first.frame(t).tobytes(), first.readings(t), first.sound(int(t * 16_000), 800).tobytes()) for t in times
    ]
    shuffled = list(enumerate(times))
    random.Random(seed).shuffle(shuffled)
    for index, t in shuffled:
        again = second.sound(int(t * 16_000), 800).tobytes(), second.readings(t), second.frame(t).tobytes()
        assert again == forward[index][::-1]


def test_sound_is_the_same_however_it_is_cut() -> None:
    whole = Site(4, EVERYTHING).sound(18 * 16_000, 5 * 16_000)
    site = Site(4, EVERYTHING)
    cuts = [0, 1, 799, 8000, 8001, 31_999, 64_000, 80_000]
    pieces = [site.sound(18 * 16_000 + a, b - a) for a, b in pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_other_seeds_are_other_places() -> None:
    sites = [Site(seed, width=160, height=120) for seed in range(16)]
    assert len({site.place for site in sites}) == 4
    assert len({site.frame(5.0).tobytes() for site in sites}) == 16
    assert len({site.sound(0, 4000).tobytes() for site in sites}) == 16


@pytest.mark.parametrize(("width", "height"), [(320, 240), (64, 48), (641, 361), (240, 320)])
def test_pictures_have_the_size_that_was_asked_for(width: int, height: int) -> None:
    frame = Site(6, EVERYTHING, width=width, height=height).frame(30.0)
    assert frame.shape == (height, width, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 15, "a picture, not a flat colour"


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_sound_has_the_rate_that_was_asked_for(rate_hz: int) -> None:
    wave = Site(6, EVERYTHING, rate_hz=rate_hz).sound(rate_hz // 3, 2 * rate_hz)
    assert wave.shape == (2 * rate_hz,)
    assert wave.dtype == np.int16


def test_readings_are_finite_physical_and_not_always_there() -> None:
    site = Site(8, EVERYTHING)
    seen: dict[str, list[float]] = {channel: [] for channel in CHANNELS}
    for t in range(0, 3600, 3):
        for reading in site.readings(float(t)):
            seen[reading.channel].append(reading.value)
    limits = {
        "temperature": (-20, 80),
        "humidity": (0, 100),
        "smoke": (0, 1000),
        "co2": (380, 5000),
        "light": (0, 20_000),
        "vibration": (0, 30),
        "door": (0, 1),
    }
    for channel, values in seen.items():
        low, high = limits[channel]
        assert low <= min(values) <= max(values) <= high, channel
    assert any(len(values) < 1200 for values in seen.values()), "sensors drop out now and then"
    assert all(len(values) > 900 for values in seen.values())


def test_readings_change_once_a_second() -> None:
    site = Site(8)
    assert site.readings(100.0) == site.readings(100.99)
    assert site.readings(100.0) != site.readings(101.0)


def test_memory_is_bounded() -> None:
    site = Site(1, demo(1, 3600), width=64, height=48)

    def use(begin: int, end: int) -> None:
        for t in range(begin, end, 8):
            site.frame(float(t))
            site.sound(t * 16_000, 8000)
            site.readings(float(t))

    use(0, 800)
    tracemalloc.start()
    use(800, 1400)
    early = tracemalloc.get_traced_memory()[0]
    use(1400, 3000)
    grown = tracemalloc.get_traced_memory()[0] - early
    tracemalloc.stop()
    assert grown < 12 << 20, "three times as long may not need more"


def test_nobody_but_an_intruder_enters_the_forbidden_area() -> None:
    calm = _motion_inside(Site(13), 0.0, 60.0)
    broken = _motion_inside(Site(13, [Episode("intrusion", 0, 14, ("vision",))]), 2.0, 12.0)
    assert np.median(broken) > 0.03 > np.quantile(calm, 0.98)


def _motion_inside(site: Site, begin_s: float, end_s: float) -> list[float]:
    """Share of the forbidden area that changes visibly within 0.2 s, every second."""
    xs, ys = zip(*site.forbidden, strict=True)
    rows = slice(int(min(ys) * site.height), int(max(ys) * site.height))
    cols = slice(int(min(xs) * site.width), int(max(xs) * site.width))
    shares = []
    for t in np.arange(begin_s, end_s, 1.0):
        before, after = (site.frame(t + dt)[rows, cols].astype(int).mean(axis=2) for dt in (0.0, 0.2))
        shares.append(float(np.mean(np.abs(after - before) > 25)))
    return shares


@pytest.mark.parametrize("wrong", [{"width": 10}, {"height": 10}, {"fps": 0}, {"rate_hz": 4000}])
def test_what_cannot_be_rendered_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 64x48"):
        Site(1, **wrong)


def test_a_long_script_is_no_slower_to_search() -> None:
    long = schedule(1, 20_000)
    t = long[-1].start_s + 1.0
    assert np.array_equal(Site(1, long).frame(t), Site(1, long[-2:]).frame(t))
