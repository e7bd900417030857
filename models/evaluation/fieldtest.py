"""A bundle in the field: sessions with known answers through the device's own pipeline, clean and disturbed.

Every condition plays the same sessions and the same quiet footage; only what the samples carry differs. Thresholds
are the bundle's own, or one that is chosen on clean quiet footage for a stated budget of false alarms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.core.records import Model
from models.evaluation.disturb import HOWS, Disturbance
from models.evaluation.sessions import BELONGS_S, Cause, Played, Session, play, spoilt
from models.metrics import auc, average_precision, frame_auc_macro, frame_auc_micro
from models.progress import Progress

#: False alarms per camera and hour that the recall is stated for.
BUDGET_PER_H = 1.0
Array = NDArray[np.float64]


#: None: the samples as they are.
CONDITIONS: tuple[Disturbance | None, ...] = (
    None,
    *(Disturbance(modality, how) for modality in MODALITIES for how in HOWS),
)


@dataclass(frozen=True)
class Result:
    """One condition: what was played, and what came of it."""

    condition: Disturbance | None
    tests: list[Played]
    quiet: list[Played]

    @property
    def name(self) -> str:
        return "clean" if self.condition is None else f"{self.condition.modality} {self.condition.how}"

    @property
    def quiet_h(self) -> float:
        return sum(played.session.seconds for played in self.quiet) / 3600

    def steps(self) -> tuple[list[NDArray[np.int8]], list[Array]]:
        """Truth (1, 0) and fused logit of each session's steps, those left out that are neither."""
        truths, scores = [], []
        for played in self.tests:
            truth = played.session.truth(played.times_s)
            truths.append(truth[truth >= 0])
            scores.append(played.logits[truth >= 0])
        return truths, scores

    def modality_steps(self, modality: Modality) -> Array:
        """One modality's own logit of the same steps, all sessions end to end."""
        return np.concatenate([p.own(modality)[p.session.truth(p.times_s) >= 0] for p in self.tests])


def run(
    model: Model,
    tests: Sequence[Session],
    quiet: Sequence[Session],
    seed: int,
    conditions: Sequence[Disturbance | None],
) -> list[Result]:
    """Every condition over all sessions. Minutes: rendering and encoding are those of the device."""
    shown = Progress("conditions", len(conditions) * (len(tests) + len(quiet)))
    found: list[Result] = []
    for condition in conditions:
        played: dict[str, list[Played]] = {"tests": [], "quiet": []}
        for kind, sessions in (("tests", tests), ("quiet", quiet)):
            for index, session in enumerate(sessions):
                # The place that contradicts is a quiet one, and another.
                other = quiet[(index + 1) % len(quiet)]
                played[kind].append(_play(model, session, condition, seed, other))
                shown.at(len(found) * (len(tests) + len(quiet)) + len(played["tests"]) + len(played["quiet"]))
        found.append(Result(condition, **played))
    return found


def _play(model: Model, session: Session, condition: Disturbance | None, seed: int, other: Session) -> Played:
    if condition is None:
        return play(model, session)
    return play(model, session, spoilt(session, condition, model.manifest, seed, other))


def budget_logit(quiet: Sequence[Played], on_steps: int, per_h: float = BUDGET_PER_H) -> float:
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
    for end in range(on_steps, len(logits) + 1):
        found[end - 1] = logits[end - on_steps : end].min()
    return found


def figures(result: Result, clean: Result, on_steps: int) -> dict[str, float | None]:
    """The row of one condition. None where nothing could be counted.

    `recall` and `false_alarms_per_h` are those of the alerts that the bundle's own thresholds sent;
    `recall_at_budget` is at the logit that `clean` quiet footage sustains at most once an hour.
    """
    truths, scores = result.steps()
    truth, score = np.concatenate(truths), np.concatenate(scores)
    found = [pair for played in result.tests for pair in played.found()]
    level = budget_logit(clean.quiet, on_steps)
    at_budget = [
        _reaches(played, cause, level, on_steps) for played in result.tests for cause in played.session.causes
    ]
    delays = [delay for played in result.tests for delay in delays_s(played)]
    return {
        "frame_auc_micro": frame_auc_micro(truths, scores),
        "frame_auc_macro": frame_auc_macro(truths, scores),
        "ap": average_precision(truth, score),
        "recall": _share([bool(alerts) for _, alerts in found]),
        "recall_at_budget": _share(at_budget),
        "false_alarms_per_h": sum(len(p.alerts) for p in result.quiet) / result.quiet_h if result.quiet_h else None,
        "astray": float(sum(len(played.astray()) for played in result.tests)),
        "detect_s_median": float(np.median(delays)) if delays else None,
        "detect_s_p90": float(np.percentile(delays, 90)) if delays else None,
    }


def delays_s(played: Played) -> list[float]:
    """Seconds from the beginning of each cause that was found to its first alert."""
    return [played.alert_s(alerts[0]) - cause.start_s for cause, alerts in played.found() if alerts]


def by_type(results: Sequence[Result]) -> dict[str, dict[str, float | None]]:
    """Label of a cause → recall under each condition, and how many there are of it."""
    table: dict[str, dict[str, float | None]] = defaultdict(dict)
    for result in results:
        hits: dict[str, list[bool]] = defaultdict(list)
        for played in result.tests:
            for cause, alerts in played.found():
                hits[cause.label].append(bool(alerts))
        for label, found in hits.items():
            table[label]["n"] = len(found)
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


def baselines(result: Result, others: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """AP and AUC of the fused score beside each modality's own logit, their late mean, and scores of `others`."""
    truths, scores = result.steps()
    truth = np.concatenate(truths)
    own: dict[str, Array] = {modality: result.modality_steps(modality) for modality in MODALITIES}
    late = np.mean([1 / (1 + np.exp(-np.clip(logit, -30, 30))) for logit in own.values()], axis=0)
    rows: dict[str, Array] = {"fused": np.concatenate(scores), **own, "late mean": late, **others}
    return {name: {"ap": average_precision(truth, s), "auc": auc(truth, s)} for name, s in rows.items()}


def outliers(result: Result) -> dict[str, Array]:
    """PyOD's detectors on the fused embedding, fitted on quiet footage: what no training on anomalies gives."""
    from pyod.models.ecod import ECOD  # type: ignore[import-untyped]
    from pyod.models.iforest import IForest  # type: ignore[import-untyped]
    from pyod.models.knn import KNN  # type: ignore[import-untyped]

    normal = np.stack([scores.embedding for played in result.quiet for scores in played.scores])
    tested = np.concatenate(
        [
            np.stack([scores.embedding for scores in played.scores])[played.session.truth(played.times_s) >= 0]
            for played in result.tests
        ]
    )
    made = {"PyOD ECOD": ECOD(), "PyOD IForest": IForest(random_state=0), "PyOD KNN": KNN()}
    return {name: np.asarray(detector.fit(normal).decision_function(tested)) for name, detector in made.items()}


def _reaches(played: Played, cause: Cause, level: float, on_steps: int) -> bool:
    times, held = played.times_s, sustained(played.logits, on_steps)
    inside = (times >= cause.start_s) & (times <= cause.end_s + BELONGS_S)
    return bool(inside.any() and held[inside].max() > level)


def _share(hits: Sequence[bool]) -> float | None:
    return float(np.mean(hits)) if hits else None
