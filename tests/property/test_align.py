"""The aligner's promise: the samples make the windows, not the order in which the sources' samples arrive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.config import QUANTITIES, UNITS, Channel, SceneConfig
from edge_agent.contract.manifest import AudioSpec, Manifest, SensorSpec, Thresholds, VisionSpec
from edge_agent.core import align
from edge_agent.core.align import Aligner
from edge_agent.core.records import CLOCK, Reading, Sample, Window
from tests.parts.samples import START_S, Script, ns

LATENESS_MS = 500
QUIET_STEPS = 12
MANIFEST = Manifest(
    family="test",
    name="test",
    counter=1,
    created="2026-01-01T00:00:00Z",
    classes=("fight",),
    vision=VisionSpec(width=16, height=16),
    audio=AudioSpec(rate_hz=16_000, samples=16_000),
    sensors=SensorSpec(quantities=QUANTITIES, units=UNITS, steps=4),
    thresholds=Thresholds(on=0.6, off=0.4),
    files={},
)
SCENES = (
    SceneConfig(
        name="yard",
        camera="cam",
        microphone="mic",
        sensors=(
            Channel(source="feed", channel="smoke", quantity="smoke", stale_s=3),
            Channel(source="feed", channel="t", quantity="temperature", scale=0.1, offset=-5),
        ),
    ),
    SceneConfig(name="door", microphone="mic"),
)


@dataclass(frozen=True)
class Arrival:
    at_s: float
    order: int
    sample: Sample


def arrivals(samples: dict[str, list[tuple[float, Sample]]], delays: dict[str, list[float]]) -> list[Sample]:
    """One order of arrival: every source's samples in its own order, each late (or early) by its delay."""
    arrived: list[Arrival] = []
    for source, timed in samples.items():
        last_s = -1.0
        for index, (time_s, sample) in enumerate(timed):
            last_s = max(last_s, time_s + delays[source][index % len(delays[source])])
            arrived.append(Arrival(last_s, index, sample))
    return [one.sample for one in sorted(arrived, key=lambda one: (one.at_s, one.order))]


def plain(window: Window) -> tuple[object, ...]:
    frames = None if window.frames is None else tuple(frame.tobytes() for frame in window.frames)
    audio = None if window.audio is None else window.audio.tobytes()
    step = window.sensors
    sensors = None if step is None else (step.value.tobytes(), step.age_s.tobytes(), step.mask.tobytes())
    return (window.scene, window.step, window.end_ns, frames, audio, sensors)


def windows(order: list[Sample]) -> tuple[list[tuple[object, ...]], Aligner]:
    aligner = Aligner(SCENES, MANIFEST, LATENESS_MS, QUIET_STEPS)
    found = [window for sample in order for window in aligner.push(sample)]
    return sorted(map(plain, found), key=lambda one: (one[0], one[1])), aligner


@dataclass(frozen=True)
class Source:
    """When one source delivers: from, how often, and after which sample it is silent for how long."""

    begin_s: float
    rate_hz: float
    gaps: tuple[tuple[int, float], ...]

    def times(self, end_s: float) -> list[float]:
        found: list[float] = []
        time_s = START_S + self.begin_s
        while time_s < end_s:
            found.append(time_s)
            time_s += 1 / self.rate_hz + sum(gap_s for after, gap_s in self.gaps if after == len(found))
        return found


@dataclass(frozen=True)
class Plan:
    """A few seconds of four sources; small, so that a counterexample can be read."""

    length_s: float
    clock_s: float
    camera: Source | None
    microphone: Source | None
    feed: Source | None
    readings: tuple[str, ...]  #: channel of each sample of the feed in turn; empty: a tick

    def samples(self) -> dict[str, list[tuple[float, Sample]]]:
        script = Script()
        end_s = START_S + self.length_s
        samples: dict[str, list[tuple[float, Sample]]] = {}
        if self.camera:
            samples["cam"] = [(time_s, script.frame(time_s)) for time_s in self.camera.times(end_s)]
        if self.microphone:
            times = self.microphone.times(end_s)
            samples["mic"] = [(time_s, script.sound(time_s, level=i % 99)) for i, time_s in enumerate(times)]
        for index, time_s in enumerate(self.feed.times(end_s) if self.feed else ()):
            channel = self.readings[index % len(self.readings)]
            sample = script.reading(time_s, float(index), channel) if channel else script.tick(time_s)
            samples.setdefault("feed", []).append((time_s, sample))
        clock = [START_S + self.clock_s + index / 10 for index in range(round(self.length_s * 10) + 20)]
        samples[CLOCK] = [(time_s, script.clock(time_s)) for time_s in clock]
        return samples


def sources(*rates_hz: float) -> st.SearchStrategy[Source]:
    gap = st.tuples(st.integers(1, 60), st.floats(0.3, 6))
    return st.builds(Source, st.floats(0, 4), st.sampled_from(rates_hz), st.lists(gap, max_size=2).map(tuple))


PLANS = st.builds(
    Plan,
    st.floats(3, 14),
    st.floats(0, 0.5),
    st.none() | sources(1.0, 5.0, 10.0, 30.0),
    st.none() | sources(10.0),
    st.none() | sources(0.3, 2.0, 8.0),
    st.lists(st.sampled_from(["", "smoke", "t"]), min_size=1, max_size=5).map(tuple),
)
#: How late (or early, against the clock) each sample of a source arrives, in turn.
DELAYS = st.lists(st.floats(-0.3, LATENESS_MS / 1000 - 0.001), min_size=1, max_size=7)


@settings(max_examples=200, deadline=None)
@given(PLANS, DELAYS, DELAYS, DELAYS)
def test_any_order_between_sources_gives_the_same_windows(
    plan: Plan, camera: list[float], microphone: list[float], feed: list[float]
) -> None:
    samples = plan.samples()
    expected, first = windows(arrivals(samples, {source: [0.0] for source in samples}))
    delays = {"cam": camera, "mic": microphone, "feed": feed, CLOCK: [0.0]}
    found, second = windows(arrivals(samples, delays))
    assert found == expected
    assert first.counters["late"] == second.counters["late"] == 0


@settings(max_examples=60, deadline=None)
@given(PLANS, DELAYS)
def test_every_window_is_given_once_in_order(plan: Plan, delays: list[float]) -> None:
    samples = plan.samples()
    aligner = Aligner(SCENES, MANIFEST, LATENESS_MS, QUIET_STEPS)
    order = arrivals(samples, {**dict.fromkeys(samples, delays), CLOCK: [0.0]})
    found = [window for sample in order for window in aligner.push(sample)] + aligner.flush()
    for scene in SCENES:
        steps = [window.step for window in found if window.scene == scene.name]
        assert steps == sorted(set(steps))
        assert all(window.end_ns == (window.step + 1) * ns(0.5) for window in found)


ANYTHING = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.just(np.zeros((0, 4, 3), np.uint8)),
    st.just(np.zeros((4, 4), np.uint8)),
    st.just(np.zeros((4, 4, 4), np.uint8)),
    st.just(np.zeros((4, 4, 3), np.float32)),
    st.just(np.zeros((6, 4, 3), np.uint8)),
    st.just(np.zeros((4, 9, 3), np.uint8)),
    st.just(np.zeros(0, np.int16)),
    st.just(np.ones(1600, np.int16)),
    st.just(np.ones((16, 2), np.int16)),
    st.just(np.ones(1600, np.float64)),
    st.builds(Reading, st.sampled_from(["smoke", "t", "?"]), st.floats(allow_nan=True, allow_infinity=True)),
    st.just("text"),
)
TIMES = st.one_of(
    st.integers(ns(100), ns(130)),
    st.sampled_from([-1, 0, 2**62, 2**63, 2**70, ns(1e6)]),
)
HOSTILE = st.builds(
    Sample,
    st.sampled_from(["cam", "mic", "feed", CLOCK, "stranger", ""]),
    st.sampled_from(["frame", "audio", "reading", "objects", "tick", "odd"]),
    st.integers(-1, 2**63),
    TIMES,
    ANYTHING,
    st.sampled_from([0, 16_000, -1, 44_100]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(HOSTILE, max_size=60))
def test_nothing_that_arrives_raises_and_every_sample_is_counted(samples: list[Sample]) -> None:
    aligner = Aligner(SCENES, MANIFEST, LATENESS_MS, QUIET_STEPS)
    total = 0
    for sample in samples:
        total += len(aligner.push(sample))
    total += len(aligner.flush())
    refused = sum(aligner.counters[name] for name in ("duplicate", "future", "invalid"))
    assert aligner.counters["samples"] + refused + aligner.counters["unknown"] >= len(samples)
    # A jump of time by 146 years is no reason for more than the silence before and after it.
    assert total <= len(SCENES) * (QUIET_STEPS + 1) * (len(samples) + 1)
    assert set(align.COUNTERS) <= set(aligner.counters)
