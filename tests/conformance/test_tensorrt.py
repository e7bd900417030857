"""The bundle that ships, compiled by TensorRT for RTX on the CPU. Nothing runs it here: that takes a GPU."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edge_agent.contract.manifest import GRAPHS
from edge_agent.engine import onnxfile, open_bundle, tensorrt
from edge_agent.errors import BundleError, ConfigError

SHIPPED = Path(__file__).resolve().parents[2] / "edge_agent" / "bundle"
#: Ampere, as in a Jetson Orin's GPU: its own SM87 is not among those that can be aimed at from a CPU.
CAPABILITY = "SM86"


@pytest.mark.needs("tensorrt-rtx")
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_of_the_shipped_bundle_compiles(graph):
    built = tensorrt.build(graph, open_bundle(SHIPPED).read(f"{graph}.onnx"), capability=CAPABILITY)
    print(
        f"{graph}: {len(built.engine)} bytes, {built.int8} of {built.convolutions} convolutions int8, {built.version}"
    )
    assert len(built.engine) > 10_000
    if graph in ("vision", "audio"):
        assert built.int8 >= built.convolutions // 2, "most of the encoder's convolutions were to be int8"


@pytest.mark.needs("tensorrt-rtx")
def test_what_cannot_be_compiled_is_refused_with_the_reason():
    with pytest.raises(BundleError, match=r"cannot parse it: .*Sinkhorn"):
        tensorrt.build("fusion", _unknown_operator(), capability=CAPABILITY)
    with pytest.raises(ConfigError, match="knows SM"):
        tensorrt.build("fusion", open_bundle(SHIPPED).read("fusion.onnx"), capability="SM12")


def test_without_tensorrt_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorrt-rtx"):
        tensorrt.build("fusion", b"")


def test_only_the_inputs_of_one_type_are_declared_anew():
    before = open_bundle(SHIPPED).read("audio.onnx")
    after = onnx.load_from_string(onnxfile.retyped(before, onnxfile.INT16, onnxfile.FLOAT, "audio"))
    was = onnx.load_from_string(before)
    assert after.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    after.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT16
    assert after == was
    vision = open_bundle(SHIPPED).read("vision.onnx")
    assert onnxfile.retyped(vision, onnxfile.INT16, onnxfile.FLOAT, "vision") == vision


def _unknown_operator() -> bytes:
    side = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Sinkhorn", ["x"], ["y"], domain="nobody")]
    x, y = (side(name, onnx.TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nobody", 1)]
    return onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets
    ).SerializeToString()
