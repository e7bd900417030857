"""Pruning, low rank, int8 and the training for it, on networks of a few seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from onnx import numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

from edge_agent.errors import BundleError  # noqa: E402
from models.compression import qat  # noqa: E402
from models.compression.export import export, fold  # noqa: E402
from models.compression.footprint import footprint, latencies  # noqa: E402
from models.compression.prune import low_rank, parameters, prune  # noqa: E402
from models.compression.quantise import (  # noqa: E402
    calibrate,
    convolutions,
    embeddings,
    inserted,
    plain,
    quantise,
    weight_scale,
)
from models.compression.shrink import shrink  # noqa: E402
from models.compression.tables import lighten  # noqa: E402
from models.config import Compression, Schedule, preset, teacher  # noqa: E402
from models.evaluation import weight  # noqa: E402
from models.network.encoders import VisionEncoder  # noqa: E402
from models.network.frontend import MIDDLE, VisionFront  # noqa: E402
from models.network.graphs import AudioGraph, VisionGraph  # noqa: E402

SHIPPED = Path(__file__).resolve().parents[3] / "edge_agent" / "bundle"
SHORT = Schedule(steps=2, batch=4, rate=1e-4)
SHAPE = replace(
    preset("tiny"),
    audio_channels=(16, 16, 16, 32),
    compression=Compression(wider_vision=2, wider_audio=2, energy=0.9, vision=SHORT, audio=SHORT, aware=SHORT),
)


@pytest.fixture(scope="module")
def sounds() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 10 ** rng.uniform(1, 3.5), 16_000).astype(np.int16) for _ in range(10)]


@pytest.fixture(scope="module")
def audio(sounds) -> AudioGraph:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    graph = AudioGraph(teacher(SHAPE)).train()
    with torch.no_grad():  # batch norm sees data, so that folding it is put to the test
        for _ in range(4):
            graph(torch.from_numpy(np.stack(sounds)))
    return graph.eval()


@pytest.fixture(scope="module")
def exported(audio, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "audio.onnx"
    export(audio, SHAPE, "audio", path)
    return path


def test_pruning_leaves_multiples_of_sixteen_and_the_outputs_as_they_are():
    torch.manual_seed(0)
    encoder, x = VisionEncoder((32, 48, 64), 64).eval(), torch.randn(2, 5, 32, 48)
    pruned = prune(encoder, x, 0.5)
    widths = {m.out_channels for m in pruned.modules() if isinstance(m, nn.Conv2d) and m.out_channels > 1}
    assert widths <= {16, 32, 64}
    assert [y.shape for y in pruned(x)] == [y.shape for y in encoder(x)]
    assert parameters(pruned) < parameters(encoder) / 2
    assert all(torch.equal(a, b) for a, b in zip(prune(encoder, x, 0.0)(x), encoder(x), strict=True))


def test_the_weakest_channels_go():
    torch.manual_seed(0)
    encoder = VisionEncoder((32, 32, 64), 64).eval()
    with torch.no_grad():
        encoder.stem[0].weight[::2] *= 1e-6
        encoder.stem[1].weight[::2] *= 1e-6
        encoder.down[0].weight[:, ::2] *= 1e-6
    kept = prune(encoder, torch.randn(2, 5, 32, 48), 0.5).stem[0].weight
    assert torch.equal(kept, encoder.stem[0].weight[1::2])


def test_a_layer_of_low_rank_becomes_two_and_another_stays():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32))
    with torch.no_grad():
        layers[0].weight.copy_(torch.randn(48, 4) @ torch.randn(4, 64))
    x = torch.randn(3, 64)
    wanted = layers(x)
    found = low_rank(layers, 0.9999)
    assert [layer.rank for layer in found] == [4, None]
    assert torch.allclose(layers(x), wanted, atol=1e-4)


def test_a_layer_that_int8_hurts_stays_in_float32(exported, sounds, tmp_path):
    model = onnx.load(str(exported))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    name = next(n for n in convolutions(model) if "body.1.second" in n)
    changes = {
        # A channel that is never on, and weights for it that take all the steps of int8.
        "encoder.body.1.first.weight": (slice(0, 1), 0.0, 0.0),
        "encoder.body.1.first.bias": (slice(0, 1), 0.0, -1.0),
        name: ((slice(None), 0), 0.0, 3000.0),
    }
    for tensor, (where, factor, more) in changes.items():
        array = numpy_helper.to_array(tensors[tensor]).copy()
        array[where] = array[where] * factor + more
        tensors[tensor].CopyFrom(numpy_helper.from_array(array, tensor))
    source, target = tmp_path / "odd.onnx", tmp_path / "int8.onnx"
    source.write_bytes(model.SerializeToString())
    layers = quantise(source, target, sounds, hurts=0.02)
    assert layers.kept == (name,)
    assert layers.error < layers.errors[name]
    kept = {tensor.name for tensor in onnx.load(str(target)).graph.initializer if tensor.name.endswith("_int8")}
    assert f"{name}_int8" not in kept
    assert "encoder.body.1.first.weight_int8" in kept


def test_training_rounds_as_the_file_does(audio, exported, sounds):
    model = onnx.load(str(exported))
    scales = calibrate(model, sounds)
    rounding = qat.aware(fold(audio), model, scales)
    with torch.no_grad():
        trained = rounding(torch.from_numpy(np.stack(sounds)))[0].numpy()
    deployed = embeddings(inserted(model, scales, list(convolutions(model))), [sound[None] for sound in sounds])
    exact = embeddings(model, [sound[None] for sound in sounds])
    # What lies on the edge between two steps falls to either side; all else is the same.
    assert np.square(trained - deployed).mean() < 0.4 * np.square(deployed - exact).mean()
    with torch.no_grad():
        again = qat.plain(rounding)(torch.from_numpy(np.stack(sounds)))[0].numpy()
    assert np.abs(again - exact).max() < 1e-4


def test_an_int8_file_tells_the_float_graph_that_it_stands_for(exported, sounds, tmp_path):
    target = tmp_path / "int8.onnx"
    quantise(exported, target, sounds)
    inputs = [sound[None] for sound in sounds]
    data = plain(target.read_bytes())
    back = onnx.load_from_string(data)
    assert not {node.op_type for node in back.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert footprint(data).parameters == footprint(exported.read_bytes()).parameters
    off = np.abs(embeddings(back, inputs) - embeddings(onnx.load(str(exported)), inputs)).max()
    assert off < 0.1


def test_a_lighter_file_computes_the_same_and_keeps_the_front_end_exact(exported, sounds, tmp_path):
    model = onnx.load(str(exported))
    lighten(model)
    assert len(model.SerializeToString()) < exported.stat().st_size / 2
    inputs = [sound[None] for sound in sounds]
    wanted = embeddings(onnx.load(str(exported)), inputs)
    assert np.abs(embeddings(model, inputs) - wanted).max() < 2e-3 * np.abs(wanted).max()
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    assert halves
    assert not [tensor.name for tensor in halves if tensor.name.startswith("/front/")]


def test_nothing_to_quantise_is_an_error(tmp_path, sounds):
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "empty.onnx"))
    with pytest.raises(BundleError, match="no convolution"):
        quantise(tmp_path / "empty.onnx", tmp_path / "small.onnx", sounds)


def test_the_whole_way_tells_every_step(audio, sounds):
    asked = []
    small = shrink(
        "audio", audio, SHAPE, sounds, seed=0, judge=lambda name, data: {"bytes": asked.append(name) or len(data)}
    )
    names = [step.name for step in small.steps]
    assert names[:2] == ["teacher", "pruned"]
    assert names[-3:] == ["distilled", "int8", "int8, trained for it"]
    assert asked == ["audio"] * len(names)
    teacher, last = small.steps[0], small.steps[-1]
    assert teacher.error == 0
    assert last.parameters < teacher.parameters / 2
    assert last.macs < teacher.macs
    assert len(small.int8) < teacher.bytes / 3
    assert small.layers.quantised == small.layers.convolutions - 1
    # What ships is as wide as the preset says.
    wanted, made = AudioGraph(SHAPE).encoder, small.module.get_submodule("encoder")
    assert _widths(made) == _widths(wanted)


def _widths(module: nn.Module) -> list[int]:
    return [layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (5, 160, 240)).astype(np.uint8) for _ in range(4)]


@pytest.fixture(scope="module")
def vision(frames, tmp_path_factory) -> tuple[VisionGraph, Path]:
    torch.manual_seed(5)
    graph = VisionGraph(SHAPE).train()
    with torch.no_grad():
        graph(torch.from_numpy(np.stack(frames)))
    path = tmp_path_factory.mktemp("vision") / "vision.onnx"
    export(graph.eval(), SHAPE, "vision", path)
    return graph, path


def test_the_front_end_of_vision_is_part_of_the_first_convolution(vision, frames):
    graph, path = vision
    folded = fold(graph)
    x = torch.from_numpy(np.stack(frames))
    with torch.no_grad():
        for wanted, found in zip(graph(x), folded(x), strict=True):
            assert torch.allclose(wanted, found, atol=1e-4)
        again = fold(folded)(x)[0]
    assert torch.equal(folded(x)[0], again)
    operators = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert operators[:3] == ["Cast", "Sub", "Conv"]


def test_int8_holds_the_bytes_of_a_frame_exactly(vision, frames):
    _, path = vision
    model = onnx.load(str(path))
    stem = next(iter(convolutions(model)))
    scales = calibrate(model, frames[:1])
    assert stem == "encoder.stem.weight"
    assert scales[convolutions(model)[stem]] == 1.0
    # With weights that int8 holds too, nothing changes at all.
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == stem)
    whole = np.clip(np.rint(numpy_helper.to_array(tensor) * 1e3), -127, 127).astype(np.float32)
    whole[:, 0, 0, 0] = 127.0
    tensor.CopyFrom(numpy_helper.from_array(whole, stem))
    inputs = [frame[None] for frame in frames]
    wanted = embeddings(model, inputs)
    assert np.allclose(embeddings(inserted(model, scales, [stem]), inputs), wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_move_stays_at_rest_in_int8(frames):
    """The differences over time come out of sums of weights: rounded, they must still cancel on a still picture."""
    stem = nn.Conv2d(5, 16, 3, bias=False)
    with torch.no_grad():
        stem.weight.copy_(torch.randn(16, 5, 3, 3, generator=torch.Generator().manual_seed(1)))
        stem.weight[:, :3] = 0  # it sees what changes, and nothing else
    large = VisionFront().absorbed(stem)
    scale = torch.from_numpy(weight_scale(large.weight.detach().numpy())).view(-1, 1, 1, 1)
    with torch.no_grad():
        large.weight.copy_((large.weight / scale).round() * scale)
        picture = torch.from_numpy(np.stack([frames[0][0]] * 5)[None]).float() - MIDDLE  # grey, the same three times
        still = large(picture).abs().mean()
        picture[:, 3:] -= 8  # grey levels
        assert still < 0.1 * large(picture).abs().mean()


def test_a_footprint_counts_by_hand():
    weights = numpy_helper.from_array(np.zeros((8, 4, 3, 3), np.float32), "w")
    side = onnx.helper.make_tensor_value_info
    x = side("x", onnx.TensorProto.FLOAT, ["batch", 4, 10, 12])
    y = side("y", onnx.TensorProto.FLOAT, ["batch", 8, 8, 10])
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    graph = onnx.helper.make_graph([node], "g", [x], [y], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    found = footprint(model.SerializeToString())
    assert (found.parameters, found.macs) == (288, 8 * 8 * 10 * 36)


def test_the_report_of_the_shipped_bundle_is_whole(monkeypatch):
    monkeypatch.setattr(weight, "latencies", lambda ways: latencies(ways, rounds=1, calls=1))
    monkeypatch.setattr(weight.tensorrt, "installed", lambda: ())
    found = weight.report(SHIPPED)
    json.dumps(found)
    assert found["total"]["parameters"] < 2_500_000
    assert found["total"]["bytes"] == sum(one["bytes"] for one in found["graphs"].values())
    assert {"openvino int8", "openvino f32", "onnxruntime int8", "onnxruntime f32"} < found["step_ms"].keys()
    page = weight.page(found)
    assert f"{found['total']['bytes']:,}" in page
    assert "whole step" in weight.text(found)
    told = weight.text(found).splitlines()[0]
    assert f"{found['total']['teacher_over_int8']} times smaller" in told
    assert f"vision is {found['vision_int8_over_f32']} times faster" in told


def test_latencies_are_of_each_way():
    found = latencies({"little": lambda: None, "much": lambda: sum(range(20_000))}, rounds=2, calls=5)
    assert found["little"].p50 < found["much"].p50 <= found["much"].p99 <= found["much"].worst
