"""How the audio encoder learns: what is done to the sound, what a batch says, what is exported."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from models.config import SOUNDS, Schedule, preset  # noqa: E402
from models.data import augment  # noqa: E402
from models.data.listening import frames_of, listen, pooled, windows_of  # noqa: E402
from models.network.frontend import MELS, MelPower  # noqa: E402
from models.network.graphs import build  # noqa: E402
from models.training import hearing  # noqa: E402
from models.training.hearing import KINDS, OWN, Course, Lesson, Listener, Told  # noqa: E402

TINY = preset("tiny")
SPEC = TINY.audio_spec


def _noise(seed: int, seconds: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).integers(-3000, 3000, int(seconds * SPEC.rate_hz)).astype(np.int16)


def _told(count: int = 4) -> list[Told]:
    threats = [Told("sesa", SOUNDS[i % 4], "", _noise(i)) for i in range(count)]
    everyday = [Told("esc10", "casual", ("rain", "dog")[i % 2], _noise(50 + i)) for i in range(count)]
    return [*threats, *everyday, Told("simulated", "other", "", _noise(99))]


def test_mel_power_of_a_clip_is_that_of_the_graph():
    pcm = _noise(1)
    graph = MelPower(SPEC)(torch.from_numpy(pcm.astype(np.float32))[None] / 32768)[0]
    assert torch.allclose(listen([pcm], SPEC)[0].power, graph, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("change", [augment.warped, augment.reverberant, augment.band_limited, augment.coded])
def test_what_is_not_changed_stays_and_what_is_changed_stays_power(change):
    power = torch.rand(6, MELS, 98) + 1e-3
    rng = np.random.default_rng(0)
    assert torch.allclose(change(power, rng, share=0.0), power)
    changed = change(power, rng, share=1.0)
    assert changed.shape == power.shape
    assert (changed >= 0).all()
    assert not torch.allclose(changed, power)


def test_a_room_adds_only_after_the_sound():
    power = torch.zeros(3, MELS, 98)
    power[:, :, 40] = 1.0
    heard = augment.reverberant(power, np.random.default_rng(1), share=1.0)
    assert (heard[:, :, :40] == 0).all()
    assert (heard[:, :, 41:60] > 0).all()


def test_a_batch_says_what_every_head_should_learn():
    course = hearing.everything(_told(), TINY)
    x, own, own_weight, kinds, kinds_weight = next(hearing.batches(course, frames_of(SPEC), seed=3))
    assert x.shape[1:] == (1, MELS, frames_of(SPEC))
    assert own.shape == (len(x), len(SOUNDS))
    assert kinds.shape == (len(x), 2)
    assert torch.allclose(own.sum(1), torch.ones(len(x)))
    # Threats say nothing of kinds; everyday sounds do, and are weak as what is no threat.
    first = course.lessons[0].count
    assert (kinds_weight[:first] == 0).all()
    assert float(kinds_weight.sum()) == pytest.approx(1.0)
    assert float(own_weight[:first].sum()) == pytest.approx(1.0)
    assert float(own_weight[first : first + course.lessons[1].count].sum()) == pytest.approx(
        hearing.BACKGROUND_WEIGHT
    )


def test_equal_seeds_give_equal_batches():
    course = hearing.everything(_told(), TINY)
    first, second = (next(hearing.batches(course, frames_of(SPEC), seed=5))[0] for _ in range(2))
    assert torch.equal(first, second)


def test_without_recordings_the_simulated_site_teaches_alone():
    sounds = [Told("simulated", name, "", _noise(i)) for i, name in enumerate(("casual", "other"))]
    course = hearing.everything(sounds, TINY)
    assert [lesson.weight[OWN] for lesson in course.lessons] == [1.0]
    assert len(course.noise) == 1


def test_teaching_moves_the_encoder_and_ends_ready_to_be_used():
    clips = listen([_noise(1), _noise(2)], SPEC)
    course = Course([Lesson(clips, {KINDS: ["a", "b"]}, {KINDS: 1.0}, 4)], clips, {KINDS: ("a", "b")})
    listener = Listener(build(TINY, 0).audio, TINY.embedding, course.heads)
    before = listener.graph.encoder.stem[0].weight.detach().clone()
    hearing.teach(listener, course, SPEC, Schedule(2, 4, 1e-2), seed=0)
    assert not torch.equal(before, listener.graph.encoder.stem[0].weight)
    assert not listener.training
    found = dict(zip(listener.outputs, listener(torch.zeros(3, SPEC.samples, dtype=torch.int16)), strict=True))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "embedding": (3, TINY.embedding),
        "logit": (3,),
        OWN: (3, len(SOUNDS)),
        KINDS: (3, 2),
    }


def test_windows_cover_the_clip_to_its_end_and_the_loud_ones_speak():
    pcm = np.zeros(int(2.3 * SPEC.rate_hz), np.int16)
    pcm[-SPEC.samples :] = 8000
    windows = windows_of(pcm, SPEC)
    assert len(windows) == 4
    assert (windows[-1] == 8000).all()
    values = np.arange(4, dtype=np.float32)
    assert 2.2 < float(pooled(values, windows)) <= 3
    assert windows_of(pcm[:100], SPEC).shape == (1, SPEC.samples)
