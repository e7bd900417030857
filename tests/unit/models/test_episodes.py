"""Composed episodes: a frozen mixture, a manifest that says everything, the same windows for trainer and device."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.config import preset
from models.data import mixture
from models.data.episodes import Renderer, arrivals, audible, stage_of
from models.data.media import Log, Pictures, Readings, Sound
from models.data.mixture import HARD, MIXTURE, SHOWN, Shelf, plan
from models.data.records import NORMAL, Recording, Span
from models.data.traces import trace
from models.data.tracks import TrackMaker

TINY = preset("tiny")
STEPS = 6


def _recordings() -> list[Recording]:
    rng = np.random.default_rng(0)

    def film(item: str, label: str, spans: tuple[Span, ...] = ()) -> Recording:
        frames = rng.integers(0, 200, (40, 160, 240, 3)).astype(np.uint8)
        return Recording("made", item, "train", item, label, spans, pictures=Pictures(held=frames))

    def sound(item: str, label: str) -> Recording:
        held = (rng.normal(0, 2000, 24_000)).astype(np.int16)
        return Recording("made", item, "train", item, label, sound=Sound(held=held))

    log = Log(np.arange(20.0), ("temperature", "co2"), rng.uniform(15, 900, (20, 2)), np.full(20, -1, np.int8))
    room = Recording("made", "room", "train", "room", "", readings=Readings(held=log))
    unusual = (Span(1.0, 3.0, "unusual"),)
    return [
        film("walk", NORMAL),
        film("bike", "", unusual),
        film("blaze", "fire"),
        sound("rain", "rain"),
        sound("shot", "gunshot"),
        room,
    ]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    recordings = _recordings()
    return Renderer(Shelf(recordings), stage_of(recordings, TINY, 0, 4), TINY)


def test_the_mixture_is_frozen():
    # A change here is another mixture: give it another version, and say so on the card.
    assert (MIXTURE.version, MIXTURE.digest[:12]) == (1, "895ba0861cd2")


def test_a_quarter_shows_in_each_modality_alone_and_in_several():
    entries = plan(Shelf(_recordings()), "train", 1000)
    shown = Counter(entry.shown for entry in entries)
    wrong = sum(shown[name] for name in SHOWN)
    assert 0.45 < wrong / 1000 < 0.55
    assert all(0.19 < shown[name] / wrong < 0.31 for name in SHOWN)
    assert set(HARD) <= {entry.hard for entry in entries if not entry.wrong}
    assert {"missing", "noisy", "frozen", "contradicting"} <= {
        part.state for entry in entries for part in entry.parts
    }


def test_an_episode_shows_its_cause_where_it_says():
    for entry in plan(Shelf(_recordings()), "train", 500):
        wrong = [part for part in entry.parts if part.wrong]
        assert len(wrong) == {"nothing": 0, "several": len(wrong)}.get(entry.shown, 1)
        assert entry.shown != "several" or len(wrong) >= 2
        assert not entry.wrong or any(part.state == "well" for part in wrong)
        assert all(part.cause for part in wrong)
        assert not any(part.cause for part in entry.parts if not part.wrong and not entry.hard)


def test_a_manifest_comes_back_as_it_was_and_a_longer_one_begins_alike(tmp_path):
    shelf = Shelf(_recordings())
    mixture.write(tmp_path / "m.jsonl", plan(shelf, "dev", 20))
    assert mixture.read(tmp_path / "m.jsonl") == plan(shelf, "dev", 40)[:20]
    assert plan(shelf, "dev", 20) != plan(shelf, "train", 20)
    (tmp_path / "m.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match="manifest"):
        mixture.read(tmp_path / "m.jsonl")


def test_what_does_not_belong_on_the_shelf_is_left_out():
    fight = Recording("x", "f", "train", "f", "fight", pictures=Pictures(held=np.zeros((1, 2, 2, 3), np.uint8)))
    crackle = Recording("x", "c", "train", "c", "fire_crackling", sound=Sound(held=np.zeros(4, np.int16)))
    shelf = Shelf([fight, crackle])
    assert not shelf.by_key
    # With nothing recorded, what is heard is generated as the simulated site does it.
    assert {p.cause for e in plan(shelf, "train", 60) for p in e.parts if p.wrong and p.modality == "audio"} == {
        "made:gunshot",
        "made:explosion",
    }


def test_what_is_encoded_are_those_windows(renderer):
    entry = next(e for e in plan(renderer.shelf, "train", 50) if e.parts[2].state == "missing" and e.parts[1].wrong)
    sizes = {}

    def encode(name, inputs):
        sizes[name] = inputs.shape
        return np.ones((len(inputs), TINY.embedding), np.float32)

    trio = TrackMaker(TINY, encode).episode(renderer.render(entry, STEPS))
    assert set(sizes) == set(MODALITIES) - {p.modality for p in entry.parts if p.state == "missing"}
    assert trio.shown == entry.shown
    assert trio.tracks["sensors"].kind == "missing"
    assert not trio.tracks["sensors"].mask.any()
    assert trio.tracks["audio"].embeddings.shape == (STEPS, TINY.embedding)


@pytest.mark.parametrize("index", [2, 5, 7])
def test_the_device_makes_the_same_windows_of_an_episode(renderer, index):
    entry = plan(renderer.shelf, "train", 10)[index]
    episode = renderer.render(entry, STEPS)
    windows = episode.windows()
    assert [w.step for w in windows] == [TINY.sensor_spec.steps + i for i in range(STEPS)]
    for window in windows:
        assert (window.vision is not None) == ("vision" in episode.present)
        assert (window.audio is not None) == ("audio" in episode.present)
    if episode.views is not None:
        now = windows[-1].vision
        assert now is not None
        assert np.array_equal(now[:3].transpose(1, 2, 0), episode.views[-1, 0])
    if episode.pcm is not None:
        assert np.array_equal(windows[-1].audio, episode.pcm[-TINY.audio_spec.samples :])
    again = renderer.render(entry, STEPS)
    assert all((again.active[name] == episode.active[name]).all() for name in MODALITIES)
    assert again.views is None or np.array_equal(again.views, episode.views)


def test_labels_of_a_recorded_cause_are_those_of_its_table(renderer):
    entries = [e for e in plan(renderer.shelf, "train", 400) if any(p.cause == "made/bike@train" for p in e.parts)]
    episode = renderer.render(next(e for e in entries if e.parts[0].state == "well"), 16)
    assert set(np.unique(episode.active["vision"])) == {0, 1}


def test_a_threat_is_wrong_where_it_can_be_heard():
    added = np.zeros(16_000 * 4, np.float32)
    added[20_000:22_000] = 9000.0
    assert audible(added, 16_000, 8_000, 7).tolist() == [0, 1, 1, 0, 0, 0, 0]


def test_readings_arrive_once_and_in_order():
    made = trace(np.random.default_rng(3), 40, 0.5, None, (), (10.0, 4.0), "dropped_sensor")
    felt = arrivals(made.readings, 0.5)
    assert (np.diff(felt.time_s) >= 0).all()
    for channel in np.unique(felt.channel):
        assert (np.diff(felt.time_s[felt.channel == channel]) > 0).all()
    assert felt.time_s.max() <= 20.0
