"""The four graphs: what goes in, what comes out, and what a missing modality may not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.config import QUANTITIES  # noqa: E402
from edge_agent.contract.event import MODALITIES  # noqa: E402
from edge_agent.contract.manifest import AudioSpec  # noqa: E402
from models.compression.export import export  # noqa: E402
from models.compression.quantise import quantise  # noqa: E402
from models.config import CLASSES, preset  # noqa: E402
from models.network.frontend import SENSOR_SCALE, AudioFront, MelPower, SensorFront, VisionFront  # noqa: E402
from models.network.graphs import OUTPUTS, build, example  # noqa: E402

TINY = preset("tiny")


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    built = build(TINY, seed=3)
    for module in built.graphs().values():
        module.eval()
    return built


def _fusion_inputs(seed: int):
    generator = torch.Generator().manual_seed(seed)
    shape = (4, TINY.history, TINY.embedding)
    return {name: torch.randn(shape, generator=generator) for name in MODALITIES}


@pytest.mark.parametrize("missing", range(3))
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_a_masked_modality_changes_nothing_at_all(network, missing, garbage):
    inputs = _fusion_inputs(0)
    mask = torch.ones(4, TINY.history, 3)
    mask[:, :, missing] = 0
    with torch.inference_mode():
        clean = network.fusion(*inputs.values(), mask)
        inputs[MODALITIES[missing]] = torch.full_like(inputs["vision"], garbage)
        dirty = network.fusion(*inputs.values(), mask)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


def test_a_single_masked_step_changes_nothing(network):
    inputs = _fusion_inputs(1)
    mask = torch.ones(4, TINY.history, 3)
    mask[:, 2, 0] = 0
    with torch.inference_mode():
        clean = network.fusion(*inputs.values(), mask)
        inputs["vision"][:, 2] = 1e9
        assert torch.equal(clean[0], network.fusion(*inputs.values(), mask)[0])


def test_a_present_modality_does_change_the_score(network):
    inputs = _fusion_inputs(2)
    mask = torch.ones(4, TINY.history, 3)
    with torch.inference_mode():
        before = network.fusion(*inputs.values(), mask)[0]
        inputs["audio"] = inputs["audio"] + 5.0
        assert not torch.equal(before, network.fusion(*inputs.values(), mask)[0])


def test_nothing_at_all_still_gives_a_score(network):
    with torch.inference_mode():
        logit = network.fusion(*_fusion_inputs(3).values(), torch.zeros(4, TINY.history, 3))[0]
    assert torch.isfinite(logit).all()
    assert logit.unique().numel() == 1


@pytest.mark.parametrize("graph", OUTPUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_shapes_are_those_of_the_engine(network, graph, count):
    with torch.inference_mode():
        found = dict(zip(OUTPUTS[graph], network.graphs()[graph](*example(TINY, graph, count).values()), strict=True))
    size = TINY.embedding
    assert found["logit"].shape == (count,)
    assert found["embedding"].shape == (count, size)
    if graph == "vision":
        assert found["heat"].shape == (count, TINY.vision_spec.height // 8, TINY.vision_spec.width // 8)
    if graph == "fusion":
        assert found["classes"].shape == (count, len(CLASSES))
        assert found["modality_logits"].shape == (count, 3)


def test_the_vision_front_sees_no_motion_in_a_still():
    frame = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    luma = (frame.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).round()
    x = VisionFront()(torch.cat([frame, luma.to(torch.uint8), luma.to(torch.uint8)], 1))
    assert x[:, 3:].abs().max() < 0.02  # rounding of one grey level at most
    assert x.shape == (1, 5, 8, 8)


def test_a_full_scale_sine_is_near_0_db_and_silence_is_the_floor():
    spec = TINY.audio_spec
    t = np.arange(spec.samples) / spec.rate_hz
    sine = torch.tensor((32767 * np.sin(2 * np.pi * 1000 * t)).astype(np.int16))[None]
    front = AudioFront(spec)
    # 0 dB is (0 + 60) / 20 = 3, spread over a filter's width.
    assert 2.3 < float(front(sine).max()) <= 3.0
    assert float(front(torch.zeros_like(sine)).max()) == -2.0


def test_what_is_masked_of_the_sensors_cannot_leak():
    front = SensorFront(TINY.sensor_spec.steps)
    readings = torch.zeros(1, 3, len(QUANTITIES), TINY.sensor_spec.steps)
    readings[:, 0, 0] = 21.0
    readings[:, 2, 0] = 1.0
    clean = front(readings)
    readings[:, :2, 1:] = float("nan")
    assert torch.equal(clean, front(readings))


def test_the_sensor_front_shows_change_since_the_first_reading():
    front = SensorFront(TINY.sensor_spec.steps)
    readings = torch.zeros(1, 3, len(QUANTITIES), TINY.sensor_spec.steps)
    readings[:, 2, 0, 10:] = 1.0
    readings[:, 0, 0, 10:40] = 20.0
    readings[:, 0, 0, 40:] = 25.0
    change = front(readings)[0, len(QUANTITIES)]
    assert change[:40].abs().max() == 0
    assert float(change[-1]) == pytest.approx(2.0)  # 5 °C / 10 °C, times four


@pytest.mark.parametrize("samples", [16_000, 15_999, 400])
def test_the_exported_spectrum_is_the_trained_one(samples: int):
    power = MelPower(AudioSpec(samples=samples))
    time_s = torch.arange(samples) / 16_000
    tones = torch.stack([torch.sin(6.2832 * hertz * time_s) for hertz in (100, 2000, 4000, 6000, 7700)])
    pcm = 0.1 * torch.randn(5, samples, generator=torch.Generator().manual_seed(0)) + tones
    assert torch.allclose(power.exported(pcm), power(pcm), rtol=1e-4, atol=1e-6)


def test_every_quantity_has_a_scale():
    assert len(SENSOR_SCALE) == len(QUANTITIES)


def test_int8_has_symmetric_scales_and_float_biases(network, tmp_path: Path):
    plain, small = tmp_path / "plain.onnx", tmp_path / "small.onnx"
    export(network.audio, TINY, "audio", plain)
    rng = np.random.default_rng(0)
    layers = quantise(plain, small, [rng.integers(-3000, 3000, 16_000).astype(np.int16) for _ in range(3)])
    graph = onnx.load(str(small)).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantised = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert quantised
    assert layers.quantised == layers.convolutions - 1  # all but the one-channel stem
    for node in quantised:
        assert (constants[node.input[2]] == 0).all()
        if node.input[0] in constants:
            assert constants[node.input[0]].dtype == np.int8
    stft = next(n for n in graph.node if n.op_type == "Conv" and "front" in n.name)
    assert not {*stft.input} & {node.output[0] for node in quantised}
    assert small.stat().st_size < plain.stat().st_size / 2
    assert max(array.nbytes for array in constants.values()) < 200_000  # the STFT's basis is worked out, not stored
