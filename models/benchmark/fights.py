"""Fights before surveillance cameras, half of the clips with sound.

Vision is what moves: statistics of the optical flow, and ImageNet features of the picture's changes where it changes.
Sound tells little here (music, voices over the picture, one microphone a source), so it enters as a small part of a
late mean, and not at all where the track is silent. How small is found on the clips that train: the largest share
that did no harm to sources left out. What learns freely how to mix does harm with so few sources; concatenation
stands among the baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.manifest import AudioSpec, VisionSpec
from edge_agent.core import prepare
from edge_agent.core.memory import Memory
from edge_agent.core.records import F32, I16, U8, Engine
from edge_agent.engine import open_bundle
from edge_agent.errors import ConfigError
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, Variant
from models.benchmark.splits import Row, folds, parts
from models.config import preset
from models.data.films import Film, motion, read_film, windows
from models.data.lens import lens, seen
from models.data.media import decode_sound, has_sound
from models.metrics import auc, gain_interval, interval
from models.network.backbone import START, Changes, Trunk, imagenet
from models.network.frontend import MELS, AudioFront
from models.progress import tracked
from models.runtime import Made, make, shipped_variants, through, variants
from models.training.linear import Linear, logistic

SET = "fight_surv"
#: Floors of the set: a linear model on statistics of the flow, and with statistics of the sound beside them.
FLOOR = {"auc_video": 0.75, "auc_fused": 0.73}
BLOCKS = 15
SPEC = VisionSpec(width=224, height=160)
_FOLDS = 5
#: Pictures of each clip, and other cameras and microphones that one that trains is taken by besides its own.
_WINDOWS, _VIEWS = 6, 1
#: Strength of the ridge on each head: a fold has some 50 sources, and in sound far fewer.
_PENALTIES = {"motion": 0.1, "changes": 0.3, "audio": 3.0}
#: Shares of the sound in the late mean that are tried, and how much harm to the clips that train is none: the lower
#: bound, over sources, of what the AUC gains; half a point, as other clips will do worse than those it was chosen on.
#: Score of each modality in standard deviations of the clips that train.
_SHARES, _HARMLESS, _INNER_FOLDS = (0.02, 0.05, 0.1, 0.2), -0.005, 4
#: The bundle has nothing to find a share on: no fight trains it.
_BUNDLE_SHARE = 0.02
#: A track whose level is below this is silent (dB of full scale): coding noise of nothing.
_SILENT_DB = -70.0
_RATE_HZ, _HOP = 16_000, 8_000
_CALIBRATION = 96

Outputs = dict[str, NDArray[Any]]  #: of one clip, stacked over its windows; empty without any


class FightGraph(nn.Module):
    """uint8 (N, 5, H, W) → embedding (N, width), heat (N, H/shrink, W/shrink), logit.

    The trunk looks at the changes of the picture; its features are averaged with the size of the change as weight, so
    that two people far off count as much as a crowd. Heat is that weight and logit its logarithm over the picture: no
    label is in this graph, so that one serves all folds.
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.front = Changes()
        self.trunk = trunk

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        changes = self.front(frames)
        heat = F.avg_pool2d(changes.abs().mean(1, keepdim=True), self.trunk.shrink)
        total = heat.sum((2, 3)) + 1e-3
        embedding = (self.trunk(changes) * heat).sum((2, 3)) / total
        return embedding, heat[:, 0], torch.log(total)[:, 0]


class SoundGraph(nn.Module):
    """int16 (N, samples) → embedding (N, 3 · MELS), logit: the spectrum's shape, how much it varies and how fast.

    The level is taken off first (it tells the recorder, not the scene); the logit is how much the level varies.
    """

    def __init__(self, spec: AudioSpec) -> None:
        super().__init__()
        self.front = AudioFront(spec)

    def forward(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        x = self.front(pcm)[:, 0]
        x = x - x.mean((1, 2), keepdim=True)
        mean = x.mean(2)
        spread = ((x - mean.unsqueeze(2)) * (x - mean.unsqueeze(2))).mean(2)
        change = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(2)
        return torch.cat([mean, torch.sqrt(spread + 1e-4), change], 1), change.mean(1)


@dataclass(frozen=True)
class View:
    """A clip as other devices would show it; as `Item` has it."""

    frames: U8
    motion: F32
    pcm: I16


@dataclass(frozen=True)
class Item:
    """One clip, ready for the graphs."""

    name: str
    source: str
    fight: float
    frames: U8  #: (windows, 5, H, W)
    motion: F32
    pcm: I16  #: (n, samples), n = 0 where the track is silent or missing
    counted: bool  #: one of the clips with sound, over which the set's figures are taken
    views: tuple[View, ...] = ()  #: through other cameras and microphones, to train on


@dataclass(frozen=True)
class Features:
    """What the heads see of many clips, (n, …) each."""

    motion: F32
    changes: F32
    audio: F32  #: zeros where nothing is heard
    heard: NDArray[np.bool_]

    def rows(self, index: NDArray[Any]) -> Features:
        """Some of the clips."""
        return Features(self.motion[index], self.changes[index], self.audio[index], self.heard[index])

    def joined(self, other: Features) -> Features:
        """These and the others behind them."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Features(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Heads:
    """The small parts that learn: a linear head on each kind of feature, scaled to deviation 1 on what trained it."""

    motion: Linear
    changes: Linear
    audio: Linear | None  #: None: too little that trains has sound
    share: float = 0.0  #: of the sound

    @classmethod
    def fit(cls, known: Features, fight: F32, share: float = 0.0) -> Heads:
        """ValueError unless clips of both classes are there."""
        heard = known.heard
        some = len(np.unique(fight[heard])) == 2
        return cls(
            _head("motion", known.motion, fight),
            _head("changes", known.changes, fight),
            _head("audio", known.audio[heard], fight[heard]) if some else None,
            share if some else 0.0,
        )

    def scores(self, clips: Features) -> dict[str, F32]:
        """video, audio and fused, each (n,); a clip that is not heard has audio 0 and fused as video says."""
        video = np.asarray((self.motion(clips.motion) + self.changes(clips.changes)) / 2, np.float32)
        audio = np.zeros_like(video) if self.audio is None else self.audio(clips.audio)
        audio = np.where(clips.heard, audio, 0.0).astype(np.float32)
        return {"video": video, "audio": audio, "fused": _fused(video, audio, clips.heard, self.share)}


def _head(kind: str, x: F32, fight: F32) -> Linear:
    found = logistic(x, fight, _PENALTIES[kind])
    scale = float(found(x).std()) + 1e-6
    return Linear((found.weight / scale).astype(np.float32), found.bias / scale)


def _fused(video: F32, audio: F32, heard: NDArray[np.bool_], share: float) -> F32:
    return np.where(heard, (1 - share) * video + share * audio, video).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """Which items train the heads and which they are tested on, once or fold by fold."""

    items: list[Item]
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]]
    split: str
    notes: list[str]

    def some(self, index: NDArray[np.intp]) -> list[Item]:
        """The items of these numbers."""
        return [self.items[int(i)] for i in index]

    @property
    def learning(self) -> list[Item]:
        """Those that train in any fold."""
        return self.some(np.unique(np.concatenate([train for train, _ in self.folds])))

    @property
    def tested(self) -> NDArray[np.intp]:
        return np.concatenate([tested for _, tested in self.folds])


def recipe(roots: Roots, seed: int) -> Block:
    """Heads on a frozen ImageNet trunk, cross-validated over sources where both roots are one. Minutes."""
    plan = planned(roots, seed, SPEC, _VIEWS)
    made = graphs(plan.learning, np.random.default_rng([seed, 72]))
    fight = np.array([item.fight for item in plan.items], np.float32)
    found: dict[Variant, Judged] = {}
    heads: list[Heads] = []
    notes: list[str] = []
    baselines: dict[str, dict[str, float]] = {}
    for variant, vision, audio in _engines(made, roots.engines):
        own = features(plan.items, vision, audio)
        if not heads:  # trained once, on what the first engine makes of the clips; all are tested with the same heads
            viewed = _viewed(plan.items, vision, audio)
            shares = [harmless(own.rows(train), plan.some(train), fight[train], seed) for train, _ in plan.folds]
            heads = [
                _trained(own, viewed, fight, train, share)
                for share, (train, _) in zip(shares, plan.folds, strict=True)
            ]
            notes = [*plan.notes, f"share of the sound in the late mean, by fold: {', '.join(map(str, shares))}"]
            baselines = _baselines(own, heads, fight, plan)
        told = [head.scores(own.rows(tested)) for head, (_, tested) in zip(heads, plan.folds, strict=True)]
        score = {key: np.concatenate([part[key] for part in told]) for key in told[0]}
        found[variant] = judge(plan.some(plan.tested), score, seed)
    count = sum(item.counted for item in plan.some(plan.tested))
    return Block(found, count, plan.split, [START], baselines, notes)


def harmless(known: Features, items: Sequence[Item], fight: F32, seed: int) -> float:
    """The largest of _SHARES that did no harm when sources of these clips were left out in turn; 0 if each did."""
    source = [item.source for item in items]
    if len(set(source)) < _INNER_FOLDS:
        return 0.0
    fold = np.array(folds(source, _INNER_FOLDS, seed))
    score = {key: np.zeros(len(items), np.float32) for key in ("video", "audio")}
    for k in range(_INNER_FOLDS):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(np.unique(fight[inside])) < 2:
            return 0.0
        told = Heads.fit(known.rows(inside), fight[inside]).scores(known.rows(outside))
        for key, values in score.items():
            values[outside] = told[key]
    heard = np.flatnonzero(known.heard)
    if len(np.unique(fight[heard])) < 2:
        return 0.0
    video, audio = score["video"][heard], score["audio"][heard]
    group = [source[int(i)] for i in heard]
    best = 0.0
    for share in _SHARES:
        mixed = _fused(video, audio, known.heard[heard], share)
        rng = np.random.default_rng([seed, 74])
        if gain_interval(fight[heard], mixed, video, group, rng)[0] >= _HARMLESS:
            best = share
    return best


def _trained(
    own: Features,
    viewed: Sequence[tuple[NDArray[np.intp], Features]],
    fight: F32,
    train: NDArray[np.intp],
    share: float,
) -> Heads:
    known, label = own.rows(train), fight[train]
    for index, more in viewed:
        inside = np.isin(index, train)
        known = known.joined(more.rows(inside))
        label = np.concatenate([label, fight[index[inside]]])
    return Heads.fit(known, label, share)


def planned(roots: Roots, seed: int, spec: VisionSpec, cameras: int | None) -> Plan:
    """All clips read, those that train also through other cameras; None: without figures of motion."""
    found = parts(roots, f"{SET}/labels.csv", "split", _file, wrong="fight", also=("clip", "source_video"))
    rng = np.random.default_rng([seed, 71])
    train = read(roots.train, found.train, spec, rng, cameras)
    tested = read(roots.test, found.test, spec, rng, cameras if roots.same or cameras is None else 0)
    items = [*train, *tested]
    notes = list(found.notes)
    if not any(item.counted for item in (items if roots.same else tested)):
        notes.append("no tested clip has sound: only auc_all_clips says something")
    if not roots.same:
        one = (np.arange(len(train)), np.arange(len(train), len(items)))
        return Plan(items, [one], found.split, notes)
    fold = np.array(folds([item.source for item in items], _FOLDS, seed))
    split = f"{_FOLDS}-fold cross-validation over the clips of splits train and dev, whole sources together"
    pairs = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(_FOLDS)]
    for inside, _ in pairs:
        if len({items[i].fight for i in inside.tolist()}) < 2:
            raise ConfigError(f"{roots.train / SET}: without one fold of sources, all clips are of one class")
    return Plan(items, pairs, split, notes)


def bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped graphs' own logits, the highest of a clip, in standard deviations of normal clips that train.

    No fight trains anything. `auc_novelty` is what the device's memory of those normal clips says of the pictures.
    """
    spec = open_bundle(shipped).manifest.vision
    plan = planned(roots, seed, spec, None)
    tested = plan.some(plan.tested)
    label, counted = _labels(tested)
    heard = np.array([len(item.pcm) > 0 for item in tested])
    found: dict[Variant, Judged] = {}
    for engine, precision, ready in shipped_variants(shipped, roots.engines):
        looks = [through(ready, "vision", item.frames) for item in tracked("clips through the bundle", plan.items)]
        sounds = [through(ready, "audio", item.pcm) for item in plan.items]
        video = _by_fold(plan, looks, _standing)
        # Music is far from all that trained the threats' head: no clip's sound may say more than three deviations.
        audio = np.clip(_by_fold(plan, sounds, _standing), -3, 3)
        novelty = _by_fold(plan, looks, _novelty)
        score = {"video": video, "audio": audio, "fused": _fused(video, audio, heard, _BUNDLE_SHARE)}
        told = judge(tested, score, seed)
        more = {"auc_novelty": auc(label[counted], novelty[counted])}
        found[engine, precision] = Judged({**told.metrics, **more}, told.predictions)
    words = f"{plan.split}; of the clips that train, only the normal ones are used"
    return Block(found, int(counted.sum()), words, notes=plan.notes)


def _by_fold(
    plan: Plan, outputs: Sequence[Outputs], score: Callable[[Sequence[Outputs]], Callable[[Outputs], float]]
) -> F32:
    """Of each tested clip, what a score that was adapted on the normal clips of its training folds says."""
    found = []
    for train, tested in plan.folds:
        adapted = score([outputs[int(i)] for i in train if not plan.items[int(i)].fight])
        found += [adapted(outputs[int(i)]) for i in tested]
    return np.array(found, np.float32)


def _standing(normal: Sequence[Outputs]) -> Callable[[Outputs], float]:
    """The highest logit of a clip, standardised by those of normal clips; 0 without windows."""
    usual = np.array([clip["logit"].max() for clip in normal if clip])
    if not len(usual):
        return lambda clip: 0.0
    return lambda clip: float((clip["logit"].max() - usual.mean()) / (usual.std() + 1e-6)) if clip else 0.0


def _novelty(normal: Sequence[Outputs]) -> Callable[[Outputs], float]:
    """The mean novelty of a clip's windows in a memory of those of normal clips."""
    known = np.concatenate([clip["embedding"] for clip in normal if clip])
    memory = Memory(known.shape[1])
    memory.fill(known)
    return lambda clip: float(np.mean([memory.novelty(vector) for vector in clip["embedding"]]))


def read(
    root: Path, table: Sequence[Row], spec: VisionSpec, rng: np.random.Generator, cameras: int | None
) -> list[Item]:
    """The clips of these rows, decoded, each also as `cameras` other cameras would show it; None: without motion."""
    items = []
    for row in tracked("clips", table):
        path = root / _file(row)
        film = read_film(path)
        pcm = _sound(path)
        others = [(_through(film, rng), recorded(pcm, rng)) for _ in range(cameras or 0)]
        views = tuple(View(windows(other, spec, _WINDOWS), motion(other), sound) for other, sound in others)
        counted = row["audio"] in ("ok", "quiet") if row.get("audio") else len(pcm) > 0
        item = Item(
            row["clip"],
            row["source_video"],
            float(row["fight"]),
            windows(film, spec, _WINDOWS),
            np.zeros(0, np.float32) if cameras is None else motion(film),
            pcm,
            counted,
            views,
        )
        items.append(item)
    return items


def graphs(items: Sequence[Item], rng: np.random.Generator) -> tuple[Made, Made]:
    """The graph of the pictures and that of the sound, exported; int8 scales from clips that may train."""
    first = preset("first")
    trunk = imagenet(BLOCKS)
    shape = replace(first, vision_spec=SPEC, embedding=trunk.width)
    # In a cross-validation every clip is tested; those without sound do not enter the figures.
    allowed = [item for item in items if not item.counted] or list(items)
    chosen = rng.permutation(len(allowed))[:_CALIBRATION]
    shown = [allowed[int(i)].frames[int(rng.integers(_WINDOWS))] for i in chosen]
    vision = make(shape, {"vision": FightGraph(trunk).eval()}, {"vision": shown})
    listening = SoundGraph(first.audio_spec).eval()
    # No layer of it can be int8: it is the front end and sums.
    return vision, make(replace(first, embedding=3 * MELS), {"audio": listening}, {})


def features(items: Sequence[Item], vision: Engine, audio: Engine) -> Features:
    """What the graphs make of the clips, with the motion figures beside it."""
    changes = [_looked(vision, item.frames) for item in tracked("clips through the graphs", items)]
    heard = np.array([len(item.pcm) > 0 for item in items])
    sound = np.zeros((len(items), 3 * MELS), np.float32)
    for row, item in zip(sound, items, strict=True):
        if len(item.pcm):
            row[:] = through(audio, "audio", item.pcm)["embedding"].mean(0)
    return Features(np.stack([item.motion for item in items]), np.stack(changes), sound, heard)


def _looked(vision: Engine, frames: U8) -> F32:
    return np.asarray(through(vision, "vision", frames)["embedding"].mean(0), np.float32)


def _viewed(items: Sequence[Item], vision: Engine, audio: Engine) -> list[tuple[NDArray[np.intp], Features]]:
    """Which clips are shown by other devices, and what that gives."""
    found = []
    for number in range(max((len(item.views) for item in items), default=0)):
        index = np.array([i for i, item in enumerate(items) if len(item.views) > number], np.intp)
        shown = []
        for item in (items[int(i)] for i in index):
            view = item.views[number]
            shown.append(replace(item, frames=view.frames, motion=view.motion, pcm=view.pcm))
        found.append((index, features(shown, vision, audio)))
    return found


def judge(items: Sequence[Item], score: dict[str, F32], seed: int) -> Judged:
    """AUCs over the clips with sound, their intervals with whole sources drawn, and what the fusion adds."""
    label, counted = _labels(items)
    rng = np.random.default_rng([seed, 73])
    y = label[counted]
    source = [item.source for item in items if item.counted]
    metrics = {f"auc_{key}": auc(y, values[counted]) for key, values in score.items()}
    low, high = interval(y, score["fused"][counted], source, rng)
    best = max(("video", "audio"), key=lambda key: metrics[f"auc_{key}"])
    gain = gain_interval(y, score["fused"][counted], score[best][counted], source, rng)
    metrics |= {"auc_fused_low": low, "auc_fused_high": high}
    metrics |= {"fused_minus_best_low": gain[0], "fused_minus_best_high": gain[1]}
    metrics["auc_all_clips"] = auc(label, score["fused"])
    rows = [
        Prediction(key, item.name, item.fight, float(values[index]))
        for key, values in score.items()
        for index, item in enumerate(items)
        if item.counted
    ]
    rows += [Prediction("all_clips", i.name, i.fight, float(s)) for i, s in zip(items, score["fused"], strict=True)]
    return Judged(metrics, rows)


def _engines(made: tuple[Made, Made], names: tuple[str, ...]) -> Iterator[tuple[Variant, Engine, Engine]]:
    pairs = zip(variants(made[0], names), variants(made[1], names), strict=True)
    for (name, precision, vision), (_, _, audio) in pairs:
        yield (name, precision), vision, audio


def _baselines(own: Features, heads: Sequence[Heads], fight: F32, plan: Plan) -> dict[str, dict[str, float]]:
    """Each half of vision alone; both modalities at equal shares; and one head on the features of both."""
    label, counted = _labels(plan.some(plan.tested))
    both = np.concatenate([own.motion, own.changes, own.audio], 1)
    score: dict[str, list[F32]] = {}
    for head, (train, tested) in zip(heads, plan.folds, strict=True):
        clips = own.rows(tested)
        score.setdefault("flow statistics", []).append(head.motion(clips.motion))
        score.setdefault("changes through the trunk", []).append(head.changes(clips.changes))
        score.setdefault("late mean, equal shares", []).append(replace(head, share=0.5).scores(clips)["fused"])
        known = train[own.heard[train]]
        if len(np.unique(fight[known])) == 2:
            joint = _head("changes", both[known], fight[known])
            score.setdefault("concatenation", []).append(joint(both[tested]))
    whole = {name: np.concatenate(rows) for name, rows in score.items() if len(rows) == len(plan.folds)}
    return {name: {"auc_fused": auc(label[counted], values[counted])} for name, values in whole.items()}


def _labels(items: Sequence[Item]) -> tuple[F32, NDArray[np.bool_]]:
    return np.array([item.fight for item in items], np.float32), np.array([item.counted for item in items])


def _through(film: Film, rng: np.random.Generator) -> Film:
    other = lens(rng)
    return Film([seen(frame, other, rng) for frame in film.frames])


def recorded(pcm: I16, rng: np.random.Generator) -> I16:
    """Windows (n, samples) as another microphone and codec give them: the upper band lost, at times over hiss."""
    if not len(pcm):
        return pcm
    highest_hz = float(np.exp(rng.uniform(np.log(2000), np.log(9000))))
    hz = np.fft.rfftfreq(pcm.shape[1], 1 / _RATE_HZ)
    spectrum = np.fft.rfft(pcm.astype(np.float64), axis=1) / (1 + (hz / highest_hz) ** 24)
    wave = np.fft.irfft(spectrum, pcm.shape[1], 1)
    if rng.random() < 0.5:
        below_db = rng.uniform(10, 40)
        wave += rng.standard_normal(wave.shape) * np.sqrt(np.square(wave).mean()) * 10 ** (-below_db / 20)
    return np.clip(wave, -32768, 32767).astype(np.int16)


def _sound(path: Path) -> I16:
    """(n, samples) windows of a second, half a second apart; none where there is nothing to hear."""
    spec = AudioSpec(rate_hz=_RATE_HZ)
    nothing = np.zeros((0, spec.samples), np.int16)
    if not has_sound(path):
        return nothing
    pcm = decode_sound(path, _RATE_HZ)
    level = float(np.sqrt(np.square(pcm.astype(np.float64) / 32768).mean())) if len(pcm) else 0.0
    if 20 * np.log10(level + 1e-9) < _SILENT_DB:
        return nothing
    ends = range(min(len(pcm), spec.samples), len(pcm) + 1, _HOP)
    return np.stack([prepare.audio(pcm[:end], spec) for end in ends])


def _file(row: Row) -> str:
    return f"{SET}/clips/{row['clip']}"


SETS = {SET: Task(recipe, bundle, FLOOR)}
