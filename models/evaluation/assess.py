"""Everything about one bundle: sessions clean and disturbed, recorded sets, engines and other bundles side by side.

`python -m models evaluate` prints one table and writes one page; both come from the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.contract.event import MODALITIES
from edge_agent.engine import load
from edge_agent.simulate import Site, quiet, schedule
from models.config import Preset
from models.evaluation import evaluate, fieldtest, report
from models.evaluation.disturb import Disturbance
from models.evaluation.fieldtest import BUDGET_PER_H, CONDITIONS, Result
from models.evaluation.sessions import Played, Session, play, simulated
from models.metrics import average_precision, frame_auc_micro

#: Sites, eventful and quiet, that neither trained nor chose a threshold or a temperature.
_TEST_SEEDS, _QUIET_SEEDS = range(5000, 5100), range(6000, 6100)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is played: sites with episodes and quiet ones, seconds each."""

    sites: int
    site_s: float
    quiet_sites: int
    quiet_s: float


SCALES = {"full": Scale(6, 150.0, 6, 300.0), "quick": Scale(2, 60.0, 2, 60.0)}


@dataclass(frozen=True)
class Assessment:
    """What was found; `figures` is plain JSON."""

    bundle: str
    engine: str
    on: float
    results: list[Result]
    figures: dict[str, Any]

    def text(self) -> str:
        """The table for a terminal."""
        return report.text_table(self.figures["conditions"], "condition")

    def html(self) -> str:
        """The page."""
        clean, figures = self.results[0], self.figures
        truths, scores = clean.steps()
        truth, fused = np.concatenate(truths), np.concatenate(scores)
        drawn: dict[str, Any] = {"fused": fused} | {m: clean.modality_steps(m) for m in MODALITIES}
        conditions = figures["conditions"]
        sections = [
            report.section(
                "Conditions",
                f"The same {len(clean.tests)} sessions and {clean.quiet_h:.2f} h of quiet footage, one modality "
                "disturbed at a time. Recall is that of the alerts sent at the bundle's own threshold; at budget: at "
                f"a threshold that clean quiet footage reaches {BUDGET_PER_H:g} time(s) an hour. Simulated "
                "sites, not recorded ones.",
                report.table(conditions, "condition"),
                report.plots((report.bars(conditions, "ap", "average precision"), "Step-wise AP by condition")),
            ),
            report.section(
                "By type", "Share of causes that brought an alert.", report.table(figures["by_type"], "cause")
            ),
            report.section(
                "Scores",
                "Steps of all clean sessions. A modality's own logit beside the fused one.",
                report.plots(
                    (report.roc(truth, drawn), "ROC"),
                    (report.precision_recall(truth, drawn), "Precision over recall"),
                    (
                        report.reliability(truth, 1 / (1 + np.exp(-np.clip(fused, -30, 30)))),
                        "Reliability of the score",
                    ),
                    (report.matrix(figures["confusion"]), "What a cause was called"),
                ),
                report.table(figures["baselines"], "score"),
            ),
            report.section(
                "Side by side", "The same clean sessions on each engine and bundle.", report.table(figures["engines"])
            ),
            report.section(
                "Recorded sets",
                "Each modality alone, on data that trained nothing.",
                report.table(figures["recorded"]),
            ),
            report.section(
                "Every session",
                "Score over time; what was wrong is shaded, alerts are marked, the dashed line is the threshold.",
                report.plots(
                    *((report.timeline(clean, i, self.on), p.session.name) for i, p in enumerate(clean.tests))
                ),
            ),
        ]
        return report.page(f"Evaluation of {self.bundle}", sections)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be assessed, and against what."""

    bundle: Path
    engines: tuple[str, ...]  #: the first carries the conditions, all play the clean sessions
    others: tuple[Path, ...] = ()  #: bundles to stand beside it (its float32 teacher, an older one)
    scale: Scale = SCALES["full"]
    root: Path | None = None  #: folder of the recorded sets
    seed: int = 0
    conditions: tuple[Disturbance | None, ...] = CONDITIONS  #: the clean one first


def assess(wanted: Wanted, preset: Preset) -> Assessment:
    """Play everything. Minutes. ConfigError, BundleError as `edge_agent.engine.load`."""
    path, engines, seed, root = wanted.bundle, wanted.engines, wanted.seed, wanted.root
    model = load(path, engines[0])
    tests, calm = sessions(wanted.scale, preset)
    results = fieldtest.run(model, tests, calm, seed, wanted.conditions)
    clean, on_steps = results[0], model.manifest.thresholds.on_steps
    figures: dict[str, Any] = {
        "bundle": model.hash,
        "name": model.manifest.name,
        "engine": engines[0],
        "seed": seed,
        "sessions": len(tests),
        "quiet_h": clean.quiet_h,
        "conditions": {result.name: fieldtest.figures(result, clean, on_steps) for result in results},
        "by_type": fieldtest.by_type(results),
        "confusion": fieldtest.confusion(clean, model.manifest.classes),
        "baselines": fieldtest.baselines(clean, fieldtest.outliers(clean)),
        "engines": _side_by_side(
            clean, [(path, name) for name in engines] + [(o, engines[0]) for o in wanted.others]
        ),
        "recorded": evaluate.recorded(model.engine, preset, root, seed) if root is not None else {},
    }
    model.engine.close()
    return Assessment(model.manifest.name, engines[0], model.manifest.thresholds.on, results, figures)


def sessions(scale: Scale, preset: Preset) -> tuple[list[Session], list[Session]]:
    """(with causes, quiet): simulated sites of seeds that trained nothing and chose nothing."""
    size = {
        "width": preset.vision_spec.width,
        "height": preset.vision_spec.height,
        "rate_hz": preset.audio_spec.rate_hz,
    }
    tests = [
        simulated(Site(seed, schedule(seed, scale.site_s, gap_s=(8.0, 20.0)), **size), scale.site_s)
        for seed in _TEST_SEEDS[: scale.sites]
    ]
    calm = [
        simulated(Site(seed, quiet(seed, scale.quiet_s), **size), scale.quiet_s)
        for seed in _QUIET_SEEDS[: scale.quiet_sites]
    ]
    return tests, calm


def _side_by_side(clean: Result, runs: Sequence[tuple[Path, str]]) -> dict[str, Any]:
    """One row per (bundle, engine): figures of the clean sessions, largest difference to the first's scores, pace."""
    first = np.concatenate([_scores(p) for p in clean.tests])
    rows: dict[str, Any] = {}
    for path, name in runs:
        model = load(path, name)
        begin = time.perf_counter()
        again = [play(model, p.session) for p in clean.tests]
        took_s = time.perf_counter() - begin
        rows[f"{model.manifest.name} {model.hash[:8]} on {name}"] = _row(again, first, took_s)
        model.engine.close()
    return rows


def _row(tests: list[Played], first: np.ndarray[Any, Any], took_s: float) -> dict[str, Any]:
    result = Result(None, tests, [])
    truths, scores = result.steps()
    mine = np.concatenate([_scores(p) for p in tests])
    return {
        "frame_auc_micro": frame_auc_micro(truths, scores),
        "ap": average_precision(np.concatenate(truths), np.concatenate(scores)),
        "largest_difference": float(np.abs(mine - first).max()),
        "step_ms_with_rendering": 1000 * took_s / len(mine),
    }


def _scores(played: Played) -> np.ndarray[Any, Any]:
    return np.array([scores.score for scores in played.scores])
