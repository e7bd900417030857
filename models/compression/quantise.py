"""Symmetric int8 Q/DQ: the form that TensorRT's parser and OpenVINO both take. Front ends and heads stay float32.

Quantised are the input and the weights of each 3x3 or 1x1 convolution, and of each residual addition the input that
goes round: the other one comes out of a convolution and is added before anything is rounded. Biases stay float32
(TensorRT refuses int32 ones) and every zero point is 0 (it refuses others). A layer whose int8 alone moves the
embedding too far stays in float32: mixed precision.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.errors import BundleError
from models.compression.tables import lighten
from models.network.frontend import MIDDLE

#: Graphs where int8 pays. The sensors' TCN and the head are a few microseconds as they are.
QUANTISED = ("vision", "audio")
#: Longest kernel of a 2-D convolution that belongs to an encoder; fewer channels than these are not worth rounding.
_LONGEST_KERNEL, _FEWEST = 3, 16
_LEVELS = 127
#: Share of the embedding's size that int8 of one layer alone may move it by; above, the layer stays in float32.
HURTS = 0.1
#: Windows that the scan looks at.
_SCANNED = 16

Scales = Mapping[str, float]  #: float value of one step of int8, by tensor


@dataclass(frozen=True, slots=True)
class Layers:
    """How much of a graph became int8, and what each layer's int8 alone did to the embedding (share of its size)."""

    quantised: int
    convolutions: int  #: of the encoder: the front end is not in question
    error: float = 0.0  #: of all together
    errors: Mapping[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()  #: layers left in float32, by name of the weights


def quantise(
    source: Path,
    target: Path,
    windows: Sequence[NDArray[Any]],
    *,
    scales: Scales | None = None,
    hurts: float = HURTS,
    scan: bool = False,
) -> Layers:
    """Write `source` in int8 to `target`.

    `windows` are inputs of the training split without the batch axis; scales come from them unless `scales` holds
    those that the weights were trained with. Layers are looked at one by one if all together move the embedding by
    more than `hurts`, or for `scan`; it takes a second each. BundleError if no convolution can be quantised.
    """
    model = onnx.load(str(source))
    layers = convolutions(model)
    if not layers:
        raise BundleError(f"{source}: no convolution of {_FEWEST} channels or more that int8 could be used for")
    found = dict(scales) if scales is not None else calibrate(model, windows)
    inputs = [window[None] for window in windows[:: max(1, len(windows) // _SCANNED)]]
    wanted = embeddings(model, inputs)

    def error(names: Collection[str]) -> float:
        got = embeddings(inserted(model, found, names), inputs)
        return float(np.sqrt(np.square(got - wanted).mean() / max(float(np.square(wanted).mean()), 1e-12)))

    together = error(list(layers))
    errors = {name: error([name]) for name in layers} if scan or together > hurts else {}
    kept = tuple(name for name, alone in errors.items() if alone > hurts)
    small = inserted(model, found, [name for name in layers if name not in kept])
    lighten(small)
    onnx.checker.check_model(small)
    target.write_bytes(small.SerializeToString())
    count = sum(node.op_type == "Conv" and not node.name.startswith("/front/") for node in model.graph.node)
    left = error([name for name in layers if name not in kept]) if kept else together
    return Layers(len(layers) - len(kept), count, left, errors, kept)


def convolutions(model: onnx.ModelProto) -> dict[str, str]:
    """Weights → input tensor of each convolution that int8 may be used for. Weights are named as torch does."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    exact = _exact(model)
    found = {}
    for node in model.graph.node:
        shape = shapes.get(node.input[1], ()) if node.op_type == "Conv" else ()
        if len(shape) == 4 and max(shape[2:]) <= _LONGEST_KERNEL:
            group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            if min(shape[0], shape[1] * group) >= _FEWEST or node.input[0] in exact:
                found[node.input[1]] = node.input[0]
    return found


def _exact(model: onnx.ModelProto) -> set[str]:
    """Tensors that int8 holds as they are, in steps of 1: bytes of the graph's input around mid-grey."""
    bytes_ = {p.name for p in model.graph.input if p.type.tensor_type.elem_type == TensorProto.UINT8}
    cast = {node.output[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0] in bytes_}
    middle = {
        tensor.name
        for tensor in model.graph.initializer
        if not tensor.dims and numpy_helper.to_array(tensor) == MIDDLE
    }
    return {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Sub" and node.input[0] in cast and node.input[1] in middle
    }


def calibrate(model: onnx.ModelProto, windows: Sequence[NDArray[Any]]) -> dict[str, float]:
    """A scale for every tensor that is rounded: the largest value that any window shows takes the last step.

    Whatever cuts more off, by percentiles or by squared error, cuts off the few large values that an anomaly shows
    in: docs/explanation/compression.md has the figures.
    """
    names = sorted({*convolutions(model).values(), *(skip for skip, _ in ways_round(model).values())})
    widest = dict.fromkeys(names, 1e-6)
    running = session(with_outputs(model, names))
    for window in windows:
        for name, value in zip(names, running.run(names, {running.get_inputs()[0].name: window[None]}), strict=True):
            widest[name] = max(widest[name], float(np.abs(value).max()))
    exact = _exact(model)
    return {name: 1.0 if name in exact else value / _LEVELS for name, value in widest.items()}


def inserted(model: onnx.ModelProto, scales: Scales, names: Collection[str]) -> onnx.ModelProto:
    """A copy with Q/DQ pairs before the convolutions whose weights are `names`, and on the ways round them."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    chosen = {weights: tensor for weights, tensor in convolutions(model).items() if weights in set(names)}
    round_it = {output: skip for output, (skip, weights) in ways_round(model).items() if weights in chosen}
    arrays = {tensor.name: tensor for tensor in small.graph.initializer if tensor.name in chosen}
    before: dict[str, list[onnx.NodeProto]] = {}
    for name in sorted({*chosen.values(), *round_it.values()}):
        before[name] = _pair(small.graph, name, np.float32(scales[name]))
    for node in small.graph.node:
        if node.op_type == "Conv" and node.input[1] in chosen:
            node.input[0] = f"{node.input[0]}_dequantised"
        elif node.output[0] in round_it:
            index = list(node.input).index(round_it[node.output[0]])
            node.input[index] = f"{node.input[index]}_dequantised"
    nodes = [_rounded_weights(small.graph, tensor) for tensor in arrays.values()]
    for name in before.keys() & {port.name for port in small.graph.input}:
        nodes += before[name]
    for node in small.graph.node:
        if node.op_type == "Conv" and node.input[1] in chosen:
            node.input[1] = f"{node.input[1]}_dequantised"
        nodes.append(node)
        for name in node.output:
            nodes += before.get(name, [])
    ordered = copy.deepcopy(nodes)
    del small.graph.node[:]
    small.graph.node.extend(ordered)
    return small


def plain(data: bytes) -> bytes:
    """The float32 graph that an int8 one stands for: weights as the int8 ones say, nothing else rounded."""
    large = onnx.load_from_string(data)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in large.graph.initializer}
    instead: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in large.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            weights, scale = arrays[node.input[0]], arrays[node.input[1]]
            shape = (-1,) + (1,) * (weights.ndim - 1) if scale.ndim else ()
            name = node.output[0]
            large.graph.initializer.append(
                numpy_helper.from_array(weights.astype(np.float32) * scale.reshape(shape), name)
            )
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            instead[node.output[0]] = instead.get(node.input[0], node.input[0])
        else:
            nodes.append(copy.deepcopy(node))
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    used = {name for node in nodes for name in node.input}
    kept = copy.deepcopy([tensor for tensor in large.graph.initializer if tensor.name in used])
    del large.graph.node[:], large.graph.initializer[:]
    large.graph.node.extend(nodes)
    large.graph.initializer.extend(kept)
    serialised: bytes = large.SerializeToString()
    return serialised


def ways_round(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Output → (skip input, weights of the convolution on the other side) of the residual additions."""
    layers = convolutions(model)
    taps = {tensor.name: int(np.prod(tensor.dims[2:])) for tensor in model.graph.initializer}
    made = {
        node.output[0]: node.input[1]
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in layers
    }
    found = {}
    for node in model.graph.node:
        if node.op_type == "Add" and not taps.keys() & set(node.input):
            # Where both sides are convolutions, the smaller one is the way round.
            main, skip = sorted(node.input, key=lambda name: -taps[made[name]] if name in made else 0)
            if main in made:
                found[node.output[0]] = (skip, made[main])
    return found


def _pair(graph: onnx.GraphProto, name: str, scale: np.float32) -> list[onnx.NodeProto]:
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"),
            numpy_helper.from_array(np.array(0, np.int8), f"{name}_zero"),
        ]
    )
    rest = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [name, *rest], [f"{name}_int8"], f"{name}_quantise"),
        helper.make_node("DequantizeLinear", [f"{name}_int8", *rest], [f"{name}_dequantised"], f"{name}_dequantise"),
    ]


def _rounded_weights(graph: onnx.GraphProto, tensor: TensorProto) -> onnx.NodeProto:
    """Replace float weights by int8 ones, one scale per output channel."""
    weights, name = numpy_helper.to_array(tensor), tensor.name
    scale = weight_scale(weights)
    rounded = np.clip(np.rint(weights / scale.reshape(-1, 1, 1, 1)), -_LEVELS, _LEVELS).astype(np.int8)
    graph.initializer.remove(tensor)
    graph.initializer.extend(
        [
            numpy_helper.from_array(rounded, f"{name}_int8"),
            numpy_helper.from_array(scale, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}_zero"),
        ]
    )
    inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantised"], f"{name}_dequantise", axis=0)


def weight_scale(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs,) float value of one step of int8 of convolution weights (outputs, …)."""
    scale: NDArray[np.float32] = np.maximum(np.abs(weights).reshape(len(weights), -1).max(1), 1e-8) / _LEVELS
    return scale.astype(np.float32)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    larger = onnx.ModelProto()
    larger.CopyFrom(model)
    there = {port.name for port in larger.graph.output}
    larger.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in there
    )
    return larger


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def embeddings(model: onnx.ModelProto, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """(n, D) of inputs that have their batch axis, by ONNX Runtime."""
    running = session(model)
    name = running.get_inputs()[0].name
    return np.concatenate([running.run(["embedding"], {name: one})[0] for one in inputs])
