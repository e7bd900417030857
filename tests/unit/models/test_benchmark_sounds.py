"""Benchmarks of sounds on clips made up here: what trains, what is tested, what is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")
soundfile = pytest.importorskip("soundfile", reason="pip install soundfile")

from edge_agent.errors import ConfigError  # noqa: E402
from models.benchmark import listeners, recordings, sounds  # noqa: E402
from models.benchmark.record import Roots  # noqa: E402
from models.benchmark.splits import Parts  # noqa: E402

RATE = listeners.SPEC.rate_hz
NAMES = ("casual", "gunshot", "explosion", "siren")


def _wave(seed: int, seconds: float = 1.2) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4000, 4000, int(seconds * RATE)).astype(np.int16)


def _write(path: Path, seed: int, rate_hz: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, _wave(seed), rate_hz)


def _set(root: Path, clips: Sequence[tuple[str, str]], kinds: Sequence[tuple[str, str]]) -> Path:
    """SESA with (use, category) and ESC-10 with (split, category) in it."""
    for name, header, rows in (
        ("sesa", "filename,use,category", clips),
        ("esc10", "filename,split,category,fold", kinds),
    ):
        lines = [header]
        for index, (split, category) in enumerate(rows):
            folder = root / name / "audio" if name == "esc10" else root / name
            _write(folder / f"{split}{index}.wav", index)
            fold = f",{2 + index % 2}" if name == "esc10" else ""
            lines.append(f"{split}{index}.wav,{split},{category}{fold}")
        (root / name / "meta.csv").write_text("\n".join(lines) + "\n")
    return root


def test_noise_of_the_kinds_that_test_never_trains(tmp_path):
    kinds = [("train", "rain"), ("train", "dog_bark"), ("dev", "sea_waves"), ("dev", "rooster")]
    root = _set(tmp_path, [("train", "casual"), ("train", "siren"), ("dev", "siren")], kinds)
    data = sounds.read_threats(Roots(root, root))
    assert [clip.name for clip in data.background] == ["dog_bark"]
    assert [clip.name for clip in data.unseen] == ["sea_waves", "rooster"]
    assert len(data.noise) == 1
    assert (len(data.train), len(data.test)) == (2, 1)


def test_a_root_without_everyday_sounds_is_no_error(tmp_path):
    near = _set(tmp_path / "a", [("train", "casual"), ("dev", "siren")], [("train", "rain"), ("dev", "rooster")])
    far = _set(tmp_path / "b", [("hidden", "siren"), ("hidden", "casual")], [("test", "rain")])
    (far / "esc10" / "meta.csv").unlink()
    data = sounds.read_threats(Roots(near, far))
    assert (len(data.train), len(data.test), len(data.unseen)) == (2, 2, 0)
    assert [clip.name for clip in data.background] == ["rooster"]
    assert len(data.noise) == 1  # rain of the train root: it trained nothing either


def test_noise_lies_at_the_ratio_that_is_said():
    rng = np.random.default_rng(0)
    clip, noise = _wave(1, 3.0), _wave(2, 1.0) // 3
    heard = listeners.mixed(clip, noise, 10, rng).astype(float)
    added = heard - clip
    assert 10 * np.log10(np.square(clip.astype(float)).mean() / np.square(added).mean()) == pytest.approx(10, abs=0.1)
    loud = listeners.mixed(np.full(2000, 30000, np.int16), noise, 0, rng)
    assert np.abs(loud.astype(int)).max() <= 32767


def test_all_figures_of_threats_come_from_the_answers():
    clips = [listeners.Clip(f"{i}.wav", NAMES[i % 4], _wave(i)) for i in range(8)]
    unseen = [listeners.Clip("e.wav", "rooster", _wave(90))]
    data = sounds.Threats(Parts([], [], "", 0, 0), [], clips, [], unseen, listeners.synthetic_noise()[:2])

    def answer(engine: Any, heard: Sequence[np.ndarray]) -> tuple[np.ndarray, list[str]]:
        if len(heard) == 1:
            return np.array([0.5], np.float32), ["casual"]
        return np.array([float(i % 4 > 0) for i in range(len(heard))], np.float32), [NAMES[i % 4] for i in range(8)]

    found = sounds.judge_threats(None, data, 0, answer)  # type: ignore[arg-type]
    wanted = {f"{key}{suffix}": 1.0 for key in ("accuracy", "threat_auc") for suffix in ("", "_snr10", "_snr0")}
    assert found.metrics == {**wanted, "background_alarms": 0.0}
    assert {row.key for row in found.predictions} >= {"threat", "class", "class_snr0", "background"}


class _Loudness:
    """An engine whose embedding is how loud a window is, and whose own classes say nothing."""

    def run(self, graph: str, items: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        level = [np.float32(np.abs(item["pcm"].astype(np.float32)).mean() / 1000) for item in items]
        nothing = np.zeros(5, np.float32)
        return [{"embedding": np.array([x, -x]), "logit": np.float32(0), "sounds": nothing} for x in level]


def test_a_head_on_whole_clips_learns_what_the_embedding_tells():
    def clip(index: int) -> listeners.Clip:
        return listeners.Clip(f"{index}.wav", NAMES[index % 4], _wave(index) // (1 + 3 * (index % 4)))

    data = sounds.Threats(Parts([], [], "", 0, 0), [clip(i) for i in range(24)], [], [], [], [])
    head = sounds.ClipHead.fit(_Loudness(), data, 0)  # type: ignore[arg-type]
    assert head.names == NAMES
    score, said = head(_Loudness(), [clip(i).pcm for i in (100, 103)])  # type: ignore[arg-type]
    assert score[0] < score[1]
    assert said == ["casual", "siren"]


def test_folds_that_are_tested_never_train(tmp_path):
    kinds = [(split, name) for split in ("train", "dev") for name in ("dog_bark", "rooster") for _ in range(2)]
    root = _set(tmp_path, [("train", "casual")], kinds)
    every = sounds.esc_train(Roots(root, root), "")
    left = sounds.esc_train(Roots(root, root), "2")
    assert len(every) == 8
    assert len(left) == 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ["file,label,split"]
    for index in range(20):
        split, label = ("train", "dev")[index % 5 == 0], ("ok", "broken")[index % 2]
        _write(tmp_path / "audio_folder" / f"{index}.wav", index, 8_000 if index == 3 else RATE)
        lines.append(f"{index}.wav,{label},{split}")
    (tmp_path / "audio_folder" / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_folder_of_sounds_from_reading_to_int8(folder, monkeypatch):
    monkeypatch.setattr(recordings, "STEPS", 1)
    monkeypatch.setattr(listeners, "CALIBRATION", 2)
    found = recordings.recipe(Roots(folder, folder, ("openvino",)), 0)
    assert found.judged.keys() == {("openvino", "fp32"), ("openvino", "int8")}
    assert all(judged.metrics.keys() == {"auc", "accuracy"} for judged in found.judged.values())
    assert found.n == 4
    assert "mel statistics" in found.baselines


def test_a_folder_without_labels_is_normal_but_cannot_be_tested(folder):
    (folder / "audio_folder" / "labels.csv").unlink()
    with pytest.raises(ConfigError, match="labelled sounds to test"):
        recordings.read_folder(Roots(folder, folder), 0)


def test_sounds_that_cannot_be_read_are_left_out_and_told(folder):
    (folder / "audio_folder" / "5.wav").write_text("no sound")
    (folder / "audio_folder" / "6.wav").write_bytes(b"")
    data = recordings.read_folder(Roots(folder, folder), 0)
    assert (len(data.train), len(data.test)) == (15, 3)
    assert "2 sounds are empty or cannot be read" in data.notes[-1]
    assert "5.wav" in data.notes[-1]
    assert "6.wav" in data.notes[-1]


@pytest.mark.parametrize("name", recordings.CHANGES)
def test_a_change_is_heard(name):
    pcm = _wave(5)
    changed = recordings.change(pcm, name, np.random.default_rng(0))
    assert changed.dtype == np.int16
    assert changed.shape == pcm.shape
    assert not np.array_equal(changed, pcm)
