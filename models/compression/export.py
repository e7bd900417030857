"""Torch → ONNX: batch norm folded, batch axis dynamic, checked against torch by ONNX Runtime before it is used."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge_agent.errors import BundleError
from models.config import Preset
from models.network.frontend import Centred, VisionFront
from models.network.graphs import OUTPUTS, example

OPSET = 17
_TOLERANCE = 1e-3


def fold(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode with every (convolution, batch norm) pair made one convolution, and the front end of
    vision made part of the first."""
    folded = copy.deepcopy(module).eval()
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            pair = list(child.children()) if isinstance(child, nn.Sequential) else []
            if len(pair) == 2 and isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(pair[0], pair[1]))
    for parent in list(folded.modules()):
        front = getattr(parent, "front", None)
        if isinstance(front, VisionFront):
            encoder = parent.get_submodule("encoder")
            stem = encoder.get_submodule("stem")
            assert isinstance(stem, nn.Conv2d)  # its batch norm is in it by now
            encoder.stem = front.absorbed(stem)
            parent.front = Centred()
    return folded


def export(module: nn.Module, preset: Preset, graph: str, path: Path, outputs: Sequence[str] = ()) -> None:
    """Write one graph. BundleError if ONNX Runtime does not compute what torch does.

    `outputs` are the names of what the module returns, in order; none: those that every bundle's graph has.
    """
    inputs = example(preset, graph)
    names = list(inputs)
    outputs = list(outputs or OUTPUTS[graph])
    folded = fold(module)
    torch.onnx.export(
        folded,
        tuple(inputs.values()),
        str(path),
        input_names=names,
        output_names=outputs,
        dynamic_axes={name: {0: "batch"} for name in [*names, *outputs]},
        opset_version=OPSET,
        dynamo=False,
    )
    model = onnx.load(str(path))
    _hoist(model)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    _compare(folded, preset, graph, path, outputs)


def _hoist(model: onnx.ModelProto) -> None:
    """Constants as initialisers, where int8 and whoever counts look for them."""
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)


def _compare(module: nn.Module, preset: Preset, graph: str, path: Path, outputs: Sequence[str]) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: _noise(rng, tensor.numpy(), name) for name, tensor in example(preset, graph, 3).items()}
    with torch.inference_mode():
        wanted = module(*(torch.from_numpy(array) for array in arrays.values()))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name, got, want in zip(outputs, session.run(None, arrays), wanted, strict=True):
        worst = float(np.abs(got - want.numpy()).max())
        if not worst <= _TOLERANCE * (1 + float(np.abs(want.numpy()).max())):
            raise BundleError(f"export of {graph}.onnx: output {name!r} is off by {worst:.2g} from torch")


def _noise(rng: np.random.Generator, like: np.ndarray, name: str) -> np.ndarray:
    if like.dtype == np.uint8:
        return rng.integers(0, 256, like.shape, np.uint8)
    if like.dtype == np.int16:
        return rng.integers(-8000, 8000, like.shape, np.int16)
    if name == "mask":
        return (rng.random(like.shape) < 0.7).astype(np.float32)
    noise = rng.normal(1.0, 1.0, like.shape).astype(np.float32)
    if name == "readings":
        noise[:, 2] = noise[:, 2] > 1.0
    return noise
