"""False alarms a day: quiet footage, clean and with one modality disturbed, before and after a scene adapted.

Simulated places where nothing is wrong are played through the device's own pipeline, much faster than real time.
What it scored is then decided upon twice, by the device's own rules: as on the first day (the bundle's thresholds),
and under a state that has learned the place from the other half of the footage: its memory from one part of that
half, its blocks from the rest, repeated until they are as many as novelty needs. Half an hour has six blocks of its
own, so what a real second day brings is not in it. Disturbed footage is judged by the state that clean footage
taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, tee
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.config import SceneConfig
from edge_agent.contract.event import MODALITIES, Event
from edge_agent.contract.manifest import Manifest
from edge_agent.core.budget import needed
from edge_agent.core.decide import Decider, Observed
from edge_agent.core.infer import Encoded
from edge_agent.core.normal import OF_NOVELTY, Normal
from edge_agent.core.pipeline import Pipeline
from edge_agent.core.records import Model, Sample, Scores
from edge_agent.core.scene import Course
from edge_agent.engine import load, open_bundle
from edge_agent.simulate import Site, quiet
from models.config import Preset
from models.evaluation.disturb import HOWS, Disturbance, changes
from models.evaluation.fieldtest import CLEAN, name_of
from models.evaluation.sessions import Listening, Remembering, Session, simulated
from models.processes import side_by_side
from models.progress import Progress

#: Places that trained nothing and chose nothing.
_SEEDS = range(7000, 7100)
#: `missing` is left out: a window without a modality is an ordinary one.
CONDITIONS = tuple(Disturbance(modality, how) for modality in MODALITIES for how in HOWS if how != "missing")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is played: places, seconds of each half of the clean footage, and under each disturbance."""

    places: int
    half_s: float
    disturbed_s: float


SCALES = {"full": Scale(4, 1800.0, 1800.0), "quick": Scale(1, 60.0, 30.0)}


#: A stretch of time as the graphs saw it, window by window.
Lived = list[tuple[Scores, Encoded]]


class _Listener:
    """A pipeline of one scene, whose windows are kept; its samples are disturbed on their way in."""

    def __init__(self, model: Model, scene: SceneConfig, change: Callable[[Sample], Sample | None]) -> None:
        self.lived: Lived = []
        self._change = change
        self._listening = Listening(model.engine)
        self._pipeline = Pipeline([scene], replace(model, engine=self._listening), on_scores=self._keep)

    def push(self, sample: Sample) -> None:
        changed = self._change(sample)
        if changed is not None:
            self._pipeline.push(changed)

    def finish(self) -> Lived:
        """Everything that was heard."""
        self._pipeline.flush()
        return self.lived

    def _keep(self, scores: Scores) -> None:
        heard = self._listening
        encoded = Encoded(heard.embeddings.pop(), heard.masks.pop(), None)
        heard.answers.clear()
        self.lived.append((replace(scores, heat=None), encoded))


@dataclass(frozen=True, slots=True)
class _Place:
    """What one process is told of a place."""

    bundle: Path
    engine: str
    preset: Preset
    scale: Scale
    number: int
    seed: int


def run(bundle: Path, engine: str, preset: Preset, scale: Scale, seed: int = 0) -> dict[str, Any]:
    """A row for each condition: alerts, and how many that makes a day, before and after a scene adapted. Minutes, on
    two cores if there are two. BundleError, ConfigError as `edge_agent.engine.load`."""
    opened = open_bundle(bundle)
    places = [_Place(bundle, engine, preset, scale, number, seed) for number in range(scale.places)]
    rows: dict[str, dict[str, Any]] = {}
    for found in side_by_side(_counted, places):
        for name, counts in found.items():
            row = rows.setdefault(name, dict.fromkeys(counts, 0))
            for key, value in counts.items():
                row[key] += value
    for row in rows.values():
        row["first_day_rate"] = round(row["first_day"] * 24 / row["hours"], 1)
        row["adapted_rate"] = round(row["adapted"] * 24 / row["hours"], 1)
        row["hours"] = round(row["hours"], 2)
    return {"bundle": opened.hash, "name": opened.manifest.name, "seed": seed, "conditions": rows}


def _counted(place: _Place) -> dict[str, dict[str, float]]:
    """Hours and alerts of one place under each condition."""
    model = load(place.bundle, place.engine)
    try:
        halves, spoilt, scene = played(model, place.preset, place.scale, place.number, place.seed)
    finally:
        model.engine.close()
    first, second = (taught(scene, model.manifest, half) for half in halves)
    stretches = [(CLEAN, halves[1], first), (CLEAN, halves[0], second)]
    rows: dict[str, dict[str, float]] = {}
    for name, stretch, normal in [*stretches, *((name, lived, first) for name, lived in spoilt.items())]:
        row = rows.setdefault(name, {"hours": 0.0, "first_day": 0, "adapted": 0})
        row["hours"] += len(stretch) * model.manifest.step_ms / 3.6e6
        row["first_day"] += _alerts(decided(scene, model.manifest, stretch, None))
        row["adapted"] += _alerts(decided(scene, model.manifest, stretch, normal))
    return rows


def text(found: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'condition':24s} {'hours':>7s} {'alerts a day, first day':>24s} {'adapted':>10s}"]
    for name, row in found["conditions"].items():
        lines.append(
            f"{name:24s} {row['hours']:7.2f} {row['first_day_rate']:17.1f} ({row['first_day']:4d}) "
            f"{row['adapted_rate']:5.1f} ({row['adapted']:3d})"
        )
    return "\n".join(lines)


def played(
    model: Model, preset: Preset, scale: Scale, number: int, seed: int
) -> tuple[tuple[Lived, Lived], dict[str, Lived], SceneConfig]:
    """Both halves of a place's clean footage, and the beginning of the second by disturbance."""
    here, there = (_place(preset, _SEEDS[2 * number + i], scale) for i in range(2))
    # Most windows differ from the clean ones in one modality: what the others show is encoded once.
    once = replace(model, engine=Remembering(model.engine))
    begin_ns, end_ns = (int(s * 1e9) for s in (scale.half_s, scale.half_s + scale.disturbed_s))
    later = dropwhile(lambda sample: sample.captured_ns < begin_ns, there.samples(model.manifest))
    others = iter(tee(later, len(MODALITIES)))
    clean = _Listener(once, here.scene, lambda sample: sample)
    spoilt = {}
    for how in CONDITIONS:
        foreign = next(others) if how.how == "contradicting" else ()
        change = changes(how.modality, how.how, np.random.default_rng([seed, 61]), foreign)
        spoilt[name_of(how)] = _Listener(once, here.scene, change)
    shown = Progress(f"place {number + 1}", int(2 * scale.half_s))
    for sample in here.samples(model.manifest):
        clean.push(sample)
        if begin_ns <= sample.captured_ns < end_ns:
            for listener in spoilt.values():
                listener.push(sample)
        shown.at(sample.captured_ns // 1_000_000_000)
    middle = int(scale.half_s * 1000) // model.manifest.step_ms
    whole = clean.finish()
    halves = [w for w in whole if w[0].step < middle], [w for w in whole if w[0].step >= middle]
    return halves, {name: listener.finish() for name, listener in spoilt.items()}, here.scene


def taught(scene: SceneConfig, manifest: Manifest, lived: Lived) -> Normal:
    """What a scene knows that has lived through such windows for as many days as novelty needs.

    The memory is filled from the first two fifths; the rest, which it does not hold, is lived through twice, and what
    the blocks have become then is repeated.
    """
    normal = Normal(manifest)
    known = len(lived) * 2 // 5
    normal.fill([encoded for _, encoded in lived[:known]])
    for _ in _decisions(scene, manifest, lived[known:] * 2, normal):
        pass
    arrays = normal.to_arrays()
    wanted = needed(OF_NOVELTY * scene.alerts_per_day)
    for name in ("blocks_score", "blocks_novelty"):
        if len(arrays[name]):
            arrays[name] = np.tile(arrays[name], (wanted // len(arrays[name]) + 1, 1))
    return Normal.from_arrays(manifest, arrays)


def decided(scene: SceneConfig, manifest: Manifest, lived: Lived, normal: Normal | None) -> list[Event]:
    """The device's events of a stretch under what the scene knows; under the bundle's thresholds for None."""
    known = Normal(manifest) if normal is None else Normal.from_arrays(manifest, normal.to_arrays())
    known.forget_time()
    return list(_decisions(scene, manifest, lived, known))


def _decisions(
    scene: SceneConfig, manifest: Manifest, windows: Iterable[tuple[Scores, Encoded]], normal: Normal
) -> Iterator[Event]:
    """Judge, decide and learn as the pipeline does, the windows numbered anew."""
    decider, course = Decider(scene, manifest, ""), Course()
    for step, (scores, encoded) in enumerate(windows):
        ruling = normal.judge(scene, scores, encoded)
        events = decider.decide(course, Observed(step, replace(scores, step=step), None, {}, ruling))
        normal.learn(step, scene, ruling, encoded, events, still_open=course.open, cooling=bool(course.cooling))
        yield from events


def _alerts(events: Sequence[Event]) -> int:
    return sum(event.phase == "new" for event in events)


def _place(preset: Preset, seed: int, scale: Scale) -> Session:
    seconds = 2 * scale.half_s
    spec = preset.vision_spec
    script = quiet(seed, seconds)
    site = Site(seed, script, width=spec.width, height=spec.height, rate_hz=preset.audio_spec.rate_hz)
    return simulated(site, seconds)
