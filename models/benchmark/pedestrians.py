"""UCSD Ped2: one fixed camera over a walkway; everything but walking is wrong. One-class: only normal clips train.

The set gives no rate that can be trusted after re-encoding, and its labels count frames: frames are taken as 10 a
second, one by one, so that the looks back of 100 and 300 ms are one and three frames.

Scores are compared over all clips as they are. Rescaling each clip to 0..1, as is often done, needs the whole clip
before its first score and gives every clip an anomaly.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import VisionSpec
from edge_agent.core import prepare
from edge_agent.core.records import F32, U8, Engine
from edge_agent.errors import ConfigError
from models.benchmark.record import Block, Judged, Prediction, Roots, Task, Variant, judged
from models.config import Preset, Schedule, preset
from models.data.cutouts import BACK, Cutouts
from models.data.media import Pictures, rows
from models.data.records import folder
from models.metrics import frame_auc_macro, frame_auc_micro
from models.network.graphs import build
from models.progress import tracked
from models.runtime import Made, make, shipped_variants, through, variants
from models.training import oneclass

NAME = "ucsd_ped2"
#: Floor of the set: largest optical flow of a block against the training clips', nothing learnt.
FLOOR = {"frame_auc_micro": 0.90}
_RATE_HZ = 10.0
_LONGEST = 100_000  # frames
_CALIBRATION = 128
#: Every n-th frame of the normal clips adapts the shipped bundle.
_EVERY = 5
_SETTLED = 10
_FILMS = (".mp4", ".avi", ".mkv", ".mov", ".webm")


@dataclass(frozen=True)
class Clip:
    """A tested clip: frames uint8 (n, H, W, 3) in the model's size; labels (n,), 1 abnormal, −1 nothing is said."""

    name: str
    frames: U8
    label: NDArray[np.int8]


def recipe(roots: Roots, seed: int) -> Block:
    """The product's vision graph, trained on pseudo-anomalies made of the normal clips. Minutes."""
    shape = preset("first")
    clips, notes = tested(roots.test, shape.vision_spec)
    made = learned(normal(roots.train, shape.vision_spec), shape, oneclass.SCHEDULE, seed)
    rates_hz: list[float] = []

    def judge(engine: Engine) -> Judged:
        began_s = time.perf_counter()
        scores = _heat_scores(engine, clips)
        rates_hz.append(sum(map(len, scores)) / (time.perf_counter() - began_s))
        return _judge(clips, scores)

    found = judged(variants(made, roots.engines), judge)
    notes = [*notes, _speed(found, rates_hz)]
    words = (
        "one-class: trained on the normal training clips of the train root, tested on every test clip of the other"
    )
    baselines = {"frame difference": _judge(clips, [_difference(clip.frames) for clip in clips]).metrics}
    return Block(found, _count(clips), words, baselines=baselines, notes=notes)


def _speed(found: Iterable[Variant], rates_hz: Sequence[float]) -> str:
    each = (f"{engine} {precision} {rate:.0f}" for (engine, precision), rate in zip(found, rates_hz, strict=True))
    return f"frames a second on one thread, from the model's size to the score: {', '.join(each)}"


def learned(films: Sequence[U8], shape: Preset, schedule: Schedule, seed: int) -> Made:
    """The vision graph of `shape`, trained on normal `films` (n, H, W, 3) alone, exported and quantised."""
    try:
        cutouts = Cutouts.of(films)
    except ValueError as error:
        raise ConfigError(f"the normal clips cannot train: {error}") from error
    graph = build(shape, seed).vision
    oneclass.train(graph, cutouts, schedule, seed)
    rng = np.random.default_rng([seed, 52])
    size = (shape.vision_spec.height, shape.vision_spec.width)
    seen = [oneclass.window(rng, cutouts.sample(rng), size)[0] for _ in range(_CALIBRATION)]
    return make(shape, {"vision": graph}, {"vision": seen})


def normal(root: Path, spec: VisionSpec) -> list[U8]:
    """Frames of every training clip under a root; ConfigError if there are none."""
    base = folder(root, NAME) / "train"
    paths = sorted(path for path in base.glob("*") if path.suffix.lower() in _FILMS)
    if not paths:
        raise ConfigError(f"no film in {base}: the normal clips that train are expected there")
    return [_frames(path, spec) for path in tracked("normal clips", paths)]


def tested(root: Path, spec: VisionSpec) -> tuple[list[Clip], list[str]]:
    """Every labelled test clip that is there, and notes on what is not. ConfigError if none is."""
    base = folder(root, NAME)
    labels = _labels(base / "test_frame_labels.csv")
    files = {path.stem: path for path in (base / "test").glob("*") if path.suffix.lower() in _FILMS}
    there = [name for name in sorted(labels) if name in files]
    if not there:
        raise ConfigError(
            f"none of the {len(labels)} clips of {base / 'test_frame_labels.csv'} is in {base / 'test'}"
        )
    clips, silent = [], 0
    for name in tracked("test clips", there):
        frames = _frames(files[name], spec)
        label = np.array([labels[name].get(i, -1) for i in range(len(frames))], np.int8)
        silent += len(labels[name]) - int((label >= 0).sum())
        clips.append(Clip(name, frames, label))
    notes = []
    if len(there) < len(labels):
        notes.append(f"{len(labels) - len(there)} clips of the table are not there: left out")
    if silent:
        notes.append(f"{silent} labelled frames are not in their films: left out")
    if not any({0, 1} <= set(clip.label.tolist()) for clip in clips):
        notes.append("no clip holds frames of both classes: frame_auc_macro says nothing and is given as 0.5")
    return clips, notes


def _labels(path: Path) -> dict[str, dict[int, int]]:
    """clip → frame → 0 or 1; rows without a label are left out."""
    labels: dict[str, dict[int, int]] = {}
    for number, row in enumerate(rows(path), 2):
        try:
            if row["abnormal"].strip():
                labels.setdefault(row["clip"], {})[int(row["frame"])] = int(float(row["abnormal"]) > 0.5)
        except (KeyError, AttributeError, ValueError) as error:
            raise ConfigError(f"{path}, line {number}: expected clip, frame, abnormal; it holds {row}") from error
    return labels


def _frames(path: Path, spec: VisionSpec) -> U8:
    return Pictures(path, rate_hz=_RATE_HZ).frames(spec, most=_LONGEST)


def views(frames: U8, spec: VisionSpec) -> U8:
    """(n, 5, H, W): the graph's input at every frame; before the third, the first stands for what is older."""
    return np.stack([prepare.vision([frames[max(i - back, 0)] for back in BACK], spec) for i in range(len(frames))])


def _heat_scores(engine: Engine, clips: Sequence[Clip]) -> list[F32]:
    """Of each clip, the hottest neighbourhood of every frame, followed over time."""
    spec = VisionSpec(width=clips[0].frames.shape[2], height=clips[0].frames.shape[1])
    heat = (through(engine, "vision", views(clip.frames, spec))["heat"] for clip in clips)
    return [oneclass.followed(oneclass.hottest(plane)) for plane in heat]


def _difference(frames: U8) -> F32:
    """The largest change of an 8x8 block within 300 ms: what needs no learning at all."""
    luma = np.stack([prepare.luma(frame) for frame in frames]).astype(np.float32)
    past = luma[np.maximum(np.arange(len(luma)) - BACK[2], 0)]
    count, height, width = luma.shape
    blocks = np.abs(luma - past).reshape(count, height // 8, 8, width // 8, 8).mean((2, 4))
    return oneclass.followed(np.asarray(blocks.reshape(count, -1).max(1), np.float32))


def _judge(clips: Sequence[Clip], scores: Sequence[F32]) -> Judged:
    known = [clip.label >= 0 for clip in clips]
    label = [clip.label[rows] for clip, rows in zip(clips, known, strict=True)]
    score = [given[rows] for given, rows in zip(scores, known, strict=True)]
    rows = [
        Prediction("frame", f"{clip.name}:{index}", float(clip.label[index]), float(given[index]))
        for clip, given in zip(clips, scores, strict=True)
        for index in np.flatnonzero(clip.label >= 0)
    ]
    found = {"frame_auc_micro": frame_auc_micro(label, score), "frame_auc_macro": frame_auc_macro(label, score)}
    return Judged(found, rows)


def _count(clips: Sequence[Clip]) -> int:
    return sum(int((clip.label >= 0).sum()) for clip in clips)


def bundle(roots: Roots, seed: int, shipped: Path) -> Block:
    """The shipped vision graph and what changes in the picture, measured by normal clips: nothing is trained."""
    shape = preset("first")
    clips, notes = tested(roots.test, shape.vision_spec)
    films = [views(film, shape.vision_spec)[BACK[2] :: _EVERY] for film in normal(roots.train, shape.vision_spec)]
    shown = [views(clip.frames, shape.vision_spec) for clip in clips]
    baselines: dict[str, dict[str, float]] = {}

    def judge(engine: Engine) -> Judged:
        usual = Usual.of(engine, films)
        told = [usual.told(engine, film) for film in shown]
        if not baselines:
            for name, column in (("heat of the graph alone", 0), ("change of the picture alone", 1)):
                alone = [oneclass.followed(each[:, column]) for each in told]
                baselines[name] = _judge(clips, alone).metrics
        return _judge(clips, [oneclass.followed(each.sum(1)) for each in told])

    found = judged(shipped_variants(shipped, roots.engines), judge)
    words = (
        "shipped weights; the measure of heat and change from the normal training clips of the train root, tested on "
        "every test clip"
    )
    return Block(found, _count(clips), words, baselines=baselines, notes=notes)


@dataclass(frozen=True)
class Usual:
    """How far normal frames go in two figures of a moment, in one light: the heat of the shipped graph above what the
    same cell had so far in its film, and the change of a block of pixels within 300 ms; each where it is largest.

    No cell is known by its place, so a camera that was touched, or a picture that was cut, changes little. Chosen
    among twenty statistics of heat, change and embedding by odd things pasted into held-out normal clips, half of
    them cut and in other light; the visible test clips were looked at beside them.
    """

    light: NDArray[np.float64]  #: (3,) quantiles of luma
    mean: F32  #: (2,) of the logarithms, as `spread`
    spread: F32

    @classmethod
    def of(cls, engine: Engine, films: Sequence[U8]) -> Usual:
        """From normal films (n, 5, H, W) as the graph sees them."""
        light = np.median([_light(frame) for film in films for frame in film[::10]], 0)
        # The first frames of a film are measured against next to no past.
        rows = np.concatenate([_figures(engine, _relit(film, light))[_SETTLED:] for film in films])
        return cls(light, rows.mean(0), rows.std(0) + 1e-6)

    def told(self, engine: Engine, film: U8) -> F32:
        """(n, 2) of frames (n, 5, H, W): both figures in deviations of normal frames."""
        return np.asarray((_figures(engine, _relit(film, self.light)) - self.mean) / self.spread, np.float32)


def _figures(engine: Engine, film: U8) -> F32:
    heat = oneclass.neighbourhoods(through(engine, "vision", film)["heat"])
    # What a cell had on average before: causal, as a device sees it.
    count = np.arange(1, len(heat) + 1, dtype=np.float32)[:, None, None]
    before = np.cumsum(heat, 0, dtype=np.float32) / count
    risen = heat - np.concatenate([heat[:1], before[:-1]])
    change = np.abs(film[:, 0].astype(np.int16) - film[:, 4])
    blocks = change.reshape(len(film), heat.shape[1], 8, heat.shape[2], 8).mean((2, 4))
    each = (np.maximum(_largest(risen), 0.05), _largest(blocks) + 1.0)
    return np.asarray(np.log(np.stack(each, 1)), np.float32)


def _largest(planes: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(planes.reshape(len(planes), -1).max(1))


def _light(frame: U8) -> NDArray[np.float64]:
    return np.quantile(prepare.luma(frame[:3].transpose(1, 2, 0))[::3, ::3], (0.1, 0.5, 0.9))


def _relit(film: U8, light: NDArray[np.float64]) -> U8:
    """Frames (n, 5, H, W), each in the light of the place: the same median and contrast of its luma."""
    out = np.empty_like(film)
    for index, frame in enumerate(film):
        low, middle, high = _light(frame)
        gain = (light[2] - light[0]) / max(high - low, 8.0)
        table = np.clip((np.arange(256) - middle) * gain + light[1] + 0.5, 0, 255).astype(np.uint8)
        out[index] = table[frame]
    return out


SETS = {"ped2": Task(recipe, bundle, FLOOR)}
