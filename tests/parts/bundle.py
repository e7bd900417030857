"""A bundle of a few kilobytes whose score can be predicted: for every test that needs a model but not a good one.

What raises its score: motion of bright things in the picture (class `fight`), loud sound (`gunshot`), smoke in ppm
(`fire`). A quiet scene scores about 0.02; each modality alone can take it above 0.9. It sees the newest two windows.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edge_agent.config import QUANTITIES, UNITS
from edge_agent.contract.manifest import AudioSpec, FileRef, Manifest, SensorSpec, Thresholds, VisionSpec

WIDTH, HEIGHT, SAMPLES, STEPS, HISTORY, EMBEDDING = 64, 48, 16_000, 16, 8, 8
CLASSES = ("fight", "gunshot", "fire")  #: raised by vision, audio, sensors, in this order
SMOKE = QUANTITIES.index("smoke")
GOLDEN_ITEMS = 6

Array = NDArray[Any]


def tiny_bundle(tmp_path: Path, seed: int = 0, counter: int = 1, **changes: Any) -> Path:
    """Folder of a bundle below `tmp_path`. `seed` changes embeddings, not scores; `changes` are manifest fields."""
    folder = tmp_path / f"bundle-{seed}-{counter}"
    folder.mkdir(parents=True, exist_ok=True)
    graphs = _graphs(np.random.default_rng(seed))
    files = {f"{name}.onnx": model.SerializeToString() for name, model in graphs.items()}
    files["golden.npz"] = _golden(graphs, seed)
    files["card.md"] = b"# tiny\n\nRandom weights for tests. It detects nothing.\n"
    manifest = Manifest(
        family="tiny",
        name=f"tiny-{seed}",
        counter=counter,
        created="2026-01-01T00:00:00Z",
        history=HISTORY,
        embedding=EMBEDDING,
        classes=CLASSES,
        vision=VisionSpec(width=WIDTH, height=HEIGHT),
        audio=AudioSpec(rate_hz=16_000, samples=SAMPLES),
        sensors=SensorSpec(quantities=QUANTITIES, units=UNITS, steps=STEPS),
        thresholds=Thresholds(on=0.6, off=0.4, classes=dict.fromkeys(CLASSES, 0.5)),
        files={
            name: FileRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in files.items()
        },
    )
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, **changes)))
    return folder


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Put other bytes into a file of a bundle and sign for them: the manifest is changed with it."""
    (folder / name).write_bytes(data)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def _graphs(rng: np.random.Generator) -> dict[str, onnx.ModelProto]:
    return {
        "vision": _vision(rng),
        "audio": _audio(rng),
        "sensors": _sensors(rng),
        "fusion": _fusion(rng),
    }


def _embed(rng: np.random.Generator, features: int) -> Array:
    """(features, D): the evidence is copied into the first number of the embedding, the rest is noise of it."""
    weights = rng.normal(0, 0.5, (features, EMBEDDING)).astype(np.float32)
    weights[:, 0] = 0
    weights[0, 0] = 1
    return weights


def _vision(rng: np.random.Generator) -> onnx.ModelProto:
    # Two maps out of five planes: luma(t) − luma(t − d1), and luma(t). |first| is motion; 10 % of full scale is much.
    kernel = np.zeros((2, 5, 1, 1), np.float32)
    kernel[:, :3, 0, 0] = (0.299, 0.587, 0.114)
    kernel[0, 3, 0, 0] = -1
    nodes = [
        helper.make_node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "kernel"], ["maps"]),
        helper.make_node("Abs", ["maps"], ["magnitude"]),
        helper.make_node("AveragePool", ["magnitude"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("ReduceMean", ["magnitude", "plane"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "scale"], ["features"]),
        helper.make_node("MatMul", ["features", "embed"], ["embedding"]),
        helper.make_node("Gather", ["features", "zero"], ["evidence"], axis=1),
        helper.make_node("Sub", ["evidence", "four"], ["logit"]),
        helper.make_node("Gather", ["cells", "zero"], ["cell"], axis=1),
        helper.make_node("Div", ["cell", "heat_scale"], ["warm"]),
        helper.make_node("Sub", ["warm", "four"], ["heat"]),
    ]
    weights = {
        "kernel": kernel,
        "plane": np.array([2, 3], np.int64),
        "scale": np.array([1.0, 64.0], np.float32),
        "heat_scale": np.float32(4.0),
        "embed": _embed(rng, 2),
        "zero": np.int64(0),
        "four": np.float32(4.0),
    }
    inputs = [_value("frames", TensorProto.UINT8, (5, HEIGHT, WIDTH))]
    return _model("vision", nodes, weights, inputs, [*_encoded(), _floats("heat", (HEIGHT // 8, WIDTH // 8))])


def _audio(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["pcm"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Abs", ["x"], ["magnitude"]),
        helper.make_node("ReduceMean", ["magnitude", "time"], ["mean"], keepdims=1),
        helper.make_node("Div", ["mean", "scale"], ["features"]),
        helper.make_node("MatMul", ["features", "embed"], ["embedding"]),
        helper.make_node("Gather", ["features", "zero"], ["evidence"], axis=1),
        helper.make_node("Sub", ["evidence", "four"], ["logit"]),
    ]
    weights = {
        "time": np.array([1], np.int64),
        "scale": np.float32(500.0),
        "embed": _embed(rng, 1),
        "zero": np.int64(0),
        "four": np.float32(4.0),
    }
    return _model("audio", nodes, weights, [_value("pcm", TensorProto.INT16, (SAMPLES,))], _encoded())


def _sensors(rng: np.random.Generator) -> onnx.ModelProto:
    pick = np.zeros((3 * len(QUANTITIES) * STEPS, 1), np.float32)
    pick[SMOKE * STEPS + STEPS - 1, 0] = 1 / 20  # value of the newest step: 100 ppm is 5 logits
    nodes = [
        helper.make_node("Flatten", ["readings"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "pick"], ["features"]),
        helper.make_node("MatMul", ["features", "embed"], ["embedding"]),
        helper.make_node("Gather", ["features", "zero"], ["evidence"], axis=1),
        helper.make_node("Sub", ["evidence", "four"], ["logit"]),
    ]
    weights = {"pick": pick, "embed": _embed(rng, 1), "zero": np.int64(0), "four": np.float32(4.0)}
    inputs = [_value("readings", TensorProto.FLOAT, (3, len(QUANTITIES), STEPS))]
    return _model("sensors", nodes, weights, inputs, _encoded())


def _fusion(rng: np.random.Generator) -> onnx.ModelProto:
    # Evidence = mean of the newest two embeddings' first number under the mask, at most 12; what vision and audio
    # agree on counts a little more, so that the shares are not simply the evidence.
    newest = np.zeros((1, HISTORY, 1), np.float32)
    newest[0, -2:] = 0.5
    nodes: list[onnx.NodeProto] = []
    for index, name in enumerate(("vision", "audio", "sensors")):
        nodes += [
            helper.make_node("Slice", ["mask", f"from{index}", f"to{index}", "last"], [f"mask_{name}"]),
            helper.make_node("Mul", [name, f"mask_{name}"], [f"seen_{name}"]),
            helper.make_node("Mul", [f"seen_{name}", "newest"], [f"recent_{name}"]),
            helper.make_node("ReduceSum", [f"recent_{name}", "time"], [f"pooled_{name}"], keepdims=0),
            helper.make_node("Gather", [f"pooled_{name}", "first"], [f"raw_{name}"], axis=1),
            helper.make_node("Clip", [f"raw_{name}", "low", "high"], [f"evidence_{name}"]),
        ]
    nodes += [
        helper.make_node(
            "Concat", [f"evidence_{name}" for name in ("vision", "audio", "sensors")], ["evidence"], axis=1
        ),
        helper.make_node("Sub", ["evidence", "four"], ["modality_logits"]),
        helper.make_node("Identity", ["modality_logits"], ["classes"]),
        helper.make_node("Mul", ["evidence_vision", "evidence_audio"], ["both"]),
        helper.make_node("Mul", ["both", "agreement"], ["agreed"]),
        helper.make_node("ReduceSum", ["evidence", "features"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "agreed"], ["strength"]),
        helper.make_node("Sub", ["strength", "four"], ["logit_column"]),
        helper.make_node("Squeeze", ["logit_column", "features"], ["logit"]),
        helper.make_node("MatMul", ["evidence", "embed"], ["embedding"]),
    ]
    weights: dict[str, Any] = {
        "newest": newest,
        "time": np.array([1], np.int64),
        "features": np.array([1], np.int64),
        "first": np.array([0], np.int64),
        "last": np.array([2], np.int64),
        "low": np.float32(0.0),
        "high": np.float32(12.0),
        "four": np.float32(4.0),
        "agreement": np.float32(0.1),
        "embed": rng.normal(0, 0.5, (3, EMBEDDING)).astype(np.float32),
    }
    for index in range(3):
        weights |= {f"from{index}": np.array([index], np.int64), f"to{index}": np.array([index + 1], np.int64)}
    inputs = [_floats(name, (HISTORY, EMBEDDING)) for name in ("vision", "audio", "sensors")]
    outputs = [
        _floats("logit", ()),
        _floats("classes", (len(CLASSES),)),
        _floats("modality_logits", (3,)),
        _floats("embedding", (EMBEDDING,)),
    ]
    return _model("fusion", nodes, weights, [*inputs, _floats("mask", (HISTORY, 3))], outputs)


def _value(name: str, kind: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def _floats(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return _value(name, TensorProto.FLOAT, shape)


def _encoded() -> list[onnx.ValueInfoProto]:
    return [_floats("embedding", (EMBEDDING,)), _floats("logit", ())]


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(array), key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def _golden(graphs: dict[str, onnx.ModelProto], seed: int) -> bytes:
    """Vectors with the scores of the `onnx` package's own evaluator: no engine marks its own work."""
    rng = np.random.default_rng(seed + 1)
    n = GOLDEN_ITEMS
    frames = rng.integers(0, 256, (n, 5, HEIGHT, WIDTH)).astype(np.uint8)
    frames[1:] = frames[1:] // np.arange(2, n + 1).reshape(-1, 1, 1, 1)
    pcm = (rng.normal(0, 1, (n, SAMPLES)) * np.linspace(10, 4000, n).reshape(-1, 1)).astype(np.int16)
    readings = rng.uniform(0, 40, (n, 3, len(QUANTITIES), STEPS)).astype(np.float32)
    mask = np.ones((n, 3), np.float32)
    mask[2, 0] = mask[3, 1] = mask[4, 2] = mask[5, :2] = 0
    embeddings = {}
    for name, key, data in (("vision", "frames", frames), ("audio", "pcm", pcm), ("sensors", "readings", readings)):
        (embedding,) = _run(graphs[name], "embedding", {key: data})
        embeddings[name] = np.repeat(embedding[:, None, :], HISTORY, axis=1).astype(np.float32)
    repeated = np.repeat(mask[:, None, :], HISTORY, axis=1)
    (logit,) = _run(graphs["fusion"], "logit", {**embeddings, "mask": repeated})
    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=frames, pcm=pcm, readings=readings, mask=mask, score=score)
    return buffer.getvalue()


def _run(model: onnx.ModelProto, output: str, inputs: dict[str, Array]) -> list[Array]:
    return cast(list[Array], ReferenceEvaluator(model).run([output], inputs))
