"""Leaks between splits are found and stop a run; what there is of each class is told and evened out."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.manifest import VisionSpec
from edge_agent.errors import ConfigError
from models.data import balance, leaks
from models.data.media import Log, Pictures, Readings, Sound
from models.data.records import Recording

SMALL = VisionSpec(width=32, height=16)


def _chirps(seed: int, seconds: float = 5.0) -> np.ndarray:
    """A sound with a course of its own: tones that come and go."""
    rng = np.random.default_rng(seed)
    tones = [
        np.sin(2 * np.pi * rng.uniform(100, 7000) * np.arange(4800) / 16_000) * rng.uniform(500, 9000)
        for _ in range(int(seconds * 4))
    ]
    return (np.concatenate(tones) + rng.normal(0, 40, int(seconds * 4) * 4800)).astype(np.int16)


def _sound(split: str, pcm: np.ndarray, group: str = "") -> Recording:
    return Recording("made", f"{split}{group}", split, group or split, sound=Sound(held=pcm))


def test_different_sounds_do_not_leak():
    recordings = [_sound("train" if i % 2 else "dev", _chirps(i), str(i)) for i in range(12)]
    assert leaks.leaks(recordings) == []
    leaks.check(recordings)


@pytest.mark.parametrize("disguise", ["louder", "later", "filtered", "noisy"])
def test_a_planted_near_copy_stops_the_run(disguise):
    sound = _chirps(1).astype(np.float64)
    changed = {
        "louder": sound * 1.7,
        "later": np.concatenate([np.zeros(5000), sound[:-4000]]),
        "filtered": np.convolve(sound, [0.5, 0.3, 0.2], "same"),
        "noisy": sound + np.random.default_rng(0).normal(0, 60, len(sound)),
    }[disguise]
    recordings = [
        _sound("train", _chirps(1)),
        _sound("train", _chirps(2), "b"),
        _sound("dev", changed.astype(np.int16)),
    ]
    with pytest.raises(ConfigError, match="sound alike") as caught:
        leaks.check(recordings)
    assert "made/train (train)" in str(caught.value)
    assert "made/dev (dev)" in str(caught.value)


def test_the_same_content_in_another_file_is_a_leak(tmp_path: Path):
    pcm = _chirps(3, 1.0)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.concatenate([np.zeros(300, np.int16), pcm]).tobytes())
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3)).astype(np.uint8)
    log = Log(np.arange(3.0), ("x",), np.arange(3.0)[:, None], np.zeros(3, np.int8))
    for parts in (
        ({"sound": Sound(tmp_path / "a.wav")}, {"sound": Sound(held=pcm)}),
        ({"pictures": Pictures(held=pictures)}, {"pictures": Pictures(held=pictures.copy())}),
        ({"readings": Readings(held=log)}, {"readings": Readings(held=log.part(slice(None)))}),
    ):
        recordings = [Recording("x", s, s, s, **part) for s, part in zip(("train", "dev"), parts, strict=True)]
        assert [leak.kind for leak in leaks.leaks(recordings, SMALL)] == ["content"]


def test_a_group_in_two_splits_is_a_leak_and_one_without_a_split_is_none():
    assert [k.kind for k in leaks.leaks([Recording("x", "a", "train", "g"), Recording("x", "b", "dev", "g")])] == [
        "group"
    ]
    assert leaks.leaks([Recording("x", "a", "", "g"), Recording("x", "b", "dev", "g")]) == []


def test_silence_is_like_nothing():
    assert leaks.leaks([_sound("train", np.zeros(32_000, np.int16)), _sound("dev", np.zeros(32_000, np.int16))]) == []


def test_the_table_counts_recordings_and_hours():
    rows = balance.table(
        [
            _sound("train", _chirps(0)),
            Recording(
                "x", "y", "dev", "z", "fire", pictures=Pictures(held=np.zeros((36, 2, 2, 3), np.uint8), rate_hz=10)
            ),
        ]
    )
    assert [(r.split, r.label, r.modality, r.count) for r in rows] == [
        ("dev", "fire", "vision", 1),
        ("train", "unlabelled", "audio", 1),
    ]
    assert rows[0].hours == pytest.approx(0.001)
    assert "| dev | vision | fire | 1 | 0.00 |" in balance.markdown(rows)


def test_rare_classes_are_drawn_more_often():
    odds = balance.weights(["a"] * 9 + ["b"])
    assert odds.sum() == pytest.approx(1.0)
    assert odds[9] == pytest.approx(3 * odds[0])
    assert balance.weights(["a"] * 9 + ["b"], 1.0)[9] == pytest.approx(0.5)
