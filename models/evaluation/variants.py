"""One bundle in every form that it runs in: the files that ship, the same in float32, and the network in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edge_agent.contract.manifest import GRAPHS
from edge_agent.core.records import Engine, Model
from edge_agent.engine import compile_graphs, open_bundle
from edge_agent.errors import BundleError
from models import bundle
from models.compression.quantise import plain
from models.config import preset, teacher
from models.network.graphs import build
from models.runtime import TorchEngine

TORCH = "torch"


@dataclass(frozen=True, slots=True)
class Variant:
    """A bundle on an engine."""

    title: str  #: `int8`, `the same in float32`, `teacher` …
    folder: Path
    engine: str  #: `torch` needs the network's weights in the folder
    as_float: bool = False  #: without its Q/DQ: what rounding to int8 costs

    @property
    def name(self) -> str:
        return f"{self.title} on {self.engine}"


def forms(folder: Path, engines: Sequence[str], teacher: Path | None, others: Sequence[Path]) -> list[Variant]:
    """What stands side by side; first the bundle on the first engine, which everything else is held against."""
    found = [Variant("int8", folder, name) for name in engines]
    found += [Variant("the same in float32", folder, name, as_float=True) for name in engines]
    if teacher is not None:
        found += [Variant("float32 teacher", teacher, name) for name in (TORCH, *engines)]
    return found + [Variant(open_bundle(other).manifest.name, other, engines[0]) for other in others]


@contextmanager
def opened(variants: Sequence[Variant]) -> Iterator[Mapping[Variant, Model]]:
    """Every variant, ready to run until the end. BundleError, ConfigError as `edge_agent.engine.load`."""
    with ExitStack() as stack:
        models: dict[Variant, Model] = {}
        for variant in variants:
            models[variant] = _load(variant)
            stack.callback(models[variant].engine.close)
        yield models


def _load(variant: Variant) -> Model:
    found = open_bundle(variant.folder)
    engine: Engine
    if variant.engine == TORCH:
        if bundle.NETWORK not in found.manifest.files:
            raise BundleError(
                f"{variant.folder} holds no {bundle.NETWORK}: torch needs the bundle `teacher` of a training's folder"
            )
        network = build(teacher(preset(found.manifest.name.rsplit("-", 1)[0])), 0)
        bundle.load_weights(variant.folder / bundle.NETWORK, nn.ModuleDict(network.graphs()))
        engine = TorchEngine({name: module.eval() for name, module in network.graphs().items()}, found.manifest)
    else:
        graphs = {graph: found.read(f"{graph}.onnx") for graph in GRAPHS}
        if variant.as_float:
            graphs = {graph: plain(data) for graph, data in graphs.items()}
        engine = compile_graphs(graphs, found.manifest, variant.engine)
    return Model(found.manifest, found.hash, engine)
