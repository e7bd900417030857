"""Sounds: threats in SESA, everyday sounds in ESC-10, any folder of recordings (`recordings.py`).

What an ImageNet trunk sees in the log-mel (`spectrograms.py`) and a listener beside it (`listeners.py`), taught by
`training.hearing` as the shipped one is. A clip's answer is that of its windows, the loud ones counting most.
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
from edge_agent.errors import ConfigError
from models.benchmark import recordings
from models.benchmark.listeners import (
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
    weights_of,
)
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, Variant, judged
from models.benchmark.spectrograms import ClipHead, looker, seen, together, together_by_fold
from models.benchmark.splits import DEV, TRAIN, Parts, Row, parts
from models.config import CLASSES, SOUNDS
from models.data import augment
from models.data.listening import pooled, windows_of
from models.data.lookalikes import blows
from models.data.media import decode_sound, rows
from models.metrics import accuracy, alarm_share_at_recall, auc
from models.network.backbone import START
from models.processes import side_by_side
from models.runtime import shipped_variants, through
from models.training.hearing import BACKGROUND_WEIGHT, KINDS, OWN, Course, Lesson, Package
from models.training.linear import logistic

_SESA_TABLE, _ESC_TABLE = "sesa/meta.csv", "esc10/meta.csv"
_CASUAL = "casual"
#: Kinds of noise that SESA's recipe is tested under and never hears in training.
_HELD = ("rain", "sea_waves")
_SNR_DB = (10, 0)
_RECALL = 0.9
#: Share of normal training clips that the bundle's threshold lets through.
_FALSE = 0.1
#: Steps of a listener of SESA and of one of everyday kinds; clips of each part in a batch.
STEPS, KINDS_STEPS = 900, 600
_SESA_BATCH, _BACKGROUND_BATCH, _KINDS_BATCH = 24, 8, 32
_KINDS_SNR_DB = (-3.0, 20.0)  #: of everyday sounds against what is laid under them
#: More telephones and codecs than the shipped listener hears.
_PACKAGE = Package(coded=0.25, limited=0.2)
#: Blows that are made up, as SESA's own casual sounds: without them a knock at the door is an explosion.
_BLOWS = 120
_PENALTY = 1e-3  #: of the linear heads on the shipped embedding
#: Views of a training clip for the head on whole clips beside the clip itself: those with noise under them, a narrow
#: one and a coarse one; how far the clip stands out of the noise.
_NOISY = 2
_VIEWS, _VIEW_DB, _ESC_VIEW_DB = _NOISY + 2, (-3.0, 15.0), (3.0, 20.0)

Rng = np.random.Generator
Weights = dict[str, NDArray[Any]]
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
    """SESA, and ESC-10 where a root has it. ConfigError for a root without SESA, or
    whose clips that train are all casual or all threats."""
    found = parts(roots, _SESA_TABLE, "use", _sesa_file)
    if not 0 < sum(row["category"] == _CASUAL for row in found.train) < len(found.train):
        raise ConfigError(f"{roots.train / _SESA_TABLE}: what trains must hold {_CASUAL} clips and others")
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


def made_up() -> list[Clip]:
    """Blows on wood, metal and floors, which are no threat; the same for every root and seed."""
    sounds = (blows(np.random.default_rng([62, index]), SPEC.rate_hz) for index in range(_BLOWS))
    return [Clip(f"blow {index}", _CASUAL, pcm) for index, pcm in enumerate(sounds)]


def threat_course(train: Sequence[Clip], background: Sequence[Clip]) -> Course:
    """SESA's classes from its clips and made-up blows; everyday sounds by kind, and weakly as what is no threat."""
    train = [*train, *made_up()]
    clips = heard(train)
    lessons = [Lesson(clips, {OWN: [clip.name for clip in train]}, {OWN: 1.0}, _SESA_BATCH, balanced=True)]
    noise = [sound for sound, clip in zip(clips, train, strict=True) if clip.name == _CASUAL]
    if background:
        kinds = [clip.name for clip in background]
        everyday = heard(background)
        names = {KINDS: kinds, OWN: [_CASUAL] * len(kinds)}
        lessons.append(Lesson(everyday, names, {KINDS: 1.0, OWN: BACKGROUND_WEIGHT}, _BACKGROUND_BATCH))
        noise += everyday
    return Course(lessons, noise, _heads(background), package=_PACKAGE)


def _heads(background: Sequence[Clip]) -> dict[str, tuple[str, ...]]:
    """What a listener of threats learns besides: the kinds of everyday sounds, where there are any."""
    return {KINDS: tuple(sorted({clip.name for clip in background}))} if background else {}


def sesa_recipe(roots: Roots, seed: int) -> Block:
    """A listener of SESA's four classes, and a head on whole clips: fitted once, for every engine."""
    data = read_threats(roots)
    weights, looked = side_by_side(_called, [partial(_threat_ears, roots, seed), partial(_threat_eyes, roots, seed)])
    told, weight = _threat_rows(data)
    head = ClipHead.fit(looked["features"], told, [name for name in SOUNDS if name in set(told)], weight)
    columns = [SOUNDS.index(name) for name in head.names]

    def answer(engine: Engine, sounds: Sequence[I16]) -> tuple[F32, list[str]]:
        chances = head(engine, sounds, OWN, columns)
        odds = np.log(np.exp(chances[:, 1:]).sum(1)) - chances[:, 0]
        return np.asarray(odds, np.float32), [head.names[int(i)] for i in chances.argmax(1)]

    ears = made_of(listener_of(_heads(data.background), weights), data.train, seed)
    judge = partial(judge_threats, data=data, seed=seed, answer=answer)
    return _threat_block(data, judged(together(ears, looker(), roots.engines), judge), [START])


def _called(job: Callable[[], Weights]) -> Weights:
    return job()


def _threat_ears(roots: Roots, seed: int) -> Weights:
    data = read_threats(roots)
    return weights_of(trained(threat_course(data.train, data.background), STEPS, seed))


def _threat_eyes(roots: Roots, seed: int) -> Weights:
    """What the trunk sees of the training clips as they are, then viewed; of everyday sounds, and of blows."""
    data, rng = read_threats(roots), np.random.default_rng([seed, 44])
    casual = [clip.pcm for clip in data.train if clip.name == _CASUAL]
    under = [clip.pcm for clip in data.background] or casual or synthetic_noise()
    clean = [clip.pcm for clip in data.train]
    views = _viewed(clean, under, _VIEW_DB, rng)
    return {"features": seen([*clean, *views, *(clip.pcm for clip in [*data.background, *made_up()])])}


def _viewed(sounds: Sequence[I16], noise: Sequence[I16], snr_db: tuple[float, float], rng: Rng) -> list[I16]:
    """_VIEWS of every sound, all sounds once, then all again: two with another noise under them, one as telephones
    give it, one as a codec of few bits does."""
    chosen = [(pcm, noise[int(rng.integers(len(noise)))]) for _ in range(_NOISY) for pcm in sounds]
    noisy = [mixed(pcm, under, rng.uniform(*snr_db), rng) for pcm, under in chosen]
    return [*noisy, *(augment.narrow(pcm, rng) for pcm in sounds), *(augment.coarse(pcm, rng) for pcm in sounds)]


def _threat_rows(data: Threats) -> tuple[list[str], F32]:
    """Class and weight of the rows of `_threat_eyes`: rare classes weigh more, by the root of their share."""
    names = [clip.name for clip in data.train]
    share = {name: names.count(name) / len(names) for name in set(names)}
    own = [(1 / len(share) / share[name]) ** 0.5 for name in names]
    count = len(data.background) + _BLOWS
    told = names * (1 + _VIEWS) + [_CASUAL] * count
    return told, np.array(own * (1 + _VIEWS) + [1.0] * count, np.float32)


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


def _esc_parts(roots: Roots) -> Parts:
    return parts(roots, _ESC_TABLE, "split", _esc_file)


def _kinds_seen(roots: Roots, seed: int) -> Weights:
    """What the trunk sees of clips that train in any fold, (1 + _VIEWS, clips, D): as they are, then viewed."""
    sounds = [clip.pcm for clip in esc_train(roots)]
    under = [clip.pcm for clip in _casual(roots)] or synthetic_noise()
    looked = seen([*sounds, *_viewed(sounds, under, _ESC_VIEW_DB, np.random.default_rng([seed, 45]))])
    return {"features": looked.reshape(1 + _VIEWS, len(sounds), -1)}


def _kinds_heard(roots: Roots, seed: int, folds: Sequence[str], fold: str) -> Weights:
    """A listener that learned from the clips of the other folds."""
    clips = _left_out(esc_train(roots), folds, fold)
    return weights_of(trained(kinds_course(clips, _casual(roots)), KINDS_STEPS, seed))


def _left_out(clips: Sequence[Clip], folds: Sequence[str], fold: str) -> list[Clip]:
    """Those of all folds but this one; all where the fold that is tested is none of theirs."""
    return [clip for clip, other in zip(clips, folds, strict=True) if not fold or other != fold]


def kinds_course(clips: Sequence[Clip], casual: Sequence[Clip]) -> Course:
    """Kinds of everyday sounds, with each other and with casual clips of SESA under them."""
    names = [clip.name for clip in clips]
    own = heard(clips)
    lesson = Lesson(own, {KINDS: names}, {KINDS: 1.0}, _KINDS_BATCH)
    noise = [*own, *heard(casual)]
    return Course([lesson], noise, {KINDS: tuple(sorted(set(names)))}, _KINDS_SNR_DB, package=_PACKAGE)


def _casual(roots: Roots) -> list[Clip]:
    """Sounds of SESA that are no threat, where the train root has it."""
    known = _there(roots.train, _SESA_TABLE, _sesa_file)
    chosen = [row for row in known if row["use"] in (TRAIN, DEV) and row["category"] == _CASUAL]
    return _clips(roots.train, chosen, _sesa_file)


def esc10_recipe(roots: Roots, seed: int) -> Block:
    """A head on whole clips and a listener; for one root, two per fold, which test it and learned nothing of it."""
    found = _esc_parts(roots)
    tested = [*found.train, *found.test] if roots.same else found.test
    fold_of = {row["filename"]: row["fold"] for row in tested} if roots.same else {}
    clips = esc_train(roots)
    test = clips if roots.same else _clips(roots.test, tested, _esc_file)
    folds = [fold_of.get(clip.item, "") for clip in clips]
    left_out = sorted(set(folds))
    looked, *weights = side_by_side(
        _called,
        [partial(_kinds_seen, roots, seed), *(partial(_kinds_heard, roots, seed, folds, fold) for fold in left_out)],
    )
    heads = heads_left_out(looked["features"], [clip.name for clip in clips], folds)
    ears = {
        fold: made_of(listener_of({KINDS: heads[fold].names}, of_fold), _left_out(clips, folds, fold), seed)
        for fold, of_fold in zip(left_out, weights, strict=True)
    }
    judge = partial(judge_kinds, test=test, fold_of=fold_of, heads=heads)
    split = found.split
    if roots.same:
        split = f"mean of folds {', '.join(heads)}, each tested by what was trained on the others"
    answers = judged(together_by_fold(ears, looker(), roots.engines), judge)
    return Block(answers, len(test), split, [START], notes=found.notes)


def heads_left_out(rows: F32, names: Sequence[str], folds: Sequence[str]) -> dict[str, ClipHead]:
    """A head for each fold, from the rows (views, clips, D) of all others; of the fold "" from all."""
    found = {}
    for fold in sorted(set(folds)):
        known = np.array([not fold or other != fold for other in folds])
        told = np.array(names)[known].tolist()
        found[fold] = ClipHead.fit(np.concatenate(rows[:, known]), told * len(rows), sorted(set(told)))
    return found


def esc_train(roots: Roots) -> list[Clip]:
    """Clips that train, in any fold."""
    found = _esc_parts(roots)
    return _clips(roots.train, [*found.train, *found.test] if roots.same else found.train, _esc_file)


def judge_kinds(
    engines: Mapping[str, Engine], test: Sequence[Clip], fold_of: Mapping[str, str], heads: Mapping[str, ClipHead]
) -> Judged:
    """The mean of the folds, each fold's own figure beside it where there are several, and the answers of all."""
    each: dict[str, float] = {}
    predictions: list[Prediction] = []
    for fold, head in heads.items():
        inside = [clip for clip in test if fold_of.get(clip.item, "") == fold]
        chances = head(engines[fold], [clip.pcm for clip in inside], KINDS, range(len(head.names)))
        told = _kinds_judged(inside, [head.names[int(i)] for i in chances.argmax(1)])
        each[f"accuracy_fold{fold}"] = told.metrics["accuracy"]
        predictions += told.predictions
    metrics = {"accuracy": float(np.mean(list(each.values())))}
    return Judged({**metrics, **each} if len(each) > 1 else metrics, predictions)


def _kinds_judged(test: Sequence[Clip], said: Sequence[str]) -> Judged:
    names = np.array([clip.name for clip in test])
    rows = [Prediction("class", clip.item, clip.name, name) for clip, name in zip(test, said, strict=True)]
    return Judged({"accuracy": accuracy(names, np.array(said))}, rows)


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
