"""What a graph weighs: bytes, learned numbers, multiplications, and milliseconds on each engine and precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models.compression.quantise import session, with_outputs

_TYPES = {"tensor(uint8)": np.uint8, "tensor(int16)": np.int16, "tensor(float)": np.float32}
_COUNTED = ("Conv", "Gemm", "MatMul")
_NUMBERS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8)
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Of one graph and one item."""

    bytes: int
    parameters: int  #: learned: neither the front end's tables nor the scales of int8
    macs: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of CPU of one call with one item, one thread."""

    p50: float
    p99: float
    worst: float


def footprint(data: bytes) -> Footprint:
    """Of an ONNX file, float32 or int8."""
    model = onnx.load_from_string(data)
    return Footprint(len(data), _parameters(model), _macs(model))


def _parameters(model: onnx.ModelProto) -> int:
    counted = set()
    for node in model.graph.node:
        if node.op_type in _ROUNDING:
            counted.add(node.input[0])
        elif node.name.startswith("half_/front/"):
            continue
        elif not node.name.startswith(("/front/", "front_")):
            counted |= {*node.input}
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.name in counted and tensor.dims and tensor.data_type in _NUMBERS
    )


def _macs(model: onnx.ModelProto) -> int:
    """Multiplications of one item, from the shapes that a run has."""
    nodes = [node for node in model.graph.node if node.op_type in _COUNTED]
    names = sorted({name for node in nodes for name in (node.output[0], node.input[0], node.input[1])})
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    asked = [name for name in names if name not in constants and name not in {p.name for p in model.graph.input}]
    running = session(with_outputs(model, asked))
    given = _nothing(running)
    shapes = {name: array.shape for name, array in zip(asked, running.run(asked, given), strict=True)}
    shapes |= constants | {name: array.shape for name, array in given.items()}
    total = 0
    for node in nodes:
        made = int(np.prod(shapes[node.output[0]]))
        if node.op_type == "Conv":
            total += made * int(np.prod(shapes[node.input[1]][1:]))
        else:
            turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            total += made * shapes[node.input[0]][0 if turned else -1]
    return total


def _nothing(running: Any) -> dict[str, NDArray[Any]]:
    """Inputs of one item, all zero."""
    return {
        port.name: np.zeros([axis if isinstance(axis, int) else 1 for axis in port.shape], _TYPES[port.type])
        for port in running.get_inputs()
    }


def latencies(ways: Mapping[str, Callable[[], object]], rounds: int = 10, calls: int = 20) -> dict[str, Latency]:
    """CPU time of each way, in turn: so that all of them meet the same neighbours on the machine."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()  # caches belong to whoever ran last
            for _ in range(calls):
                begin = time.process_time_ns()
                way()
                spent[name].append((time.process_time_ns() - begin) / 1e6)
    return {
        name: Latency(float(np.percentile(times, 50)), float(np.percentile(times, 99)), max(times))
        for name, times in spent.items()
    }
