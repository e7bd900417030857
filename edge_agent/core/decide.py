"""Scores and rules → events: threshold, hysteresis, cool-down, and one life per event.

Two kinds of track run side by side: the model's score, and the motion of every armed rule. An event opens when its
track stays at or over `on` for `on_steps`, ends when it stays under `off` for `off_steps`, and is silent for the
cool-down after that. At most one event is open per (scene, label); its label never changes. While one of the model's
is open, another opens only if its label says more: a class more than `anomaly`, a critical class more than both.
A window in which no modality is present counts as quiet, whatever the head says of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edge_agent.config import IntrusionRule, SceneConfig
from edge_agent.contract.event import MODALITIES, Event, Heat, Modality, Phase, Quality, ScorePoint, Shares
from edge_agent.contract.manifest import Manifest
from edge_agent.core import prepare
from edge_agent.core.infer import logit, sigmoid
from edge_agent.core.normal import LEAD_STEPS, Ruling
from edge_agent.core.records import U8, Scores
from edge_agent.core.scene import TRACK_POINTS, Course, OpenEvent, Track

ANOMALY = "anomaly"
INTRUSION = "intrusion"
CRITICAL = frozenset({"fire", "gunshot", "explosion", INTRUSION})
#: An update at once if the peak rises by more than this.
PEAK_RISE = 0.1
UPDATE_MS = 2_000
#: A long event is told of less often: every tenth of its age, at most this.
UPDATE_MOST_MS = 30_000
#: A rule's score is share / (share + min_area): 0.5 where the moving share reaches what the rule asks for.
RULE_ON = 0.5
_MODEL = ""
_BUNDLE = Ruling()


@dataclass(frozen=True, slots=True)
class Observed:
    """What `decide` is told of one window."""

    step: int
    scores: Scores | None  #: None: nothing was scored
    picture: U8 | None  #: (5, height, width) as prepared
    dropped: Mapping[str, int]
    ruling: Ruling = _BUNDLE  #: of the scene's own normal hours


@dataclass(frozen=True, slots=True)
class _Limits:
    on: float
    off: float
    on_steps: int
    off_steps: int


@dataclass(frozen=True, slots=True)
class _Point:
    """One track at one step."""

    track: str
    score: float
    present: bool
    label: str
    limits: _Limits


class Decider:
    """The rules of one scene under one bundle. What it remembers is in the `Course` that it is handed."""

    def __init__(self, scene: SceneConfig, manifest: Manifest, bundle: str) -> None:
        self._scene = scene.name
        self._manifest = manifest
        self._bundle = bundle
        thresholds = manifest.thresholds
        on, off = _thresholds(thresholds.on, thresholds.off, scene.threshold)
        self._limits = _Limits(on, off, thresholds.on_steps, thresholds.off_steps)
        self._rules = [rule for rule in scene.rules if rule.armed]
        size = (manifest.vision.height, manifest.vision.width)
        self._regions = {rule.name: prepare.region(rule.polygon, *size) for rule in self._rules}
        self._cooldown = thresholds.cooldown_steps
        if scene.cooldown_s is not None:
            self._cooldown = math.ceil(scene.cooldown_s * 1000 / manifest.step_ms)

    @property
    def patience_steps(self) -> int:
        """Windows of silence after which every event has ended."""
        return max([self._limits.off_steps, *(rule.off_steps for rule in self._rules)]) + 1

    def decide(self, course: Course, seen: Observed) -> list[Event]:
        """Events of one window, ends first. `course` is changed."""
        points = {point.track: point for point in self._points(seen)}
        for name, point in points.items():
            _follow(course.tracks.setdefault(name, Track()), point, seen.step)
        for gone in course.tracks.keys() - points.keys():
            del course.tracks[gone]
        events: list[Event] = []
        for event in list(course.open.values()):
            events += self._continue(course, event, points.get(event.track), seen)
        for point in points.values():
            events += self._open(course, point, seen)
        course.cooling = {label: step for label, step in course.cooling.items() if step > seen.step}
        return events

    def skip(self, course: Course, steps: int) -> None:
        """Let `steps` windows of silence pass that were never made."""
        if not steps:
            return
        for track in course.tracks.values():
            track.above = track.same_label = 0
        for event in course.open.values():
            event.below += steps

    def end(self, course: Course, step: int, ruling: Ruling = _BUNDLE) -> list[Event]:
        """`end` for everything that is open."""
        seen = Observed(step, None, None, {}, ruling)
        return [self._end(course, event, seen) for event in list(course.open.values())]

    def _points(self, seen: Observed) -> list[_Point]:
        scores, ruling, limits = seen.scores, seen.ruling, self._ruled(seen.ruling)
        if scores is None or not scores.present:
            points = [_Point(_MODEL, 0.0 if scores is None else scores.score, False, ANOMALY, limits)]
        else:
            label = ANOMALY if ruling.novel else self._label(scores)
            score = scores.score if ruling.score is None else ruling.score
            points = [_Point(_MODEL, score, True, label, limits)]
        moved = prepare.moving(seen.picture) if self._rules and seen.picture is not None else None
        for rule in self._rules:
            limits = _Limits(RULE_ON, RULE_ON, rule.on_steps, rule.off_steps)
            score = 0.0
            if moved is not None:
                share = float(moved[self._regions[rule.name]].mean())
                score = share / (share + rule.min_area)
            points.append(_Point(_track(rule), score, moved is not None, INTRUSION, limits))
        return points

    def _ruled(self, ruling: Ruling) -> _Limits:
        """The model's limits: the scene's own threshold where it has learned one."""
        if ruling.on is None:
            return self._limits
        bundle = self._manifest.thresholds
        on, off = _thresholds(bundle.on, bundle.off, ruling.on)
        return _Limits(on, off, self._limits.on_steps, self._limits.off_steps)

    def _label(self, scores: Scores) -> str:
        reached = [
            (scores.classes[name], name)
            for name, least in self._manifest.thresholds.classes.items()
            if scores.classes.get(name, 0.0) >= least
        ]
        return max(reached)[1] if reached else ANOMALY

    def _open(self, course: Course, point: _Point, seen: Observed) -> list[Event]:
        track = course.tracks[point.track]
        label, steps = point.label, point.limits.on_steps
        if track.above < steps or label in course.open or course.cooling.get(label, 0) > seen.step:
            return []
        beside = {event.label for event in course.open.values() if event.track == point.track}
        says_more = label in CRITICAL or (label != ANOMALY and beside == {ANOMALY})
        if beside and not (says_more and track.same_label >= steps):
            return []
        onset_step = seen.step - steps + 1
        peak = max(score for step, score in track.points if step >= onset_step)
        event = OpenEvent(label, point.track, onset_step, 0, point.score, peak, peak, onset_step - LEAD_STEPS - 1)
        course.open[label] = event
        return [self._tell(course, event, "new", seen)]

    def _continue(self, course: Course, event: OpenEvent, point: _Point | None, seen: Observed) -> list[Event]:
        if point is None:  # its rule was disarmed or renamed
            return [self._end(course, event, seen)]
        event.score = point.score
        ended = event.below >= point.limits.off_steps  # by windows that were skipped
        event.below = event.below + 1 if not point.present or point.score < point.limits.off else 0
        if point.present:
            event.peak = max(event.peak, point.score)
        if ended or event.below >= point.limits.off_steps:
            return [self._end(course, event, seen)]
        step_ms = self._manifest.step_ms
        age_ms = (seen.step - event.onset_step) * step_ms
        due_ms = min(max(UPDATE_MS, age_ms // 10), UPDATE_MOST_MS)
        if event.peak <= event.told_peak + PEAK_RISE and (seen.step - event.told_step) * step_ms < due_ms:
            return []
        return [self._tell(course, event, "update", seen)]

    def _end(self, course: Course, event: OpenEvent, seen: Observed) -> Event:
        del course.open[event.label]
        course.cooling[event.label] = seen.step + 1 + self._cooldown
        return self._tell(course, event, "end", seen)

    def _tell(self, course: Course, event: OpenEvent, phase: Phase, seen: Observed) -> Event:
        track = course.tracks.get(event.track, Track())
        scores = seen.scores
        of_model = event.track == _MODEL and scores is not None
        risen = phase == "new" or event.peak > event.told_peak
        trace = tuple(ScorePoint(step, score) for step, score in track.points if step > event.told_step)
        event.revision += 1
        event.told_step, event.told_peak = seen.step, event.peak
        return Event(
            scene=self._scene,
            label=event.label,
            phase=phase,
            onset_step=event.onset_step,
            step=seen.step,
            step_ms=self._manifest.step_ms,
            revision=event.revision,
            score=event.score,
            peak=event.peak,
            threshold=self._ruled(seen.ruling).on if event.track == _MODEL else RULE_ON,
            origin="model" if event.track == _MODEL else "rule",
            rule=None if event.track == _MODEL else event.track.removeprefix("rule "),
            classes=dict(scores.classes) if of_model and scores is not None else {},
            shares=Shares(**scores.shares) if of_model and scores is not None else Shares(),
            quality=Quality(present=() if scores is None else _present(scores), dropped=dict(seen.dropped)),
            trace=trace,
            heat=_heat(scores) if of_model and risen else None,
            bundle=self._bundle,
            calibrating=seen.ruling.calibrating and event.track == _MODEL,
            p_value=seen.ruling.p_value if of_model else None,
            priority="critical" if phase == "new" and event.label in CRITICAL else "normal",
        )


def _follow(track: Track, point: _Point, step: int) -> None:
    over = point.present and point.score >= point.limits.on
    track.above = track.above + 1 if over else 0
    track.same_label = (track.same_label + 1 if point.label == track.label else 1) if over else 0
    track.label = point.label
    track.points.append((step, point.score))
    del track.points[:-TRACK_POINTS]


def _thresholds(on: float, off: float, wanted: float | None) -> tuple[float, float]:
    """Upper and lower threshold; with the scene's own upper one, the lower keeps its distance in logit."""
    if wanted is None:
        return on, off
    return wanted, sigmoid(logit(wanted) - (logit(on) - logit(off)))


def _track(rule: IntrusionRule) -> str:
    return f"rule {rule.name}"


def _present(scores: Scores) -> tuple[Modality, ...]:
    return tuple(name for name in MODALITIES if name in scores.present)


def _heat(scores: Scores | None) -> Heat | None:
    if scores is None or scores.heat is None:
        return None
    rows, cols = scores.heat.shape
    return Heat(rows=rows, cols=cols, values=scores.heat.tobytes())
