"""Blocks of a scene's normal life, and the threshold that keeps to a budget of alerts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.core.budget import BLOCKS_A_DAY, CAPACITY, Blocks, needed

ON, OFF, CEILING = 2.0, 0.5, 5.0
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def quiet(levels: NDArray[np.float64]) -> Blocks:
    blocks = Blocks()
    for level in levels:
        blocks.add_quiet(float(level))
    return blocks


def test_a_day_of_blocks_is_needed_and_more_for_a_smaller_budget() -> None:
    levels = np.linspace(-5, 1, needed(0.25))
    assert quiet(levels[: BLOCKS_A_DAY - 1]).threshold(1.0) is None
    assert quiet(levels[:BLOCKS_A_DAY]).threshold(1.0) is not None
    assert quiet(levels[:-1]).threshold(0.25) is None
    assert quiet(levels).threshold(0.25) == pytest.approx(1.0)
    assert needed(0.1) <= CAPACITY


@pytest.mark.parametrize(("count", "budget"), [(288, 1.0), (288, 3.0), (2016, 1.0), (4032, 0.1), (4032, 40.0)])
def test_without_alerts_it_is_split_conformal_to_the_letter(count: int, budget: float) -> None:
    levels = np.random.default_rng(count).normal(size=count).astype(np.float32)
    rank = int(np.ceil((count + 1) * (1 - budget / BLOCKS_A_DAY) - 1e-6))
    threshold = quiet(levels).threshold(budget)
    assert threshold == np.nextafter(np.sort(levels)[rank - 1], np.float32(np.inf))


def test_a_block_that_reaches_no_higher_than_before_is_no_alert() -> None:
    threshold = quiet(np.full(300, 0.7)).threshold(1.0)
    assert threshold is not None
    assert np.float32(0.7) < threshold < 0.7001


def test_p_values_of_normal_blocks_are_uniform_and_agree_with_the_threshold() -> None:
    rng = np.random.default_rng(1)
    blocks = quiet(rng.normal(size=1000))
    p_values = np.array([blocks.p_value(level) for level in rng.normal(size=2000)])
    assert p_values.mean() == pytest.approx(0.5, abs=0.03)
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.02)
    threshold = blocks.threshold(1.0)
    assert threshold is not None
    assert blocks.p_value(threshold) <= 1 / BLOCKS_A_DAY < blocks.p_value(threshold - 1e-3)


def test_old_blocks_are_forgotten() -> None:
    blocks = quiet(np.full(CAPACITY, 4.0))
    for _ in range(CAPACITY):
        blocks.add_quiet(-1.0)
    assert len(blocks) == CAPACITY
    assert blocks.threshold(1.0) == pytest.approx(-1.0, abs=1e-3)


def test_alerts_raise_the_threshold_and_more_of_them_more() -> None:
    levels = np.random.default_rng(2).normal(0, 0.5, 600)
    found = []
    for count in (0, 5, 50, 500):
        blocks = quiet(levels)
        for _ in range(count):
            blocks.add_alerts(1, ON)
        found.append(blocks.threshold(1.0))
    assert blocks.p_value(found[-1] or 0.0) <= 1 / BLOCKS_A_DAY + 1e-6
    assert found == sorted(found)
    assert found[0] < ON < found[1] < found[3]


def test_a_day_that_brings_more_than_its_share_raises_the_threshold_for_a_day() -> None:
    blocks = quiet(np.random.default_rng(2).normal(0, 0.5, 3600))
    before = blocks.threshold(1.0)
    for _ in range(4):
        blocks.add_alerts(1, 2.0)
    during = blocks.threshold(1.0)
    for level in np.random.default_rng(3).normal(0, 0.5, BLOCKS_A_DAY):
        blocks.add_quiet(level)
    after = blocks.threshold(1.0)
    assert before < after < 2.0 < during


def test_blocks_with_alerts_alone_say_nothing() -> None:
    blocks = Blocks()
    for _ in range(400):
        blocks.add_alerts(2, ON)
    assert blocks.threshold(1.0) is None
    assert blocks.p_value(ON) == 1.0


def gumbel(scale: float, place: float) -> Draw:
    """Maxima of independent windows."""
    return lambda rng, count: place + scale * rng.gumbel(size=count)


def wandering(scale: float, place: float, keep: float) -> Draw:
    """Maxima that stay up or down for `1 / (1 − keep)` blocks."""

    def draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        noise, level = rng.normal(size=count), np.zeros(count)
        for i in range(1, count):
            level[i] = keep * level[i - 1] + np.sqrt(1 - keep**2) * noise[i]
        return place + scale * level

    return draw


def with_days(scale: float, place: float) -> Draw:
    """Days louder than nights."""
    return lambda rng, count: place + np.sin(np.arange(count) / 46) + scale * rng.gumbel(size=count)


def lived(draw: Draw, days: int, seed: int, contaminated: float = 0.0) -> tuple[NDArray[np.float64], list[float]]:
    """Alerts of each day, and the threshold of each hour, of a scene that lives under its own threshold from the
    second day on: what is over it comes back as an alert, what is not as a quiet block."""
    rng, blocks, on = np.random.default_rng(seed), Blocks(), ON
    alerts, thresholds = np.zeros(days), []
    levels = draw(rng, days * BLOCKS_A_DAY)
    odd = rng.random(len(levels)) < contaminated
    levels[odd] = rng.uniform(0, CEILING, odd.sum())
    for index, level in enumerate(levels):
        if index % 12 == 0 or levels[index - 1] >= on:
            learned = blocks.threshold(1.0)
            on = ON if learned is None else min(max(learned, OFF), CEILING)
            thresholds.append(on)
        if level < on:
            blocks.add_quiet(float(level))
            continue
        alerts[index // BLOCKS_A_DAY] += not odd[index]
        if level < CEILING:
            blocks.add_alerts(1, on)
    return alerts, thresholds


@pytest.mark.parametrize(
    "draw",
    [
        gumbel(0.5, -4),
        gumbel(0.5, -1),
        gumbel(0.4, 1.5),
        wandering(0.7, 0, 0.9),
        wandering(0.7, 0.5, 0.98),
        with_days(0.4, 0),
    ],
    ids=["silent", "usual", "over the bundle's threshold", "slow", "slower", "days and nights"],
)
def test_the_budget_is_kept_to_and_the_threshold_does_not_sink(draw: Draw) -> None:
    lives = [lived(draw, 12, seed) for seed in range(2)]
    settled = np.array([alerts[2:] for alerts, _ in lives])
    assert settled.mean() <= 1.0 + 2 * 0.22  # 20 days: two deviations of the mean of a Poisson
    for _, thresholds in lives:
        assert min(thresholds[-48:]) > min(thresholds[24:96]) - 1.0


def test_contaminated_days_do_not_make_a_scene_deaf() -> None:
    clean, dirty = (lived(gumbel(0.4, -1), 12, 1, contaminated=share) for share in (0.0, 0.005))
    assert dirty[0][3:].mean() <= 1.0
    assert np.mean(clean[1][-96:]) < np.mean(dirty[1][-96:]) < CEILING - 0.5


def attacked(events_a_day: int, days: int, seed: int, *, told: bool = True) -> tuple[list[float], int]:
    """Median threshold of each day, and alerts, of a scene that was known for a week, then attacked by somebody who
    sees its threshold: so many events a day just over it, or (`told=False`) just under it."""
    rng, blocks, alerts, thresholds = np.random.default_rng(seed), quiet(np.zeros(0)), 0, []
    for level in -1 + 0.5 * rng.gumbel(size=7 * BLOCKS_A_DAY):
        blocks.add_quiet(min(float(level), ON - 0.01))
    for _ in range(days):
        chosen = set(rng.choice(BLOCKS_A_DAY, events_a_day, replace=False).tolist())
        today = []
        for index in range(BLOCKS_A_DAY):
            on = min(max(blocks.threshold(1.0) or ON, OFF), CEILING)
            today.append(on)
            if index in chosen and told and on < CEILING - 0.05:
                blocks.add_alerts(1, on)
                alerts += 1
            else:
                level = on - 0.01 if index in chosen else -1 + 0.5 * float(rng.gumbel())
                blocks.add_quiet(min(level, on - 0.01))
        thresholds.append(float(np.median(today)))
    return thresholds, alerts


def test_who_raises_no_alert_does_not_move_the_threshold() -> None:
    for events in (1, 30, 280):
        thresholds, alerts = attacked(events, 4, 1, told=False)
        assert alerts == 0
        assert max(thresholds) <= ON + 0.05


def test_an_attacker_pays_for_the_threshold_in_alerts_and_gets_no_further_than_the_ceiling() -> None:
    """The figures of docs/explanation/calibration.md."""
    moved = {}
    for events in (1, 3, 10, 100):
        thresholds, alerts = attacked(events, 3, 2)
        moved[events] = [round(level - ON, 1) for level in thresholds]
        assert max(thresholds) <= CEILING
        assert alerts >= min(events, 3)
    assert max(moved[1]) <= 1.3
    assert moved[10][-1] >= 2.0


@given(
    st.lists(st.tuples(st.floats(-1e9, 1e9), st.integers(0, 500)), max_size=60),
    st.floats(0.1, 100),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_in_it_is_bounded_finite_and_restored_as_it_was(
    rows: list[tuple[float, int]], budget: float, times: int
) -> None:
    blocks = Blocks()
    for level, alerts in rows * 6**times:
        if alerts:
            blocks.add_alerts(alerts, level)
        else:
            blocks.add_quiet(level)
    again = Blocks()
    again.restore(blocks.rows())
    assert len(again) == len(blocks) <= CAPACITY
    threshold = blocks.threshold(budget)
    assert again.threshold(budget) == threshold
    assert threshold is None or -61 < threshold < 61
    for level in (-3.0, 0.0, 3.0):
        assert 0 < blocks.p_value(level) <= 1


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((CAPACITY + 1, 2), np.float32),
        np.zeros((3, 2), np.int64),
        np.array([[np.nan, 0]], np.float32),
        np.array([[0, -1]], np.float32),
        np.array([[1e9, 0]], np.float32),
    ],
)
def test_blocks_that_are_none_are_refused(rows: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="blocks"):
        Blocks().restore(rows)
