"""What the choices in each encoder are worth, on a preset of a quarter of the size.

Each is trained as the one that ships is, on train parts, and judged by its own logit on dev parts, which trained
nothing: pictures staged over held-out films; SESA's dev clips, clean and under rain and surf; occupied minutes of
another week, and generated causes over the levels of dev logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.event import Modality
from edge_agent.core.records import F32
from edge_agent.errors import ConfigError
from models import bundle, runtime
from models.ablate.table import SEEDS, digest, kept, spread, times_ms
from models.config import Preset, Run, Schedule
from models.data import augment
from models.data.corpus import CASUAL, Corpus, read_corpus
from models.data.listening import Heard, frames_of, listen
from models.data.records import SPLITS, Recording, Split
from models.data.staging import Picture, Stage, Wrong
from models.data.traces import QUIET, minute
from models.metrics import auc
from models.network.encoders import Residual, VisionEncoder, convolution
from models.network.frontend import LUMA, log_mel
from models.network.graphs import AudioGraph, SensorGraph, VisionGraph, build
from models.training import hearing, seeing
from models.training.hearing import Package, Told
from models.training.train import deterministic, sensor_pool, train_sensors

Rng = np.random.Generator
PICTURES = "pictures.npz"
#: Short enough for three seeds a minute; rates as of the shipped encoders.
_SCHEDULES = {
    "vision": Schedule(steps=120, batch=16, rate=3e-3, decay=0.01),
    "audio": Schedule(steps=240, batch=64, rate=4e-3, decay=0.03),
    "sensors": Schedule(steps=100, batch=64, rate=3e-3),
}
_RUN = Run(precision="bf16")
_QUICK = Schedule(steps=2, batch=8, rate=1e-3)
#: Staged pictures, and windows of generated causes, that are kept of each split.
_COUNT: dict[Split, int] = {"train": 640, "dev": 320}
_CAUSES = Schedule(steps=25, batch=64, rate=0.0)
#: Kinds of everyday sounds that lie under the judged clips, and so train nothing here.
_NOISE, _SNR_DB = ("rain", "sea_waves"), 10.0
#: Every so many minutes of the office.
_MINUTES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    modality: Modality
    name: str
    change: str = ""  #: one of CHANGES, done to the graph before it is trained
    times: float = 1.0  #: as many channels as the quarter-size preset
    without: tuple[str, ...] = ()  #: shares of `hearing.Package` that are zero, `noisy`, or `everyday` sounds

    @property
    def group(self) -> str:
        return f"{self.modality} encoder"

    @property
    def key(self) -> str:
        return f"{self.group}-{self.name}".replace(" ", "_").replace("%", "pc")


_PLACE = ("moved", "roomed", "coded", "limited")
ROWS: tuple[Row, ...] = (
    Row("vision", "quarter size"),
    Row("vision", "one picture alone", "still"),
    Row("vision", "one difference", "one difference"),
    Row("vision", "gray", "gray"),
    Row("vision", "mean over the picture", "mean"),
    Row("vision", "depthwise separable blocks", "separable"),
    Row("vision", "half the channels", times=0.5),
    Row("vision", "twice the channels", times=2.0),
    Row("audio", "quarter size"),
    Row("audio", "32 bands", "32 bands"),
    Row("audio", "half the channels", times=0.5),
    Row("audio", "twice the channels", times=2.0),
    Row("audio", "without mixup", without=("mixed",)),
    Row("audio", "without noise", without=("noisy", "hiss")),
    Row("audio", "without masks", without=("masked",)),
    Row("audio", "without other places", without=_PLACE),
    Row("audio", "without everyday sounds", without=("everyday",)),
    Row("sensors", "quarter size"),
    Row("sensors", "last and mean alone", "statistics"),
    Row("sensors", "without changes", "no change"),
    Row("sensors", "without ages", "no age"),
    Row("sensors", "without masks", "no mask"),
)


def quarter(preset: Preset, times: float = 1.0) -> Preset:
    """Half of the channels everywhere: a quarter of the weights and of the multiplications; then `times` as many."""

    def of(width: int) -> int:
        return round(width * times / 2)

    a, b, c = (of(width) for width in preset.vision_channels)
    return replace(
        preset,
        embedding=of(preset.embedding),
        vision_channels=(a, b, c),
        audio_channels=tuple(of(width) for width in preset.audio_channels),
        sensor_width=of(preset.sensor_width),
    )


class _Averaged(VisionEncoder):
    """The same with the plain mean over the picture in the place of where it is hottest."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.body(F.relu(self.down(F.relu(self.stem(x)))))
        heat = self.head(features)
        embedding = features.mean((2, 3))
        logit = F.linear(embedding, self.head.weight.flatten(1), self.head.bias)
        return embedding, heat[:, 0], logit[:, 0], self.fire(embedding)[:, 0]


class _Statistics(nn.Module):
    """Newest value and mean of every row in the place of convolutions over time."""

    def __init__(self, rows: int, embedding: int) -> None:
        super().__init__()
        self.project = nn.Linear(2 * rows, embedding)
        self.head = nn.Linear(embedding, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = F.relu(self.project(torch.cat([x[:, :, -1], x.mean(2)], 1)))
        return embedding, self.head(embedding)[:, 0]


class _Halved(nn.Module):
    """An encoder that sees every two mel bands as one."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Any:
        return self.encoder(F.avg_pool2d(x, (2, 1)).repeat_interleave(2, 2))


class _Blind(nn.Module):
    """A front end of which one of four blocks of rows (level, change, age, mask) is zero."""

    keep: Tensor

    def __init__(self, front: nn.Module, channels: int, block: int) -> None:
        super().__init__()
        self.front = front
        keep = torch.ones(4, channels)
        keep[block] = 0.0
        self.register_buffer("keep", keep.flatten()[:, None], persistent=False)

    def forward(self, readings: Tensor) -> Tensor:
        return torch.mul(self.front(readings), self.keep)


def _still(graph: VisionGraph, shape: Preset) -> None:
    graph.front.mix[3:] = 0.0


def _one_difference(graph: VisionGraph, shape: Preset) -> None:
    graph.front.mix[4:] = 0.0


def _gray(graph: VisionGraph, shape: Preset) -> None:
    graph.front.mix[:3, :3, 0, 0] = torch.tensor(LUMA) * graph.front.mix[0, 0, 0, 0]


def _mean(graph: VisionGraph, shape: Preset) -> None:
    graph.encoder = _Averaged(shape.vision_channels, shape.embedding)


def _separable(graph: VisionGraph, shape: Preset) -> None:
    """Of every block, two 3x3 convolutions become one per channel and one between channels each (MobileNet, 2017)."""
    for block in graph.encoder.body:
        assert isinstance(block, Residual)
        for name in ("first", "second"):
            plain = block.get_submodule(f"{name}.0")
            assert isinstance(plain, nn.Conv2d)
            inside = plain.in_channels
            each = nn.Conv2d(inside, inside, 3, plain.stride[0], 1, groups=inside, bias=False)
            setattr(block, name, nn.Sequential(each, convolution(inside, plain.out_channels, kernel=1)))


def _bands(graph: AudioGraph, shape: Preset) -> None:
    graph.encoder = _Halved(graph.encoder)


def _statistics(graph: SensorGraph, shape: Preset) -> None:
    graph.encoder = _Statistics(4 * len(shape.sensor_spec.quantities), shape.embedding)  # type: ignore[assignment]


def _without(block: int) -> Callable[[SensorGraph, Preset], None]:
    def change(graph: SensorGraph, shape: Preset) -> None:
        graph.front = _Blind(graph.front, len(shape.sensor_spec.quantities), block)  # type: ignore[assignment]

    return change


CHANGES: dict[str, Callable[[Any, Preset], None]] = {
    "still": _still,
    "one difference": _one_difference,
    "gray": _gray,
    "mean": _mean,
    "separable": _separable,
    "32 bands": _bands,
    "statistics": _statistics,
    "no change": _without(1),
    "no age": _without(2),
    "no mask": _without(3),
}


@dataclass
class Parts:
    """What encoders are trained and judged on; each kind is made when a row first asks for it."""

    out: Path
    preset: Preset
    root: Path | None
    quick: bool = False

    def schedule(self, modality: Modality) -> Schedule:
        return _QUICK if self.quick else _SCHEDULES[modality]

    @cached_property
    def corpus(self) -> Corpus:
        """ConfigError without recorded sets: there would be nothing to judge by."""
        if self.root is None:
            raise ConfigError("encoders are judged on recorded sets: name their folder", "--data")
        return read_corpus(self.root)

    def marked(self, modality: Modality) -> str:
        """Tells one state of the data of an encoder from another."""
        if modality == "vision":
            _ = self.pictures
            return digest((self.out / PICTURES).read_bytes())
        recordings = self.corpus.clips if modality == "audio" else self.corpus.tables
        return digest(repr([(r.source, r.item, r.split, r.label) for r in recordings]).encode())

    @cached_property
    def pictures(self) -> Mapping[Split, list[Picture]]:
        """Staged over the films of each split; from the folder, if they are there."""
        path = self.out / PICTURES
        if not path.is_file():
            self.out.mkdir(parents=True, exist_ok=True)
            made: dict[str, NDArray[Any]] = {}
            for split in SPLITS:
                found = self._staged(split)
                made[f"{split}_frames"] = np.stack([picture.frames for picture in found])
                made[f"{split}_cells"] = np.stack([picture.cells for picture in found]).astype(np.float16)
                made[f"{split}_wrong"] = np.array([picture.wrong for picture in found])
            bundle.save_arrays(path, made)
        arrays = bundle.load_arrays(path)
        return {split: _pictures(arrays, split) for split in SPLITS}

    def _staged(self, split: Split) -> list[Picture]:
        films, fires = ([r for r in part if r.split == split] for part in (self.corpus.footage, self.corpus.fires))
        stage = Stage(films, fires, self.preset.vision_spec, SPLITS.index(split), self.preset.stills)
        rng = np.random.default_rng([71, SPLITS.index(split)])
        names, odds = zip(*seeing.MIX, strict=True)
        kinds: list[Wrong] = [names[int(i)] for i in rng.choice(len(names), _COUNT[split] // _fewer(self), p=odds)]
        return [stage.picture(stage.script(rng, kind)) for kind in kinds]

    @cached_property
    def told(self) -> list[Told]:
        """Sounds that train."""
        clips = [clip for clip in self._clips("train") if clip.facts.get("kind") not in _NOISE]
        return [
            Told(c.source, c.label, c.facts.get("kind", ""), c.pcm(self.preset.audio_spec.rate_hz)) for c in clips
        ]

    @cached_property
    def judged_sounds(self) -> tuple[F32, list[Heard], list[Heard], list[Heard]]:
        """Whether each clip of SESA's dev part is a threat, the clips, noise to lie under them, everyday sounds."""
        threats = [clip for clip in self._clips("dev") if not clip.facts.get("kind")]
        everyday = [clip for clip in self._clips("dev") if clip.facts.get("kind")]
        noise = [clip for clip in everyday if clip.facts["kind"] in _NOISE]
        label = np.array([float(clip.label != CASUAL) for clip in threats], np.float32)
        return label, self._heard(threats), self._heard(noise), self._heard(everyday)

    def _clips(self, split: Split) -> list[Recording]:
        return [clip for clip in self.corpus.clips if clip.split == split][:: _fewer(self)]

    def _heard(self, clips: Sequence[Recording]) -> list[Heard]:
        spec = self.preset.audio_spec
        return listen((clip.pcm(spec.rate_hz) for clip in clips), spec)

    @cached_property
    def judged_readings(self) -> tuple[F32, F32, F32, F32]:
        """Minutes of an office and whether someone is in; windows of generated traces and whether they are wrong."""
        spec, step_s = self.preset.sensor_spec, self.preset.step_ms / 1000
        logs = [recording.log() for recording in self.corpus.tables if recording.split == "dev"]
        office = next(log for log in logs if (log.wrong > 0).any())
        rng, rows = np.random.default_rng([72]), range(0, len(office.wrong), _MINUTES * _fewer(self))
        minutes = np.stack([minute(rng, office, row, spec, step_s) for row in rows])
        made = sensor_pool(replace(self.preset, sensors=_QUICK if self.quick else _CAUSES), logs, 73)
        sure = [(window, target) for window, target in made if target == QUIET or target > 0.5]
        return (
            minutes,
            (office.wrong[list(rows)] > 0).astype(np.float32),
            np.stack([window for window, _ in sure]),
            np.array([target > 0.5 for _, target in sure], np.float32),
        )


def _fewer(parts: Parts) -> int:
    return 8 if parts.quick else 1


def _pictures(arrays: Mapping[str, NDArray[Any]], split: Split) -> list[Picture]:
    names = ("frames", "cells", "wrong")
    columns = zip(*(arrays[f"{split}_{name}"] for name in names), strict=True)
    return [Picture(frames, cells.astype(np.float32), str(wrong)) for frames, cells, wrong in columns]  # type: ignore[arg-type]


def work(row: Row, parts: Parts, out: Path) -> dict[str, Any]:
    """The figures of one row, from its file if that is of the same row, data and schedule."""
    seeds = SEEDS[:1] if parts.quick else SEEDS
    shape = quarter(parts.preset, row.times)
    shape = replace(shape, run=_RUN, **{row.modality: parts.schedule(row.modality)})  # type: ignore[arg-type]
    train, judge = _WAYS[row.modality]

    def make() -> dict[str, Any]:
        graphs, found = [], []
        for seed in seeds:
            deterministic(seed)
            graph = build(shape, seed).graphs()[row.modality]
            if row.change:
                CHANGES[row.change](graph, shape)
            train(graph, shape, parts, row, seed)
            graphs.append(graph)
            found.append(judge(graph, parts))
        encoder = graphs[0].get_submodule("encoder")
        return {
            "row": {**asdict(row), "group": row.group},
            "seeds": list(seeds),
            "steps": getattr(shape, row.modality).steps,
            "figures": {name: spread([figures[name] for figures in found]) for name in found[0]},
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "ms": _latency(graphs[0], row.modality, shape, parts),
        }

    return kept(out, row.key, digest(f"{row} {shape} {seeds} {parts.marked(row.modality)}".encode()), make)


def _train_vision(graph: VisionGraph, shape: Preset, parts: Parts, row: Row, seed: int) -> None:
    def batches() -> Iterator[tuple[Tensor, ...]]:
        rng, pool = np.random.default_rng([seed, 74]), parts.pictures["train"]
        while True:
            yield seeing.batch(rng, [pool[int(i)] for i in rng.integers(0, len(pool), shape.vision.batch)])

    seeing.teach(graph, shape, batches())


def _judge_vision(graph: VisionGraph, parts: Parts) -> dict[str, float]:
    pictures = parts.pictures["dev"]
    logit = _through(graph, np.stack([picture.frames for picture in pictures]), 2)
    kind = np.array([picture.wrong for picture in pictures])
    # What is too small for one whole cell is nobody's fault.
    seen = np.array([picture.wrong == "nothing" or picture.cells.max() > 0.5 for picture in pictures])
    return {
        f"{name} AUC": auc((kind == name)[part].astype(np.float32), logit[part])
        for name in ("fire", "odd")
        for part in [seen & ((kind == name) | (kind == "nothing"))]
    }


def _train_audio(graph: AudioGraph, shape: Preset, parts: Parts, row: Row, seed: int) -> None:
    told = [sound for sound in parts.told if not (sound.kind and "everyday" in row.without)]
    course = hearing.everything(told, shape)
    off = {name: 0.0 for name in row.without if name not in ("noisy", "everyday")}
    noisy = 0.0 if "noisy" in row.without else course.noisy
    course = replace(course, package=Package(**off), noisy=noisy)
    listener = hearing.Listener(graph, shape.embedding, course.heads)
    hearing.teach(listener, course, shape.audio_spec, shape.audio, seed, run=shape.run)


def _judge_audio(graph: AudioGraph, parts: Parts) -> dict[str, float]:
    label, clips, noise, everyday = parts.judged_sounds
    frames = frames_of(parts.preset.audio_spec)
    rng = np.random.default_rng([75])
    under = [_under(clip.power, noise[int(rng.integers(len(noise)))].power, rng) for clip in clips]
    clean, noisy, quiet = (
        np.array([_clip(graph, power, frames) for power in group])
        for group in ([clip.power for clip in clips], under, [clip.power for clip in everyday])
    )
    caught = float(np.quantile(clean[label > 0.5], 0.1))
    return {
        "threat AUC": auc(label, clean),
        f"threat AUC, {_SNR_DB:.0f} dB": auc(label, noisy),
        "everyday alarms": float((quiet >= caught).mean()),
    }


def _under(power: Tensor, noise: Tensor, rng: Rng) -> Tensor:
    """Mel power of a clip with noise from a random place under it."""
    frames = (torch.arange(power.shape[1]) + int(rng.integers(noise.shape[1]))) % noise.shape[1]
    return augment.add_noise(power[None], noise[None, :, frames], rng, snr_db=(_SNR_DB, _SNR_DB), share=1.0)[0]


def _clip(graph: AudioGraph, power: Tensor, frames: int) -> float:
    """One logit for a clip, its windows (two a second) weighted by energy as `data.listening.pooled` does."""
    last = power.shape[1] - frames
    windows = torch.stack([power[:, start : start + frames] for start in [*range(0, last, frames // 2), last]])
    with torch.inference_mode():
        logit = graph.encoder(log_mel(windows)[:, None])[2]
    weight = windows.mean((1, 2)) ** 0.7
    return float((logit * weight).sum() / weight.sum())


def _train_sensors(graph: SensorGraph, shape: Preset, parts: Parts, row: Row, seed: int) -> None:
    logs = [recording.log() for recording in parts.corpus.tables if recording.split == "train"]
    train_sensors(graph, shape, logs, [], seed)


def _judge_sensors(graph: SensorGraph, parts: Parts) -> dict[str, float]:
    minutes, occupied, made, wrong = parts.judged_readings
    return {
        "generated causes AUC": auc(wrong, _through(graph, made, 1)),
        "occupied AUC": auc(occupied, _through(graph, minutes, 1)),
    }


def _through(graph: nn.Module, inputs: NDArray[Any], output: int) -> F32:
    """(n,) one output of a graph for many windows."""
    with torch.inference_mode():
        parts = [graph(torch.from_numpy(inputs[i : i + 64]))[output] for i in range(0, len(inputs), 64)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def _latency(graph: nn.Module, modality: Modality, shape: Preset, parts: Parts) -> dict[str, float]:
    """Milliseconds of one window by precision; sensors stay float32."""
    inputs: dict[Modality, list[NDArray[Any]]] = {
        "vision": [picture.frames for picture in parts.pictures["train"][:16]] if modality == "vision" else [],
        "audio": [sound.pcm[: shape.audio_spec.samples] for sound in parts.told[:64]] if modality == "audio" else [],
        "sensors": list(parts.judged_readings[2][:1]) if modality == "sensors" else [],
    }
    whole = [item for item in inputs[modality] if item.shape == inputs[modality][0].shape]
    made = runtime.make(shape, {modality: graph}, {modality: whole} if modality != "sensors" else {})
    found = times_ms(made, modality, {runtime.INPUT[modality]: whole[0]})
    kinds = ("fp32", "int8") if modality != "sensors" else ("fp32",)
    return {precision: round(found[precision], 3) for precision in kinds if precision in found}


_WAYS: dict[Modality, tuple[Callable[..., None], Callable[..., dict[str, float]]]] = {
    "vision": (_train_vision, _judge_vision),
    "audio": (_train_audio, _judge_audio),
    "sensors": (_train_sensors, _judge_sensors),
}
