"""From a trained encoder to the one that ships: pruned, low rank where it pays, distilled, trained to bear int8.

Every step is measured against the network that it came from, on windows of the training split that none of them
learned from, and on whatever figures the caller's `judge` gives.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.compression import qat
from models.compression.export import export, fold
from models.compression.footprint import footprint
from models.compression.prune import Factored, distil, low_rank, prune
from models.compression.quantise import Layers, calibrate, embeddings, quantise
from models.compression.tables import lighten
from models.config import Preset, Run, Schedule
from models.training.train import exact

#: Every how many windows one is left out of training, and measures instead.
_HELD_OUT = 5
Judge = Callable[[str, bytes], Mapping[str, float]]
Windows = Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Step:
    """One graph after one step."""

    graph: str
    name: str
    parameters: int
    macs: int
    bytes: int
    #: distance of the embedding from the teacher's, as a share of its size, on windows held out; None: not measured
    error: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Small:
    """A compressed graph: the module in float32, and the file that ships."""

    module: nn.Module
    plain: bytes
    int8: bytes
    layers: Layers
    factored: Sequence[Factored]
    steps: Sequence[Step]

    def told(self) -> dict[str, Any]:
        """For a report."""
        return {
            "steps": [asdict(step) for step in self.steps],
            "low_rank": [asdict(layer) for layer in self.factored],
            "int8": asdict(self.layers),
        }


def shrink(
    graph: str, module: nn.Module, preset: Preset, windows: Windows, *, seed: int, judge: Judge | None = None
) -> Small:
    """Compress one encoder's graph (`front` and `encoder`, as in `network.graphs`) the way that the preset says.

    `module` is the teacher, as wide as `config.teacher` makes it; what ships has the preset's widths. windows: raw
    inputs of the training split without the batch axis; no labels. BundleError if an export computes something else
    than torch.
    """
    how = preset.compression
    torch.manual_seed(seed)
    log = _Log(graph, preset, windows[::_HELD_OUT], judge)
    learned = [window for index, window in enumerate(windows) if index % _HELD_OUT]
    scaled = learned[:: max(1, len(learned) // preset.calibration_windows)]
    log.add("teacher", log.exported(module))
    student, factored = copy.deepcopy(module).eval(), list[Factored]()
    seen = graph == "vision"
    schedule, wider = (how.vision, how.wider_vision) if seen else (how.audio, how.wider_audio)
    if wider > 1:
        example = _ready(module, torch.from_numpy(np.stack(learned[:2])))
        student.encoder = prune(_encoder(student), example, 1 - 1 / wider)
        log.add("pruned", log.exported(student))
    if how.energy < 1:
        factored = low_rank(_encoder(student), how.energy)
    split = any(layer.rank is not None for layer in factored)
    if split:
        log.add("low rank", log.exported(student))
    if wider > 1 or split:
        batches = _batches(graph, module, learned, schedule.batch, [seed, 61])
        distil(f"{graph} distilled", _encoder(student), _encoder(module), batches, schedule, run=preset.run)
        log.add("distilled", log.exported(student))
    student = fold(student)
    plain = log.exported(student)
    scales = calibrate(onnx.load_from_string(plain), scaled)
    int8, layers = _rounded(plain, scaled, scales)
    error = log.add("int8", int8)
    if how.aware.steps:
        batches = _batches(graph, student, learned, how.aware.batch, [seed, 62])
        taught = _aware(
            student, plain, scales, title=f"{graph} int8", batches=batches, schedule=how.aware, run=exact(preset.run)
        )
        plain_taught = log.exported(taught)
        int8_taught, layers_taught = _rounded(plain_taught, scaled, scales)
        if log.add("int8, trained for it", int8_taught) <= error:
            student, plain, int8, layers = taught, plain_taught, int8_taught, layers_taught
    return Small(student, plain, int8, layers, factored, log.steps)


def lighter(graph: str, module: nn.Module, preset: Preset) -> tuple[bytes, dict[str, Any]]:
    """A graph that int8 is not for: the file that ships, with large constants in half precision; and for a report."""
    plain = _exported(module, preset, graph)
    model = onnx.load_from_string(plain)
    lighten(model)
    data: bytes = model.SerializeToString()
    steps = [_step(graph, name, one, None, {}) for name, one in (("teacher", plain), ("half precision", data))]
    return data, {"steps": [asdict(step) for step in steps]}


def _exported(module: nn.Module, preset: Preset, graph: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        export(module, preset, graph, path)
        return path.read_bytes()


def _step(graph: str, name: str, data: bytes, error: float | None, figures: Mapping[str, float]) -> Step:
    weighed = footprint(data)
    return Step(graph, name, weighed.parameters, weighed.macs, weighed.bytes, error, dict(figures))


class _Log:
    """The steps of one graph, each held against the first."""

    def __init__(self, graph: str, preset: Preset, held: Windows, judge: Judge | None) -> None:
        self._graph, self._preset, self._judge = graph, preset, judge
        self._inputs = [window[None] for window in held]
        self._teacher: NDArray[np.float32] | None = None
        self.steps: list[Step] = []

    def exported(self, module: nn.Module) -> bytes:
        return _exported(module, self._preset, self._graph)

    def add(self, name: str, data: bytes) -> float:
        """Measure a step; its error."""
        found = embeddings(onnx.load_from_string(data), self._inputs)
        if self._teacher is None:
            self._teacher = found
        size = max(float(np.square(self._teacher).mean()), 1e-12)
        error = float(np.sqrt(np.square(found - self._teacher).mean() / size))
        figures = self._judge(self._graph, data) if self._judge is not None else {}
        self.steps.append(_step(self._graph, name, data, round(error, 5), figures))
        return error


def _rounded(plain: bytes, windows: Windows, scales: Mapping[str, float]) -> tuple[bytes, Layers]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(plain)
        layers = quantise(source, target, windows, scales=scales, scan=True)
        return target.read_bytes(), layers


def _aware(
    student: nn.Module,
    plain: bytes,
    scales: Mapping[str, float],
    *,
    title: str,
    batches: Iterator[tuple[Tensor]],
    schedule: Schedule,
    run: Run,
) -> nn.Module:
    """The student after a short training in which it rounds as int8 will; it learns from itself in float32."""
    rounding = qat.aware(student, onnx.load_from_string(plain), scales)
    distil(title, _encoder(rounding), _encoder(student), batches, schedule, run=run)
    return qat.plain(rounding)


def _encoder(module: nn.Module) -> nn.Module:
    return module.get_submodule("encoder")


def _ready(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the encoder gets of raw inputs."""
    with torch.no_grad():
        features: Tensor = module.get_submodule("front")(inputs)
    return features.contiguous(memory_format=torch.channels_last)


def _batches(
    graph: str, module: nn.Module, windows: Windows, count: int, seed: Sequence[int]
) -> Iterator[tuple[Tensor]]:
    rng = np.random.default_rng(seed)
    changed = _seen if graph == "vision" else _heard
    while True:
        chosen = rng.integers(0, len(windows), count)
        inputs = np.stack([changed(rng, windows, int(index)) for index in chosen])
        yield (_ready(module, torch.from_numpy(inputs)),)


def _seen(rng: np.random.Generator, windows: Windows, index: int) -> NDArray[np.uint8]:
    """A window (5, H, W), mirrored in half of the cases, in another light."""
    frames = windows[index][:, :, ::-1] if rng.random() < 0.5 else windows[index]
    light = np.arange(256) * rng.uniform(0.7, 1.25) + rng.uniform(-20, 20)
    turned: NDArray[np.uint8] = np.clip(light, 0, 255).astype(np.uint8)[frames]
    return turned


def _heard(rng: np.random.Generator, windows: Windows, index: int) -> NDArray[np.int16]:
    """PCM, louder or softer, over another window in half of the cases."""
    pcm = windows[index].astype(np.float32) * 10 ** (rng.uniform(-15, 6) / 20)
    if rng.random() < 0.5:
        other = windows[int(rng.integers(len(windows)))].astype(np.float32)
        power = [max(float(np.square(sound).mean()), 1.0) for sound in (pcm, other)]
        pcm = pcm + other * np.sqrt(power[0] / power[1]) * 10 ** (rng.uniform(-20, 6) / 20)
    if rng.random() < 0.3:
        pcm = pcm + rng.normal(0, 10 ** rng.uniform(0, 3), len(pcm)).astype(np.float32)
    mixed: NDArray[np.int16] = np.clip(np.rint(pcm), -32768, 32767).astype(np.int16)
    return mixed
