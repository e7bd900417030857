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
from models.benchmark import listeners, recordings, sounds, spectrograms  # noqa: E402
from models.benchmark.record import Roots  # noqa: E402
from models.benchmark.splits import Parts  # noqa: E402
from models.runtime import variants  # noqa: E402

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


def test_threats_need_casual_clips_and_others_to_train(tmp_path):
    root = _set(tmp_path, [("train", "siren"), ("train", "gunshot"), ("dev", "casual")], [("train", "rain")])
    with pytest.raises(ConfigError, match="must hold casual clips"):
        sounds.read_threats(Roots(root, root))


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
    """An engine that hears and sees how loud a window is, and whose listener says nothing."""

    def run(self, graph: str, items: Sequence[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        level = [np.float32(np.abs(item["pcm"].astype(np.float32)).mean() / 1000) for item in items]
        seen = [np.array([x, -x]) for x in level]
        silent = {"sounds": np.zeros(5, np.float32), "kinds": np.zeros(2, np.float32)}
        return [{"picture": x, "embedding": x, **silent} for x in seen]


def test_a_head_on_whole_clips_learns_what_the_pictures_tell():
    sounds_ = [_wave(i) // (1 + 3 * (i % 4)) for i in range(24)]
    found = listeners.clip_outputs(_Loudness(), sounds_, ("picture",), most=("picture",))  # type: ignore[arg-type]
    looked = spectrograms.features(found)
    assert looked.shape == (24, 3)
    head = spectrograms.ClipHead.fit(looked, [NAMES[i % 4] for i in range(24)], NAMES)
    chances = head(_Loudness(), [_wave(100), _wave(103) // 10], "sounds", range(4))  # type: ignore[arg-type]
    assert [head.names[int(i)] for i in chances.argmax(1)] == ["casual", "siren"]


def test_a_listener_and_a_looker_answer_as_one():
    one, other = _Loudness(), _Loudness()
    other.run = lambda graph, items: [{"embedding": np.ones(3)} for _ in items]  # type: ignore[method-assign]
    both = spectrograms.Together(one, other)  # type: ignore[arg-type]
    (found,) = both.run("audio", [{"pcm": _wave(1)}])
    assert found["sounds"].shape == (5,)
    assert found["picture"].tolist() == [1, 1, 1]


def test_the_trunk_sees_a_clip_alike_in_every_engine():
    clips = [listeners.Clip(str(i), "", _wave(i, 1.0)) for i in range(3)]
    rows = {}
    for engine, precision, ready in variants(spectrograms.looker()):
        found = listeners.clip_outputs(ready, [clip.pcm for clip in clips], ("embedding",), most=("embedding",))
        rows[engine, precision] = spectrograms.features(found, "embedding")
    plain = rows["torch", "fp32"]
    assert plain.shape == (3, 3 * (80 + 112 + 192))
    assert np.allclose(spectrograms.seen([clip.pcm for clip in clips]), plain, atol=1e-2)
    for found in rows.values():
        assert np.abs(found - plain).mean() < 1e-3 * np.abs(plain).mean()


def test_a_listener_travels_and_answers_alike_in_every_engine():
    clips = [listeners.Clip(str(i), ("dog", "rain")[i % 2], _wave(i)) for i in range(4)]
    taught = listeners.trained(sounds.kinds_course(clips, clips[:1]), 2, 0)
    listener = listeners.listener_of({"kinds": ("dog", "rain")}, listeners.weights_of(taught))
    rows = {}
    for engine, precision, ready in variants(listeners.made_of(listener, clips, 0)):
        rows[engine, precision] = listeners.clip_outputs(ready, [clip.pcm for clip in clips], ("kinds",))["kinds"]
    plain = rows["torch", "fp32"]
    assert plain.shape == (4, 2)
    for (_, precision), found in rows.items():
        assert np.abs(found - plain).max() < {"fp32": 1e-3, "int8": 0.2}[precision] * np.abs(plain).max()


@pytest.mark.parametrize("one_root", [True, False])
def test_everyday_kinds_from_reading_to_int8(tmp_path, monkeypatch, one_root):
    monkeypatch.setattr(listeners, "CALIBRATION", 2)
    monkeypatch.setattr(sounds, "KINDS_STEPS", 1)
    monkeypatch.setattr(sounds, "side_by_side", lambda function, items: [function(item) for item in items])
    taught: list[list[str]] = []
    course = sounds.kinds_course
    monkeypatch.setattr(
        sounds, "kinds_course", lambda clips, casual: taught.append([c.item for c in clips]) or course(clips, casual)
    )
    kinds = [(("train", "dev")[i > 5], ("rain", "dog")[i // 2 % 2]) for i in range(8)]
    near = _set(tmp_path / "a", [("train", "casual")], kinds)
    far = near if one_root else _set(tmp_path / "b", [("hidden", "casual")], [("hidden", "rain"), ("hidden", "dog")])
    found = sounds.esc10_recipe(Roots(near, far, ("openvino",)), 0)
    assert found.n == (8 if one_root else 2)
    assert found.judged.keys() == {("openvino", "fp32"), ("openvino", "int8")}
    for judged in found.judged.values():
        assert sorted(judged.metrics) == ["accuracy", *(["accuracy_fold2", "accuracy_fold3"] if one_root else [])]
        assert len({row.item for row in judged.predictions}) == found.n
    names = [f"{split}{i}.wav" for i, (split, _) in enumerate(kinds)]  # folds 2 and 3 in turn
    assert list(map(set, taught)) == ([set(names[1::2]), set(names[::2])] if one_root else [set(names)])


def test_folds_that_are_tested_never_train():
    """Names that nothing tells: a head knows them by heart where it was taught them, and guesses where it was not."""
    rng = np.random.default_rng(0)
    names, folds = [("rain", "dog")[i] for i in rng.integers(0, 2, 60)], [str(i % 3) for i in range(60)]
    rows = rng.normal(0, 1, (1, 60, 40)).astype(np.float32)
    heads = sounds.heads_left_out(rows, names, folds)
    assert sorted(heads) == ["0", "1", "2"]
    for fold, head in heads.items():
        said = np.array([head.names[i] for i in head.looked(rows[0]).argmax(1)])
        right, inside = said == np.array(names), np.array(folds) == fold
        assert right[~inside].mean() == 1
        assert right[inside].mean() < 0.9


def test_kinds_are_judged_fold_by_fold():
    """Heads of two folds, one of which has learned the names the wrong way round."""
    clips = [listeners.Clip(str(i), ("dog", "rain")[i % 2], _wave(i) // (1 + 9 * (i % 2))) for i in range(8)]
    engine: Any = _Loudness()
    found = listeners.clip_outputs(engine, [c.pcm for c in clips], ("embedding",), most=("embedding",))
    rows = spectrograms.features(found, "embedding")
    heads = {
        "2": spectrograms.ClipHead.fit(rows, [clip.name for clip in clips], ("dog", "rain")),
        "3": spectrograms.ClipHead.fit(rows, [clip.name for clip in clips[1:] + clips[:1]], ("dog", "rain")),
    }
    fold_of = {clip.item: "2" if int(clip.item) < 4 else "3" for clip in clips}
    told = sounds.judge_kinds({"2": engine, "3": engine}, clips, fold_of, heads)
    assert told.metrics == {"accuracy": 0.5, "accuracy_fold2": 1.0, "accuracy_fold3": 0.0}
    assert len(told.predictions) == 8


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


def test_what_is_usual_is_near_and_what_varies_counts_less():
    rng = np.random.default_rng(0)
    normal = rng.normal(0, 1, (40, 6)) * [5, 1, 1, 1, 1, 1]
    usual = recordings.Usual.fit(normal.astype(np.float32))
    middle, along, across, far = usual(np.array([[0] * 6, [5, 0, 0, 0, 0, 0], [0, 5, 0, 0, 0, 0], [0, 50] + [0] * 4]))
    assert middle < along < across < far


def test_one_normal_clip_will_do():
    usual = recordings.Usual.fit(np.ones((1, 4), np.float32))
    near, far = usual(np.array([[1, 1, 1, 1], [2, 1, 1, 1]], np.float32))
    assert near < far
