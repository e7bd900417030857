"""A recorded session through the core: the same samples give the same events, today and after every change.

The session is made here from a seed; only its events are kept, in `golden/events.json`. If a change of the core, the
site or the tiny bundle is meant to change them, run this test with TECTUM_WRITE_GOLDEN=1 and review the difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.contract.event import Event
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import Model, Sample
from edge_agent.engine import load
from edge_agent.sources.replay import samples
from tests.parts.bundle import tiny_bundle
from tests.replay.sessions import SCENE, record, simulated

GOLDEN = Path(__file__).parent / "golden" / "events.json"
EPISODES = [
    {"label": "explosion", "start_s": 6, "end_s": 18, "modalities": ["audio"]},
    {"label": "explosion", "start_s": 26, "end_s": 38, "modalities": ["sensors"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(tiny_bundle(tmp_path_factory.mktemp("bundle")), "onnxruntime")


@pytest.fixture(scope="module")
def live() -> list[Sample]:
    return list(simulated(56.0, episodes=EPISODES, width=160, height=120, seed=9))


def events(stream: Iterable[Sample], model: Model) -> list[Event]:
    pipeline = Pipeline([SCENE], model)
    found = [event for sample in stream for event in pipeline.push(sample)]
    return found + pipeline.flush()


def scores(stream: Iterable[Sample], model: Model) -> dict[int, float]:
    """Score by step."""
    found: dict[int, float] = {}
    pipeline = Pipeline([SCENE], model, on_scores=lambda scores: found.update({scores.step: scores.score}))
    for sample in stream:
        pipeline.push(sample)
    pipeline.flush()
    return found


def kept(event: Event) -> dict[str, Any]:
    """What a golden file holds of an event."""
    exact = {"label": event.label, "phase": event.phase, "revision": event.revision}
    exact |= {"onset_step": event.onset_step, "step": event.step, "present": list(event.quality.present)}
    return exact | {"score": round(event.score, 4), "peak": round(event.peak, 4)}


def alike(found: list[Event], wanted: list[dict[str, Any]]) -> None:
    told = [kept(event) for event in found]
    numbers = ("score", "peak")
    exact = [{key: value for key, value in item.items() if key not in numbers} for item in told]
    assert exact == [{key: value for key, value in item.items() if key not in numbers} for item in wanted]
    for ours, theirs in zip(told, wanted, strict=True):
        for number in numbers:
            assert ours[number] == pytest.approx(theirs[number], abs=0.01)


def test_a_lossless_replay_gives_exactly_the_events_of_the_run(
    live: list[Sample], model: Model, tmp_path: Path
) -> None:
    record(tmp_path, live, "lossless")
    assert events(samples(tmp_path), model) == events(live, model)


def test_a_replay_of_coded_pictures_gives_nearly_the_scores(live: list[Sample], model: Model, tmp_path: Path) -> None:
    """The tiny model counts every level of difference as evidence: worse is hardly possible than what it shows."""
    record(tmp_path, live, "high")
    before, after = scores(live, model), scores(samples(tmp_path), model)
    assert before.keys() == after.keys()
    assert max(abs(before[step] - after[step]) for step in before) < 0.06


def test_the_events_are_those_that_were_reviewed(live: list[Sample], model: Model) -> None:
    found = events(live, model)
    if os.environ.get("TECTUM_WRITE_GOLDEN") == "1":
        GOLDEN.write_text(json.dumps([kept(event) for event in found], indent=1) + "\n")
    alike(found, json.loads(GOLDEN.read_text()))
    assert {event.label for event in found if event.phase == "new"} == {"gunshot", "fire", "anomaly"}
