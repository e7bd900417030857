"""Normal footage: short films become long sessions that the pipeline takes as they come."""

from __future__ import annotations

import numpy as np

from models.bundle import UNCHOSEN, manifest, now
from models.config import preset
from models.data.media import Log, Pictures, Sound
from models.data.records import NORMAL, Recording
from models.evaluation.footage import Footage

TINY = preset("tiny")
SPEC = TINY.vision_spec


def film(name: str, level: int, split: str = "dev") -> Recording:
    frames = np.full((60, SPEC.height, SPEC.width, 3), level, np.uint8)
    frames[:, 0, 0, 0] = np.arange(60)  # each knows its number
    return Recording("films", name, split, name, NORMAL, pictures=Pictures(held=frames, rate_hz=10.0), ships=True)


def footage() -> Footage:
    rng = np.random.default_rng(0)
    sounds = [
        Recording("sounds", str(i), "dev", str(i), "casual", sound=Sound(held=rng.integers(-99, 99, n, np.int16)))
        for i, n in enumerate((40_000, 300))  # one is shorter than its fades
    ]
    room = Log(np.array([0.0, 60.0]), ("temperature",), np.array([[20.0], [26.0]]), np.zeros(2, np.int8))
    return Footage([film("a", 10), film("b", 20, "train"), film("c", 30)], sounds, [room], TINY)


def test_a_film_is_played_to_and_fro_with_sound_and_readings() -> None:
    (session, other), (trained, _) = (next(half.sessions()) for half in footage().halves())
    assert (session.name, session.kind, session.seconds) == ("films a", "films, trained nothing", 40.0)
    assert trained.kind == "films, parts that trained"
    samples = list(session.samples(manifest(TINY, UNCHOSEN, 0, {}, now())))
    frames = [s for s in samples if s.kind == "frame"]
    numbers = np.array([s.data[0, 0, 0] for s in frames], int)
    assert len(frames) == 3 * 80  # those that the model looks at
    assert {int(s.data[1, 1, 0]) for s in frames} == {10}
    assert np.abs(np.diff(numbers)).max() <= 3  # no jump: it turns round at its ends
    assert numbers[:6].tolist() == [1, 3, 4, 6, 8, 9]
    sound = np.concatenate([s.data for s in samples if s.kind == "audio"])
    assert len(sound) == 40 * TINY.audio_spec.rate_hz
    assert np.abs(sound.astype(int)).mean() > 100
    readings = [s for s in samples if s.kind == "reading"]
    assert [s.data.value for s in readings[:3]] == [20.0, 21.0, 22.0]
    foreign = [s for s in other.samples(manifest(TINY, UNCHOSEN, 0, {}, now())) if s.kind == "frame"]
    assert [(s.seq, s.captured_ns) for s in foreign] == [(s.seq, s.captured_ns) for s in frames]
    assert {int(s.data[1, 1, 0]) for s in foreign} == {20}
