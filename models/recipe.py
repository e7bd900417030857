"""The whole way from data to a bundle: encoders, int8, cached embeddings, head, golden vectors, thresholds, card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.contract.manifest import GRAPHS, Thresholds
from edge_agent.core.records import F32, Engine
from edge_agent.engine import compile_graphs, load, selftest
from models import bundle, calibrate, card
from models.compression.export import export
from models.compression.quantise import QUANTISED
from models.compression.shrink import Judge, lighter, shrink
from models.config import SOUNDS, Preset, teacher
from models.data import balance, leaks, site
from models.data.compose import Composer, Trio, Windows
from models.data.corpus import Corpus, read_corpus
from models.data.episodes import Renderer
from models.data.listening import padded
from models.data.lookalikes import lookalikes
from models.data.mixture import MIXTURE, Entry, Shelf, plan
from models.data.own import joined
from models.data.records import SPLITS, Recording, Split
from models.data.staging import Stage, Wrong
from models.data.traces import QUIET
from models.data.tracks import TrackMaker, spells
from models.evaluation import evaluate
from models.network.graphs import Network, build
from models.processes import interleaved, side_by_side
from models.progress import tracked
from models.runtime import INPUT
from models.training.hearing import Told, train_audio
from models.training.seeing import train_vision
from models.training.train import deterministic, train_fusion, train_sensors

#: Folder of the float32 bundle, below that of the training.
TEACHER = "teacher"
_GOLDEN = 6
#: Processes that the episodes and places of one split are dealt to.
_HANDS = 2
_REPLAYED: dict[Split, int] = {"train": 176, "dev": 80}


@dataclass(frozen=True)
class Parts:
    """What one split offers, recorded and simulated; each is made when it is asked for, alike in every process."""

    split: Split
    corpus: Corpus
    preset: Preset
    seed: int

    @cached_property
    def stage(self) -> Stage:
        films, fires = (
            [film for film in pictured if film.split == self.split]
            for pictured in (self.corpus.footage, self.corpus.fires)
        )
        seed = self.seed * 2 + (self.split == "dev")
        return Stage(films, fires, self.preset.vision_spec, seed, self.preset.stills)

    @cached_property
    def places(self) -> list[site.Place]:
        return site.places(self.split, self.preset, self.preset.sites[self.split == "dev"], self.preset.site_s)

    @cached_property
    def clips(self) -> list[Recording]:
        """Recorded, heard at the simulated sites, and made up to be mistaken."""
        heard = [
            clip
            for place in tracked(f"{self.split} site sounds", self.places)
            for clip in site.clips(place, self.split)
        ]
        rate_hz = self.preset.audio_spec.rate_hz
        recorded = (clip for clip in self.corpus.clips if clip.split == self.split)
        return [*recorded, *heard, *lookalikes(self.split, rate_hz, self.preset.lookalikes)]


@dataclass(frozen=True)
class Lesson:
    """Encoders that one process trains and makes small, one after the other."""

    graphs: tuple[Modality, ...]
    parts: Parts
    root: Path | None  #: of the recorded data that each is judged on


@dataclass(frozen=True)
class Encoder:
    """One that is ready."""

    name: Modality
    weights: dict[str, NDArray[Any]]  #: of the float32 module
    graph: bytes
    told: dict[str, Any]  #: what became of it when it was made small, step by step


#: Vision takes as long as the others together.
_LESSONS: tuple[tuple[Modality, ...], ...] = (("vision",), ("audio", "sensors"))


def learned(lesson: Lesson) -> list[Encoder]:
    """Each encoder of a lesson, from nothing. It depends on no other: all of them begin with the same seeds."""
    # Without what has been made of the parts so far: whether it was would depend on the process.
    parts = replace(lesson.parts)
    return [_learned(name, parts, lesson.root) for name in lesson.graphs]


def _learned(name: Modality, parts: Parts, root: Path | None) -> Encoder:
    preset, seed = parts.preset, parts.seed
    deterministic(seed)
    module = build(teacher(preset), seed).graphs()[name]
    train = {"vision": _train_vision, "audio": _train_audio, "sensors": _train_sensors}[name]
    train(module, parts)
    if name in QUANTISED:
        # Of parts made anew: a stage changes with every picture that it shows, and a resumed training shows fewer.
        small = shrink(name, module, preset, _inputs(name, replace(parts)), seed=seed, judge=_judge(preset, root))
        graph, told = small.int8, small.told()
    else:
        graph, told = lighter(name, module, preset)
    return Encoder(name, {key: tensor.numpy() for key, tensor in module.state_dict().items()}, graph, told)


def _train_vision(graph: Any, parts: Parts) -> None:
    rng = np.random.default_rng([parts.seed, 21])
    staged = [
        picture
        for place in tracked("site pictures", parts.places)
        for picture in site.pictures(place, parts.preset.site_pictures, rng)
    ]
    train_vision(graph, parts.preset, parts.stage, staged, parts.seed)


def _train_audio(graph: Any, parts: Parts) -> None:
    rate_hz = parts.preset.audio_spec.rate_hz
    train_audio(graph, parts.preset, [_told(clip, rate_hz) for clip in parts.clips], parts.seed)


def _train_sensors(graph: Any, parts: Parts) -> None:
    """Of every second place: all of them, with their lamps, taught that light says nothing of presence (AUC 0.77, not
    0.85, and no better without light)."""
    rng = np.random.default_rng([parts.seed, 23])
    felt = [
        (site.window(place.site, begin_s, parts.preset), QUIET if not wrong else 0.98)
        for place in parts.places[::2]
        for begin_s, wrong in site.felt(place, rng, 40)
    ]
    tables = [table.log() for table in parts.corpus.tables if table.split == "train"]
    train_sensors(graph, parts.preset, tables, felt, parts.seed)


def _told(clip: Recording, rate_hz: int) -> Told:
    return Told(clip.source, clip.label, clip.facts.get("kind", ""), clip.pcm(rate_hz))


def _inputs(name: str, parts: Parts) -> list[NDArray[Any]]:
    """Inputs of the training split that small encoders learn from large ones on, and int8 scales are taken from."""
    preset, rng = parts.preset, np.random.default_rng([parts.seed, 22])
    count = max(preset.calibration_windows, preset.compression.windows)
    if name == "vision":
        kinds: tuple[Wrong, ...] = ("nothing", "fire", "odd")
        each = count // 5 // len(parts.places)
        found = [picture.frames for place in parts.places for picture in site.pictures(place, each, rng)]
        staged = [parts.stage.picture(parts.stage.script(rng, kinds[i % 3])) for i in range(count - len(found))]
        found += [picture.frames for picture in staged]
        return [found[int(i)] for i in rng.permutation(len(found))]
    heard: list[NDArray[Any]] = []
    for index in rng.integers(0, len(parts.clips), count):
        pcm = padded(parts.clips[int(index)].pcm(preset.audio_spec.rate_hz), preset.audio_spec)
        start = int(rng.integers(0, len(pcm) - preset.audio_spec.samples + 1))
        heard.append(pcm[start : start + preset.audio_spec.samples])
    return heard


def _save_encoders(network: Network, parts: Parts, root: Path | None, out: Path) -> dict[str, Any]:
    """Train the encoders, write their graphs, and give the network their weights; how they were made small."""
    lessons = [Lesson(names, parts, root) for names in _LESSONS]
    ready = [encoder for found in side_by_side(learned, lessons) for encoder in found]
    for encoder in ready:
        weights = {name: torch.from_numpy(array) for name, array in encoder.weights.items()}
        network.graphs()[encoder.name].load_state_dict(weights)
        (out / f"{encoder.name}.onnx").write_bytes(encoder.graph)
    return {encoder.name: encoder.told for encoder in ready}


def _judge(preset: Preset, root: Path | None) -> Judge | None:
    """Figures of one graph alone on recorded data that trained nothing; for the report, nothing is chosen by them."""
    if root is None:
        return None
    manifest = bundle.manifest(preset, bundle.UNCHOSEN, 0, {}, bundle.now())

    def judge(graph: str, data: bytes) -> dict[str, float]:
        return evaluate.alone(compile_graphs({graph: data}, manifest), graph, preset, root)

    return judge


def open_engine(folder: Path, preset: Preset) -> Engine:
    """The graphs of a folder that is no bundle yet."""
    return _compiled({name: (folder / f"{name}.onnx").read_bytes() for name in GRAPHS}, preset)


def _compiled(graphs: Mapping[str, bytes], preset: Preset) -> Engine:
    return compile_graphs(graphs, bundle.manifest(preset, bundle.UNCHOSEN, 0, {}, bundle.now()))


def compose(parts: Parts, graphs: Mapping[str, bytes]) -> Composer:
    """Tracks of one split through frozen encoders, ready to be drawn from."""
    found = side_by_side(_encoded, [(parts, dict(graphs), hand) for hand in range(_HANDS)])
    episodes, sites = interleaved([trios for trios, _ in found]), interleaved([trios for _, trios in found])
    return Composer.of(episodes, [trio for place in sites for trio in place], parts.preset.history)


def _encoded(job: tuple[Parts, dict[str, bytes], int]) -> tuple[list[Trio], list[list[Trio]]]:
    """Every `_HANDS`-th episode, and every `_HANDS`-th simulated place: what one process does."""
    parts, graphs, hand = replace(job[0]), job[1], job[2]
    preset = parts.preset
    deterministic(parts.seed)
    engine = _compiled(graphs, preset)

    def encode(name: Modality, inputs: NDArray[np.generic]) -> F32:
        outputs = engine.run(name, [{INPUT[name]: item} for item in inputs])
        return np.stack([output["embedding"] for output in outputs])

    maker = TrackMaker(preset, encode)
    sites = [
        maker.site(place, spells(place.site, preset))
        for place in tracked(f"{parts.split} sites", parts.places[hand::_HANDS])
    ]
    entries, renderer = plan_of(parts)
    return maker.episodes(renderer, entries[hand::_HANDS], MIXTURE.steps), sites


def plan_of(parts: Parts) -> tuple[list[Entry], Renderer]:
    """The manifest of one split, and what makes its episodes."""
    shelf = Shelf(recording for recording in parts.corpus.recordings if recording.split == parts.split)
    count = parts.preset.episodes[parts.split == "dev"]
    return plan(shelf, parts.split, count), Renderer(shelf, parts.stage, parts.preset)


def _save_replay(out: Path, composers: Mapping[Split, Composer], seed: int) -> None:
    """A few composed windows for a later retraining; those of dev are its frozen hold-out."""
    arrays: dict[str, NDArray[Any]] = {}
    for split, composer in composers.items():
        windows = composer.draw(np.random.default_rng([seed, 24]), _REPLAYED[split])
        arrays |= {f"{split}_{name}": array for name, array in packed(windows).items()}
    bundle.save_arrays(out / bundle.REPLAY, arrays)


def packed(windows: Windows) -> dict[str, NDArray[Any]]:
    """Windows as small arrays: embeddings in half precision, which int8 encoders do not fill."""
    history: dict[str, NDArray[Any]] = {name: windows.history[name].astype(np.float16) for name in MODALITIES}
    return {
        **history,
        "mask": windows.mask.astype(np.int8),
        "wrong": windows.wrong.astype(np.int8),
        "own": windows.own.astype(np.int8),
        "classes": windows.classes.astype(np.int8),
    }


def _golden(out: Path, preset: Preset, place: site.Place) -> None:
    """Self-test vectors: moments of a simulated dev site, half of them within its episodes."""
    times = [e.start_s + 3.0 for e in place.site.episodes if e.anomalous][: _GOLDEN // 2]
    times += [40.0 * preset.step_ms / 1000 + 3.0 * i for i in range(_GOLDEN - len(times))]
    moments = [next(site.moments(place, t_s, 1)) for t_s in times]
    arrays = bundle.golden(
        open_engine(out, preset),
        preset,
        np.stack([m.frames for m in moments]),
        np.stack([m.pcm for m in moments]),
        np.stack([m.readings for m in moments]),
    )
    bundle.save_arrays(out / bundle.GOLDEN, arrays)


def keep_teacher(network: Network, preset: Preset, out: Path, thresholds: Thresholds, folder: Path) -> None:
    """The network of the bundle in `out` before it was made small: a bundle in float32, with its torch weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in network.graphs().items():
        export(module, preset, name, folder / f"{name}.onnx")
    bundle.save_weights(folder / bundle.NETWORK, nn.ModuleDict(network.graphs()))
    arrays = bundle.load_arrays(out / bundle.GOLDEN)
    inputs = (arrays["frames"], arrays["pcm"], arrays["readings"])
    bundle.save_arrays(folder / bundle.GOLDEN, bundle.golden(open_engine(folder, preset), preset, *inputs))
    bundle.seal(folder, preset, thresholds, 0)


def _trained(parts: Parts, made: Mapping[str, Any]) -> dict[str, Any]:
    """What was trained, of what, and how it was made small, as the card tells it."""
    recordings = parts.corpus.recordings
    return {
        "preset": parts.preset.name,
        "seed": parts.seed,
        "sets": list(parts.corpus.sets),
        "mixture": f"version {MIXTURE.version}, sha256 {MIXTURE.digest}",
        "balance": balance.markdown(balance.table(recordings)) if parts.corpus.sets else [],
        "sounds": list(SOUNDS),
        "learned": sorted({recording.label for recording in recordings if recording.split == "train"}),
        "int8": {
            name: f"{told['int8']['quantised']} of {told['int8']['convolutions']} convolutions"
            for name, told in made.items()
            if name in QUANTISED
        },
    }


def make(
    preset: Preset,
    root: Path | None,
    out: Path,
    seed: int,
    counter: int = 1,
    *,
    own: Corpus | None = None,
    beside: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Train everything and write a bundle to `out`; the figures. ConfigError if a data set is missing.

    `own` are a site's recordings, beside those of `root`; `beside` the figures of trainings with other seeds, which
    stand on the card too. Beside checkpoints, the folder of the run gets a bundle of the float32 network, for
    `evaluate --teacher`.
    """
    begin = time.monotonic()
    deterministic(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = joined(read_corpus(root), own or Corpus())
    leaks.check(corpus.recordings, preset.vision_spec)
    parts = {split: Parts(split, corpus, preset, seed) for split in SPLITS}
    network = build(teacher(preset), seed)
    made = _save_encoders(network, parts["train"], root, out)
    graphs: dict[str, bytes] = {name: (out / f"{name}.onnx").read_bytes() for name in MODALITIES}
    composers = {split: compose(part, graphs) for split, part in parts.items()}
    deterministic(seed)
    train_fusion(network.fusion, preset, composers["train"], seed)
    calibration = calibrate.temperatures(network.fusion, composers["dev"], seed)
    head, made["fusion"] = lighter("fusion", network.fusion, preset)
    (out / "fusion.onnx").write_bytes(head)
    (out / bundle.COMPRESSION).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    bundle.save_weights(out / bundle.WEIGHTS, network.fusion)
    _save_replay(out, composers, seed)
    _golden(out, preset, parts["dev"].places[0])
    figures = _trained(parts["train"], made) | {
        "calibration": calibration,
        "training_s": round(time.monotonic() - begin),
    }
    graphs["fusion"] = (out / "fusion.onnx").read_bytes()
    thresholds, figures["thresholds"] = calibrate.choose(
        graphs, preset, calibrate.class_levels(network.fusion, composers["dev"], seed)
    )
    figures["composed"] = evaluate.composed(open_engine(out, preset), composers["dev"], seed)
    if root is not None:
        figures["recorded"] = evaluate.recorded(open_engine(out, preset), preset, root, seed)
    figures["total_s"] = round(time.monotonic() - begin)
    (out / bundle.CARD).write_text(card.write(figures, beside), encoding="utf-8")
    bundle.seal(out, preset, thresholds, counter)
    if preset.run.folder is not None:
        keep_teacher(network, preset, out, thresholds, preset.run.folder / TEACHER)
    for name in ("openvino", "onnxruntime"):
        selftest(load(out, name), out)
    return figures
