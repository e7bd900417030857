"""Symmetric int8 Q/DQ: the form that TensorRT's parser and OpenVINO both take. Front ends and heads stay float32."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (  # type: ignore[import-untyped]
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

#: Graphs where int8 pays. The sensors' TCN and the head are a few microseconds as they are.
QUANTISED = ("vision", "audio")
#: Longest kernel of a 2-D convolution that belongs to an encoder; the STFT's is longer and stays float32.
_LONGEST_KERNEL = 3


@dataclass(frozen=True, slots=True)
class Layers:
    """How much of a graph became int8."""

    quantised: int
    convolutions: int


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, windows: Sequence[NDArray[Any]]) -> None:
        self._items: Iterator[dict[str, NDArray[Any]]] = iter([{name: window[None]} for window in windows])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._items, None)


def quantise(source: Path, target: Path, windows: Sequence[NDArray[Any]]) -> Layers:
    """Write `source` in int8 to `target`, scales taken from `windows` (training split only)."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        model = onnx.load(str(ready))
        names = _nodes(model)
        with redirect_stdout(sys.stderr):  # it prints; stdout is for the figures
            quantize_static(
                str(ready),
                str(target),
                _Reader(model.graph.input[0].name, windows),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=names,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={
                    # TensorRT's parser refuses int32 biases and asymmetric scales.
                    "QuantizeBias": False,
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    # Half the error of the logit, and of the difference between engines, that minima and maxima give.
                    "CalibPercentile": 99.99,
                },
            )
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    return Layers(sum("Conv" in name for name in names), convolutions)


def _nodes(model: onnx.ModelProto) -> list[str]:
    """Convolutions of the encoder with 16 or more inputs, and the residual adds between them."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    chosen = []
    for index, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{index}"
        shape = weights.get(node.input[1], ()) if len(node.input) > 1 else ()
        fits = len(shape) == 4 and max(shape[2:]) <= _LONGEST_KERNEL and shape[0] >= 16 and shape[1] >= 16
        residual = (
            node.op_type == "Add" and not any(name in weights for name in node.input) and "front" not in node.name
        )
        if (node.op_type == "Conv" and fits) or (residual and "/body/" in node.name):
            chosen.append(node.name)
    return chosen


def spread(windows: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """`count` windows, evenly spread over all."""
    index = np.linspace(0, len(windows) - 1, min(count, len(windows))).astype(int)
    return [windows[i] for i in index]
