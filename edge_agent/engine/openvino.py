"""OpenVINO on the CPU: the default of embedded devices. The only home of the `openvino` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino  # type: ignore[import-untyped]
import openvino.preprocess  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edge_agent.contract.manifest import GRAPHS, Manifest
from edge_agent.core.records import Arrays
from edge_agent.engine import ports
from edge_agent.errors import BundleError

#: Items that a graph is run with at once. The head: every subset of three modalities, for the shares of one scene.
_TOGETHER = {"fusion": 8}


class _Bound:
    """A request with its own arrays for what goes in and comes out: handing new ones over costs more than copying.

    Rows that a smaller batch leaves alone hold what an earlier one left there; no item sees another's.
    """

    def __init__(self, compiled: openvino.CompiledModel, inputs: ports.Ports, outputs: Sequence[str]) -> None:
        self.request = compiled.create_infer_request()
        self.inputs: dict[str, NDArray[Any]] = {}
        for name, port in inputs.items():
            array = np.zeros(tuple(compiled.input(name).shape), port.dtype)
            self.request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
            self.inputs[name] = array.transpose(0, 3, 1, 2) if _picture(port) else array
        self.outputs: dict[str, NDArray[Any]] = {}
        for index, name in enumerate(outputs):
            self.outputs[name] = np.zeros(tuple(compiled.output(index).shape), np.float32)
            self.request.set_output_tensor(index, openvino.Tensor(self.outputs[name], shared_memory=True))


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
        self._bound: dict[str, _Bound] = {}
        for graph in (name for name in GRAPHS if name in graphs):
            model = self._read(graph, graphs[graph])
            found = _found(graph, model)
            ports.check(graph, found, manifest)
            self._compiled[graph] = self._compile(graph, model, threads)
            self._bound[graph] = _Bound(self._compiled[graph], self._ports[graph].inputs, tuple(found.outputs))

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
        wanted = ports.checked(graph, items, self._ports)
        bound = self._bound.get(graph)
        if bound is None:
            raise ValueError("the engine is closed")
        found: list[dict[str, NDArray[Any]]] = []
        size = _TOGETHER.get(graph, 1)
        for start in range(0, len(items), size):
            part = items[start : start + size]
            given = {name: bound.inputs[name][: len(part)] for name in wanted}
            for name, array in given.items():
                for row, item in enumerate(part):
                    array[row] = item[name]
            ports.finite(graph, given)
            bound.request.infer(share_outputs=True)
            found += ports.split(bound.outputs, len(part))
        return found

    def close(self) -> None:
        """Free the graphs. May be called twice."""
        self._bound.clear()
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
            return self._core.compile_model(self._channels_last(graph, model), "CPU", settings)
        except RuntimeError as error:
            raise BundleError(f"{graph}.onnx: OpenVINO {openvino.__version__} cannot compile it: {error}") from error

    def _channels_last(self, graph: str, model: openvino.Model) -> openvino.Model:
        """The model with pictures as `core.prepare` lays them out, which is how int8 convolutions read them: a tenth
        of the time of an encoder went into a new order."""
        pictures = [name for name, port in self._ports[graph].inputs.items() if _picture(port)]
        steps = openvino.preprocess.PrePostProcessor(model)
        for name in pictures:
            steps.input(name).tensor().set_layout(openvino.Layout("NHWC"))
            steps.input(name).model().set_layout(openvino.Layout("NCHW"))
        return steps.build() if pictures else model


def _picture(port: ports.Port) -> bool:
    return port.dtype == "uint8" and len(port.shape) == 3


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
