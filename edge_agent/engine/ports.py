"""Inputs and outputs of the four graphs: what a manifest implies, held against what a runtime found in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import Manifest
from edge_agent.core.records import Arrays
from edge_agent.errors import BundleError

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: numpy's name of its type, shape without the batch axis (None: free)."""

    dtype: str
    shape: Shape


Ports = Mapping[str, Port]


@dataclass(frozen=True, slots=True)
class GraphPorts:
    """Everything that goes into and comes out of one graph."""

    inputs: Ports
    outputs: Ports


def promised(manifest: Manifest) -> dict[str, GraphPorts]:
    """Ports of every graph, as `edge_agent.core.records.Engine` names them, sized by the manifest."""
    size, history, modalities = manifest.embedding, manifest.history, len(MODALITIES)
    encoded = {"embedding": Port("float32", (size,)), "logit": Port("float32", ())}
    picture = (5, manifest.vision.height, manifest.vision.width)
    readings = (3, len(manifest.sensors.quantities), manifest.sensors.steps)
    return {
        "vision": GraphPorts({"frames": Port("uint8", picture)}, {**encoded, "heat": Port("float32", (None, None))}),
        "audio": GraphPorts({"pcm": Port("int16", (manifest.audio.samples,))}, encoded),
        "sensors": GraphPorts({"readings": Port("float32", readings)}, encoded),
        "fusion": GraphPorts(
            {
                **{name: Port("float32", (history, size)) for name in MODALITIES},
                "mask": Port("float32", (history, modalities)),
            },
            {
                **encoded,
                "classes": Port("float32", (len(manifest.classes),)),
                "modality_logits": Port("float32", (modalities,)),
            },
        ),
    }


def check(graph: str, found: GraphPorts, manifest: Manifest) -> None:
    """BundleError unless names, types and shapes are as promised. `found` shapes: None where dynamic.

    Outputs may be more than the promised ones, float32 as they are: a graph of a benchmark's recipe gives its class
    logits beside the embedding. Nothing on the device reads them.
    """
    wanted = promised(manifest)[graph]
    more = {name: port for name, port in found.outputs.items() if name not in wanted.outputs}
    outputs = {name: port for name, port in found.outputs.items() if name in wanted.outputs}
    for side, have, want in (("inputs", found.inputs, wanted.inputs), ("outputs", outputs, wanted.outputs)):
        if have.keys() != want.keys():
            told = sorted(found.outputs if side == "outputs" else have)
            raise BundleError(f"{graph}.onnx: {side} are {told}, expected {sorted(want)}")
        for name, port in want.items():
            if not _fits(have[name], port):
                raise BundleError(f"{graph}.onnx: {name} is {have[name]}, the manifest asks for {port}")
    for name, port in more.items():
        if port.dtype != "float32":
            raise BundleError(f"{graph}.onnx: output {name} is {port}, every output is float32")


def checked(graph: str, items: Sequence[Arrays], ports: Mapping[str, GraphPorts]) -> Ports:
    """The graph's inputs, if every item has just these. ValueError for a wrong graph, name, type or shape."""
    if graph not in ports:
        raise ValueError(f"no graph is named {graph!r}; there are {', '.join(ports)}")
    wanted = ports[graph].inputs
    for item in items:
        if item.keys() != wanted.keys():
            raise ValueError(f"{graph} takes {sorted(wanted)}, got {sorted(item)}")
        for name, port in wanted.items():
            array = item[name]
            if array.dtype != port.dtype or array.shape != port.shape:
                raise ValueError(f"{graph}.{name} takes {port}, got {array.dtype} {array.shape}")
    return wanted


def finite(graph: str, batch: Arrays) -> None:
    """ValueError for NaN or infinity: a runtime would spread it over the whole embedding without a word."""
    for name, array in batch.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{graph}.{name} holds a value that is not finite")


def stack(graph: str, items: Sequence[Arrays], ports: Mapping[str, GraphPorts]) -> dict[str, NDArray[Any]]:
    """The items' inputs with a batch axis, checked."""
    wanted = checked(graph, items, ports)
    if len(items) == 1:  # the usual case: a view will do
        batch = {name: np.ascontiguousarray(array)[None] for name, array in items[0].items()}
    else:
        batch = {name: np.stack([item[name] for item in items]) for name in wanted}
    finite(graph, batch)
    return batch


def split(outputs: Arrays, count: int) -> list[dict[str, NDArray[Any]]]:
    """One dict per item, copied once for all of them: the runtime may use its buffers again."""
    copies = {name: np.array(array) for name, array in outputs.items()}
    return [{name: array[index, ...] for name, array in copies.items()} for index in range(count)]


def _fits(have: Port, want: Port) -> bool:
    if have.dtype != want.dtype or len(have.shape) != len(want.shape):
        return False
    return all(a is None or b is None or a == b for a, b in zip(have.shape, want.shape, strict=True))
