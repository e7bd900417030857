"""A recipe's graphs in every form that they run in: torch, and the exported files in float32 and int8 on each engine.

What is measured is what a device would run: the product's own export and int8 step, behind the device's own `Engine`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edge_agent.contract.event import Modality
from edge_agent.contract.manifest import GRAPHS, Manifest
from edge_agent.core.records import Arrays, Engine
from edge_agent.engine import Bundle, compile_graphs, installed, open_bundle, ports
from edge_agent.errors import ConfigError
from models import bundle
from models.compression.export import export, fold
from models.compression.quantise import quantise
from models.config import Preset
from models.network.graphs import OUTPUTS

#: Name of the one input of each encoder's graph.
INPUT: dict[Modality, str] = {"vision": "frames", "audio": "pcm", "sensors": "readings"}
#: Torch first: what the others are held against.
ENGINES = ("torch", "openvino", "onnxruntime")
FP32, INT8 = "fp32", "int8"


class TorchEngine:
    """Torch modules behind the device's `Engine`: the same checks of the inputs, one thread as torch is set."""

    def __init__(
        self, modules: Mapping[str, nn.Module], manifest: Manifest, outputs: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._ports = {name: found for name, found in ports.promised(manifest).items() if name in modules}
        # Channels last: depthwise convolutions take a third of the time.
        self._modules = {
            name: fold(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for name, module in modules.items()
        }
        self._outputs = {name: tuple((outputs or {}).get(name, OUTPUTS[name])) for name in modules}

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """Outputs per item, in order. ValueError for inputs that the graph does not take, and after `close`."""
        if not items:
            return []
        batch = ports.stack(graph, items, self._ports)
        if graph not in self._modules:
            raise ValueError("the engine is closed")
        with torch.inference_mode():
            found = self._modules[graph](*(torch.from_numpy(batch[name]) for name in self._ports[graph].inputs))
        arrays = {name: tensor.numpy() for name, tensor in zip(self._outputs[graph], found, strict=True)}
        return ports.split(arrays, len(items))

    def close(self) -> None:
        """Free the modules. May be called twice."""
        self._modules.clear()


@dataclass(frozen=True)
class Made:
    """What a recipe made: some of the four graphs, trained, exported, and in int8 where that pays."""

    manifest: Manifest
    modules: Mapping[str, nn.Module]
    outputs: Mapping[str, tuple[str, ...]]  #: by graph, names of what the module returns, in order
    plain: Mapping[str, bytes]  #: float32 ONNX
    int8: Mapping[str, bytes]  #: Q/DQ ONNX; a graph that is not quantised is the float32 file


def make(
    preset: Preset,
    modules: Mapping[str, nn.Module],
    calibration: Mapping[str, Sequence[NDArray[Any]]],
    outputs: Mapping[str, Sequence[str]] | None = None,
) -> Made:
    """Export `modules` (by graph: vision, audio, sensors, fusion) and quantise those with calibration inputs.

    calibration: inputs of the training split without the batch axis (uint8 frames, int16 pcm …); a graph without any
    stays float32, also where "int8" is asked for. outputs: by graph, all names that the module returns, if it returns
    more than `models.network.graphs.OUTPUTS`. BundleError if the export computes something else than torch.
    """
    named = {graph: tuple((outputs or {}).get(graph, OUTPUTS[graph])) for graph in modules}
    plain: dict[str, bytes] = {}
    int8: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph, module in modules.items():
            source, target = Path(folder) / f"{graph}.onnx", Path(folder) / f"{graph}-int8.onnx"
            export(module, preset, graph, source, named[graph])
            plain[graph] = int8[graph] = source.read_bytes()
            if calibration.get(graph):
                quantise(source, target, calibration[graph])
                int8[graph] = target.read_bytes()
    manifest = bundle.manifest(preset, bundle.UNCHOSEN, 0, {}, bundle.now())
    return Made(manifest, modules, named, plain, int8)


def variants(made: Made, engines: Sequence[str] = ENGINES) -> Iterator[tuple[str, str, Engine]]:
    """(engine, precision, ready engine): torch fp32, then each installed runtime in fp32 and int8.

    Each is closed when the next is asked for. An engine whose runtime is not installed here is left out.
    """
    for name in engines:
        if name == "torch":
            yield from _opened(name, FP32, TorchEngine(made.modules, made.manifest, made.outputs))
        elif name in installed():
            for precision, graphs in ((FP32, made.plain), (INT8, made.int8)):
                yield from _opened(name, precision, compile_graphs(graphs, made.manifest, name))


def shipped_variants(folder: Path, engines: Sequence[str] = ENGINES) -> Iterator[tuple[str, str, Engine]]:
    """(engine, "int8", ready engine) of a finished bundle on each installed runtime: its files are what they are."""
    opened: Bundle = open_bundle(folder)
    graphs = {graph: opened.read(f"{graph}.onnx") for graph in GRAPHS}
    for name in engines:
        if name != "torch" and name in installed():
            yield from _opened(name, INT8, compile_graphs(graphs, opened.manifest, name))


def _opened(name: str, precision: str, engine: Engine) -> Iterator[tuple[str, str, Engine]]:
    try:
        yield name, precision, engine
    finally:
        engine.close()


def known_engines(names: Sequence[str]) -> tuple[str, ...]:
    """The names, in the order of ENGINES; ConfigError for one that is unknown or not installed here."""
    here = ("torch", *installed())
    wrong = [name for name in names if name not in here]
    if wrong or not names:
        raise ConfigError(f"no engine is named {', '.join(wrong) or '(nothing)'}; there are {', '.join(here)}")
    return tuple(name for name in ENGINES if name in names)


def through(
    engine: Engine, graph: Modality, inputs: Sequence[NDArray[Any]] | NDArray[Any], batch: int = 32
) -> dict[str, NDArray[Any]]:
    """Outputs of one encoder for many windows, stacked: name → float32 (n, …). {} for no windows."""
    found: list[dict[str, NDArray[Any]]] = []
    for start in range(0, len(inputs), batch):
        found += engine.run(graph, [{INPUT[graph]: item} for item in inputs[start : start + batch]])
    return {name: np.stack([output[name] for output in found]) for name in found[0]} if found else {}
