"""Any folder of sounds (`audio_folder`): what is unusual in it, and what is what where that is labelled.

Layout, in `audio_folder/` below each root, or in the root itself:

* `labels.csv` with the columns file, label, and split, group, start_s, end_s if there are any; or
* folders as MIMII has them, `<machine>/id_<nn>/normal|abnormal/*.wav`.

`normal` (or `ok`, `good`, `casual`, `0`) is normal; any other label is wrong, and the name of a class. Where nothing
of the train root is labelled all of it counts as normal. Without splits and with one root for both, a quarter of the
groups is tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.core.memory import Memory
from edge_agent.core.records import F32, Engine
from edge_agent.errors import ConfigError
from models.benchmark.listeners import PRESET, SPEC, Clip, clip_outputs, heard, start_of
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, judged, judged_in_float
from models.benchmark.spectrograms import EVERY_S, SEEN, ClipHead, features, looker, seen
from models.benchmark.splits import DEV, TRAIN, folds
from models.data import augment, public
from models.data.listening import windows_of
from models.data.records import NORMAL, Recording
from models.metrics import accuracy, auc
from models.network.backbone import START
from models.network.frontend import log_mel
from models.runtime import shipped_variants, through

_FOLDER = "audio_folder"
_NORMAL = (NORMAL, "ok", "good", "casual", "0")
#: Clips of one name that make it a class to learn; clips that train at most.
_FEWEST, _MOST = 8, 1500
_TOLD = 5  #: files left out that are named
_TESTED = 4  #: one of so many groups is tested where the folder has no splits
_TOP = 0.25  #: share of a clip's windows, the strangest, that speak for it

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Folder:
    """The clips that train and that are tested; a name is NORMAL, a class, or empty."""

    train: list[Clip]
    test: list[Clip]
    split: str
    notes: list[str]

    @property
    def normal(self) -> list[Clip]:
        """Training clips in which nothing is wrong."""
        return [clip for clip in self.train if clip.name == NORMAL]

    @property
    def names(self) -> tuple[str, ...]:
        """What training clips are called, if it is more than one name."""
        counts = Counter(clip.name for clip in self.train if clip.name)
        found = sorted(name for name, count in counts.items() if count >= _FEWEST)
        return tuple(found) if len(found) > 1 else ()


def read_folder(roots: Roots, seed: int) -> Folder:
    """ConfigError where there is no sound, nothing labelled to test or nothing to train on."""
    known = _recordings(roots.train)
    if not roots.same:
        train = [r for r in known if r.split in ("", TRAIN, DEV)]
        test = _recordings(roots.test)
        split = "trained on the train root, tested on every labelled sound of the test root"
    elif {TRAIN, DEV} <= {r.split for r in known}:
        train, test = ([r for r in known if r.split == part] for part in (TRAIN, DEV))
        split = "trained on split train, tested on split dev"
    else:
        fold = folds([r.group for r in known], _TESTED, seed)
        train = [r for r, at in zip(known, fold, strict=True) if at]
        test = [r for r, at in zip(known, fold, strict=True) if not at]
        split = "tested on a quarter of the groups, trained on the others"
    labelled = any(r.label or r.spans for r in train)
    found, lost = _clips(train, "" if labelled else NORMAL, seed)
    asked, more = _clips([r for r in test if r.label or r.spans], "", seed, most=len(test))
    notes = [] if labelled else ["nothing of the train root is labelled: all of it counts as normal"]
    if broken := [*lost, *more]:
        some = ", ".join(broken[:_TOLD])
        notes.append(f"{len(broken)} sounds are empty or cannot be read, and are left out: {some}")
    if not asked or not found:
        raise ConfigError(
            f"{roots.test}: {len(asked)} labelled sounds to test, {len(found)} to train on; see labels.csv"
        )
    return Folder(found, asked, split, notes)


def _recordings(root: Path) -> list[Recording]:
    base = root / _FOLDER if (root / _FOLDER).is_dir() else root
    layout = public.mimii if any(base.rglob("id_*/normal")) else public.audio_folder
    return layout(base)


def _clips(
    recordings: Sequence[Recording], unlabelled: str, seed: int, most: int = _MOST
) -> tuple[list[Clip], list[str]]:
    """The sounds, `most` of them drawn by seed, and what was left out: files that are empty or cannot be read."""
    order = np.random.default_rng([seed, 44]).permutation(len(recordings))[:most]
    found, lost = [], []
    for index in np.sort(order):
        recording = recordings[int(index)]
        try:
            pcm = recording.pcm(SPEC.rate_hz)
        except ConfigError:
            pcm = np.zeros(0, np.int16)
        if len(pcm):
            found.append(Clip(recording.item, _name(recording) or unlabelled, pcm))
        else:
            lost.append(recording.item)
    return found, lost


def _name(recording: Recording) -> str:
    label = recording.spans[0].label if recording.spans else recording.label
    return NORMAL if label.lower() in _NORMAL else label


@dataclass(frozen=True)
class Usual:
    """A Gaussian of what is normal (Rippel et al., ICPR 2021): how far a clip's features are from it, by how much
    they vary there; directions in which nothing varied count as one that varies as the mean of all does."""

    mean: Array
    scale: Array
    axes: Array  #: (r, D) orthonormal, those that the normal clips vary in
    spread: Array  #: (r,) variance along each

    @classmethod
    def fit(cls, x: F32) -> Usual:
        """From the features of normal clips, (n, D); one will do."""
        mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-3
        _, size, axes = np.linalg.svd((x - mean) / scale, full_matrices=False)
        return cls(mean, scale, axes, np.square(size) / len(x))

    def __call__(self, x: F32) -> F32:
        """(m, D) → (m,) squared distance."""
        z = (x - self.mean) / self.scale
        along = np.square(z @ self.axes.T)
        rest = np.square(z).sum(1) - along.sum(1)
        return np.asarray((along / (self.spread + 1.0)).sum(1) + rest, np.float32)


def recipe(roots: Roots, seed: int) -> Block:
    """What an ImageNet trunk sees of the sounds. The score of a clip is how far it is from the normal ones; where
    wrong ones train, the odds that it is one of them."""
    data = read_folder(roots, seed)
    rng = np.random.default_rng([seed, 45])
    clean = [clip.pcm for clip in data.train]
    # As codecs give them, too: what is usual else ends where the recorder's band does.
    views = [change(pcm, rng) for change in (augment.narrow, augment.coarse) for pcm in clean]
    looked = seen([*clean, *views])
    told = np.array([clip.name for clip in data.train] * 3)
    usual = Usual.fit(looked[told == NORMAL]) if data.normal else None
    known = np.isin(told, data.names)
    head = ClipHead.fit(looked[known], told[known].tolist(), data.names) if data.names else None

    def judge(engine: Engine) -> Judged:
        found = clip_outputs(engine, [c.pcm for c in data.test], (SEEN,), most=(SEEN,), every_s=EVERY_S)
        asked = features(found, SEEN)
        score = usual(asked) if usual is not None else None
        if head is None:
            return _figures(data, score, [])
        chances = head.looked(asked)
        if NORMAL in data.names:
            normal = data.names.index(NORMAL)
            others = np.delete(chances, normal, 1)
            score = np.asarray(np.log(np.exp(others).sum(1)) - chances[:, normal], np.float32)
        return _figures(data, score, [data.names[int(i)] for i in chances.argmax(1)])

    found = judged_in_float(looker(), roots.engines, judge)
    return Block(found, len(data.test), data.split, [START], _plain(data), data.notes)


def bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped embedding and a memory of the normal clips."""
    data = read_folder(roots, seed)

    def judge(engine: Engine) -> Judged:
        return _figures(data, novelty(engine, data) if data.normal else None, [])

    found = judged(shipped_variants(shipped, roots.engines), judge)
    return Block(found, len(data.test), data.split, [start_of(shipped)], notes=data.notes)


def novelty(engine: Engine, data: Folder) -> F32:
    """How far each tested clip is from the normal ones, (clips,): the mean of its strangest windows."""
    normal = np.concatenate([windows_of(clip.pcm, SPEC) for clip in data.normal])
    memory = Memory(PRESET.embedding)
    memory.fill(through(engine, "audio", normal)["embedding"])
    found = []
    for clip in data.test:
        embedding = through(engine, "audio", windows_of(clip.pcm, SPEC))["embedding"]
        found.append(_strangest(np.array([memory.novelty(vector) for vector in embedding])))
    return np.array(found, np.float32)


def _strangest(values: NDArray[np.float64]) -> float:
    """Mean of the highest quarter, of one at least."""
    return float(np.sort(values)[-max(int(len(values) * _TOP), 1) :].mean())


def _plain(data: Folder) -> dict[str, dict[str, float]]:
    """What needs no training: the nearest normal clip by the mean and the spread of its log-mel."""
    if not data.normal or not any(clip.name != NORMAL for clip in data.test):
        return {}
    known, asked = (_statistics(clips) for clips in (data.normal, data.test))
    scale = known.std(0) + 1e-3
    score = np.array([np.square((known - row) / scale).sum(1).min() for row in asked])
    return {"mel statistics": {"auc": auc(_wrong(data.test), score)}}


def _statistics(clips: Sequence[Clip]) -> F32:
    mels = [log_mel(sound.power).numpy() for sound in heard(clips)]
    return np.stack([np.concatenate([mel.mean(1), mel.std(1)]) for mel in mels])


def _wrong(clips: Sequence[Clip]) -> F32:
    return np.array([clip.name != NORMAL for clip in clips], np.float32)


def _figures(data: Folder, score: F32 | None, said: Sequence[str]) -> Judged:
    """`auc` where there is a score, `accuracy` where names were said."""
    metrics: dict[str, float] = {}
    rows: list[Prediction] = []
    label = _wrong(data.test)
    if score is not None:
        metrics["auc"] = auc(label, score)
        rows += [
            Prediction("wrong", c.item, float(a), float(b)) for c, a, b in zip(data.test, label, score, strict=True)
        ]
    if said:
        metrics["accuracy"] = accuracy(np.array([clip.name for clip in data.test]), np.array(said))
        rows += [Prediction("class", c.item, c.name, name) for c, name in zip(data.test, said, strict=True)]
    return Judged(metrics, rows)


TASK = Task(recipe, bundle, {})
