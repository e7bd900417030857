"""What the field does to signals: pure, seeded, of the right size, and no more than it says."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from models.data import augment, traces

RATE_HZ = 16_000


def _tone(hertz: float, size: float = 8000.0) -> np.ndarray:
    return (size * np.sin(2 * np.pi * hertz * np.arange(RATE_HZ) / RATE_HZ)).astype(np.int16)


def _rng() -> np.random.Generator:
    return np.random.default_rng(4)


CHANGES = {
    "coarse": lambda pcm: augment.coarse(pcm, _rng()),
    "companded": augment.companded,
    "shifted": lambda pcm: augment.shifted(pcm, _rng(), 400),
}


@pytest.mark.parametrize("name", CHANGES)
def test_sound_keeps_its_length_and_the_original_is_untouched(name):
    pcm = _tone(440)
    before = pcm.copy()
    first, second = CHANGES[name](pcm), CHANGES[name](pcm)
    assert np.array_equal(first, second)
    assert first.dtype == np.int16
    assert first.shape == pcm.shape
    assert np.array_equal(pcm, before)
    assert not np.array_equal(first, pcm)


def test_the_mu_law_costs_a_known_share():
    pcm = _tone(440)
    error = augment.companded(pcm).astype(float) - pcm
    assert 25 < 10 * np.log10(np.square(pcm.astype(float)).mean() / np.square(error).mean()) < 45


def test_a_poor_codec_loses_what_is_high_and_keeps_what_is_low():
    low, high = (augment.coarse(_tone(hertz), _rng()).astype(float).std() for hertz in (500, 7500))
    assert low > 5000
    assert high < 300


def test_a_shift_moves_by_no_more_than_it_may():
    pcm = np.zeros(1000, np.int16)
    pcm[500] = 9
    rng = _rng()
    places = {int(np.flatnonzero(augment.shifted(pcm, rng, 20))[0]) for _ in range(200)}
    assert min(places) >= 480
    assert max(places) <= 520
    assert len(places) > 20


def test_drift_is_slow_and_leaves_doors_and_gaps_alone():
    window = traces.trace(np.random.default_rng(0), 64, 0.5, None).readings
    moved = augment.drifted(window, _rng(), share=1.0)
    assert np.array_equal(moved[1:], window[1:])
    assert not np.array_equal(moved[0], window[0])
    assert (moved[0][window[2] == 0] == window[0][window[2] == 0]).all()
    assert (moved[0][6] == window[0][6]).all()  # the door
    assert np.isfinite(moved).all()


def test_a_poor_sensor_is_off_until_its_next_reading():
    window = traces.trace(np.random.default_rng(3), 64, 0.5, None).readings
    bad = augment.misread(window, _rng())
    assert np.array_equal(bad[1:], window[1:])
    assert (bad[0][window[2] == 0] == window[0][window[2] == 0]).all()
    held = np.diff(window[1], axis=1) > 0
    off = bad[0] - window[0]
    assert np.allclose(np.diff(off, axis=1)[held], 0, atol=1e-3)
    assert (np.abs(off[window[2] > 0]) > 0).mean() > 0.5
    assert (bad[0] >= np.minimum(window[0], 0)).all()


def test_another_room_is_read_from_some_moment_on():
    here, there = (np.ones((3, 12, 64), np.float32) * value for value in (2, 5))
    there[2, 3] = 0
    mixed = augment.swapped(here, there, _rng())
    begin = int(np.argmax(mixed[0, 0] == 5))
    assert 16 <= begin < 64
    assert (mixed[0, 0, :begin] == 2).all()
    assert (mixed[0, 0, begin:] == 5).all()
    assert (mixed[0, 3] == 2).all()
    assert np.array_equal(mixed[1:], here[1:])


def test_modalities_go_missing_as_often_as_asked():
    rng = _rng()
    masks = np.stack([augment.modalities_dropped(np.ones((8, 3), np.float32), rng, 0.3) for _ in range(1000)])
    assert 0.26 < (masks.max(1) == 0).mean() < 0.36
    assert set(np.unique(masks)) == {0.0, 1.0}


def test_what_is_narrow_has_nothing_above_its_limit_and_all_below():
    pcm = np.random.default_rng(0).integers(-3000, 3000, 16_000).astype(np.int16)
    for seed in range(6):
        before, after = (
            np.abs(np.fft.rfft(x.astype(float))) for x in (pcm, augment.narrow(pcm, np.random.default_rng(seed)))
        )
        assert after[6100:].mean() < 0.1 * before[6100:].mean()
        assert np.corrcoef(before[100:3100], after[100:3100])[0, 1] > 0.95
    assert len(augment.narrow(pcm[:3], np.random.default_rng(0))) == 3
