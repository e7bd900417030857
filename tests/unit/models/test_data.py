"""Readers of recorded sets, on folders made up here; splits that hold; generators that repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.config import preset
from models.data import augment, flames, sets, staging, traces
from models.data.compose import Composer, Kind, Track, Trio
from models.data.corpus import Corpus, read_corpus
from models.data.lookalikes import blows, lookalikes
from models.data.records import Recording, check_groups
from models.data.staging import Stage

TINY = preset("tiny")


def test_the_corpus_holds_what_may_ship_under_the_trainers_labels(tmp_path, monkeypatch):
    def clip(source: str, label: str, split: str = "train", *, ships: bool = True) -> Recording:
        return Recording(source, label, split, label + split, label, ships=ships)

    monkeypatch.setattr(
        sets,
        "esc10",
        lambda _: [clip("esc10", "rain"), clip("esc10", "fire_crackling"), clip("esc10", "x", ships=False)],
    )
    monkeypatch.setattr(
        sets,
        "sesa",
        lambda _: [clip("sesa", "normal"), clip("sesa", "siren", "dev"), clip("sesa", "gunshot", "hidden")],
    )
    for name in ("sample_videos", "fire_video", "occupancy", "ambient"):
        monkeypatch.setattr(sets, name, lambda _: [])
    found = [(c.source, c.label, c.split, c.facts.get("kind")) for c in read_corpus(tmp_path).clips]
    assert found == [
        ("esc10", "casual", "train", "rain"),
        ("sesa", "casual", "train", None),
        ("sesa", "siren", "dev", None),
    ]
    assert read_corpus(None) == Corpus()


def test_a_missing_set_says_what_can_be_done_without_it(tmp_path):
    with pytest.raises(ConfigError, match="--data none"):
        read_corpus(tmp_path)


def test_a_group_in_two_splits_stops_everything():
    clips = [Recording("sesa", split, split, "5", "casual") for split in ("train", "dev")]
    with pytest.raises(ConfigError, match="two splits"):
        Corpus(clips=tuple(clips))


def test_staged_pictures_repeat_and_say_where():
    stages = [Stage([], [], TINY.vision_spec, 5, made_up=4) for _ in range(2)]
    scripts = [stage.script(np.random.default_rng(1), "fire") for stage in stages]
    first, second = (stage.picture(script, 2) for stage, script in zip(stages, scripts, strict=True))
    assert np.array_equal(first.frames, second.frames)
    assert first.frames.shape == (5, TINY.vision_spec.height, TINY.vision_spec.width)
    assert set(np.unique(first.cells)) <= {-1.0, 0.0, 1.0}


def test_a_fire_that_shines_is_red_before_all_and_still_where_time_stands_still():
    for seed in range(8):
        fire = flames.blaze(np.random.default_rng(seed), 60, 80, (0.0, 0.0, -0.3))
        red, green, blue = np.moveaxis(fire.light, -1, 0)
        assert (red >= green).all()
        assert (green >= blue).all()
        assert red.max() > 0
        assert 0 <= fire.density.min() <= fire.density.max() <= 1
        assert (fire.hidden <= fire.density * 1.6 + 1e-6).all()
        assert np.array_equal(fire.light[0], fire.light[1])
        assert not np.array_equal(fire.light[0], fire.light[2])


def test_a_fire_is_marked_where_it_can_be_seen():
    fire = flames.blaze(np.random.default_rng(1), 80, 80, (0.0, 0.0, 0.0))
    fire = replace(fire, hidden=np.zeros_like(fire.hidden))
    marks = []
    for level in (20.0, 255.0):
        views, cells = np.full((3, 160, 240, 3), level, np.float32), np.zeros((160, 240), np.float32)
        staging._shine(np.random.default_rng(2), views, fire, (100, 60), cells)
        assert views.max() <= 255
        outside = np.ones_like(cells, bool)
        outside[60:140, 100:180] = False
        assert cells[outside].max() == 0
        marks.append(float(cells.sum()))
    dark, bright = marks
    assert dark > 3 * bright  # before a white wall little of it is left to see


def test_nothing_is_marked_where_nothing_is_wrong():
    stage = Stage([], [], TINY.vision_spec, 5, made_up=4)
    rng = np.random.default_rng(0)
    assert all(stage.picture(stage.script(rng, "nothing")).cells.max() == 0 for _ in range(4))


@pytest.mark.parametrize("wrong", traces.WRONG)
def test_a_trace_knows_when_it_is_wrong(wrong):
    made = traces.trace(np.random.default_rng(0), 128, 0.5, wrong)
    assert made.active.any()
    assert not made.active[:60].any()
    assert np.isfinite(made.readings).all()
    assert made.readings[2].any()


def test_a_sensor_that_falls_silent_is_known_by_its_last_reading_which_ages():
    for seed in range(40):
        made = traces.trace(np.random.default_rng(seed), 128, 0.5, None, (), (20.0, 4.0), "dropped_sensor").readings
        silent = [c for c in range(12) if made[2, c].any() and made[1, c, -1] > 10.0]
        for channel in silent:
            assert (made[0, channel, -20:] == made[0, channel, -1]).all()
            assert np.allclose(np.diff(made[1, channel, -20:]), 0.5)
        if silent:
            return
    raise AssertionError("no sensor fell silent in 40 traces")


def test_what_sounds_like_a_threat_is_heard_by_itself_and_no_threat():
    made = {split: list(lookalikes(split, 16_000, 2)) for split in ("train", "dev")}
    for split, clips in made.items():
        items = ["thunder 0", "thunder 1", "door_slam 0", "door_slam 1", *(f"blow {i}" for i in range(6))]
        assert [clip.item for clip in clips] == items
        assert {(clip.label, clip.split) for clip in clips} == {("casual", split)}
        assert all(np.abs(clip.pcm(16_000)).max() > 2_000 for clip in clips)
    check_groups((clip.group, clip.split) for clips in made.values() for clip in clips)
    sounds = [clip.pcm(16_000).tobytes() for clips in made.values() for clip in clips]
    assert len(set(sounds)) == len(sounds)


def test_blows_are_soon_gone():
    for index in range(20):
        wave = blows(np.random.default_rng(index), 16_000).astype(np.float64)
        assert 16_000 <= len(wave) <= 10 * 16_000
        level = np.sqrt(np.square(wave[: len(wave) // 160 * 160].reshape(-1, 160)).mean(1))
        assert level.max() > 5 * np.median(level)
        assert level.max() > 3 * level[-20:].max()


def test_missing_channels_leave_at_least_one():
    rng = np.random.default_rng(0)
    window = traces.trace(rng, 64, 0.5, None).readings
    assert all(augment.dropped(window, rng)[2].any() for _ in range(50))


def _composer() -> Composer:
    def track(kind: Kind, level: float) -> Track:
        active = np.full(16, int(kind == "wrong"), np.int8)
        found = np.full((16, TINY.embedding), level, np.float32)
        mask = np.full(16, float(kind != "missing"), np.float32)
        return Track(found, active, "fire" if kind == "wrong" else "", kind, mask)

    pairs: tuple[tuple[Kind, float], ...] = (("normal", 0.0), ("wrong", 1.0), ("missing", 0.0))
    trios = [Trio({name: track(*pair) for name in MODALITIES}, "several") for pair in pairs]
    return Composer.of(trios, [], TINY.history)


def test_a_window_is_wrong_only_by_what_is_present():
    windows = _composer().draw(np.random.default_rng(0), 400, missing=0.4)
    for i in range(400):
        seen = [
            windows.mask[i, -3:, column].any() and windows.history[name][i].max() == 1.0
            for column, name in enumerate(MODALITIES)
        ]
        if windows.wrong[i] >= 0:
            assert bool(windows.wrong[i]) == any(seen)
    assert 0.3 < (windows.wrong == 1).mean() < 0.7


def test_an_absent_modality_has_no_target_of_its_own():
    windows = _composer().draw(np.random.default_rng(1), 200, missing=0.5)
    absent = ~windows.mask.any(1)
    assert absent.any()
    assert (windows.own[absent] == -1).all()
