"""Readers of recorded sets, on folders made up here; splits that hold; generators that repeat."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
soundfile = pytest.importorskip("soundfile", reason="pip install soundfile")

from edge_agent.contract.event import MODALITIES  # noqa: E402
from edge_agent.errors import ConfigError  # noqa: E402
from models.config import preset  # noqa: E402
from models.data import logs, sounds, traces  # noqa: E402
from models.data.compose import Composer, Track  # noqa: E402
from models.data.records import Clip, Corpus, check_groups  # noqa: E402
from models.data.staging import Stage  # noqa: E402

TINY = preset("tiny")


def _table(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def _sound(path: Path, rate_hz: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800, np.int16), rate_hz)


@pytest.fixture
def esc10(tmp_path: Path) -> Path:
    rows = [
        "a.flac,1,0,dog_bark,11,A,5,CC0,x,u,train",
        "b.flac,4,0,rain,12,A,5,CC-BY,x,u,dev",
        "c.flac,2,0,rain,13,A,5,CC-Sampling+,x,u,train",
        "d.flac,5,0,rain,14,A,5,CC0,x,u,hidden",
    ]
    header = "filename,fold,target,category,freesound_clip_id,take,orig_duration_s,licence,author,source_url,split"
    _table(tmp_path / "esc10" / "meta.csv", header, rows)
    for name in "ab":  # c and d must not even be opened
        _sound(tmp_path / "esc10" / "audio" / f"{name}.flac")
    return tmp_path


def test_esc10_leaves_out_what_the_licence_or_the_split_forbids(esc10):
    assert [(c.group, c.split) for c in sounds.esc10(esc10, 16_000)] == [("11", "train"), ("12", "dev")]


def test_sesa_takes_labels_and_splits_from_the_table_only(tmp_path):
    header = "filename,official_split,target,category,duration_s,rms_dbfs,use,group"
    rows = [
        "train/casual_001.flac,train,1,gunshot,1,-20,dev,7",
        "test/siren_9.flac,test,0,casual,1,-20,train,8",
        "test/x.flac,test,0,casual,1,-20,hidden,9",
    ]
    _table(tmp_path / "sesa" / "meta.csv", header, rows)
    _sound(tmp_path / "sesa" / "train" / "casual_001.flac")
    _sound(tmp_path / "sesa" / "test" / "siren_9.flac")
    found = [(c.label, c.split, c.group) for c in sounds.sesa(tmp_path, 16_000)]
    assert found == [("gunshot", "dev", "7"), ("casual", "train", "8")]


def test_a_wrong_rate_is_refused(tmp_path, esc10):
    _sound(tmp_path / "esc10" / "audio" / "a.flac", 8_000)
    with pytest.raises(ConfigError, match="8000 Hz"):
        sounds.esc10(esc10, 16_000)


def test_a_missing_set_says_what_can_be_done_without_it(tmp_path):
    with pytest.raises(ConfigError, match="--data none"):
        sounds.sesa(tmp_path, 16_000)


def test_occupancy_never_reads_light(tmp_path):
    header = "date,Temperature,Humidity,Light,CO2,HumidityRatio,Occupancy"
    for name in ("datatraining.csv", "datatest.csv"):
        _table(tmp_path / "occupancy" / name, header, ["2015-02-04 17:51:00,23.2,27.3,426.0,721.0,0.005,1"])
    train, dev = logs.occupancy(tmp_path)
    assert (train.split, dev.split) == ("train", "dev")
    assert set(train.rows[0]) == {"temperature", "humidity", "co2"}


def test_nab_failures_are_left_out_and_degrees_are_celsius(tmp_path):
    name = "realKnownCause/ambient_temperature_system_failure.csv"
    hours = [f"2014-01-01 {hour:02d}:00:00,{32 + 1.8 * hour}" for hour in range(10)]
    _table(tmp_path / "nab" / "data" / name, "timestamp,value", hours)
    labels = tmp_path / "nab" / "labels" / "combined_windows.json"
    labels.parent.mkdir(parents=True)
    labels.write_text(json.dumps({name: [["2014-01-01 02:00:00.000", "2014-01-01 05:00:00.000"]]}))
    values = [round(row["temperature"]) for table in logs.ambient(tmp_path) for row in table.rows]
    # The window's own first hour is a shorter text than its bound: both ends are inside.
    assert 3 not in values
    assert 4 not in values
    assert {0, 1, 9} <= set(values)


def test_a_group_in_two_splits_stops_everything():
    clips = [Clip("sesa", split, "5", "casual", np.zeros(1, np.int16)) for split in ("train", "dev")]
    with pytest.raises(ConfigError, match="two splits"):
        Corpus(clips=tuple(clips))


@pytest.mark.needs("data")
def test_no_group_of_the_recorded_sets_crosses(data_root):
    with (data_root / "sesa" / "meta.csv").open(newline="") as file:
        check_groups((row["group"], row["use"]) for row in csv.DictReader(file))
    with (data_root / "esc10" / "meta.csv").open(newline="") as file:
        check_groups((row["freesound_clip_id"], row["split"]) for row in csv.DictReader(file))


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
    assert all(traces.dropped(rng, window)[2].any() for _ in range(50))


def _composer() -> Composer:
    def track(kind: str, level: float) -> Track:
        active = np.full(16, int(kind == "wrong"), np.int8)
        return Track(
            np.full((16, TINY.embedding), level, np.float32), active, "fire" if kind == "wrong" else "", kind
        )

    tracks = {name: [track("normal", 0.0), track("wrong", 1.0)] for name in MODALITIES}
    return Composer.of(tracks, [], TINY.history)


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
