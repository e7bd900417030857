"""Readers of recorded sets, on folders made up here; splits that hold; generators that repeat."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.config import preset
from models.data import augment, sets, traces
from models.data.compose import Composer, Kind, Track, Trio
from models.data.corpus import Corpus, read_corpus
from models.data.records import Recording
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
