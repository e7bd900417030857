"""The recipe for fights: sound that is silent has no say, sources stay together, films of any kind are read."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge_agent.contract.manifest import AudioSpec, VisionSpec
from edge_agent.errors import ConfigError
from models.__main__ import SHIPPED
from models.benchmark import fights
from models.benchmark.fights import Features, Heads, Item, SoundGraph, judge
from models.benchmark.record import Roots
from models.network.backbone import Trunk


def write_film(path: Path, *, jerky: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (96, 64))
    for index in range(8):
        frame = np.full((64, 96, 3), 60, np.uint8)
        x, y = rng.integers(0, 60, 2) if jerky else (10 + index, 20)
        frame[int(y) : int(y) + 16, int(x) : int(x) + 20] = 200
        writer.write(frame)
    writer.release()


def make_set(root: Path, count: int, seed: int = 0) -> Path:
    (root / "fight_surv" / "clips").mkdir(parents=True)
    with (root / "fight_surv" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("clip", "label", "fight", "source_video", "audio", "split"))
        for index in range(count):
            fight = index % 2
            name = f"{seed}-{index}.avi"
            write_film(root / "fight_surv" / "clips" / name, jerky=bool(fight), seed=seed + index)
            # The table says that there is sound; the files hold none.
            table.writerow((name, "x", fight, f"source {index // 2}", "ok", "dev" if index < 4 else "train"))
    return root


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(blocks: int) -> Trunk:
        torch.manual_seed(0)
        return Trunk(blocks).eval()

    monkeypatch.setattr(fights, "imagenet", untrained)
    monkeypatch.setattr(fights, "SPEC", VisionSpec(width=64, height=32))
    monkeypatch.setattr(fights, "BLOCKS", 2)


def some_features(count: int, heard: int) -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(0)
    fight = (np.arange(count) % 2).astype(np.float32)
    video = rng.normal(0, 1, (count, 4)).astype(np.float32) + fight[:, None]
    audio = rng.normal(0, 1, (count, 3)).astype(np.float32)
    has = np.arange(count) < heard
    audio[~has] = 0
    return Features(video, video[:, :2], audio, has), fight


def test_a_silent_track_carries_no_weight() -> None:
    own, fight = some_features(40, 20)
    found = Heads.fit(own, fight, 0.2).scores(own)
    assert (found["audio"][20:] == 0).all()
    assert np.array_equal(found["fused"][20:], found["video"][20:])
    assert not np.array_equal(found["fused"][:20], found["video"][:20])


def item(index: int, fight: float, counted: bool) -> Item:
    none, frames = np.zeros((0, 16_000), np.int16), np.zeros((1, 5, 8, 8), np.uint8)
    return Item(str(index), str(index // 2), fight, frames, np.zeros(1, np.float32), none, counted)


def test_sound_gets_the_share_that_does_no_harm() -> None:
    own, fight = some_features(80, 80)
    items = [item(i, float(fight[i]), True) for i in range(80)]
    assert fights.harmless(own, items, fight, 0) < 0.2  # it is noise
    telling = Features(own.motion, own.changes, own.audio + 4 * fight[:, None], own.heard)
    assert fights.harmless(telling, items, fight, 0) == 0.2
    deaf = Features(own.motion, own.changes, own.audio, np.zeros(80, np.bool_))
    assert fights.harmless(deaf, items, fight, 0) == 0.0


def test_without_any_sound_vision_alone_is_trained() -> None:
    own, fight = some_features(20, 0)
    heads = Heads.fit(own, fight)
    assert heads.audio is None
    found = heads.scores(own)
    assert np.array_equal(found["fused"], found["video"])


def test_figures_are_over_the_clips_with_sound() -> None:
    own, fight = some_features(12, 8)
    items = [item(i, float(fight[i]), bool(own.heard[i])) for i in range(12)]
    score = {"video": fight, "audio": 1 - fight, "fused": fight}
    found = judge(items, score, 0)
    assert (found.metrics["auc_video"], found.metrics["auc_audio"]) == (1.0, 0.0)
    assert found.metrics["fused_minus_best_low"] == 0.0
    assert sum(row.key == "fused" for row in found.predictions) == 8
    assert sum(row.key == "all_clips" for row in found.predictions) == 12


def test_what_the_sound_graph_says_does_not_hang_on_the_level() -> None:
    rng = np.random.default_rng(0)
    pcm = (rng.normal(0, 3000, (1, 16_000)) * np.linspace(0.2, 1, 16_000)).astype(np.int16)
    graph = SoundGraph(AudioSpec()).eval()
    with torch.inference_mode():
        loud, soft = (graph(torch.from_numpy(wave))[0] for wave in (pcm, pcm // 4))
    assert float((loud - soft).abs().max()) < 0.05


@pytest.mark.usefixtures("_small")
def test_films_under_another_root_are_judged_in_every_form(tmp_path: Path) -> None:
    here, there = make_set(tmp_path / "a", 12), make_set(tmp_path / "b", 4, 100)
    block = fights.recipe(Roots(here, there, ("torch", "onnxruntime")), 0)
    assert block.n == 4
    assert list(block.judged) == [("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    figures = block.judged["onnxruntime", "int8"].metrics
    assert figures["auc_video"] == figures["auc_fused"] == 1.0
    assert figures["auc_audio"] == 0.5  # nothing is heard
    assert block.baselines["flow statistics"]["auc_fused"] > 0.5
    assert "concatenation" not in block.baselines  # without sound there is nothing to join


def test_one_root_is_cross_validated_over_sources_and_the_bundle_sees_normal_clips_alone(tmp_path: Path) -> None:
    root = make_set(tmp_path, 10)
    plan = fights.planned(Roots(root, root), 0, VisionSpec(width=64, height=32), 0)
    for train, tested in plan.folds:
        sources = [{plan.items[int(i)].source for i in part} for part in (train, tested)]
        assert not sources[0] & sources[1]
    assert sorted(plan.tested) == list(range(10))
    block = fights.bundle(Roots(root, root, ("onnxruntime",)), 0, SHIPPED)
    assert {"auc_video", "auc_fused", "auc_novelty"} <= block.judged["onnxruntime", "int8"].metrics.keys()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("wanted", "audio", "counted"), [("1", "ok", 2), ("", "none", 0)])
def test_clips_of_one_class_or_without_sound_give_finite_figures(
    tmp_path: Path, wanted: str, audio: str, counted: int
) -> None:
    here, there = make_set(tmp_path / "a", 12), make_set(tmp_path / "b", 4, 100)
    table = there / "fight_surv" / "labels.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"audio": audio} for row in rows if row["fight"] == wanted or not wanted)
    roots = Roots(here, there, ("onnxruntime",))
    for block in (fights.recipe(roots, 0), fights.bundle(roots, 0, SHIPPED)):
        assert block.n == counted
        metrics = next(iter(block.judged.values())).metrics
        assert metrics["auc_fused"] == 0.5
        assert (metrics["auc_fused_low"], metrics["auc_fused_high"]) == (0.0, 1.0)
        assert np.isfinite(list(metrics.values())).all()
        assert any("no tested clip has sound" in note for note in block.notes) == (not counted)


def test_a_root_without_clips_is_refused(tmp_path: Path) -> None:
    here, there = make_set(tmp_path / "a", 4), make_set(tmp_path / "b", 2)
    for path in (there / "fight_surv" / "clips").iterdir():
        path.unlink()
    for root, reason in ((there, "names no row of the wanted split"), (tmp_path, "cannot read the label table")):
        with pytest.raises(ConfigError, match=reason):
            fights.planned(Roots(here, root), 0, VisionSpec(width=64, height=32), None)


def test_another_microphone_loses_the_upper_band_and_adds_nothing_to_silence() -> None:
    time_s = np.arange(16_000) / 16_000
    tones = (6000 * (np.sin(2 * np.pi * 500 * time_s) + np.sin(2 * np.pi * 7900 * time_s))).astype(np.int16)
    high = []
    for seed in range(20):
        spectrum = np.abs(np.fft.rfft(fights.recorded(tones[None], np.random.default_rng(seed))[0]))
        assert spectrum[500] > 0.9 * 8000 * 6000
        high.append(float(spectrum[7900]) / (8000 * 6000))
    assert min(high) < 0.01
    assert max(high) > 0.5
    assert fights.recorded(np.zeros((0, 16_000), np.int16), np.random.default_rng(0)).shape == (0, 16_000)
