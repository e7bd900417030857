"""The core through its front door: samples in, events out, with a real engine and a tiny bundle."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent import engine
from edge_agent.config import Channel, IntrusionRule, SceneConfig
from edge_agent.contract.event import Event
from edge_agent.core import prepare
from edge_agent.core.pipeline import MAX_WAITING, Pipeline
from edge_agent.core.records import Model, Sample, Scores
from tests.parts.bundle import tiny_bundle
from tests.parts.engines import FakeEngine, fake_model
from tests.parts.samples import RATE_HZ, Script, ns, seconds

YARD = SceneConfig(
    name="yard", camera="cam", microphone="mic", sensors=(Channel(source="feed", channel="smoke", quantity="smoke"),)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Model]:
    loaded = engine.load(folder)
    yield loaded
    loaded.engine.close()


class Site:
    """A yard with a camera, a microphone and a smoke sensor; what happens is set by the attributes."""

    def __init__(self) -> None:
        self.script = Script()
        self.rng = np.random.default_rng(0)
        self.walks = self.loud = False
        self.smoke = 2.0
        self.sources = {"cam", "mic", "feed"}

    def live(self, begin_s: float, end_s: float) -> Iterator[Sample]:
        for time_s in seconds(begin_s, end_s, 10):
            yield self.script.clock(time_s)
            if "cam" in self.sources:
                yield self._frame(time_s)
            if "mic" in self.sources:
                yield self._sound(time_s)
            if "feed" in self.sources:
                yield self.script.reading(time_s, self.smoke)

    def _frame(self, time_s: float) -> Sample:
        picture = self.rng.integers(98, 103, (96, 128, 3)).astype(np.uint8)
        if self.walks:
            x = round(time_s * 170) % 90
            picture[20:70, x : x + 36] = 250
        sample = self.script.frame(time_s)
        return Sample("cam", "frame", sample.seq, sample.captured_ns, picture)

    def _sound(self, time_s: float) -> Sample:
        pcm = self.rng.normal(0, 8000 if self.loud else 20, RATE_HZ // 10).astype(np.int16)
        sample = self.script.sound(time_s)
        return Sample("mic", "audio", sample.seq, sample.captured_ns, pcm, RATE_HZ)


def push(pipeline: Pipeline, samples: Iterator[Sample] | Sequence[Sample]) -> list[Event]:
    return [event for sample in samples for event in pipeline.push(sample)]


def phases(events: Sequence[Event]) -> list[tuple[str, str]]:
    return [(event.label, event.phase) for event in events if event.phase != "update"]


def test_a_quiet_scene_is_quiet(model: Model) -> None:
    scores: list[Scores] = []
    pipeline = Pipeline([YARD], model, on_scores=scores.append)
    assert push(pipeline, Site().live(100, 130)) + pipeline.flush() == []
    assert len(scores) == 60
    assert max(one.score for one in scores) < 0.1
    assert all(one.present == ("vision", "audio", "sensors") for one in scores[1:])


def set_walks(site: Site, on: bool) -> None:
    site.walks = on


def set_loud(site: Site, on: bool) -> None:
    site.loud = on


def set_smoke(site: Site, on: bool) -> None:
    site.smoke = 120.0 if on else 2.0


@pytest.mark.parametrize(
    ("change", "label", "modality"),
    [(set_walks, "fight", "vision"), (set_loud, "gunshot", "audio"), (set_smoke, "fire", "sensors")],
)
def test_each_modality_alone_makes_its_event_and_its_share(
    model: Model, change: Callable[[Site, bool], None], label: str, modality: str
) -> None:
    site, pipeline = Site(), Pipeline([YARD], model)
    events = push(pipeline, site.live(100, 110))
    change(site, True)
    events += push(pipeline, site.live(110, 116))
    change(site, False)
    events += push(pipeline, site.live(116, 125))
    assert phases(events) == [(label, "new"), (label, "end")]
    shares = msgspec.structs.asdict(events[0].shares)
    assert shares[modality] > 3
    assert all(abs(share) < 1 for name, share in shares.items() if name not in (modality, "none"))
    assert 109.5 <= events[0].onset_step * 0.5 <= 111
    assert events[0].bundle == model.hash


def test_shares_sum_to_the_logit_with_a_real_engine(model: Model) -> None:
    scores: list[Scores] = []
    site, pipeline = Site(), Pipeline([YARD], model, on_scores=scores.append)
    site.walks = site.loud = True
    push(pipeline, site.live(100, 105))
    site.sources = {"cam", "feed"}
    push(pipeline, site.live(105, 112))
    for one in scores:
        made = sum(one.shares[name] for name in ("vision", "audio", "sensors"))
        assert made == pytest.approx(one.logit - one.shares["none"], abs=1e-4)
    assert scores[-1].shares["audio"] == 0.0
    assert scores[-1].present == ("vision", "sensors")
    assert scores[5].shares["audio"] > 3


def test_the_same_samples_give_the_same_events(model: Model) -> None:
    def once() -> bytes:
        site, pipeline = Site(), Pipeline([YARD], model)
        events = push(pipeline, site.live(100, 104))
        site.walks = True
        events += push(pipeline, site.live(104, 108))
        return msgspec.json.encode(events + pipeline.flush())

    assert once() == once()


def test_a_camera_that_dies_ends_its_event(model: Model) -> None:
    camera = SceneConfig(name="yard", camera="cam")
    site, pipeline = Site(), Pipeline([camera], model)
    site.sources, site.walks = {"cam"}, True
    assert phases(push(pipeline, site.live(100, 103))) == [("fight", "new")]
    site.sources = set()
    assert phases(push(pipeline, site.live(103, 110))) == [("fight", "end")]


def test_flush_ends_what_is_open(model: Model) -> None:
    site, pipeline = Site(), Pipeline([YARD], model)
    site.walks = True
    push(pipeline, site.live(100, 103))
    assert phases(pipeline.flush()) == [("fight", "end")]
    assert pipeline.flush() == []


def test_a_mask_hides_what_happens_behind_it(model: Model) -> None:
    blind = msgspec.structs.replace(YARD, masks=(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),))
    scores: list[Scores] = []
    site, pipeline = Site(), Pipeline([blind], model, on_scores=scores.append)
    site.walks = True
    assert push(pipeline, site.live(100, 106)) == []
    assert max(one.score for one in scores) < 0.1


def test_an_intrusion_is_told_beside_the_models_event(model: Model) -> None:
    rule = IntrusionRule(name="gate", polygon=((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    site, pipeline = Site(), Pipeline([msgspec.structs.replace(YARD, rules=(rule,))], model)
    events = push(pipeline, site.live(100, 104))
    site.walks = True
    events += push(pipeline, site.live(104, 108))
    assert {(event.label, event.origin) for event in events} == {("fight", "model"), ("intrusion", "rule")}


def test_bad_samples_are_counted_and_change_nothing(model: Model) -> None:
    site, pipeline = Site(), Pipeline([YARD], model)
    bad: list[tuple[str, Any, Any]] = [
        ("cam", "frame", np.zeros((0, 0, 3), np.uint8)),
        ("cam", "frame", None),
        ("mic", "audio", np.zeros((2, 2), np.int16)),
        ("feed", "reading", float("nan")),
        ("nobody", "frame", np.zeros((4, 4, 3), np.uint8)),
    ]
    samples = list(site.live(100, 110))
    expected: list[Scores] = []
    push(Pipeline([YARD], model, on_scores=expected.append), samples)
    found: list[Scores] = []
    pipeline = Pipeline([YARD], model, on_scores=found.append)
    for index, sample in enumerate(samples):
        source, kind, data = bad[index % len(bad)]
        pipeline.push(Sample(source, kind, 10_000 + index, ns(100), data, RATE_HZ))
        pipeline.push(sample)
    assert [one.logit for one in found] == [one.logit for one in expected]
    assert pipeline.counters["invalid"] + pipeline.counters["unknown"] == len(samples)


def test_a_camera_that_changes_its_resolution_goes_on(model: Model) -> None:
    scores: list[Scores] = []
    pipeline, script = Pipeline([SceneConfig(name="yard", camera="cam")], model, on_scores=scores.append), Script()
    push(pipeline, [script.frame(t, 90, size=8) for t in seconds(100, 103, 10)])
    push(pipeline, [script.frame(t, 90, size=64) for t in seconds(103, 106, 10)])
    assert max(one.score for one in scores) < 0.1
    assert pipeline.counters["resolution"] == 1


def test_scenes_are_scored_in_one_call() -> None:
    fake = FakeEngine()
    scenes = [SceneConfig(name=name, camera="cam") for name in ("a", "b", "c")]
    pipeline, script = Pipeline(scenes, fake_model(fake)), Script()
    push(pipeline, [script.frame(100.1), script.frame(100.5)])
    assert fake.calls == [("vision", 3), ("fusion", 6)]


def test_a_window_is_encoded_once() -> None:
    fake = FakeEngine()
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model(fake)), Script()
    push(pipeline, [script.frame(t) for t in seconds(100, 110.1, 10)])
    assert [call for call in fake.calls if call[0] == "vision"] == [("vision", 1)] * 20


# --- swap and state ---------------------------------------------------------------------------------------------


def test_a_swap_between_two_windows_keeps_the_event_and_loses_no_window(model: Model, tmp_path: Path) -> None:
    other = engine.load(tiny_bundle(tmp_path, seed=7, counter=2), "onnxruntime")
    scores: list[Scores] = []
    site, pipeline = Site(), Pipeline([YARD], model, on_scores=scores.append)
    site.walks = True
    events = push(pipeline, site.live(100, 104))
    assert pipeline.swap_model(other) == []
    assert pipeline.model is other
    events += push(pipeline, site.live(104, 108))
    site.walks = False
    events += push(pipeline, site.live(108, 114))
    assert phases(events) == [("fight", "new"), ("fight", "end")]
    assert (events[0].bundle, events[-1].bundle) == (model.hash, other.hash)
    steps = [one.step for one in scores]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert len({event.onset_step for event in events}) == 1


def test_a_swap_encodes_the_history_anew() -> None:
    old, new = FakeEngine(), FakeEngine()
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model(old)), Script()
    push(pipeline, [script.frame(t, level=40) for t in seconds(100, 110, 10)])
    pipeline.swap_model(fake_model(new, "b" * 64))
    assert new.calls == [("vision", 8)]
    push(pipeline, [script.frame(t, level=40) for t in seconds(110, 110.6, 10)])
    item = new.seen["fusion"][-1]
    assert item["mask"][:, 0].tolist() == [1] * 8
    assert item["vision"][:, 0].tolist() == [40] * 8


def test_a_swap_to_another_preparation_masks_the_history() -> None:
    new = FakeEngine()
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model()), Script()
    push(pipeline, [script.frame(t) for t in seconds(100, 110, 10)])
    vision = fake_model().manifest.vision
    pipeline.swap_model(fake_model(new, "b" * 64, vision=msgspec.structs.replace(vision, width=64)))
    assert new.calls == []
    push(pipeline, [script.frame(t) for t in seconds(110, 110.6, 10)])
    assert new.seen["fusion"][-1]["mask"][:, 0].tolist() == [0] * 6 + [1] * 2


def test_a_swap_to_another_step_ends_what_is_open() -> None:
    loud = FakeEngine(lambda present: 5.0)
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model(loud)), Script()
    push(pipeline, [script.frame(t) for t in seconds(100, 103, 10)])
    ends = pipeline.swap_model(fake_model(loud, "b" * 64, step_ms=1000))
    assert [(event.phase, event.step_ms) for event in ends] == [("end", 500)]
    (new,) = [e for e in push(pipeline, [script.frame(t) for t in seconds(103, 108, 10)]) if e.phase == "new"]
    assert (new.step_ms, new.onset_step) == (1000, 103)


class Broken(FakeEngine):
    def run(self, graph: str, items: Sequence[Any]) -> list[dict[str, NDArray[Any]]]:
        raise ValueError("broken")


def test_a_swap_that_fails_changes_nothing() -> None:
    old = FakeEngine()
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model(old)), Script()
    push(pipeline, [script.frame(t) for t in seconds(100, 110, 10)])
    with pytest.raises(ValueError, match="broken"):
        pipeline.swap_model(fake_model(Broken(), "b" * 64))
    push(pipeline, [script.frame(t) for t in seconds(110, 110.6, 10)])
    assert old.seen["fusion"][-1]["mask"][:, 0].tolist() == [1] * 8


def test_a_window_that_the_engine_fails_on_is_scored_by_the_next_model() -> None:
    good = fake_model(FakeEngine(lambda present: 5.0))
    scores: list[Scores] = []
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], good, on_scores=scores.append), Script()
    events = push(pipeline, [script.frame(t) for t in seconds(100, 110, 10)])
    pipeline.swap_model(fake_model(Failing(), "b" * 64))
    with pytest.raises(RuntimeError, match="out of memory"):
        push(pipeline, [script.frame(t) for t in seconds(110, 110.6, 10)])
    pipeline.swap_model(good)
    events += push(pipeline, [script.frame(t) for t in seconds(110.6, 113, 10)])
    steps = [one.step for one in scores]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    points = [point.step for event in events for point in event.trace]
    assert points == list(range(points[0], points[0] + len(points)))


class Failing(FakeEngine):
    """Encodes, and fails in the head."""

    def run(self, graph: str, items: Sequence[Any]) -> list[dict[str, NDArray[Any]]]:
        if graph == "fusion":
            raise RuntimeError("out of memory")
        return super().run(graph, items)


def test_an_engine_that_keeps_failing_does_not_fill_the_memory() -> None:
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model(Failing())), Script()
    failures = 0
    for time_s in seconds(100, 110, 10):
        try:
            pipeline.push(script.frame(time_s))
        except RuntimeError:
            failures += 1
    assert failures > 80
    assert pipeline.counters["unscored"] == pipeline.counters["windows"] - MAX_WAITING


def through_a_file(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    buffer = io.BytesIO()
    np.savez(buffer, **state)  # type: ignore[arg-type]
    with np.load(io.BytesIO(buffer.getvalue()), allow_pickle=False) as archive:
        return dict(archive)


def test_a_snapshot_goes_on_as_if_nothing_had_been(model: Model) -> None:
    samples = Site()
    samples.walks = True
    first, second = list(samples.live(100, 104)), list(samples.live(104, 112))
    scores: list[Scores] = []
    whole = Pipeline([YARD], model, on_scores=scores.append)
    expected = push(whole, first) + push(whole, second)
    one = Pipeline([YARD], model)
    found = push(one, first)
    state = one.state()
    restored_scores: list[Scores] = []
    two = Pipeline([YARD], model, state=through_a_file(state), on_scores=restored_scores.append)
    found += push(two, second)
    # The buffers of the aligner are not in the snapshot: the first windows of the second half see less.
    assert phases(found) == phases(expected)
    assert found[0].onset_step == found[-1].onset_step
    assert [s.logit for s in restored_scores[-6:]] == pytest.approx([s.logit for s in scores[-6:]], abs=1e-4)


def test_a_snapshot_of_another_bundle_is_encoded_anew() -> None:
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model()), Script()
    push(pipeline, [script.frame(t, level=40) for t in seconds(100, 110, 10)])
    new = FakeEngine()
    Pipeline([SceneConfig(name="a", camera="cam")], fake_model(new, "b" * 64), state=through_a_file(pipeline.state()))
    assert new.calls == [("vision", 8)]


def test_a_snapshot_from_before_a_reboot_starts_cold(model: Model) -> None:
    site = Site()
    site.walks = True
    before = Pipeline([YARD], model)
    push(before, site.live(5000, 5004))
    after = Pipeline([YARD], model, state=before.state())
    events = push(after, Site().live(100, 110)) + after.flush()
    assert events == []


def test_a_snapshot_that_is_damaged_is_left_out(model: Model) -> None:
    pipeline = Pipeline([YARD], model)
    push(pipeline, Site().live(100, 104))
    state = pipeline.state()
    damages: list[dict[str, NDArray[Any]]] = [
        {"yard/plain": np.frombuffer(b'{"bundle": 3}', np.uint8)},
        {"yard/plain": np.zeros(3, np.float64)},
        {"yard/embeddings": np.full_like(state["yard/embeddings"], np.nan)},
        {"yard/embeddings": state["yard/embeddings"][:3]},
        {"yard/mask": state["yard/mask"].astype(np.int64)},
        {"yard/steps": np.zeros((2, 3, 99), np.float32)},
        {"yard/steps": np.zeros(7, np.float32)},
        {"yard/vision_rows": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])},
        {"yard/vision": np.array(1, np.float32)},
    ]
    for damage in damages:
        scores: list[Scores] = []
        one = Pipeline([YARD], model, state={**state, **damage}, on_scores=scores.append)
        push(one, Site().live(104, 106))
        assert scores[0].score < 0.1
    for missing in ("plain", "mask", "windows"):
        partial = {key: array for key, array in state.items() if key != f"yard/{missing}"}
        push(Pipeline([YARD], model, state=partial), Site().live(104, 105))


def test_windows_of_a_snapshot_that_fit_no_graph_are_left_out() -> None:
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model()), Script()
    push(pipeline, [script.frame(t) for t in seconds(100, 110, 10)])
    state = {**pipeline.state(), "a/vision": np.zeros((8, 5, 9, 9), np.uint8)}
    new = FakeEngine()
    Pipeline([SceneConfig(name="a", camera="cam")], fake_model(new, "b" * 64), state=state)
    assert new.calls == []


def test_prepared_windows_are_what_training_would_make() -> None:
    """The pipeline and a trainer that calls `core.prepare` itself get the same bytes."""
    fake, seen = FakeEngine(), []
    pipeline, script = Pipeline([SceneConfig(name="a", camera="cam")], fake_model(fake)), Script()
    rng = np.random.default_rng(3)
    frames = [rng.integers(0, 256, (48, 64, 3)).astype(np.uint8) for _ in range(6)]
    for index, frame in enumerate(frames):
        sample = script.frame(100 + index / 10)
        pipeline.push(Sample("cam", "frame", sample.seq, sample.captured_ns, frame))
        seen += fake.seen.get("vision", [])
    expected = prepare.vision((frames[4], frames[3], frames[1]), fake_model().manifest.vision)
    np.testing.assert_array_equal(seen[0]["frames"], expected)
