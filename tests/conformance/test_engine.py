"""What every engine must do alike. The tiny bundle's golden scores come from the `onnx` package's own evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edge_agent import engine
from edge_agent.core.records import Model
from edge_agent.errors import BundleError, ConfigError
from tests.parts.bundle import EMBEDDING, HEIGHT, HISTORY, SAMPLES, STEPS, WIDTH, rewrite, tiny_bundle

ENGINES = ("openvino", "onnxruntime")
Item = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("engine"))


@pytest.fixture(params=ENGINES)
def model(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Model]:
    loaded = engine.load(bundle, request.param)
    yield loaded
    loaded.engine.close()


def _vision(rng: np.random.Generator) -> Item:
    return {"frames": rng.integers(0, 256, (5, HEIGHT, WIDTH)).astype(np.uint8)}


def _audio(rng: np.random.Generator) -> Item:
    return {"pcm": rng.integers(-9000, 9000, SAMPLES).astype(np.int16)}


def _sensors(rng: np.random.Generator) -> Item:
    return {"readings": rng.uniform(0, 50, (3, 12, STEPS)).astype(np.float32)}


def _fusion(rng: np.random.Generator) -> Item:
    item = {
        name: rng.uniform(0, 4, (HISTORY, EMBEDDING)).astype(np.float32) for name in ("vision", "audio", "sensors")
    }
    return {**item, "mask": rng.integers(0, 2, (HISTORY, 3)).astype(np.float32)}


GRAPHS: dict[str, Callable[[np.random.Generator], Item]] = {
    "vision": _vision,
    "audio": _audio,
    "sensors": _sensors,
    "fusion": _fusion,
}
OUTPUTS = {
    "vision": {"embedding": (EMBEDDING,), "logit": (), "heat": (HEIGHT // 8, WIDTH // 8)},
    "audio": {"embedding": (EMBEDDING,), "logit": ()},
    "sensors": {"embedding": (EMBEDDING,), "logit": ()},
    "fusion": {"logit": (), "classes": (3,), "modality_logits": (3,), "embedding": (EMBEDDING,)},
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_outputs_have_the_promised_names_types_and_shapes(model: Model, graph: str) -> None:
    (output,) = model.engine.run(graph, [GRAPHS[graph](np.random.default_rng(0))])
    assert {name: array.shape for name, array in output.items()} == OUTPUTS[graph]
    assert {array.dtype for array in output.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_batch_gives_what_its_items_give_one_by_one(model: Model, graph: str, count: int) -> None:
    rng = np.random.default_rng(count)
    items = [GRAPHS[graph](rng) for _ in range(count)]
    together = model.engine.run(graph, items)
    assert len(together) == count
    for item, output in zip(items, together, strict=True):
        (alone,) = model.engine.run(graph, [item])
        for name, array in output.items():
            np.testing.assert_allclose(array, alone[name], rtol=1e-4, atol=1e-4)


def test_how_a_picture_lies_in_memory_does_not_matter(model: Model) -> None:
    planes = _vision(np.random.default_rng(2))["frames"]
    pixels = np.ascontiguousarray(planes.transpose(1, 2, 0)).transpose(2, 0, 1)
    (one,), (other,) = (model.engine.run("vision", [{"frames": frames}]) for frames in (planes, pixels))
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_a_smaller_batch_after_a_larger_one_is_on_its_own(model: Model) -> None:
    rng = np.random.default_rng(3)
    items = [_fusion(rng) for _ in range(5)]
    (alone,) = model.engine.run("fusion", items[:1])
    model.engine.run("fusion", items)
    (again,) = model.engine.run("fusion", items[:1])
    for name, array in alone.items():
        np.testing.assert_array_equal(array, again[name])


def test_no_items_give_no_outputs(model: Model) -> None:
    assert model.engine.run("vision", []) == []


def test_outputs_are_the_callers_to_keep(model: Model) -> None:
    rng = np.random.default_rng(0)
    (first,) = model.engine.run("sensors", [_sensors(rng)])
    kept = {name: array.copy() for name, array in first.items()}
    model.engine.run("sensors", [_sensors(rng)])
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_both_engines_pass_the_selftest_and_agree(bundle: Path) -> None:
    item = _fusion(np.random.default_rng(3))
    logits = []
    for name in ENGINES:
        loaded = engine.load(bundle, name)
        result = engine.selftest(loaded, bundle)
        assert result.items > 1
        assert result.worst < 1e-4
        assert 0 < result.p50_ms <= result.p99_ms <= result.worst_ms
        logits.append(float(loaded.engine.run("fusion", [item])[0]["logit"]))
        loaded.engine.close()
    assert logits[0] == pytest.approx(logits[1], abs=1e-4)


def test_precision_is_f32_and_the_threads_are_those_asked_for(bundle: Path) -> None:
    for name in ENGINES:
        for threads in (1, 2):
            loaded = engine.load(bundle, name, threads)
            settings = loaded.engine.settings  # type: ignore[attr-defined]
            assert (settings["precision"], settings["threads"]) == ("f32", str(threads))
            loaded.engine.close()


def test_close_may_be_called_twice_and_ends_it(model: Model) -> None:
    item = _audio(np.random.default_rng(0))
    model.engine.close()
    model.engine.close()
    with pytest.raises(ValueError, match="closed"):
        model.engine.run("audio", [item])


@pytest.mark.parametrize(
    ("graph", "item", "said"),
    [
        ("depth", {}, "no graph is named 'depth'"),
        ("audio", {"sound": np.zeros(SAMPLES, np.int16)}, "takes \\['pcm'\\]"),
        ("audio", {"pcm": np.zeros(SAMPLES - 1, np.int16)}, "pcm takes"),
        ("audio", {"pcm": np.zeros(SAMPLES, np.float32)}, "pcm takes"),
        ("sensors", {"readings": np.full((3, 12, STEPS), np.nan, np.float32)}, "not finite"),
        ("sensors", {"readings": np.full((3, 12, STEPS), np.inf, np.float32)}, "not finite"),
    ],
)
def test_inputs_that_a_graph_does_not_take_are_refused(model: Model, graph: str, item: Item, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.engine.run(graph, [item])


def _renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(graph: onnx.ModelProto) -> None:
        for port in (*graph.graph.input, *graph.graph.output):
            if port.name == old:
                port.name = new
        for node in graph.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return change


def _fixed_batch(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _other_samples(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = SAMPLES // 2


def _unknown_operator(graph: onnx.ModelProto) -> None:
    graph.graph.node[1].op_type = "LaunchMissiles"


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed("pcm", "sound"), "inputs are \\['sound'\\], expected \\['pcm'\\]"),
        (_renamed("logit", "score"), "outputs are \\['embedding', 'score'\\]"),
        (_fixed_batch, "no free batch axis"),
        (_other_samples, "pcm is"),
        (_unknown_operator, "cannot"),
    ],
)
def test_a_graph_that_breaks_the_promise_is_refused(
    tmp_path: Path, name: str, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    folder = tiny_bundle(tmp_path)
    graph = onnx.load_from_string((folder / "audio.onnx").read_bytes())
    change(graph)
    rewrite(folder, "audio.onnx", graph.SerializeToString())
    with pytest.raises(BundleError, match=said):
        engine.load(folder, name)


def test_an_unknown_engine_names_those_that_are_installed(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="'abacus' is not installed; there are openvino, onnxruntime"):
        engine.load(bundle, "abacus")


def test_no_threads_are_refused(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 thread"):
        engine.load(bundle, "onnxruntime", 0)


def test_the_selftest_refuses_an_engine_that_computes_something_else(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path)
    graph = onnx.load_from_string((folder / "fusion.onnx").read_bytes())
    for tensor in graph.graph.initializer:
        if tensor.name == "high":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(1.0, np.float32), "high"))
    rewrite(folder, "fusion.onnx", graph.SerializeToString())
    loaded = engine.load(folder, "onnxruntime")
    with pytest.raises(BundleError, match=r"golden item .* scores .* promised"):
        engine.selftest(loaded, folder)


def test_the_selftest_refuses_a_graph_that_gives_nan(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path)
    graph = onnx.load_from_string((folder / "fusion.onnx").read_bytes())
    for tensor in graph.graph.initializer:
        if tensor.name == "four":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "four"))
    rewrite(folder, "fusion.onnx", graph.SerializeToString())
    loaded = engine.load(folder, "onnxruntime")
    with pytest.raises(BundleError, match="scores nan"):
        engine.selftest(loaded, folder)


def test_the_selftest_wants_the_models_own_bundle(tmp_path: Path, bundle: Path) -> None:
    loaded = engine.load(bundle, "onnxruntime")
    other = tiny_bundle(tmp_path, seed=1)
    with pytest.raises(BundleError, match="holds bundle"):
        engine.selftest(loaded, other)
