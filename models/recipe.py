"""The whole way from data to a bundle: encoders, int8, cached embeddings, head, golden vectors, thresholds, card."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES, Modality
from edge_agent.contract.manifest import GRAPHS
from edge_agent.core.records import F32, Engine
from edge_agent.engine import compile_graphs, load, selftest
from models import bundle, calibrate, card, evaluate
from models.config import SOUNDS, Preset
from models.data import balance, leaks, site
from models.data.compose import Composer, Windows
from models.data.corpus import Corpus, read_corpus
from models.data.listening import padded
from models.data.records import SPLITS, Recording, Split
from models.data.staging import Stage
from models.data.traces import QUIET
from models.data.tracks import TrackMaker, spells
from models.export import export
from models.hearing import Told, train_audio
from models.network import Network, build
from models.progress import tracked
from models.quantise import QUANTISED, Layers, quantise
from models.runtime import INPUT
from models.train import deterministic, train_fusion, train_sensors, train_vision

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


def export_encoders(network: Network, preset: Preset, parts: Parts, out: Path, seed: int) -> dict[str, Layers]:
    """Write the four graphs; the encoders in int8 where it pays, the head as it is. How many layers became int8."""
    rng = np.random.default_rng([seed, 22])
    windows = {name: _calibration(name, preset, parts, rng) for name in QUANTISED}
    layers = {}
    with TemporaryDirectory() as folder:
        for name, module in network.graphs().items():
            plain = Path(folder) / f"{name}.onnx"
            export(module, preset, name, plain)
            if name in windows:
                layers[name] = quantise(plain, out / f"{name}.onnx", windows[name])
            else:
                (out / f"{name}.onnx").write_bytes(plain.read_bytes())
    return layers


def _calibration(name: str, preset: Preset, parts: Parts, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Inputs of the training split that int8 scales are taken from."""
    count = preset.calibration_windows
    if name == "vision":
        kinds = ("nothing", "fire", "odd")
        return [parts.stage.picture(parts.stage.script(rng, kinds[i % 3])).frames for i in range(count)]  # type: ignore[arg-type]
    found: list[NDArray[Any]] = []
    for index in rng.integers(0, len(parts.clips), count):
        pcm = padded(parts.clips[int(index)].pcm(preset.audio_spec.rate_hz), preset.audio_spec)
        start = int(rng.integers(0, len(pcm) - preset.audio_spec.samples + 1))
        found.append(pcm[start : start + preset.audio_spec.samples])
    return found


def open_engine(folder: Path, preset: Preset) -> Engine:
    """The graphs of a folder that is no bundle yet."""
    graphs = {name: (folder / f"{name}.onnx").read_bytes() for name in GRAPHS}
    return compile_graphs(graphs, bundle.manifest(preset, bundle.UNCHOSEN, 0, {}, bundle.now()))


def compose(preset: Preset, parts: Parts, engine: Engine, seed: int) -> Composer:
    """Tracks of one split through the frozen encoders, ready to be drawn from."""

    def encode(name: Modality, inputs: NDArray[np.generic]) -> F32:
        outputs = engine.run(name, [{INPUT[name]: item} for item in inputs])
        return np.stack([output["embedding"] for output in outputs])

    maker = TrackMaker(preset, encode, np.random.default_rng([seed, 23, parts.split == "dev"]))
    count = preset.tracks if parts.split == "train" else max(preset.tracks // 2, 2)
    tables = [table.log() for table in parts.corpus.tables if table.split == parts.split]
    trios = [
        trio
        for place in tracked(f"{parts.split} sites", parts.places)
        for trio in maker.site(place, spells(place.site, preset))
    ]
    tracks = {
        "vision": maker.vision(parts.stage, count),
        "audio": maker.audio(
            [clip for clip in parts.clips if clip.source != "simulated" or not parts.corpus.clips], count
        ),
        "sensors": maker.sensors(tables, count),
    }
    return Composer.of(tracks, trios, preset.history)  # type: ignore[arg-type]


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


def make(preset: Preset, root: Path | None, out: Path, seed: int, counter: int = 1) -> dict[str, Any]:
    """Train everything and write a bundle to `out`; the figures. ConfigError if a data set is missing."""
    begin = time.monotonic()
    deterministic(seed)
    out.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(root)
    leaks.check(corpus.recordings, preset.vision_spec)
    parts = {split: gather(corpus, preset, split, seed) for split in SPLITS}
    network = build(preset, seed)
    train_encoders(network, preset, parts["train"], seed)
    layers = export_encoders(network, preset, parts["train"], out, seed)
    engine = open_engine(out, preset)
    composers = {split: compose(preset, parts[split], engine, seed) for split in SPLITS}
    train_fusion(network.fusion, preset, composers["train"], seed)
    export(network.fusion, preset, "fusion", out / "fusion.onnx")
    bundle.save_weights(out / bundle.WEIGHTS, network.fusion)
    _save_replay(out, composers, seed)
    _golden(out, preset, parts["dev"].places[0])
    figures: dict[str, Any] = {
        "preset": preset.name,
        "seed": seed,
        "sets": list(corpus.sets),
        "balance": balance.markdown(balance.table(corpus.recordings)) if corpus.sets else [],
        "sounds": list(SOUNDS),
        "int8": {name: f"{found.quantised} of {found.convolutions} convolutions" for name, found in layers.items()},
        "training_s": round(time.monotonic() - begin),
    }
    thresholds, figures["thresholds"] = calibrate.choose(open_engine(out, preset), preset)
    figures["composed"] = evaluate.composed(open_engine(out, preset), composers["dev"], seed)
    if root is not None:
        figures["recorded"] = evaluate.recorded(open_engine(out, preset), preset, root, seed)
    figures["total_s"] = round(time.monotonic() - begin)
    (out / bundle.CARD).write_text(card.write(figures), encoding="utf-8")
    bundle.seal(out, preset, thresholds, counter)
    for name in ("openvino", "onnxruntime"):
        selftest(load(out, name), out)
    return figures
