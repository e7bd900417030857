"""Sounds: threats in SESA, everyday sounds in ESC-10, any folder of recordings (`recordings.py`).

One audio graph per set, trained by `training.hearing` as the shipped one is. A clip's answer is that of its windows,
the loud ones counting most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.core.records import F32, I16, Engine
from models.benchmark import recordings
from models.benchmark.listeners import (
    MOST,
    PRESET,
    SPEC,
    Clip,
    clip_outputs,
    heard,
    listener_of,
    made_of,
    mixed,
    start_of,
    synthetic_noise,
    trained,
)
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, Variant, judged
from models.benchmark.splits import DEV, TRAIN, Parts, Row, parts
from models.config import CLASSES, SOUNDS
from models.data.listening import pooled, windows_of
from models.data.media import decode_sound, rows
from models.metrics import accuracy, alarm_share_at_recall, auc
from models.processes import side_by_side
from models.runtime import shipped_variants, through, variants
from models.training.hearing import BACKGROUND_WEIGHT, KINDS, OWN, Course, Lesson
from models.training.linear import Linear, logistic

_SESA_TABLE, _ESC_TABLE = "sesa/meta.csv", "esc10/meta.csv"
_CASUAL = "casual"
#: Kinds of noise that SESA's recipe is tested under and never hears in training.
_HELD = ("rain", "sea_waves")
_SNR_DB = (10, 0)
_RECALL = 0.9
#: Share of normal training clips that the bundle's threshold lets through.
_FALSE = 0.1
#: Steps of one training; clips of each part in a batch. Four folds of esc10, two at a time: ten minutes in all.
STEPS = {"sesa": 2000, "esc10": 1300, "esc10_whole": 2400}
_SESA_BATCH, _BACKGROUND_BATCH, _ESC_BATCH = 32, 16, 32
_PENALTY = 1e-3  #: of the linear heads on the shipped embedding
#: Of SESA's head on whole clips: its penalty, the noise that it learns under, its input.
_HEAD_PENALTY, _HEAD_DB, _HEAD_INPUT = 0.1, (-3.0, 15.0), ("embedding", MOST)

#: Score of each sound (higher: rather a threat) and its class.
Answer = Callable[[Engine, Sequence[I16]], tuple[F32, list[str]]]


@dataclass(frozen=True)
class Threats:
    """SESA as the roots have it, and the everyday sounds beside it."""

    parts: Parts
    train: list[Clip]
    test: list[Clip]
    background: list[Clip]  #: everyday sounds that may train
    unseen: list[Clip]  #: everyday sounds that nothing trained on
    noise: list[I16]  #: of kinds that nothing trained on


def _sesa_file(row: Row) -> str:
    return f"sesa/{row['filename']}"


def _esc_file(row: Row) -> str:
    return f"esc10/audio/{row['filename']}"


def _clips(root: Path, rows: Sequence[Row], file: Callable[[Row], str]) -> list[Clip]:
    return [Clip(row["filename"], row["category"], decode_sound(root / file(row), SPEC.rate_hz)) for row in rows]


def read_threats(roots: Roots) -> Threats:
    """SESA, and ESC-10 where a root has it. ConfigError for a root without SESA."""
    found = parts(roots, _SESA_TABLE, "use", _sesa_file)
    near, far = _everyday(roots)
    held = [clip.pcm for clip in far if clip.name in _HELD] or [clip.pcm for clip in near if clip.name in _HELD]
    return Threats(
        found,
        _clips(roots.train, found.train, _sesa_file),
        _clips(roots.test, found.test, _sesa_file),
        [clip for clip in near if clip.name not in _HELD],
        far,
        held or synthetic_noise(),
    )


def _everyday(roots: Roots) -> tuple[list[Clip], list[Clip]]:
    """ESC-10 clips that may train, and that nothing trains on; none where a root lacks them."""
    if not _there(roots.train, _ESC_TABLE, _esc_file):
        return [], []
    if not _there(roots.test, _ESC_TABLE, _esc_file):
        known = [row for row in _there(roots.train, _ESC_TABLE, _esc_file) if row["split"] in (TRAIN, DEV)]
        return _clips(roots.train, known, _esc_file), []
    both = parts(roots, _ESC_TABLE, "split", _esc_file)
    return _clips(roots.train, both.train, _esc_file), _clips(roots.test, both.test, _esc_file)


def _there(root: Path, table: str, file: Callable[[Row], str]) -> list[Row]:
    """Rows of a table whose files are there; none where there is no table."""
    if not (root / table).is_file():
        return []
    return [row for row in rows(root / table) if (root / file(row)).is_file()]


def threat_course(train: Sequence[Clip], background: Sequence[Clip]) -> Course:
    """SESA's classes from its clips; everyday sounds by kind, and weakly as what is no threat."""
    clips = heard(train)
    lessons = [Lesson(clips, {OWN: [clip.name for clip in train]}, {OWN: 1.0}, _SESA_BATCH, balanced=True)]
    noise = [sound for sound, clip in zip(clips, train, strict=True) if clip.name == _CASUAL]
    heads = {}
    if background:
        kinds = [clip.name for clip in background]
        heads[KINDS] = tuple(sorted(set(kinds)))
        everyday = heard(background)
        names = {KINDS: kinds, OWN: [_CASUAL] * len(kinds)}
        lessons.append(Lesson(everyday, names, {KINDS: 1.0, OWN: BACKGROUND_WEIGHT}, _BACKGROUND_BATCH))
        noise += everyday
    return Course(lessons, noise, heads)


@dataclass(frozen=True)
class ClipHead:
    """What a whole clip says beyond its windows one by one: a linear head a class on the mean and the greatest of
    their embeddings, in numpy."""

    names: tuple[str, ...]  #: casual first
    heads: list[Linear]

    @classmethod
    def fit(cls, engine: Engine, data: Threats, seed: int) -> ClipHead:
        """From the training clips as they are and with everyday sounds under them."""
        rng = np.random.default_rng([seed, 44])
        under = data.background or [clip for clip in data.train if clip.name == _CASUAL]
        clean = [clip.pcm for clip in data.train]
        chosen = [under[int(rng.integers(len(under)))].pcm for _ in clean]
        noisy = [mixed(pcm, noise, rng.uniform(*_HEAD_DB), rng) for pcm, noise in zip(clean, chosen, strict=True)]
        told = np.array([clip.name for clip in data.train] * 2)
        names = tuple(name for name in SOUNDS if name in set(told))
        features = cls._features(clip_outputs(engine, [*clean, *noisy], _HEAD_INPUT))
        return cls(names, [logistic(features, (told == name).astype(float), _HEAD_PENALTY) for name in names])

    def __call__(self, engine: Engine, sounds: Sequence[I16]) -> tuple[F32, list[str]]:
        """An `Answer`: the encoder's own and this head's, added as log odds and as log probabilities."""
        found = clip_outputs(engine, sounds, ("logit", OWN, *_HEAD_INPUT))
        odds = np.stack([head(self._features(found)) for head in self.heads], 1)
        own = found[OWN][:, [SOUNDS.index(name) for name in self.names]]
        both = _log_softmax(odds) + _log_softmax(own)
        return found["logit"] - odds[:, 0], [self.names[int(i)] for i in both.argmax(1)]

    @staticmethod
    def _features(found: Mapping[str, F32]) -> F32:
        return np.concatenate([found[name] for name in _HEAD_INPUT], 1)


def _log_softmax(x: F32) -> F32:
    x = x - x.max(1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)), np.float32)


def sesa_recipe(roots: Roots, seed: int) -> Block:
    """A listener of SESA's four classes, and a head on whole clips: fitted once, on torch, for every engine."""
    data = read_threats(roots)
    made = made_of(trained(threat_course(data.train, data.background), STEPS["sesa"], seed), data.train, seed)
    (head,) = [ClipHead.fit(engine, data, seed) for _, _, engine in variants(made, ("torch",))]
    judge = partial(judge_threats, data=data, seed=seed, answer=head)
    return _threat_block(data, judged(variants(made, roots.engines), judge), [])


def sesa_bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped encoder's threat logit, and the head's classes with only sound present.

    Its threshold between casual and not is a quantile of the casual training clips: no threat of the set adapts it.
    """
    data = read_threats(roots)
    casual = [clip.pcm for clip in data.train if clip.name == _CASUAL]

    def judge(engine: Engine) -> Judged:
        threshold = float(np.quantile(clip_outputs(engine, casual, ("logit",))["logit"], 1 - _FALSE))

        def answer(ready: Engine, sounds: Sequence[I16]) -> tuple[F32, list[str]]:
            score = clip_outputs(ready, sounds, ("logit",))["logit"]
            named = [_named(ready, pcm) for pcm in sounds]
            return score, [name if value > threshold else _CASUAL for name, value in zip(named, score, strict=True)]

        return judge_threats(engine, data, seed, answer)

    return _threat_block(data, judged(shipped_variants(shipped, roots.engines), judge), [start_of(shipped)])


def _named(engine: Engine, pcm: I16) -> str:
    """What the fusion head calls a clip of which it has the sound alone: a class, fire left out."""
    windows = windows_of(pcm, SPEC)
    embedding = through(engine, "audio", windows)["embedding"]
    items = [_alone(embedding[max(0, end - PRESET.history + 1) : end + 1]) for end in range(len(windows))]
    classes = np.stack([output["classes"] for output in engine.run("fusion", items)])
    threats = [i for i, name in enumerate(CLASSES) if name in SOUNDS]
    return CLASSES[threats[int(pooled(classes, windows)[threats].argmax())]]


def _alone(embedding: F32) -> dict[str, F32]:
    """Inputs of the fusion head for the last steps of sound (up to the history), the other modalities missing."""
    count = len(embedding)
    history = np.zeros((PRESET.history, PRESET.embedding), np.float32)
    mask = np.zeros((PRESET.history, len(MODALITIES)), np.float32)
    inputs: dict[str, F32] = dict.fromkeys(MODALITIES, history)
    inputs["audio"] = np.concatenate([history[count:], embedding])
    mask[PRESET.history - count :, MODALITIES.index("audio")] = 1
    return {**inputs, "mask": mask}


def judge_threats(engine: Engine, data: Threats, seed: int, answer: Answer) -> Judged:
    """All figures of SESA: as it is, under noise, and how often everyday sounds raise an alarm."""
    rng = np.random.default_rng([seed, 43])
    label = np.array([float(clip.name != _CASUAL) for clip in data.test])
    names = np.array([clip.name for clip in data.test])
    metrics: dict[str, float] = {}
    rows: list[Prediction] = []
    for snr_db in (None, *_SNR_DB):
        sounds = [clip.pcm for clip in data.test]
        if snr_db is not None:
            sounds = [mixed(pcm, data.noise[int(rng.integers(len(data.noise)))], snr_db, rng) for pcm in sounds]
        score, said = answer(engine, sounds)
        suffix = "" if snr_db is None else f"_snr{snr_db}"
        metrics[f"accuracy{suffix}"] = accuracy(names, np.array(said))
        metrics[f"threat_auc{suffix}"] = auc(label, score)
        for clip, threat, value, name in zip(data.test, label, score, said, strict=True):
            rows.append(Prediction(f"threat{suffix}", clip.item, float(threat), float(value)))
            rows.append(Prediction(f"class{suffix}", clip.item, clip.name, name))
        if snr_db is None and data.unseen:
            quiet, _ = answer(engine, [clip.pcm for clip in data.unseen])
            metrics["background_alarms"] = alarm_share_at_recall(label, score, _RECALL, quiet)
            rows += [
                Prediction("background", clip.item, 0.0, float(value))
                for clip, value in zip(data.unseen, quiet, strict=True)
            ]
    return Judged(metrics, rows)


def _threat_block(data: Threats, found: dict[Variant, Judged], starts: list[dict[str, str]]) -> Block:
    notes = list(data.parts.notes)
    if data.unseen:
        notes.append(
            f"background_alarms: {len(data.unseen)} everyday clips of ESC-10 that trained nothing, at {_RECALL:.0%} "
            "recall of threats"
        )
    notes.append(f"noise under the clips: {len(data.noise)} recordings or pieces of kinds that trained nothing")
    return Block(found, len(data.test), data.parts.split, starts, notes=notes)


# --- ESC-10


@dataclass(frozen=True)
class _Training:
    """One training of ESC-10, small enough to be sent to another process, which reads the clips itself."""

    roots: Roots
    left_out: str  #: fold that is tested, not trained on; empty: none
    steps: int
    seed: int


def esc_train(roots: Roots, left_out: str) -> list[Clip]:
    found = _esc_parts(roots)
    known = [*found.train, *found.test] if roots.same else found.train
    return _clips(roots.train, [row for row in known if row["fold"] != left_out], _esc_file)


def _esc_parts(roots: Roots) -> Parts:
    return parts(roots, _ESC_TABLE, "split", _esc_file)


def esc_course(clips: Sequence[Clip], others: Sequence[Clip]) -> Course:
    """The kinds of ESC-10; recordings of other sets lie under them as noise."""
    names = [clip.name for clip in clips]
    known = heard(clips)
    lesson = Lesson(known, {KINDS: names}, {KINDS: 1.0}, _ESC_BATCH, balanced=True)
    heads = {KINDS: tuple(sorted(set(names)))}
    return Course([lesson], heard(others) or known, heads, snr_db=(0.0, 25.0), noisy=0.4)


def _esc_weights(training: _Training) -> dict[str, NDArray[Any]]:
    """Weights of a listener that never heard the fold left out."""
    clips = esc_train(training.roots, training.left_out)
    listener = trained(esc_course(clips, _casual(training.roots)), training.steps, training.seed)
    return {name: tensor.numpy() for name, tensor in listener.state_dict().items()}


def _casual(roots: Roots) -> list[Clip]:
    """Sounds of SESA that are no threat, where the train root has it."""
    known = _there(roots.train, _SESA_TABLE, _sesa_file)
    chosen = [row for row in known if row["use"] in (TRAIN, DEV) and row["category"] == _CASUAL]
    return _clips(roots.train, chosen, _sesa_file)


def esc10_recipe(roots: Roots, seed: int) -> Block:
    """A listener of ESC-10's ten kinds: for one root, one per visible fold, which it is tested on and never heard."""
    found = _esc_parts(roots)
    tested = [*found.train, *found.test] if roots.same else found.test
    left_out = sorted({row["fold"] for row in tested}) if roots.same else [""]
    steps = STEPS["esc10" if roots.same else "esc10_whole"]
    weights = side_by_side(_esc_weights, [_Training(roots, fold, steps, seed) for fold in left_out])
    judged_folds = []
    for fold, known in zip(left_out, weights, strict=True):
        train = esc_train(roots, fold)
        kinds = tuple(sorted({clip.name for clip in train}))
        listener = listener_of({KINDS: kinds}, known)
        test = _clips(roots.test, [row for row in tested if not fold or row["fold"] == fold], _esc_file)
        made = made_of(listener, train, seed)
        judged_folds.append(judged(variants(made, roots.engines), partial(_judge_kinds, test=test, kinds=kinds)))
    split = found.split
    if roots.same:
        split = f"mean of folds {', '.join(left_out)}, each tested by an encoder trained on the others"
    return Block(_over_folds(judged_folds, left_out), len(tested), split, notes=found.notes)


def _judge_kinds(engine: Engine, test: Sequence[Clip], kinds: Sequence[str]) -> Judged:
    said = [kinds[int(i)] for i in clip_outputs(engine, [clip.pcm for clip in test], (KINDS,))[KINDS].argmax(1)]
    return _kinds_judged(test, said)


def _kinds_judged(test: Sequence[Clip], said: Sequence[str]) -> Judged:
    names = np.array([clip.name for clip in test])
    rows = [Prediction("class", clip.item, clip.name, name) for clip, name in zip(test, said, strict=True)]
    return Judged({"accuracy": accuracy(names, np.array(said))}, rows)


def _over_folds(found: Sequence[dict[Variant, Judged]], folds: Sequence[str]) -> dict[Variant, Judged]:
    """The mean of the folds, each fold's own figure beside it, and the answers of all."""
    joined = {}
    for variant in found[0]:
        each = [fold[variant].metrics["accuracy"] for fold in found]
        metrics = {"accuracy": float(np.mean(each))}
        if len(folds) > 1:
            metrics |= {f"accuracy_fold{fold}": value for fold, value in zip(folds, each, strict=True)}
        joined[variant] = Judged(metrics, [row for fold in found for row in fold[variant].predictions])
    return joined


def esc10_bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped embedding, frozen, under a linear head on the training clips: all of ESC-10 is everyday, normal
    sound. For one root the dev fold alone is tested: the others trained what ships."""
    found = _esc_parts(roots)
    train, test = _clips(roots.train, found.train, _esc_file), _clips(roots.test, found.test, _esc_file)
    kinds = sorted({clip.name for clip in train})

    def judge(engine: Engine) -> Judged:
        known, asked = (
            clip_outputs(engine, [clip.pcm for clip in clips], ("embedding",))["embedding"] for clips in (train, test)
        )
        heads = [logistic(known, np.array([clip.name == kind for clip in train], float), _PENALTY) for kind in kinds]
        odds = np.stack([head(asked) for head in heads], 1)
        return _kinds_judged(test, [kinds[int(i)] for i in odds.argmax(1)])

    found_notes = [*found.notes, "shipped embedding, a linear head of the ten kinds in numpy"]
    return Block(
        judged(shipped_variants(shipped, roots.engines), judge),
        len(test),
        found.split,
        [start_of(shipped)],
        notes=found_notes,
    )


SETS = {
    "sesa": Task(sesa_recipe, sesa_bundle, {"accuracy": 0.924, "threat_auc": 0.98}),
    "audio_folder": recordings.TASK,
    "esc10": Task(esc10_recipe, esc10_bundle, {"accuracy": 0.878}),
}
