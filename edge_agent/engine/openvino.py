"""OpenVINO on the CPU: the default of embedded devices. The only home of the `openvino` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edge_agent.contract.manifest import GRAPHS, Manifest
from edge_agent.core.records import Arrays
from edge_agent.engine import ports
from edge_agent.errors import BundleError

#: Items that a graph is run with at once. The head: every subset of three modalities, for the shares of one scene.
_TOGETHER = {"fusion": 8}


class OpenVino:
    """Engine of `edge_agent.core.records`, of whichever of the four graphs are given.

    Compiled for batches of one fixed size: a fifth faster on a CPU than a free one, and what an item gives does not
    depend on its neighbours. More items go one batch after the other, which costs a CPU nothing.

    `precision` is what float32 parts are computed in. None is the runtime's own choice, bfloat16 or FP16 where the
    machine has it: scores would differ from device to device, so it is for comparisons only.
    """

    def __init__(
        self, graphs: Mapping[str, bytes], manifest: Manifest, threads: int, *, precision: str | None = "f32"
    ) -> None:
        self._core = openvino.Core()
        self._precision = precision
        self._ports = {name: found for name, found in ports.promised(manifest).items() if name in graphs}
        self._compiled: dict[str, openvino.CompiledModel] = {}
        self._requests: dict[str, openvino.InferRequest] = {}
        self._outputs: dict[str, tuple[str, ...]] = {}
        for graph in (name for name in GRAPHS if name in graphs):
            model = self._read(graph, graphs[graph])
            found = _found(graph, model)
            ports.check(graph, found, manifest)
            self._outputs[graph] = tuple(found.outputs)
            self._compiled[graph] = self._compile(graph, model, threads)
            self._requests[graph] = self._compiled[graph].create_infer_request()

    @property
    def settings(self) -> dict[str, str]:
        """What the runtime says it runs with: engine, version, precision, threads."""
        compiled = next(iter(self._compiled.values()), None)
        told = (
            {}
            if compiled is None
            else {
                "precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string()),
                "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
                "hint": str(compiled.get_property("PERFORMANCE_HINT")),
            }
        )
        return {"engine": "openvino", "version": openvino.__version__, **told}

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """Outputs per item. ValueError for inputs that the graph does not take, and after `close`."""
        if not items:
            return []
        batch = ports.stack(graph, items, self._ports)
        request = self._requests.get(graph)
        if request is None:
            raise ValueError("the engine is closed")
        found: list[dict[str, NDArray[Any]]] = []
        size = _TOGETHER.get(graph, 1)
        for start in range(0, len(items), size):
            part = {name: _filled(array[start : start + size], size) for name, array in batch.items()}
            result = request.infer(part, share_inputs=True)
            arrays = {name: result[index] for index, name in enumerate(self._outputs[graph])}
            found += ports.split(arrays, min(size, len(items) - start))
        return found

    def close(self) -> None:
        """Free the graphs. May be called twice."""
        self._requests.clear()
        self._compiled.clear()

    def _read(self, graph: str, data: bytes) -> openvino.Model:
        try:
            return self._core.read_model(data)
        except RuntimeError as error:  # the only class that the binding raises
            raise BundleError(f"{graph}.onnx: OpenVINO {openvino.__version__} cannot read it: {error}") from error

    def _compile(self, graph: str, model: openvino.Model, threads: int) -> openvino.CompiledModel:
        settings = {
            **({} if self._precision is None else {"INFERENCE_PRECISION_HINT": self._precision}),
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads would fight with the decoders for the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        size = _TOGETHER.get(graph, 1)
        try:
            model.reshape({port.any_name: [size, *list(port.get_partial_shape())[1:]] for port in model.inputs})
            return self._core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"{graph}.onnx: OpenVINO {openvino.__version__} cannot compile it: {error}") from error


def _filled(array: NDArray[Any], size: int) -> NDArray[Any]:
    """A batch of `size`: the last item again where there are fewer."""
    if len(array) == size:
        return array
    return np.concatenate([array, *[array[-1:]] * (size - len(array))])


def _found(graph: str, model: openvino.Model) -> ports.GraphPorts:
    """Ports as the file names them, in its order. A compiled model gives a fused output several names."""
    sides: list[dict[str, ports.Port]] = []
    for side in (model.inputs, model.outputs):
        found: dict[str, ports.Port] = {}
        for port in side:
            shape = port.get_partial_shape()
            if shape.rank.is_dynamic or len(shape) == 0 or shape[0].is_static:
                raise BundleError(f"{graph}.onnx: {port.any_name} has no free batch axis in front: {shape}")
            rest = tuple(None if axis.is_dynamic else axis.get_length() for axis in list(shape)[1:])
            found[port.any_name] = ports.Port(np.dtype(port.get_element_type().to_dtype()).name, rest)
        sides.append(found)
    return ports.GraphPorts(*sides)
