"""A bundle in the field: sessions with known answers through the device's own pipeline, clean and disturbed.

Every condition plays the same sessions and the same quiet footage; only what the samples carry differs. Thresholds
are the bundle's own, or one that is chosen on clean quiet footage for a stated budget of false alarms. What shows in
the disturbed modality alone cannot be known when that is missing, frozen or of another place: it is asked for neither
there nor where such a condition is compared with the clean one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.contract.manifest import Manifest
from edge_agent.core.records import Model
from edge_agent.simulate import Site
from models.evaluation.disturb import HOWS, Disturbance
from models.evaluation.sessions import (
    BELONGS_S,
    Cause,
    Played,
    Remembering,
    Session,
    play,
    simulated,
    spoilt,
)
from models.evaluation.variants import Variant, opened
from models.metrics import average_precision, frame_auc_macro, frame_auc_micro
from models.processes import interleaved, side_by_side
from models.progress import tracked

#: False alarms per camera and hour that the recall is stated for.
BUDGETS_PER_H = (1, 10)
Array = NDArray[np.float64]
CLEAN = "clean"

#: None: the samples as they are.
CONDITIONS: tuple[Disturbance | None, ...] = (
    None,
    *(Disturbance(modality, how) for modality in MODALITIES for how in HOWS),
)


def name_of(condition: Disturbance | None) -> str:
    """As rows are called."""
    return CLEAN if condition is None else f"{condition.modality} {condition.how}"


class Source(Protocol):
    """What renders sessions, in two halves that do not depend on how many cores there are."""

    def halves(self) -> Sequence[Source]:
        """The two of which this is made: every other session each."""

    def sessions(self) -> Iterator[tuple[Session, Session]]:
        """(session, the place that contradicts it)."""


@dataclass(frozen=True)
class Sites:
    """Simulated sites."""

    sites: Sequence[Site]
    seconds: float
    title: str
    first: int = 0
    stride: int = 1

    def halves(self) -> list[Sites]:
        """Every other one."""
        return [replace(self, first=first, stride=2) for first in range(2)]

    def sessions(self) -> Iterator[tuple[Session, Session]]:
        """With the next site as the place that contradicts."""
        for index in tracked(self.title, range(self.first, len(self.sites), self.stride)):
            other = self.sites[(index + 1) % len(self.sites)]
            yield simulated(self.sites[index], self.seconds), simulated(other, self.seconds)


@dataclass(frozen=True)
class Task:
    """What one process plays: sessions of a source under conditions on the first variant, clean ones on all."""

    source: Source
    variants: Sequence[Variant]
    conditions: Sequence[Disturbance | None]
    seed: int


@dataclass
class Heap:
    """What came of a task: by condition, and by variant with the time that it took."""

    conditions: dict[str, list[Played]] = field(default_factory=lambda: defaultdict(list))
    variants: dict[str, list[Played]] = field(default_factory=lambda: defaultdict(list))
    step_ms: dict[str, float] = field(default_factory=dict)


def run(source: Source, variants: Sequence[Variant], conditions: Sequence[Disturbance | None], seed: int) -> Heap:
    """Every session of the source, on two cores if there are two. Minutes."""
    parts = side_by_side(_half, [Task(half, variants, conditions, seed) for half in source.halves()])
    return Heap(
        {name_of(how): interleaved([part.conditions.get(name_of(how), []) for part in parts]) for how in conditions},
        {one.name: interleaved([part.variants.get(one.name, []) for part in parts]) for one in variants},
        {one.name: float(np.mean([part.step_ms[one.name] for part in parts if part.step_ms])) for one in variants},
    )


def _half(task: Task) -> Heap:
    heap = Heap()
    spent: dict[str, list[float]] = defaultdict(list)
    with opened(task.variants) as models:
        first, *others = models.items()
        for session, other in task.source.sessions():
            # Rendered once for all conditions and engines.
            samples, foreign = list(session.samples(first[1].manifest)), _Once(other, first[1].manifest)
            model = replace(first[1], engine=Remembering(first[1].engine))
            for condition in task.conditions:
                if condition is None:
                    played, took_s = _timed(model, session, samples)
                    spent[first[0].name].append(took_s / max(len(played.scores), 1))
                    heap.variants[first[0].name].append(played)
                else:
                    played = play(model, session, spoilt(samples, condition, task.seed, foreign)).scored()
                heap.conditions[name_of(condition)].append(played)
            for variant, engine in others:
                played, took_s = _timed(engine, session, samples)
                spent[variant.name].append(took_s / max(len(played.scores), 1))
                heap.variants[variant.name].append(played.scored())
    heap.step_ms = {name: 1000 * float(np.median(found)) for name, found in spent.items()}
    return heap


class _Once:
    """Samples of a session, rendered when they are first asked for."""

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session, self._manifest = session, manifest
        self._samples: list[Any] | None = None

    def __call__(self) -> list[Any]:
        if self._samples is None:
            self._samples = list(self._session.samples(self._manifest))
        return self._samples


def _timed(model: Model, session: Session, samples: Sequence[Any]) -> tuple[Played, float]:
    begin = time.perf_counter()
    played = play(model, session, samples)
    return played.bare(), time.perf_counter() - begin


@dataclass(frozen=True)
class Result:
    """One condition or one method: what was played, and what came of it."""

    condition: Disturbance | None
    tests: list[Played]
    quiet: list[Played]

    @property
    def name(self) -> str:
        return name_of(self.condition)

    @property
    def lost(self) -> Modality | None:
        """The modality whose evidence is gone; None where it is there, if noisy."""
        return None if self.condition is None or self.condition.how == "noisy" else self.condition.modality

    @property
    def quiet_h(self) -> float:
        return sum(played.session.seconds for played in self.quiet) / 3600

    def steps(self, lost: Modality | None = None) -> tuple[list[NDArray[np.int8]], list[Array]]:
        """Truth (1, 0) and fused logit of each session's steps, those left out that are neither, also for who lacks
        the modality `lost`."""
        truths, scores = [], []
        for played in self.tests:
            truth = played.session.truth(played.times_s, lost)
            truths.append(truth[truth >= 0])
            scores.append(played.logits[truth >= 0])
        return truths, scores

    def said_by(self, method: Callable[[Played], Array]) -> Result:
        """The same with what another method says."""
        return replace(
            self,
            tests=[replace(played, other=method(played)) for played in self.tests],
            quiet=[replace(played, other=method(played)) for played in self.quiet],
        )


def budget_logit(quiet: Sequence[Played], on_steps: int, per_h: float) -> float:
    """The lowest logit that clean quiet footage sustains at most `per_h` times an hour.

    Sustained peaks are counted once a minute, as an alert with its cool-down would be.
    """
    hours = sum(played.session.seconds for played in quiet) / 3600
    peaks = sorted((peak for played in quiet for peak in _minutes(played, on_steps)), reverse=True)
    allowed = int(per_h * hours)
    return peaks[allowed] if allowed < len(peaks) else -np.inf


def _minutes(played: Played, on_steps: int) -> Iterator[float]:
    held = sustained(played.logits, on_steps)
    per_minute = max(60_000 // played.step_ms, 1)
    for start in range(0, len(held), per_minute):
        yield float(held[start : start + per_minute].max())


def sustained(logits: Array, on_steps: int) -> Array:
    """The level that `on_steps` steps in a row hold, by the last of them; −inf before there are so many."""
    found = np.full(len(logits), -np.inf)
    if len(logits) >= on_steps:
        held = np.lib.stride_tricks.sliding_window_view(logits, on_steps)
        found[on_steps - 1 :] = held.min(1)
    return found


def figures(result: Result, clean: Result, on_steps: int, *, alerts: bool = True) -> dict[str, float | None]:
    """The row of one condition or method. None where nothing could be counted.

    `recall`, `astray` (alerts that belong to nothing) and the delays are those of the alerts that the bundle's own
    thresholds sent (none for `alerts=False`: another method has no alerts); `recall_at_<n>_per_h` is at the logit
    that `clean` quiet footage sustains at most so many times an hour. `ap_lost`: the clean AP on the same steps less
    this one.
    """
    lost = result.lost
    truths, scores = result.steps(lost)
    truth, score = np.concatenate(truths), np.concatenate(scores)
    ap = average_precision(truth, score)
    asked = [(played, cause) for played in result.tests for cause in played.session.causes_left(lost)]
    row: dict[str, float | None] = {
        "frame_auc_micro": frame_auc_micro(truths, scores),
        "frame_auc_macro": frame_auc_macro(truths, scores),
        "ap": ap,
        "ap_lost": None,
    }
    for per_h in BUDGETS_PER_H:
        level = budget_logit(clean.quiet, on_steps, per_h)
        reached = [_reaches(played, cause, level, on_steps) for played, cause in asked]
        row[f"recall_at_{per_h}_per_h"] = _share(reached)
    if result.condition is not None:
        row["ap_lost"] = average_precision(*(np.concatenate(part) for part in clean.steps(lost))) - ap
    if alerts:
        found = [pair for played in result.tests for pair in played.found() if set(pair[0].shown) != {lost}]
        delays = [delay for played in result.tests for delay in delays_s(played)]
        row |= {
            "recall": _share([bool(sent) for _, sent in found]),
            "false_alarms_per_h": sum(len(p.alerts) for p in result.quiet) / result.quiet_h if result.quiet else None,
            "astray": float(sum(len(played.astray()) for played in result.tests)),
            "detect_s_median": float(np.median(delays)) if delays else None,
            "detect_s_p90": float(np.percentile(delays, 90)) if delays else None,
        }
    return row


def delays_s(played: Played) -> list[float]:
    """Seconds from the beginning of each cause that was found to its first alert."""
    return [played.alert_s(alerts[0]) - cause.start_s for cause, alerts in played.found() if alerts]


def by_type(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Label of a cause → how many there are, seconds to the first alert, and recall under each condition.

    A cause that shows in the lost modality alone is not asked for: None where none is left.
    """
    table: dict[str, dict[str, float | None]] = defaultdict(dict)
    for result in results:
        hits: dict[str, list[bool]] = defaultdict(list)
        delays: dict[str, list[float]] = defaultdict(list)
        for played in result.tests:
            for cause, alerts in played.found():
                hits[cause.label] += [bool(alerts)] if set(cause.shown) != {result.lost} else []
                delays[cause.label] += [played.alert_s(alerts[0]) - cause.start_s] if alerts else []
        for label, found in hits.items():
            if result.condition is None:
                table[label]["n"] = len(found)
                table[label]["detect_s_median"] = float(np.median(delays[label])) if delays[label] else None
            table[label][result.name] = _share(found)
    return dict(sorted(table.items()))


def confusion(result: Result, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """What a cause was called (its first alert that names a class, else its first; `nothing` if none came)."""
    table: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for played in result.tests:
        for cause, alerts in played.found():
            named = [alert.label for alert in alerts if alert.label in classes] or [a.label for a in alerts]
            table[cause.label][named[0] if named else "nothing"] += 1
        for alert in played.astray():
            table["nothing"][alert.label] += 1
    return {label: dict(row) for label, row in sorted(table.items())}


def quiet_table(quiet: Sequence[Played], on_steps: int) -> dict[str, dict[str, float]]:
    """Kind of normal footage → hours, alerts, how many that makes an hour, and the highest level held."""
    table: dict[str, dict[str, float]] = {}
    for kind in sorted({played.session.kind for played in quiet}):
        part = [played for played in quiet if played.session.kind == kind]
        hours = sum(played.session.seconds for played in part) / 3600
        count = sum(len(played.alerts) for played in part)
        highest = max(float(sustained(played.logits, on_steps).max()) for played in part)
        table[kind] = {
            "places": len(part),
            "hours": hours,
            "alerts": count,
            "alerts_per_h": count / hours,
            "highest_score": float(1 / (1 + np.exp(-highest))),
        }
    return table


def missing_curves(clean: Result, seed: int, draws: int = 20) -> dict[str, list[tuple[float, float]]]:
    """(share of sessions that lack it, mean AP) for each modality, and for all three by chance.

    The head's answers under its masks, which the device asks for anyway: each session lacks a modality throughout or
    not at all. What shows only in what is missing is not asked for.
    """
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    given = {
        kept: [(played.given(kept), _truth_with(played, kept)) for played in clean.tests]
        for kept in (frozenset(c for c in range(3) if number >> c & 1) for number in range(8))
    }
    curves: dict[str, list[tuple[float, float]]] = {}
    lacking: dict[str, tuple[int, ...]] = {name: (i,) for i, name in enumerate(MODALITIES)}
    for title, columns in {**lacking, "any": (0, 1, 2)}.items():
        curves[title] = []
        for share in shares[: -1 if title == "any" else None]:
            rng = np.random.default_rng([seed, 73])
            found = []
            for _ in range(draws if 0 < share < 1 else 1):
                gone = rng.random((len(clean.tests), 3)) < share
                parts = [
                    given[frozenset(range(3)) - {c for c in columns if gone[i, c]}][i]
                    for i in range(len(clean.tests))
                ]
                scores, truths = (np.concatenate([part[k] for part in parts]) for k in range(2))
                found.append(average_precision(truths[truths >= 0], scores[truths >= 0]))
            curves[title].append((share, float(np.mean(found))))
    return curves


def _truth_with(played: Played, kept: frozenset[int]) -> NDArray[np.int8]:
    """Truth for who has these modalities alone."""
    each = [played.session.shows(name, played.times_s) for name in MODALITIES]
    wrong = np.any([each[c] == 1 for c in kept] or [np.zeros(len(played.scores), bool)], 0)
    unclear = np.any([each[c] != 0 if c not in kept else each[c] < 0 for c in range(3)], 0)
    return np.where(wrong, 1, np.where(unclear, -1, 0)).astype(np.int8)


def heads(result: Result) -> dict[str, tuple[NDArray[np.int8], Array]]:
    """(truth, probability) of every output of the head over the steps where its truth is known: the score, each
    modality's own, each class that anything was."""
    truths, scores = result.steps()
    found = {"score": (np.concatenate(truths), sigmoid(np.concatenate(scores)))}
    for name in MODALITIES:
        said, shown = [], []
        for played in result.tests:
            there = np.array([name in scores.present for scores in played.scores], bool)
            marks = played.session.shows(name, played.times_s)
            said.append(sigmoid(played.own(name)[there & (marks >= 0)]))
            shown.append(marks[there & (marks >= 0)])
        found[name] = (np.concatenate(shown), np.concatenate(said))
    for label in result.tests[0].scores[0].classes:
        said, shown = [], []
        for played in result.tests:
            truth = played.session.truth(played.times_s)
            is_it = np.array([any(cause.label == label for cause in played.session.causes)] * len(truth))
            kept = truth >= 0
            said.append(np.array([scores.classes[label] for scores in played.scores])[kept])
            shown.append(np.where(is_it, truth, 0)[kept].astype(np.int8))
        if np.concatenate(shown).any():
            found[label] = (np.concatenate(shown), np.concatenate(said))
    return found


def sigmoid(logits: Array) -> Array:
    """Probabilities."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))


def _reaches(played: Played, cause: Cause, level: float, on_steps: int) -> bool:
    times, held = played.times_s, sustained(played.logits, on_steps)
    inside = (times >= cause.start_s) & (times <= cause.end_s + BELONGS_S)
    return bool(inside.any() and held[inside].max() > level)


def _share(hits: Sequence[bool]) -> float | None:
    return float(np.mean(hits)) if hits else None
