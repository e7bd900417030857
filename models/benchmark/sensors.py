"""Sensor logs without labels to learn from: a water circuit (skab), any folder of tables (sensor_csv).

How a log is judged says `novelty.py`; which files there are and what they hold, `tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from numpy.typing import NDArray

from edge_agent.core.memory import Memory
from edge_agent.core.records import Engine
from edge_agent.engine import open_bundle
from edge_agent.errors import ConfigError
from models import bundle
from models.benchmark import novelty
from models.benchmark.novelty import F64, Drift, Run
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, Variant, judged, judged_in_float
from models.benchmark.tables import Table, Tables, labelled, read, tables
from models.config import preset
from models.data.media import Log
from models.metrics import auc, average_precision, f1_far
from models.network.graphs import SensorGraph
from models.runtime import Made, TorchEngine, make, shipped_variants

#: 32 rows: with the device's 64, the minute after a fault still is the fault (F1 on SKAB's valve1 0.83, not 0.87).
PRESET = replace(preset("first"), sensor_spec=structs.replace(preset("first").sensor_spec, steps=32))
SKAB, SENSOR_CSV = "skab", "sensor_csv"
#: Rows of a run that adapt: SKAB's rule. Other logs: these, or a quarter of theirs.
ADAPT = 400
#: A long log of normal operation is as many runs as it holds parts of so many rows, one starting every so many.
_PART, _EVERY = 1200, 800
#: Share of a normal run's rows that stay under a threshold which no labelled fault chose, in the middle run.
_QUIET = 0.98
#: A shorter run gives a quarter of its rows instead.
_SHORTEST = ADAPT + 200
#: What a covariance can be taken of, in the first quarter.
_LEAST = 40
Features = Callable[[Run], F64]


@dataclass(frozen=True)
class Part:
    """Something that T² is taken of."""

    features: Features
    count: int  #: rows that it is averaged over
    settled: int  #: first rows of a run in which it is not yet whole
    named: bool = False  #: its columns are the run's channels, of which another run may have others


def graph(engine: Engine, steps: int = PRESET.sensor_spec.steps) -> Part:
    """The embeddings."""
    return Part(lambda run: novelty.embedded(engine, run, steps), novelty.SMOOTHED, steps)


CHANNELS = Part(novelty.held, novelty.SMOOTHED, novelty.SMOOTHED, named=True)


@dataclass(frozen=True)
class Detector:
    """What the train part says beside a run's own first rows: how normal rows drift, and what is too much."""

    parts: Sequence[Part]
    drift: Sequence[Drift | None]
    threshold: float

    def score(self, run: Run) -> F64:
        """Above 0: a fault. (n,)."""
        return _surprise(run, self.parts, _offsets(run, self.parts), self.drift) - self.threshold


def _offsets(run: Run, parts: Sequence[Part]) -> list[F64]:
    return [novelty.offsets(run, part.features(run), part.count, part.settled) for part in parts]


def _surprise(run: Run, parts: Sequence[Part], offsets: Sequence[F64], drift: Sequence[Drift | None]) -> F64:
    """Mean over the parts, (n,)."""
    each = [
        novelty.surprise(run, offset, None if known is None else known.of(run.names), part.settled)
        for part, offset, known in zip(parts, offsets, drift, strict=True)
    ]
    return np.asarray(np.mean(each, axis=0))


def detector(runs: Sequence[Run], parts: Sequence[Part], drift: bool = True) -> Detector:
    """The drift and the threshold of the train part.

    The threshold has the highest F1 over its rows, each half of the runs judged by the drift of the other half. Where
    no fault is labelled, it is the middle of what `_QUIET` of each run's rows after the first ones stay under: a few
    runs that wander far must not set it for all.
    """
    offsets = [_offsets(run, parts) for run in runs]
    pairs = list(zip(runs, offsets, strict=True))

    def wander(some: list[tuple[Run, list[F64]]]) -> list[Drift | None]:
        if not drift or not some:
            return [None] * len(parts)
        return [
            novelty.drift([(run.names if part.named else (), run, each[i]) for run, each in some])
            for i, part in enumerate(parts)
        ]

    scores: list[F64] = []
    said: list[NDArray[np.int8]] = []
    for half in (0, 1):
        other = wander(pairs[1 - half :: 2])
        for run, offset in pairs[half::2]:
            rows = run.tested if len(run.tested) else np.arange(run.adapt, len(run.rows))
            # A log that is over after its first rows has nothing else to say.
            rows = rows if len(rows) else np.arange(len(run.rows))
            scores.append(_surprise(run, parts, offset, other)[rows])
            said.append(np.maximum(run.wrong[rows], 0).astype(np.int8))
    return Detector(parts, wander(pairs), _threshold(scores, said))


def _threshold(scores: list[F64], said: list[NDArray[np.int8]]) -> float:
    if any(part.any() for part in said):
        return novelty.best_threshold(scores, said, lambda label, alarm: f1_far(label, alarm)[0])
    return float(np.median([np.quantile(part, _QUIET) for part in scores]))


# ---------------------------------------------------------------------------------------------------------- skab


def skab_tables(root: Path) -> list[Table]:
    """Every run below `<root>/skab`: anomaly-free and valve1 train, valve2 dev, any other folder is test."""
    splits = {"anomaly-free": "train", "valve1": "train", "valve2": "dev"}
    base = root / SKAB
    paths = sorted(base.rglob("*.csv"), key=lambda p: (p.parent.name, p.stem.zfill(4)))
    return [read(path, path.relative_to(base).as_posix(), splits.get(path.parent.name, "test")) for path in paths]


def runs_of(found: Sequence[Table]) -> list[Run]:
    """Runs, ready to be judged; long logs of normal operation in parts."""
    made = []
    for table in found:
        length = len(table.log.values)
        if labelled(table) or length < _PART + _EVERY:
            made.append(run_of(table.item, table.log))
            continue
        for begin in range(0, length - _PART + 1, _EVERY):
            made.append(run_of(f"{table.item}@{begin}", table.log.part(slice(begin, begin + _PART))))
    return made


def run_of(item: str, log: Log) -> Run:
    """A run whose first 400 rows adapt; of a short one, the first quarter. ConfigError for a few rows."""
    length = len(log.values)
    if length < _LEAST:
        raise ConfigError(f"{item} holds {length} rows; it takes {_LEAST}, of which the first quarter adapts")
    return novelty.run_of(item, log, ADAPT if length >= _SHORTEST else length // 4)


def skab_recipe(roots: Roots, seed: int) -> Block:
    """The sensor graph, trained one-class; thresholds by the labelled runs of the train part."""
    found = tables(roots, skab_tables, SKAB)
    known, tested = runs_of(found.train), runs_of(found.test)
    made = make(PRESET, {"sensors": novelty.train(PRESET, known, seed)}, {})
    stay = _runs_that_choose(known, 40)

    def judge(engine: Engine) -> Judged:
        return _judged(tested, _scores(stay, tested, [graph(engine), CHANNELS]))

    answers = judged_in_float(made, roots.engines, judge)
    baselines = {**_baselines(stay, tested, made), **_untrained(stay, tested, seed)}
    n = sum(len(run.tested) for run in tested)
    words = f"{found.split}; the first {ADAPT} rows of each run adapt, the others are scored"
    return Block(answers, n, words, baselines=baselines, notes=[*found.notes, *_channels(known, tested)])


def _runs_that_choose(known: Sequence[Run], most: int) -> list[Run]:
    """At most so many runs, evenly spread: what chooses drift and threshold need not be everything that trained."""
    index = np.unique(np.linspace(0, len(known) - 1, min(most, len(known))).astype(int))
    return [known[int(i)] for i in index]


def _scores(known: Sequence[Run], tested: Sequence[Run], parts: Sequence[Part], drift: bool = True) -> list[F64]:
    """Of each tested run, the score of its tested rows; above 0: a fault."""
    judge = detector(known, parts, drift)
    return [judge.score(run)[run.tested] for run in tested]


def _judged(tested: Sequence[Run], scores: Sequence[F64]) -> Judged:
    rows = [
        Prediction("row", f"{run.item}:{row}", int(run.wrong[row]), float(value))
        for run, score in zip(tested, scores, strict=True)
        for row, value in zip(run.tested, score, strict=True)
    ]
    return Judged(_pooled(tested, scores), rows)


def _pooled(tested: Sequence[Run], scores: Sequence[F64]) -> dict[str, float]:
    """F1 and false-alarm rate of all rows in one count, as SKAB's leaderboard has it; AUC of all rows."""
    label = np.concatenate([run.wrong[run.tested] for run in tested]).astype(np.float64)
    score = np.concatenate(scores)
    f1, far = f1_far(label, (score > 0).astype(np.float64))
    return {"f1": f1, "far": far, "auc": auc(label, score)}


def _channels(known: Sequence[Run], tested: Sequence[Run]) -> list[str]:
    """What is said of columns that the train part does not have, or that the tested part lacks."""
    usual = set().union(*(run.names for run in known))
    there = set().union(*(run.names for run in tested))
    told = []
    if there - usual:
        told.append(f"columns that no file of the train part has: {', '.join(sorted(there - usual))}; judged alike")
    if usual - there:
        told.append(f"columns of the train part that no tested file has: {', '.join(sorted(usual - there))}")
    return told


def _baselines(known: Sequence[Run], tested: Sequence[Run], made: Made) -> dict[str, dict[str, float]]:
    """What the parts are worth alone, and PyOD's detectors on the graph's own smoothed embeddings, in torch."""
    engine = TorchEngine(made.modules, made.manifest)
    found = {run.item: novelty.embedded(engine, run, PRESET.sensor_spec.steps) for run in (*known, *tested)}
    alone = replace(graph(engine), features=lambda run: found[run.item])
    answers = {
        "T2 of the channels, median of 5": _median_t2(known, tested),
        "T2 of the channels": _scores(known, tested, [CHANNELS], drift=False),
        "T2 of the channels with drift": _scores(known, tested, [CHANNELS]),
        "graph alone, T2": _scores(known, tested, [alone], drift=False),
        "graph alone, T2 with drift": _scores(known, tested, [alone]),
    }
    for name, make_one in _outlier_detectors().items():
        answers[f"PyOD {name} on the graph's embeddings"] = _outliers(known, tested, found, make_one)
    return {name: _pooled(tested, scores) for name, scores in answers.items()}


def _untrained(known: Sequence[Run], tested: Sequence[Run], seed: int) -> dict[str, dict[str, float]]:
    """The same with a graph as it was before training: what T² does by itself."""
    torch.manual_seed(seed)
    engine = TorchEngine({"sensors": SensorGraph(PRESET)}, bundle.manifest(PRESET, bundle.UNCHOSEN, 0, {}, ""))
    return {"untrained graph alone, T2 with drift": _pooled(tested, _scores(known, tested, [graph(engine)]))}


def _median_t2(known: Sequence[Run], tested: Sequence[Run]) -> list[F64]:
    """SKAB's own recipe: Hotelling's T² of each row, median of the last 5, threshold by the train part's labels."""

    def score(run: Run) -> F64:
        rows = novelty.held(run)
        value = novelty.surprise(run, rows - rows[: run.adapt].mean(0), None, 0)
        padded = np.concatenate([np.repeat(value[:1], 4), value])
        return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1))

    return _by_threshold(known, tested, score)


def _by_threshold(known: Sequence[Run], tested: Sequence[Run], score: Features) -> list[F64]:
    choosing = [run for run in known if len(run.tested)]
    level = novelty.best_threshold(
        [score(run)[run.tested] for run in choosing],
        [run.wrong[run.tested] for run in choosing],
        lambda label, alarm: f1_far(label, alarm)[0],
    )
    return [score(run)[run.tested] - level for run in tested]


def _outlier_detectors() -> Mapping[str, Callable[[], object]]:
    from pyod.models.ecod import ECOD  # type: ignore[import-untyped]  # half a second that --help does without
    from pyod.models.iforest import IForest  # type: ignore[import-untyped]
    from pyod.models.knn import KNN  # type: ignore[import-untyped]

    return {"ECOD": ECOD, "IForest": lambda: IForest(random_state=0), "KNN": KNN}


def _outliers(
    known: Sequence[Run], tested: Sequence[Run], found: Mapping[str, F64], make_one: Callable[[], object]
) -> list[F64]:
    """One detector a run, fitted to its first rows; its scores in deviations of those it gives them."""

    def score(run: Run) -> F64:
        settled = min(PRESET.sensor_spec.steps, run.adapt // 2)
        rows = novelty.offsets(run, found[run.item], novelty.SMOOTHED, settled)
        first = rows[settled : run.adapt]
        one = make_one()
        one.fit(first)  # type: ignore[attr-defined]
        usual, value = one.decision_function(first), one.decision_function(rows)  # type: ignore[attr-defined]
        return np.asarray((value - usual.mean()) / (usual.std() + 1e-9))

    return _by_threshold(known, tested, score)


def skab_bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped sensor encoder; drift and threshold from normal rows of the train part, no fault is looked at."""
    found = tables(roots, skab_tables, SKAB)
    known, tested = _runs_that_choose(runs_of(found.train), 40), runs_of(found.test)
    n = sum(len(run.tested) for run in tested)
    words = f"{found.split}; only normal rows adapt: the first {ADAPT} of each run, and those of the train part"
    answers, memory = _shipped(known, tested, roots, shipped)
    return Block(answers, n, words, baselines=memory, notes=[*found.notes, *_channels(known, tested)])


def _shipped(
    known: Sequence[Run], tested: Sequence[Run], roots: Roots, shipped: Path
) -> tuple[dict[Variant, Judged], dict[str, dict[str, float]]]:
    """The shipped encoder in the recipe's place, and the device's own normal memory beside it."""
    blind = [_without_faults(run) for run in known]
    steps = open_bundle(shipped).manifest.sensors.steps
    memory: dict[str, dict[str, float]] = {}

    def judge(engine: Engine) -> Judged:
        part = graph(engine, steps)
        if not memory:
            novel = [_novel(run, part.features(run), steps) for run in tested]
            memory["the device's normal memory"] = _pooled(tested, novel)
            memory["T2 of the channels with drift"] = _pooled(tested, _scores(blind, tested, [CHANNELS]))
        return _judged(tested, _scores(blind, tested, [part, CHANNELS]))

    return judged(shipped_variants(shipped, roots.engines), judge), memory


def _without_faults(run: Run) -> Run:
    """The run as far as nothing in it is wrong, and nothing said of it."""
    faults = np.flatnonzero(run.wrong > 0)
    end = int(faults[0]) if len(faults) else len(run.rows)
    end = max(end, min(run.adapt, len(run.rows)))
    return replace(run, rows=run.rows[:end], wrong=np.full(end, -1, np.int8))


def _novel(run: Run, embedding: F64, settled: int) -> F64:
    """Novelty of the tested rows by the device's memory; 0 is the highest of the first rows' last quarter."""
    cut = run.adapt * 3 // 4
    memory = Memory(embedding.shape[1])
    memory.fill(embedding[min(settled, cut // 2) : cut].astype(np.float32))
    each = np.array([[memory.novelty(vector)] for vector in embedding.astype(np.float32)])
    smooth = novelty.smoothed(each, novelty.SMOOTHED)[:, 0]
    return np.asarray((smooth - smooth[cut : run.adapt].max())[run.tested])


# ---------------------------------------------------------------------------------------------------- sensor_csv


def any_tables(root: Path) -> list[Table]:
    """`<root>/sensor_csv` and below; without it the sets nab and smoke_iot of an evaluation root; else every CSV."""
    own = root / SENSOR_CSV
    if own.is_dir():
        return _below(own)
    if (root / "nab").is_dir() or (root / "smoke_iot").is_dir():
        return [*_nab(root), *(_below(root / "smoke_iot") if (root / "smoke_iot").is_dir() else [])]
    return _below(root)


def _below(root: Path) -> list[Table]:
    return [read(path, path.relative_to(root).as_posix(), "") for path in sorted(root.rglob("*.csv"))]


def _nab(root: Path) -> list[Table]:
    from models.data.registry import read as recordings

    if not (root / "nab").is_dir():
        return []
    return [Table(recording.item, "", recording.log()) for recording in recordings("nab", root)]


def csv_tables(roots: Roots) -> Tables:
    """Of one root: files with a fault are tested, their first rows train beside the files without one. Of two: all of
    the train root trains, normal rows alone, and every labelled file of the test root is tested."""
    known = any_tables(roots.train)
    found = known if roots.same else any_tables(roots.test)
    test = [table for table in found if labelled(table) and (not roots.same or (table.log.wrong > 0).any())]
    tested = {table.item for table in test}
    train = [_first_rows(table) if table.item in tested else table for table in known]
    if not test or not train:
        raise ConfigError(
            f"no labelled table of sensors below {roots.test}, or none at all below {roots.train}: put CSV files "
            "with a column `anomaly` (0/1) into a folder `sensor_csv` there"
        )
    other = sum(table.item not in tested for table in train)
    words = (
        f"{SENSOR_CSV}: {len(test)} files are tested after their first rows; trained on those first rows and on the "
        f"normal rows of {other} other files"
    )
    return Tables(train, test, words, [])


def _first_rows(table: Table) -> Table:
    run = run_of(table.item, table.log)
    return replace(table, log=table.log.part(slice(0, run.adapt)))


def csv_recipe(roots: Roots, seed: int) -> Block:
    found = csv_tables(roots)
    known, tested = runs_of(found.train), runs_of(found.test)
    made = make(PRESET, {"sensors": novelty.train(PRESET, [_without_faults(run) for run in known], seed)}, {})
    stay = [_without_faults(run) for run in _runs_that_choose(known, 40)]

    def judge(engine: Engine) -> Judged:
        return _each(tested, _scores(stay, tested, [graph(engine), CHANNELS]))

    answers = judged_in_float(made, roots.engines, judge)
    raw = {
        "T2 of the channels": _scores(stay, tested, [CHANNELS], drift=False),
        "T2 of the channels with drift": _scores(stay, tested, [CHANNELS]),
    }
    baselines = {name: _each(tested, scores).metrics for name, scores in raw.items()}
    n = sum(len(run.tested) for run in tested)
    return Block(answers, n, found.split, baselines=baselines, notes=_classes(tested))


def csv_bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    found = csv_tables(roots)
    known, tested = runs_of(found.train), runs_of(found.test)
    stay = [_without_faults(run) for run in _runs_that_choose(known, 40)]
    steps = open_bundle(shipped).manifest.sensors.steps

    def judge(engine: Engine) -> Judged:
        return _each(tested, _scores(stay, tested, [graph(engine, steps), CHANNELS]))

    answers = judged(shipped_variants(shipped, roots.engines), judge)
    return Block(answers, sum(len(run.tested) for run in tested), found.split, notes=_classes(tested))


def _classes(tested: Sequence[Run]) -> list[str]:
    """What must be said where no file can be ranked."""
    if any(0 < (run.wrong[run.tested] > 0).sum() < len(run.tested) for run in tested):
        return []
    return ["no tested file holds both classes: auc is given as 0.5, ap as 0, and neither says anything"]


def _each(tested: Sequence[Run], scores: Sequence[F64]) -> Judged:
    """AUC and AP as means over the files that hold both classes: levels of different files do not compare."""
    both = [
        (run.wrong[run.tested], score)
        for run, score in zip(tested, scores, strict=True)
        if 0 < (run.wrong[run.tested] > 0).sum() < len(run.tested)
    ]
    pooled = _judged(tested, scores)
    mean = {
        "auc": float(np.mean([auc(label, score) for label, score in both])) if both else 0.5,
        "ap": float(np.mean([average_precision(label, score) for label, score in both])) if both else 0.0,
    }
    return Judged({**mean, "f1": pooled.metrics["f1"], "far": pooled.metrics["far"]}, pooled.predictions)


SETS = {
    SKAB: Task(skab_recipe, skab_bundle, {"f1": 0.763}),
    SENSOR_CSV: Task(csv_recipe, csv_bundle, {"auc": 0.5}),
}
