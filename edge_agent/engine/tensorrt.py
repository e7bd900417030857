"""TensorRT: a graph of a bundle compiled ahead of time. The only home of `tensorrt` and `tensorrt_rtx`.

Written to what TensorRT 10, TensorRT 11 and TensorRT for RTX have in common: strongly typed networks, so that the
Q/DQ pairs in the file are the only word on precision; no calibrator, no precision flag.

Compiling and looking at what was parsed is all there is so far. Nothing here runs an engine: that takes a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from edge_agent.engine import onnxfile
from edge_agent.errors import BundleError, ConfigError

#: Modules with TensorRT's Python interface, the device's own (JetPack, server) first.
_MODULES = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True, slots=True)
class Built:
    """An engine for one GPU architecture and one version of TensorRT; neither may differ where it runs."""

    engine: bytes
    version: str  #: module and version that built it, as in `tensorrt_rtx 1.7.1.116`
    convolutions: int
    int8: int  #: how many of the convolutions read dequantised int8, as data and as weights


def installed() -> tuple[str, ...]:
    """Modules with TensorRT's interface that are installed here; nothing is imported."""
    return tuple(name for name in _MODULES if find_spec(name) is not None)


def build(graph: str, onnx: bytes, items: int = 8, capability: str | None = None) -> Built:
    """Compile one graph for batches of 1 to `items`; best at `items`. Seconds, and no GPU if `capability` is given.

    `capability` names the architecture to compile for, as in `SM86` (TensorRT for RTX only); None is the GPU of this
    machine. int16 inputs are taken as float32, since TensorRT has no such type: every int16 is exact in it.
    ConfigError where nothing is installed or the architecture is unknown; BundleError for a file that the parser or
    the builder refuses, with their own words.
    """
    here = installed()
    if not here:
        raise ConfigError("TensorRT is not installed; pip install tensorrt-rtx-cu13, or JetPack's own module")
    trt = import_module(here[-1] if capability is not None else here[0])
    heard: list[str] = []
    logger = _logger(trt, heard)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnxfile.retyped(onnx, onnxfile.INT16, onnxfile.FLOAT, graph)):
        raise BundleError(f"{graph}.onnx: {trt.__name__} {trt.__version__} cannot parse it: {'; '.join(heard)}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, items))
    if capability is not None:
        _aim(trt, config, capability)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BundleError(f"{graph}.onnx: {trt.__name__} {trt.__version__} cannot build it: {'; '.join(heard)}")
    convolutions, int8 = _convolutions(trt, network)
    return Built(bytes(engine), f"{trt.__name__} {trt.__version__}", convolutions, int8)


def _logger(trt: Any, heard: list[str]) -> Any:
    """Keeps errors for the exception: TensorRT's own logger writes them to stdout."""

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                heard.append(message)

    return Kept()


def _profile(builder: Any, network: Any, items: int) -> Any:
    """Every input's free batch axis: 1 to `items`."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = list(tensor.shape)[1:]
        profile.set_shape(tensor.name, [1, *rest], [items, *rest], [items, *rest])
    return profile


def _aim(trt: Any, config: Any, capability: str) -> None:
    known = getattr(trt, "ComputeCapability", None)
    if not hasattr(known, capability):
        names = [name for name in dir(known) if name.startswith("SM")]
        raise ConfigError(
            f"{trt.__name__} {trt.__version__} cannot compile for {capability!r} from here; "
            f"it knows {', '.join(names) or 'the GPU of this machine alone'}"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, capability), 0)


def _convolutions(trt: Any, network: Any) -> tuple[int, int]:
    """(all, those whose data and weights are dequantised). The layers are those parsed: fusing them comes later."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised = {
        layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE and layer.num_outputs
    }
    found = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    int8 = [
        layer
        for layer in found
        if all((tensor := layer.get_input(i)) is not None and tensor.name in dequantised for i in (0, 1))
    ]
    return len(found), len(int8)
