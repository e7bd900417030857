"""Everything about one bundle: composed episodes and simulated sites clean and disturbed, normal footage, recorded
sets, baselines, and every form and engine side by side.

`python -m models evaluate` prints one table and writes one page; both come from the same figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.core.records import F32
from edge_agent.engine import open_bundle
from edge_agent.errors import ConfigError
from edge_agent.simulate import Site, quiet, schedule
from models import bundle
from models.config import Preset
from models.data.mixture import MIXTURE
from models.data.records import Recording
from models.evaluation import composed, evaluate, fieldtest, footage, parity, report
from models.evaluation.disturb import Disturbance
from models.evaluation.fieldtest import CLEAN, CONDITIONS, Heap, Result, Sites, Source
from models.evaluation.sessions import UNHEARD, Played
from models.evaluation.variants import Variant, forms, opened
from models.metrics import expected_error
from models.processes import side_by_side
from models.training.linear import logistic

#: Sites, eventful and quiet, that neither trained nor chose a threshold or a temperature.
_TEST_SEEDS, _QUIET_SEEDS = range(5000, 5100), range(6000, 6100)
#: Ridge of the naive concatenation, as in the benchmark of composed episodes.
_PENALTY = 0.1
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is played: composed episodes that are tested and that teach the baselines, simulated sites with causes
    and quiet ones, seconds each, and the share of the recorded footage."""

    episodes: int
    taught: int
    sites: int
    site_s: float
    quiet_sites: int
    quiet_s: float
    films: int


SCALES = {
    "full": Scale(composed.TESTED, 120, 8, 150.0, 8, 150.0, 1000),
    "quick": Scale(16, 12, 2, 60.0, 2, 60.0, 2),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be assessed, and against what."""

    bundle: Path
    engines: tuple[str, ...]  #: the first carries the conditions, all play the clean sessions
    others: tuple[Path, ...] = ()  #: bundles to stand beside it
    teacher: Path | None = None  #: bundle of its float32 network, which a training leaves in its folder
    ablations: Path | None = None  #: folder of `ablate`, whose table is shown beside
    scale: Scale = SCALES["full"]
    root: Path | None = None  #: folder of the recorded sets; without it no episode is composed
    seed: int = 0
    conditions: tuple[Disturbance | None, ...] = CONDITIONS  #: the clean one first


@dataclass(frozen=True)
class Family:
    """Sessions of one kind: under every condition, by other methods, and in every form of the bundle."""

    title: str
    conditions: list[Result]
    methods: dict[str, Result]
    variants: dict[str, Result]

    @property
    def clean(self) -> Result:
        return self.conditions[0]


@dataclass(frozen=True)
class Assessment:
    """What was found; `figures` is plain JSON."""

    bundle: str
    on: float
    families: list[Family]
    pairs: list[parity.Pair]
    figures: dict[str, Any]

    def text(self) -> str:
        """The table for a terminal."""
        rows = {
            f"{family}: {name}": row
            for family, parts in self.figures["families"].items()
            for part in ("conditions", "methods", "variants")
            for name, row in parts[part].items()
            if (part, name) != ("methods", "fused")  # the clean condition
        }
        return report.text_table(rows, "what")

    def html(self) -> str:
        """The page."""
        sections = [self._head()]
        for family in self.families:
            sections += self._family(family, self.figures["families"][family.title])
        sections += [
            report.section(
                "Normal footage",
                "Clean. Alerts at the bundle's own threshold, as on a scene's first day. Films are short and played "
                "to and fro, with everyday sounds and room logs of others' beside them; UCSD Ped2 states no licence: "
                "it is judged with, and trains nothing.",
                report.table(self.figures["normal"], "footage"),
            ),
            report.section(
                "The same score everywhere",
                "Largest difference of the score (probability) within each clip of the test: of sessions (composed "
                "episodes and simulated sites) the fused one, step by step; of recorded sets that of the modality's "
                "own encoder. One file on several engines has a tolerance; what int8 and pruning change has none.",
                report.plots((report.differences(self.pairs), "Share of sessions that differ by more")),
                report.table(self.figures["parity"], "who against whom"),
            ),
            report.section(
                "Recorded sets",
                "Each modality alone, on data that trained nothing; floors are those of the sets' own pages.",
                report.table(self.figures["recorded"], "set"),
            ),
        ]
        if self.figures["ablations"]:
            sections.append(
                report.section(
                    "Ablations",
                    "Heads on cached embeddings, mean and spread over seeds; from the folder that was given.",
                    report.plots((report.ablations(self.figures["ablations"]), "Average precision of fused windows")),
                )
            )
        sections += [self._timelines(family) for family in self.families]
        return report.page(f"Evaluation of {self.bundle}", sections)

    def _head(self) -> str:
        figures = self.figures
        return report.section(
            "What was played",
            f"Bundle {figures['bundle'][:16]} through the device's own pipeline on {figures['engine']}, seed "
            f"{figures['seed']}, in {figures['seconds']:.0f} s. {figures['quiet_h']:.2f} h of normal footage. "
            "Recall is that of the alerts sent at the bundle's own threshold; at n per h: at the one that clean "
            f"normal footage, all places alike, reaches n times an hour. {' '.join(figures['notes'])}",
        )

    def _family(self, family: Family, figures: Mapping[str, Any]) -> list[str]:
        clean, conditions = family.clean, figures["conditions"]
        truths, scores = clean.steps()
        truth = np.concatenate(truths)
        drawn: dict[str, Any] = {"fused": np.concatenate(scores)}
        drawn |= {name: np.concatenate(result.steps()[1]) for name, result in family.methods.items()}
        kept = ("fused", *(f"{name} alone" for name in MODALITIES), "late mean", "naive concatenation")
        drawn = {name: drawn[name] for name in kept if name in drawn}
        return [
            report.section(
                f"{family.title}: conditions",
                f"The same {len(clean.tests)} sessions under every condition. A cause that shows in the lost "
                "modality alone is not asked for: ap lost compares on what is left.",
                report.table(conditions, "condition"),
                report.plots(
                    (report.bars(conditions, "ap", "average precision"), "Step-wise AP by condition"),
                    (report.curves(figures["missing"]), "AP over the share of sessions that lack a modality"),
                ),
            ),
            report.section(
                f"{family.title}: scores",
                "Steps of all clean sessions.",
                report.plots(
                    (report.roc(truth, drawn), "ROC"),
                    (report.precision_recall(truth, drawn), "Precision over recall"),
                    (report.matrix(figures["confusion"]), "What a cause was called"),
                ),
                report.table(figures["methods"], "score"),
            ),
            report.section(
                f"{family.title}: reliability of every output",
                "How often it was so over how sure the head was; the area of a dot is its share of the steps. ece: "
                "expected calibration error. Temperatures were fitted elsewhere, on windows of which about half are "
                "wrong.",
                report.plots(
                    *(
                        (report.reliability(*pair), _caption(name, figures["calibration"][name]))
                        for name, pair in fieldtest.heads(clean).items()
                    ),
                    narrow=True,
                ),
            ),
            report.section(
                f"{family.title}: by type",
                "Share of causes that brought an alert, under each condition.",
                report.table(figures["by_type"], "cause"),
            ),
            report.section(
                f"{family.title}: side by side",
                "The same clean sessions in every form of the bundle and on every engine; levels are the first's.",
                report.table(figures["variants"], "form"),
            ),
        ]

    def _timelines(self, family: Family) -> str:
        long = family.clean.tests[0].session.seconds > 60
        parts = [(report.timeline(p, self.on), p.session.name) for p in family.clean.tests] if long else []
        return report.section(
            f"{family.title}: every session",
            "Score over time; what was wrong is shaded, alerts are marked, the dashed line is the threshold.",
            report.plots(*parts) if long else report.strips(family.clean.tests, self.on),
        )


def _caption(name: str, found: Mapping[str, Any]) -> str:
    heat = f", temperature {found['temperature']:.2f}" if "temperature" in found else ""
    return f"{name}: ece {found['ece']:.3f} of {found['steps']} steps{heat}"


#: What a method says of a session: one number a step, the higher the worse.
Method = Callable[[Played], Array]


def assess(wanted: Wanted, preset: Preset) -> Assessment:
    """Play everything. Minutes. ConfigError, BundleError as `edge_agent.engine.load`."""
    begin, notes = time.monotonic(), list[str]()
    shipped = open_bundle(wanted.bundle)
    manifest = shipped.manifest
    variants = forms(wanted.bundle, wanted.engines, wanted.teacher, wanted.others)
    parts = composed.read(wanted.root, notes, "data") if wanted.root is not None else []
    calm = _quiet(wanted, preset, variants[0])
    tests = {"Simulated sites": fieldtest.run(_sites(wanted.scale, preset), variants, wanted.conditions, wanted.seed)}
    if parts:
        episodes = composed.Episodes(composed.tested(parts), preset, "test", wanted.scale.episodes)
        heap = fieldtest.run(episodes, variants, wanted.conditions, wanted.seed)
        tests = {"Composed episodes": heap, **tests}
        notes.append(
            f"Composed of parts of the splits dev and test, mixture {MIXTURE.digest[:12]}: no public set has camera, "
            "microphone and sensors of one place together."
        )
    methods = _methods(wanted, preset, variants[0], parts)
    families = [_family(title, heap, calm, methods, wanted.conditions) for title, heap in tests.items()]
    clips = _clips(wanted, preset, variants)
    pairs = parity.pairs(variants, _said(variants, list(tests.values()), clips))
    on_steps, normal = manifest.thresholds.on_steps, families[0].clean
    figures: dict[str, Any] = {
        "bundle": shipped.hash,
        "name": manifest.name,
        "engine": wanted.engines[0],
        "seed": wanted.seed,
        "notes": notes,
        "quiet_h": normal.quiet_h,
        "families": {
            family.title: _told(family, tests[family.title].step_ms, on_steps, manifest.classes, wanted)
            for family in families
        },
        "normal": fieldtest.quiet_table(normal.quiet, on_steps),
        "parity": {pair.name: pair.row() for pair in pairs},
        "recorded": evaluate.told(clips[variants[0].name], wanted.seed) if clips else {},
        "ablations": _ablations(wanted.ablations) if wanted.ablations is not None else [],
        "seconds": time.monotonic() - begin,
    }
    return Assessment(manifest.name, manifest.thresholds.on, families, pairs, figures)


def _sites(scale: Scale, preset: Preset, *, calm: bool = False) -> Sites:
    """Simulated sites of seeds that trained nothing and chose nothing."""
    spec, rate_hz = preset.vision_spec, preset.audio_spec.rate_hz
    seeds = _QUIET_SEEDS[: scale.quiet_sites] if calm else _TEST_SEEDS[: scale.sites]
    seconds = scale.quiet_s if calm else scale.site_s
    scripts = [quiet(seed, seconds) if calm else schedule(seed, seconds, gap_s=(8.0, 20.0)) for seed in seeds]
    sites = [
        Site(seed, script, width=spec.width, height=spec.height, rate_hz=rate_hz)
        for seed, script in zip(seeds, scripts, strict=True)
    ]
    return Sites(sites, seconds, "quiet sites" if calm else "sites")


def _quiet(wanted: Wanted, preset: Preset, variant: Variant) -> dict[str, list[Played]]:
    """Normal footage by condition: simulated, and of real places where there is some."""
    sources: list[Source] = [_sites(wanted.scale, preset, calm=True)]
    if wanted.root is not None:
        found = footage.gather(wanted.root, preset)
        sources.append(replace(found, films=found.films[: wanted.scale.films]))
    heaps = [fieldtest.run(source, [variant], wanted.conditions, wanted.seed) for source in sources]
    return {name: [p for heap in heaps for p in heap.conditions[name]] for name in heaps[0].conditions}


def _methods(wanted: Wanted, preset: Preset, variant: Variant, parts: Sequence[Recording]) -> dict[str, Method]:
    """What the bundle is held against: a modality alone, the late mean, and what learns here from the same
    embeddings, of episodes composed of the train parts: a naive concatenation, PyOD's detectors on normal steps."""
    methods: dict[str, Method] = {f"{name} alone": partial(_alone, column) for column, name in enumerate(MODALITIES)}
    methods["late mean"] = _late_mean
    if not parts:
        return methods
    train = [recording for recording in parts if recording.split == "train"]
    lessons = fieldtest.run(
        composed.Episodes(train, preset, "train", wanted.scale.taught), [variant], (None,), wanted.seed
    ).conditions[CLEAN]
    x = np.concatenate([played.features for played in lessons])
    truth = np.concatenate([played.session.truth(played.times_s) for played in lessons])
    linear = logistic(x[truth >= 0], truth[truth >= 0].astype(np.float64), _PENALTY)
    methods["naive concatenation"] = lambda played: linear(played.features).astype(np.float64)
    for name, detector in _outliers(x[truth == 0]).items():
        methods[f"PyOD {name}"] = partial(_outlying, detector)
    return methods


def _alone(column: int, played: Played) -> Array:
    return played.given(frozenset({column}))


def _late_mean(played: Played) -> Array:
    """The mean of the encoders' own probabilities, of those that are there."""
    own = np.stack([played.own(name) for name in MODALITIES])
    there = own > UNHEARD
    return np.asarray((fieldtest.sigmoid(own) * there).sum(0) / np.maximum(there.sum(0), 1))


def _outliers(normal: F32) -> dict[str, Any]:
    """Detectors fitted on normal steps: what no training on anomalies gives."""
    from pyod.models.ecod import ECOD  # type: ignore[import-untyped]
    from pyod.models.iforest import IForest  # type: ignore[import-untyped]
    from pyod.models.knn import KNN  # type: ignore[import-untyped]

    made = {"ECOD": ECOD(), "IForest": IForest(random_state=0), "KNN": KNN()}
    return {name: detector.fit(normal) for name, detector in made.items()}


def _outlying(detector: Any, played: Played) -> Array:
    return np.asarray(detector.decision_function(played.features), np.float64)


def _family(
    title: str,
    heap: Heap,
    calm: Mapping[str, list[Played]],
    methods: Mapping[str, Method],
    conditions: Sequence[Disturbance | None],
) -> Family:
    results = [
        Result(how, heap.conditions[fieldtest.name_of(how)], calm[fieldtest.name_of(how)]) for how in conditions
    ]
    return Family(
        title,
        results,
        {name: results[0].said_by(method) for name, method in methods.items()},
        {name: Result(None, played, []) for name, played in heap.variants.items()},
    )


def _told(
    family: Family, step_ms: Mapping[str, float], on_steps: int, classes: Sequence[str], wanted: Wanted
) -> dict[str, Any]:
    """Every figure of a family."""
    heat = _temperatures(wanted.bundle, classes)
    return {
        "sessions": len(family.clean.tests),
        "conditions": {r.name: fieldtest.figures(r, family.clean, on_steps) for r in family.conditions},
        "methods": {
            name: fieldtest.figures(r, r, on_steps, alerts=name == "fused")
            for name, r in {"fused": family.clean, **family.methods}.items()
        },
        "variants": {
            name: fieldtest.figures(r, family.clean, on_steps) | {"step_ms_in_pipeline": step_ms[name]}
            for name, r in family.variants.items()
        },
        "by_type": fieldtest.by_type(family.conditions),
        "confusion": fieldtest.confusion(family.clean, classes),
        "missing": fieldtest.missing_curves(family.clean, wanted.seed),
        "calibration": {
            name: {
                "ece": expected_error(probability, truth),
                "steps": len(truth),
                **({"temperature": heat[name]} if name in heat else {}),
            }
            for name, (truth, probability) in fieldtest.heads(family.clean).items()
        },
    }


def _temperatures(folder: Path, classes: Sequence[str]) -> dict[str, float]:
    """Of every output of the head, where the bundle holds its weights."""
    if bundle.WEIGHTS not in open_bundle(folder).manifest.files:
        return {}
    arrays = bundle.load_arrays(folder / bundle.WEIGHTS)
    scales = [arrays["scale.logit"].reshape(-1), arrays["scale.modalities"], arrays["scale.classes"]]
    names = ("score", *MODALITIES, *classes)
    return {name: float(1 / scale) for name, scale in zip(names, np.concatenate(scales), strict=True)}


def _said(
    variants: Sequence[Variant], heaps: Sequence[Heap], clips: Mapping[str, Mapping[str, evaluate.Scored]]
) -> dict[str, dict[str, list[Array]]]:
    """By variant and kind of clip: probabilities, those of recorded sets by the encoder of their modality alone."""
    return {
        v.name: {
            "sessions": [scores for heap in heaps for scores in parity.scores(heap.variants[v.name])],
            **{
                f"recorded {name}": [
                    fieldtest.sigmoid(np.atleast_1d(logit).astype(np.float64))
                    for title, (_, logits, _) in clips[v.name].items()
                    if title.startswith(name)
                    for logit in logits
                ]
                for name in (MODALITIES if clips else ())
            },
        }
        for v in variants
    }


def _clips(wanted: Wanted, preset: Preset, variants: Sequence[Variant]) -> dict[str, dict[str, evaluate.Scored]]:
    """Recorded sets through each form: labels and logits."""
    if wanted.root is None:
        return {}
    judge = partial(_judged, preset=preset, root=wanted.root, seed=wanted.seed)
    return dict(zip([v.name for v in variants], side_by_side(judge, variants), strict=True))


def _judged(variant: Variant, *, preset: Preset, root: Path, seed: int) -> dict[str, evaluate.Scored]:
    with opened([variant]) as models:
        return evaluate.clips(models[variant].engine, preset, root, seed)


def _ablations(folder: Path) -> list[dict[str, Any]]:
    """(group, row, mean, spread) of each row of `ablate`'s table. ConfigError if there is none."""
    path = folder / "ablations.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [
            {
                "group": row["row"]["group"],
                "name": row["row"]["name"],
                "mean": row["figures"]["ap"]["mean"],
                "spread": row["figures"]["ap"]["spread"],
            }
            for row in rows
            if "ap" in row["figures"]  # of heads; encoders are judged by other figures
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no table of `python -m models ablate --out`: {error}", "--ablations") from error
