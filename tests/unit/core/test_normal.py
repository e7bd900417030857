"""What a scene learns of itself: its threshold after a day, what is new to it, and what never enters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import SceneConfig
from edge_agent.contract.event import Event
from edge_agent.contract.manifest import Manifest, Thresholds
from edge_agent.core.budget import BLOCKS_A_DAY
from edge_agent.core.decide import Decider, Observed
from edge_agent.core.drift import Drift
from edge_agent.core.infer import Encoded, logit, sigmoid
from edge_agent.core.normal import LEAD_STEPS, Normal, Ruling
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import Scores
from edge_agent.core.scene import Course
from tests.parts.engines import EMBEDDING, FakeEngine, fake_model, manifest
from tests.parts.samples import Script, seconds

STEP_MS = 10_000  # a day in 8640 windows
BLOCK = 300_000 // STEP_MS
DAY = BLOCKS_A_DAY * BLOCK
YARD = SceneConfig(name="yard", camera="cam")
ODD = np.full(EMBEDDING, 40.0)


class Life:
    """A scene that is fed logits and embeddings, window by window."""

    def __init__(self, scene: SceneConfig = YARD, seed: int = 1, start: Normal | None = None) -> None:
        self.scene = scene
        self.manifest: Manifest = manifest(
            step_ms=STEP_MS, thresholds=Thresholds(on=0.9, off=0.7, cooldown_steps=4, classes={"fire": 0.5})
        )
        self.decider = Decider(scene, self.manifest, "b" * 64)
        self.normal = start or Normal(self.manifest)
        self.course = Course()
        self.rng = np.random.default_rng(seed)
        self.step = BLOCK * 100

    def see(self, level: float | None = None, embedding: NDArray[Any] | None = None, **more: Any) -> list[Event]:
        """One window; usual where nothing is said."""
        level = float(self.rng.normal(-4, 0.5)) if level is None else level
        encoded = self.usual(embedding)
        scores = Scores(
            "yard", self.step, level, sigmoid(level), more.get("classes", {}), {}, {}, ("vision",),
            np.zeros(EMBEDDING, np.float32), None,
        )  # fmt: skip
        self.ruling: Ruling = self.normal.judge(self.scene, scores, encoded)
        events = self.decider.decide(self.course, Observed(self.step, scores, None, {}, self.ruling))
        self.normal.learn(
            self.step, self.scene, self.ruling, encoded, events,
            still_open=self.course.open, cooling=bool(self.course.cooling),
        )  # fmt: skip
        self.step += 1
        return events

    def usual(self, embedding: NDArray[Any] | None = None) -> Encoded:
        """A window as it usually looks, or as it is given."""
        vectors = np.zeros((3, EMBEDDING), np.float32)
        vectors[0] = self.rng.normal(self.rng.integers(3), 0.1, EMBEDDING) if embedding is None else embedding
        return Encoded(vectors, np.array([1, 0, 0], np.float32), None)

    def live(self, count: int, level: Callable[[], float] | None = None) -> list[Event]:
        return [event for _ in range(count) for event in self.see(level() if level else None)]

    @property
    def blocks(self) -> NDArray[Any]:
        return self.normal.to_arrays()["blocks_score"]


@pytest.fixture(scope="module")
def settled() -> Life:
    """Four and a half days are known, a few windows were lived."""
    life, rng = Life(), np.random.default_rng(5)
    life.normal.fill([life.usual() for _ in range(400)])
    arrays = life.normal.to_arrays()
    for cause, place in (("score", -3.0), ("novelty", 1.0)):
        levels = rng.gumbel(place, 0.1, BLOCKS_A_DAY * 9 // 2)
        arrays[f"blocks_{cause}"] = np.stack([levels, 0 * levels], 1).astype(np.float32)
    drift = Drift(3)
    for _ in range(BLOCKS_A_DAY):
        drift.observe([float(rng.normal(0, 0.3)), None, None])
        drift.close(quiet=True)
    life.normal = Normal.from_arrays(life.manifest, {**arrays, "drift": drift.to_array()})
    assert life.live(5 * BLOCK) == []
    return life


def at(life: Life, scene: SceneConfig = YARD) -> Life:
    """The same scene, to be changed by one test."""
    twin = Life(scene, seed=3, start=Normal.from_arrays(life.manifest, life.normal.to_arrays()))
    twin.step = life.step
    return twin


def test_for_a_day_the_bundle_rules_and_the_event_says_so() -> None:
    life = Life()
    arrays = life.normal.to_arrays()
    arrays["blocks_score"] = np.tile(np.array([[-3, 0]], np.float32), (BLOCKS_A_DAY - 4, 1))
    life.normal = Normal.from_arrays(life.manifest, arrays)
    life.live(3 * BLOCK)
    (new, *_) = life.live(3, lambda: 3.0)
    assert (new.phase, new.calibrating, new.p_value, new.threshold) == ("new", True, None, 0.9)
    life.live(4 * BLOCK)
    (new, *_) = [event for event in life.live(3, lambda: 5.0) if event.phase == "new"]
    assert not new.calibrating
    assert new.p_value is not None
    assert new.p_value <= 1 / BLOCKS_A_DAY + 1e-9


def test_a_noisy_scene_gets_a_higher_threshold() -> None:
    noisy = Life()

    def noise() -> float:
        return float(noisy.rng.normal(1.2, 0.7))

    first = noisy.live(DAY // 4, noise)
    assert sum(event.phase == "new" for event in first) >= 5
    arrays = noisy.normal.to_arrays()
    arrays["blocks_score"] = np.tile(arrays["blocks_score"], (BLOCKS_A_DAY // len(arrays["blocks_score"]) + 1, 1))
    noisy.normal = Normal.from_arrays(noisy.manifest, arrays)  # a day and some hours like this
    later = noisy.live(DAY // 4, noise)
    assert sum(event.phase == "new" for event in later) <= 1
    assert logit(0.9) < logit(noisy.normal.ruling(YARD).on or 0.0) <= logit(0.9) + 3 + 1e-9


def test_a_threshold_sinks_only_after_a_week_and_not_under_the_bundles_lower_one(settled: Life) -> None:
    assert settled.normal.ruling(YARD).on == pytest.approx(0.9)
    arrays = settled.normal.to_arrays()
    arrays["blocks_score"] = np.tile(arrays["blocks_score"], (2, 1))
    assert Normal.from_arrays(settled.manifest, arrays).ruling(YARD).on == pytest.approx(0.7)


def test_no_window_of_an_event_enters_nor_its_lead_nor_its_cool_down(settled: Life) -> None:
    life = at(settled)
    life.live(BLOCK - life.step % BLOCK + LEAD_STEPS + 5)  # the block before is in by now
    before = life.blocks
    life.live(BLOCK - life.step % BLOCK - 8)
    life.live(6, lambda: 1.9)  # high, but under the threshold: the lead
    events = life.live(6, lambda: 4.0)  # over the border of two blocks
    assert [event.phase for event in events if event.phase != "update"] == ["new"]
    events = life.live(3 * BLOCK)
    assert events[-1].phase == "end"
    rows = life.blocks[len(before) :]
    assert rows[0].tolist() == [pytest.approx(logit(0.9)), 1]  # how many, and above what: no more
    assert rows[1:, 1].tolist() == [0] * (len(rows) - 1)
    assert rows[1:, 0].max() < 0


def test_what_no_threshold_could_have_kept_silent_counts_as_no_alert(settled: Life) -> None:
    life = at(settled)
    before = life.blocks[:, 1].sum()
    life.live(6, lambda: 9.0)
    life.live(3 * BLOCK)
    assert life.blocks[:, 1].sum() == before == 0
    assert life.normal.condition(YARD).alerts == 0


def test_what_is_new_to_the_scene_is_an_anomaly_and_then_no_news(settled: Life) -> None:
    life = at(settled)
    usual = [life.see() for _ in range(5)]
    assert usual == [[]] * 5
    events = [event for _ in range(60) for event in life.see(-4.0, ODD, classes={"fire": 0.9})]
    assert [(event.phase, event.label) for event in events if event.phase != "update"] == [
        ("new", "anomaly"),
        ("end", "anomaly"),
    ]
    assert not events[0].calibrating
    assert events[0].score <= sigmoid(logit(0.9) + 1.0 + 1e-9)
    assert (events[0].p_value or 1) < 1 / BLOCKS_A_DAY + 1e-9
    hours = [life.see(-4.0, ODD) for _ in range(5 * 360)]
    assert hours == [[]] * (5 * 360)
    assert life.ruling.levels["novelty"] < 1.5  # learned by now


def test_a_block_that_was_new_at_first_keeps_its_height_when_it_is_new_no_more() -> None:
    life = Life()
    life.normal.fill([life.usual() for _ in range(100)])
    for _ in range(3 * BLOCK):
        life.see(-4.0)
    for _ in range(6 * BLOCK):  # two minutes of news are 12 windows
        life.see(-4.0, ODD)
    highest = life.normal.to_arrays()["blocks_novelty"][:, 0]
    assert len(highest) >= 3
    assert highest.max() > 10


def test_novelty_waits_for_days_of_its_own() -> None:
    life = Life()
    life.live(3 * BLOCK)
    life.normal.fill([life.usual() for _ in range(100)])
    assert [event for _ in range(20) for event in life.see(-4.0, ODD)] == []
    assert life.ruling.levels["novelty"] > 10


def test_an_operators_threshold_or_no_adaptation_is_neither_learned_nor_calibrating(settled: Life) -> None:
    for scene in (
        msgspec.structs.replace(YARD, threshold=0.95),
        msgspec.structs.replace(YARD, adapt=False),
    ):
        life = at(settled, scene)
        assert life.normal.ruling(scene) == Ruling(None, False)
        (new, *_) = life.live(3, lambda: 3.5)
        assert (new.calibrating, new.threshold) == (False, scene.threshold or 0.9)


def test_a_smaller_budget_is_calibrated_for_longer(settled: Life) -> None:
    rare = msgspec.structs.replace(YARD, alerts_per_day=0.1)
    assert settled.normal.ruling(rare).calibrating
    assert settled.normal.condition(rare).calibrating
    assert not settled.normal.condition(YARD).calibrating


def test_drift_shows_where_the_scene_slowly_becomes_another(settled: Life) -> None:
    life = at(settled)
    assert life.normal.condition(YARD).drift["vision"] < 3
    for _ in range(360):
        life.see(-4.0, life.rng.normal(1, 0.7, EMBEDDING))
    assert life.normal.condition(YARD).drift["vision"] > 4
    assert life.normal.condition(YARD).drift["audio"] == 0


def test_a_restored_scene_goes_on_as_if_nothing_had_been(settled: Life) -> None:
    one, two = at(settled), at(settled)
    for life in (one, two):
        life.live(BLOCK + 7)
    two.normal = Normal.from_arrays(two.manifest, two.normal.to_arrays())
    for life in (one, two):
        life.live(2, lambda: 4.0)
        life.live(300)
    expected = one.normal.to_arrays()
    for name, array in two.normal.to_arrays().items():
        np.testing.assert_array_equal(array, expected[name])
    assert sum(array.nbytes for array in expected.values()) < 100_000


def test_time_that_goes_back_keeps_what_is_known(settled: Life) -> None:
    life = at(settled)
    known = len(life.blocks)
    life.live(BLOCK // 2)
    life.normal.forget_time()
    life.course, life.step = Course(), 5
    life.live(3 * BLOCK)
    assert len(life.blocks) >= known


# --- in the pipeline --------------------------------------------------------------------------------------------


def test_a_model_that_is_tried_and_taken_back_costs_nothing_and_a_shadow_may_hand_on(settled: Life) -> None:
    old, new = fake_model(step_ms=STEP_MS), fake_model(hash_="b" * 64, step_ms=STEP_MS)
    pipeline = Pipeline([YARD], old)
    state = {**pipeline.state(), **{f"yard/{key}": array for key, array in settled.normal.to_arrays().items()}}
    pipeline = Pipeline([YARD], old, state=state)
    assert not pipeline.conditions()["yard"].calibrating
    pipeline.swap_model(new)
    assert pipeline.conditions()["yard"].calibrating
    assert pipeline.conditions()["yard"].blocks == 0
    pipeline.swap_model(old)
    assert not pipeline.conditions()["yard"].calibrating
    shadow = Pipeline([YARD], new).state()
    shadow |= {f"yard/{key}": array for key, array in settled.normal.to_arrays().items()}
    pipeline.swap_model(new, shadow)
    assert not pipeline.conditions()["yard"].calibrating


def test_a_snapshot_of_another_bundle_brings_nothing_normal_and_takes_no_harm(settled: Life) -> None:
    old, new = fake_model(step_ms=STEP_MS), fake_model(hash_="b" * 64, step_ms=STEP_MS, embedding=EMBEDDING + 1)
    state = Pipeline([YARD], old).state()
    state |= {f"yard/{key}": array for key, array in settled.normal.to_arrays().items()}
    pipeline = Pipeline([YARD], new, state=state)
    assert pipeline.conditions()["yard"].calibrating
    pipeline.swap_model(old)
    assert pipeline.conditions()["yard"].blocks == 0
    assert pipeline.state()["yard/shown"].shape == (3, EMBEDDING)


def test_a_snapshot_from_before_scenes_learned_is_taken_and_a_damaged_one_is_not(settled: Life) -> None:
    fake, script = FakeEngine(), Script()
    pipeline = Pipeline([YARD], fake_model(fake))
    for time_s in seconds(100, 105, 10):
        pipeline.push(script.frame(time_s))
    state = pipeline.state()
    learned = settled.normal.to_arrays()
    old = {key: array for key, array in state.items() if key.removeprefix("yard/") not in learned}
    assert Pipeline([YARD], fake_model(fake), state=old).state()["yard/embeddings"].any()
    damages: list[dict[str, NDArray[Any]]] = [
        {"normal": np.frombuffer(b'{"streams": {}}', np.uint8)},
        {"normal": np.frombuffer(b'{"streams": {"score": {}, "novelty": {}}, "windows": -1}', np.uint8)},
        {"shown": np.zeros((3, 99), np.float32)},
        {"drift": np.full((3, 9), np.nan)},
        {"drift": -np.ones((3, 9))},
        {"blocks_score": np.full((3, 2), 1e9, np.float32)},
        {"memory_audio_known": np.zeros((3, 99), np.float32)},
        {"memory_audio_hour": np.zeros(2, np.float32)},
    ]
    for damage in damages:
        hurt = {**state, **{f"yard/{key}": array for key, array in damage.items()}}
        assert not Pipeline([YARD], fake_model(fake), state=hurt).state()["yard/embeddings"].any()
