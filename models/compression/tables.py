"""Constants without their bytes: an engine works them out once, when it loads the graph, and has them in float32.

The front end's tables are most of a small int8 file (0.9 of 1.3 MB), and to the engine they stay the same constants,
to the last bit but one. Weights that int8 is not for are kept in half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.network.frontend import BINS, BLOCK, FOURTH, WINDOW, fourths

#: Smaller constants are left as they are.
_BYTES = 2_048
#: With fewer values than this share, a constant is told by those values and their places.
_SHARE = 0.1


def lighten(model: onnx.ModelProto) -> None:
    """In place: the STFT's windowed sines and cosines from one period, the mel bank from what is not zero, weights
    from half precision. A front end's constants only where that is exact."""
    nodes: list[onnx.NodeProto] = []
    for tensor in copy.deepcopy(list(model.graph.initializer)):
        if list(tensor.dims) == [2 * FOURTH, BLOCK // 4, WINDOW // BLOCK]:
            nodes += _spectrum(model.graph, tensor.name, numpy_helper.to_array(tensor))
        elif tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) * 4 > _BYTES:
            array = numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.count_nonzero(array) < _SHARE * array.size:
                nodes += _sparse(model.graph, tensor.name, array)
            elif np.array_equal(half, array) or (np.isfinite(half).all() and not tensor.name.startswith("/front/")):
                nodes += _half(model.graph, tensor.name, half)
    rest = copy.deepcopy(list(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def lighten_file(path: Path) -> None:
    """The same of an ONNX file."""
    model = onnx.load(str(path))
    lighten(model)
    path.write_bytes(model.SerializeToString())


def _spectrum(graph: onnx.GraphProto, name: str, kernel: NDArray[np.float32]) -> list[onnx.NodeProto]:
    """Row k of cosines and of sines at sample n are one table at k · n, modulo a turn."""
    phase = next((p for p, known in enumerate(fourths()) if np.array_equal(kernel, known)), None)
    if phase is None:
        return []
    turn = 2 * (BINS - 1)
    sample = (np.arange(WINDOW // BLOCK) * BLOCK + np.arange(BLOCK // 4)[:, None] * 4 + phase)[None]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * sample / WINDOW)) / (WINDOW / 4)
    constants = {
        "bin": np.tile(np.arange(FOURTH), 2)[:, None, None].astype(np.int32),
        "sample": sample.astype(np.int32),
        # Minus a sine is a cosine a quarter of a turn on.
        "late": np.repeat([0, turn // 4], FOURTH)[:, None, None].astype(np.int32),
        "turn": np.array(turn, np.int32),
        "cosine": np.cos(2 * np.pi * np.arange(turn) / turn).astype(np.float32),
        "hann": hann.astype(np.float32),
    }
    steps = [
        ("Mul", ("bin", "sample"), "turned"),
        ("Add", ("turned", "late"), "phase"),
        ("Mod", ("phase", "turn"), "place"),
        ("Gather", ("cosine", "place"), "plain"),
        ("Mul", ("plain", "hann"), ""),
    ]
    return _instead(graph, name, constants, steps)


def _sparse(graph: onnx.GraphProto, name: str, array: NDArray[np.float32]) -> list[onnx.NodeProto]:
    where = np.argwhere(array)
    constants: dict[str, NDArray[Any]] = {
        "shape": np.array(array.shape, np.int64),
        "where": where.astype(np.int64),
        "values": array[tuple(where.T)],
    }
    zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    made = f"{name}_empty"
    empty = helper.make_node("ConstantOfShape", [f"{name}_shape"], [made], f"front_{made}", value=zero)
    return [empty, *_instead(graph, name, constants, [("ScatterND", ("empty", "where", "values"), "")])]


def _instead(
    graph: onnx.GraphProto,
    name: str,
    constants: Mapping[str, NDArray[Any]],
    steps: Sequence[tuple[str, Sequence[str], str]],
) -> list[onnx.NodeProto]:
    """Nodes that make what the initialiser `name` held; the last step makes it itself."""
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))
    graph.initializer.extend(numpy_helper.from_array(array, f"{name}_{key}") for key, array in constants.items())
    nodes = []
    for index, (kind, inputs, made) in enumerate(steps):
        output = f"{name}_{made}" if made else name
        nodes.append(helper.make_node(kind, [f"{name}_{key}" for key in inputs], [output], f"front_{name}_{index}"))
    return nodes


def _half(graph: onnx.GraphProto, name: str, half: NDArray[np.float16]) -> list[onnx.NodeProto]:
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))
    graph.initializer.append(numpy_helper.from_array(half, f"{name}_half"))
    return [helper.make_node("Cast", [f"{name}_half"], [name], f"half_{name}", to=TensorProto.FLOAT)]
