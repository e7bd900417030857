"""The whole way from data to a bundle: encoders, int8, cached embeddings, head, golden vectors, thresholds, card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from models.data.compose import Composer, Windows
from models.data.corpus import Corpus, read_corpus
from models.data.episodes import Renderer
from models.data.listening import padded
from models.data.mixture import MIXTURE, Entry, Shelf, plan
from models.data.own import joined
from models.data.records import SPLITS, Recording, Split
from models.data.staging import Stage, Wrong
from models.data.traces import QUIET
from models.data.tracks import TrackMaker, spells
from models.evaluation import evaluate
from models.network.graphs import Network, build
from models.progress import tracked
from models.runtime import INPUT
from models.training.hearing import Told, train_audio
from models.training.seeing import train_vision
from models.training.train import deterministic, train_fusion, train_sensors

#: Folder of the float32 bundle, below that of the training.
TEACHER = "teacher"
_GOLDEN = 6
_REPLAYED: dict[Split, int] = {"train": 176, "dev": 80}


@dataclass(frozen=True)
class Parts:
    """What one split offers, recorded and simulated."""

    split: Split
    corpus: Corpus
    stage: Stage
    places: list[site.Place]
    clips: list[Recording]  #: recorded, and heard at the simulated sites


def gather(corpus: Corpus, preset: Preset, split: Split, seed: int) -> Parts:
    """The parts of one split."""
    count = preset.sites[split == "dev"]
    places = site.places(split, preset, count, preset.site_s)
    stage = Stage(
        [film for film in corpus.footage if film.split == split],
        [film for film in corpus.fires if film.split == split],
        preset.vision_spec,
        seed * 2 + (split == "dev"),
        preset.stills,
    )
    heard = [clip for place in tracked(f"{split} site sounds", places) for clip in site.clips(place, split)]
    return Parts(split, corpus, stage, places, [*(c for c in corpus.clips if c.split == split), *heard])


def train_encoders(network: Network, preset: Preset, parts: Parts, seed: int) -> None:
    """The three encoders, each by itself."""
    rng = np.random.default_rng([seed, 21])
    staged = [
        picture
        for place in tracked("site pictures", parts.places)
        for picture in site.pictures(place, preset.site_pictures, rng)
    ]
    train_vision(network.vision, preset, parts.stage, staged, seed)
    train_audio(network.audio, preset, [_told(clip, preset.audio_spec.rate_hz) for clip in parts.clips], seed)
    felt = [
        (site.window(place.site, begin_s, preset), QUIET if not wrong else 0.98)
        for place in parts.places
        for begin_s, wrong in site.felt(place, rng, 40)
    ]
    tables = [table.log() for table in parts.corpus.tables if table.split == "train"]
    train_sensors(network.sensors, preset, tables, felt, seed)


def _told(clip: Recording, rate_hz: int) -> Told:
    return Told(clip.source, clip.label, clip.facts.get("kind", ""), clip.pcm(rate_hz))


def export_encoders(
    network: Network, preset: Preset, parts: Parts, out: Path, *, seed: int, judge: Judge | None = None
) -> dict[str, Any]:
    """Write the four graphs, the encoders compressed as the preset says; what became of each, step by step."""
    rng = np.random.default_rng([seed, 22])
    count = max(preset.calibration_windows, preset.compression.windows)
    told: dict[str, Any] = {}
    for name, module in network.graphs().items():
        if name in QUANTISED:
            small = shrink(name, module, preset, _inputs(name, preset, parts, count, rng), seed=seed, judge=judge)
            data, told[name] = small.int8, small.told()
        else:
            data, told[name] = lighter(name, module, preset)
        (out / f"{name}.onnx").write_bytes(data)
    return told


def _inputs(name: str, preset: Preset, parts: Parts, count: int, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Inputs of the training split that small encoders learn from large ones on, and int8 scales are taken from."""
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
    graphs = {name: (folder / f"{name}.onnx").read_bytes() for name in GRAPHS}
    return compile_graphs(graphs, bundle.manifest(preset, bundle.UNCHOSEN, 0, {}, bundle.now()))


def compose(preset: Preset, parts: Parts, engine: Engine, seed: int) -> Composer:
    """Tracks of one split through the frozen encoders, ready to be drawn from."""

    def encode(name: Modality, inputs: NDArray[np.generic]) -> F32:
        outputs = engine.run(name, [{INPUT[name]: item} for item in inputs])
        return np.stack([output["embedding"] for output in outputs])

    maker = TrackMaker(preset, encode)
    sites = [
        trio
        for place in tracked(f"{parts.split} sites", parts.places)
        for trio in maker.site(place, spells(place.site, preset))
    ]
    entries, renderer = plan_of(preset, parts)
    return Composer.of(maker.episodes(renderer, entries, MIXTURE.steps), sites, preset.history)


def plan_of(preset: Preset, parts: Parts) -> tuple[list[Entry], Renderer]:
    """The manifest of one split, and what makes its episodes."""
    shelf = Shelf(recording for recording in parts.corpus.recordings if recording.split == parts.split)
    count = preset.episodes[parts.split == "dev"]
    return plan(shelf, parts.split, count), Renderer(shelf, parts.stage, preset)


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


def make(
    preset: Preset, root: Path | None, out: Path, seed: int, counter: int = 1, *, own: Corpus | None = None
) -> dict[str, Any]:
    """Train everything and write a bundle to `out`; the figures. ConfigError if a data set is missing.

    `own` are a site's recordings, beside those of `root`. Beside checkpoints, the folder of the run gets a bundle of
    the float32 network, for `evaluate --teacher`.
    """
    begin = time.monotonic()
    deterministic(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = joined(read_corpus(root), own or Corpus())
    leaks.check(corpus.recordings, preset.vision_spec)
    parts = {split: gather(corpus, preset, split, seed) for split in SPLITS}
    network = build(teacher(preset), seed)
    train_encoders(network, preset, parts["train"], seed)
    made = export_encoders(network, preset, parts["train"], out, seed=seed, judge=_judge(preset, root))
    engine = open_engine(out, preset)
    composers = {split: compose(preset, parts[split], engine, seed) for split in SPLITS}
    train_fusion(network.fusion, preset, composers["train"], seed)
    calibration = calibrate.temperatures(network.fusion, composers["dev"], seed)
    head, made["fusion"] = lighter("fusion", network.fusion, preset)
    (out / "fusion.onnx").write_bytes(head)
    (out / bundle.COMPRESSION).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    bundle.save_weights(out / bundle.WEIGHTS, network.fusion)
    _save_replay(out, composers, seed)
    _golden(out, preset, parts["dev"].places[0])
    figures: dict[str, Any] = {
        "preset": preset.name,
        "seed": seed,
        "sets": list(corpus.sets),
        "mixture": f"version {MIXTURE.version}, sha256 {MIXTURE.digest}",
        "balance": balance.markdown(balance.table(corpus.recordings)) if corpus.sets else [],
        "sounds": list(SOUNDS),
        "learned": sorted({recording.label for recording in corpus.recordings if recording.split == "train"}),
        "int8": {
            name: f"{told['int8']['quantised']} of {told['int8']['convolutions']} convolutions"
            for name, told in made.items()
            if name in QUANTISED
        },
        "calibration": calibration,
        "training_s": round(time.monotonic() - begin),
    }
    thresholds, figures["thresholds"] = calibrate.choose(
        open_engine(out, preset), preset, calibrate.class_levels(network.fusion, composers["dev"], seed)
    )
    figures["composed"] = evaluate.composed(open_engine(out, preset), composers["dev"], seed)
    if root is not None:
        figures["recorded"] = evaluate.recorded(open_engine(out, preset), preset, root, seed)
    figures["total_s"] = round(time.monotonic() - begin)
    (out / bundle.CARD).write_text(card.write(figures), encoding="utf-8")
    bundle.seal(out, preset, thresholds, counter)
    if preset.run.folder is not None:
        keep_teacher(network, preset, out, thresholds, preset.run.folder / TEACHER)
    for name in ("openvino", "onnxruntime"):
        selftest(load(out, name), out)
    return figures
