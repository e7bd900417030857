"""torch ↔ ONNX Runtime ↔ OpenVINO: one network, the same numbers. Prints the CPU's flags: int8 differs with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.event import MODALITIES  # noqa: E402
from edge_agent.contract.manifest import GRAPHS  # noqa: E402
from edge_agent.engine import load, selftest  # noqa: E402
from edge_agent.engine.onnxruntime import OnnxRuntime  # noqa: E402
from edge_agent.engine.openvino import OpenVino  # noqa: E402
from edge_agent.simulate import Site, demo  # noqa: E402
from models import bundle, recipe  # noqa: E402
from models.compression.export import export  # noqa: E402
from models.compression.quantise import QUANTISED, quantise  # noqa: E402
from models.config import preset, teacher  # noqa: E402
from models.data import site  # noqa: E402
from models.evaluation import fieldtest, parity  # noqa: E402
from models.evaluation.composed import Episodes as Composed  # noqa: E402
from models.evaluation.fieldtest import Sites, Source  # noqa: E402
from models.evaluation.variants import Variant  # noqa: E402
from models.network.graphs import OUTPUTS, Network, build  # noqa: E402

SHAPE = preset("tiny")
SHIPPED = Path(__file__).resolve().parents[2] / "edge_agent" / "bundle"
ENGINES = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}
#: float32 graphs: rounding and order of addition. int8 against float32: share of the spread of the outputs.
FLOAT_TOLERANCE, INT8_TOLERANCE = 2e-3, 0.15
INPUT = {"vision": "frames", "audio": "pcm", "sensors": "readings"}


#: Training and compiling on a machine that does other things too.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def cpu_flags():
    """What of the CPU decides how int8 is computed."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "").split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
    print("cpu:", " ".join(flag for flag in wanted if flag in flags) or "none of", "of", ", ".join(wanted))


@pytest.fixture(scope="module")
def windows() -> dict[str, np.ndarray]:
    place = Site(77, demo(77, 40), width=SHAPE.vision_spec.width, height=SHAPE.vision_spec.height)
    times = [3.0, 8.0, 15.0, 18.0, 24.0, 30.0]
    return {
        "vision": np.stack([site.picture(place, t, SHAPE) for t in times]),
        "audio": np.stack([site.pcm(place, t, SHAPE) for t in times]),
        "sensors": np.stack([site.window(place, t, SHAPE) for t in times]),
    }


@pytest.fixture(scope="module")
def network(windows):
    return _warmed(build(SHAPE, seed=11), windows)


def _warmed(built: Network, windows: dict[str, np.ndarray]) -> Network:
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in ("vision", "audio"):  # batch norm sees data, so that folding it is put to the test
            module = built.graphs()[name].train()
            for _ in range(3):
                module(torch.from_numpy(windows[name]))
    for module in built.graphs().values():
        module.eval()
    return built


@pytest.fixture(scope="module")
def folders(network, windows, tmp_path_factory) -> dict[str, Path]:
    """The four graphs in float32, and with the encoders in int8."""
    plain, small = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("small")
    for name, module in network.graphs().items():
        export(module, SHAPE, name, plain / f"{name}.onnx")
        if name in QUANTISED:
            quantise(plain / f"{name}.onnx", small / f"{name}.onnx", list(windows[name]))
        else:
            (small / f"{name}.onnx").write_bytes((plain / f"{name}.onnx").read_bytes())
    return {"float": plain, "int8": small}


def _engine(name: str, folder: Path):
    graphs = {graph: (folder / f"{graph}.onnx").read_bytes() for graph in GRAPHS}
    return ENGINES[name](graphs, bundle.manifest(SHAPE, bundle.UNCHOSEN, 0, {}, bundle.now()), 1)


def _items(graph: str, windows) -> list[dict[str, np.ndarray]]:
    if graph != "fusion":
        return [{INPUT[graph]: window} for window in windows[graph]]
    rng = np.random.default_rng(4)
    shape = (SHAPE.history, SHAPE.embedding)
    return [
        {
            **{name: rng.normal(0, 1, shape).astype(np.float32) for name in MODALITIES},
            "mask": (rng.random((SHAPE.history, 3)) < 0.7).astype(np.float32),
        }
        for _ in range(6)
    ]


def _torch(network, graph: str, items) -> dict[str, np.ndarray]:
    stacked = [torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]]
    with torch.inference_mode():
        outputs = network.graphs()[graph](*stacked)
    return {name: tensor.numpy() for name, tensor in zip(OUTPUTS[graph], outputs, strict=True)}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_float_graphs_compute_what_torch_does(network, folders, windows, engine, graph):
    items = _items(graph, windows)
    wanted = _torch(network, graph, items)
    found = _engine(engine, folders["float"]).run(graph, items)
    for name, want in wanted.items():
        got = np.stack([output[name] for output in found])
        assert np.abs(got - want).max() <= FLOAT_TOLERANCE * (1 + np.abs(want).max()), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("graph", QUANTISED)
def test_int8_stays_near_torch(network, folders, windows, engine, graph):
    items = _items(graph, windows)
    want = _torch(network, graph, items)["embedding"]
    got = np.stack([output["embedding"] for output in _engine(engine, folders["int8"]).run(graph, items)])
    off = np.abs(got - want).mean() / np.abs(want).mean()
    print(f"{graph} on {engine}: int8 embedding off by {off:.1%} of its mean size")
    assert off <= INT8_TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_batch_gives_what_its_items_give(folders, windows, engine, graph):
    """OpenVINO was seen to compute one operator wrongly for batches only."""
    made = _engine(engine, folders["int8"])
    items = _items(graph, windows)
    together = made.run(graph, items)
    for item, batched in zip(items, together, strict=True):
        alone = made.run(graph, [item])[0]
        for name in alone:
            assert np.allclose(alone[name], batched[name], atol=1e-3, rtol=1e-3), name


def _said(variants: list[Variant], clips: Source) -> tuple[list[parity.Pair], float]:
    """What was said, and how far the first one's scores are spread: where all are the same, to agree is easy."""
    heap = fieldtest.run(clips, variants, (None,), 0)
    said = {name: {"clips": parity.scores(played)} for name, played in heap.variants.items()}
    return parity.pairs(variants, said), float(np.concatenate(said[variants[0].name]["clips"]).std())


def _clips() -> tuple[Composed, Sites]:
    """Composed of made-up parts, and simulated: each modality is there, missing, wrong or not."""
    place = Site(78, demo(78, 40), width=SHAPE.vision_spec.width, height=SHAPE.vision_spec.height)
    return Composed([], SHAPE, "test", 12), Sites([place], 40.0, "site")


@pytest.mark.parametrize("clips", _clips(), ids=("composed", "simulated"))
def test_the_device_says_of_every_clip_what_torch_says(windows, tmp_path, clips):
    network = _warmed(build(teacher(SHAPE), seed=11), windows)
    recipe.keep_teacher(network, SHAPE, SHIPPED, bundle.UNCHOSEN, tmp_path)
    variants = [Variant("teacher", tmp_path, engine) for engine in ("torch", *ENGINES)]
    pairs, spread = _said(variants, clips)
    for pair in pairs:
        print(pair.name, pair.row(), spread)
        assert pair.worst["clips"].max() <= min(parity.FLOAT_TOLERANCE, spread / 100)


@pytest.mark.parametrize("clips", _clips(), ids=("composed", "simulated"))
def test_every_engine_says_of_every_clip_what_the_first_does(clips):
    (pair,), spread = _said([Variant("int8", SHIPPED, engine) for engine in ENGINES], clips)
    print(pair.name, pair.row())
    assert spread > 0.05
    assert pair.worst["clips"].max() <= parity.INT8_TOLERANCE


@pytest.mark.parametrize("engine", ENGINES)
def test_the_shipped_bundle_passes_its_self_test(engine):
    found = selftest(load(SHIPPED, engine), SHIPPED)
    print(f"{engine}: worst {found.worst:.4f} of {found.tolerance}, p50 {found.p50_ms:.2f} ms")
    assert found.worst <= found.tolerance


def test_the_shipped_bundle_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in SHIPPED.iterdir() if path.suffix != ".py"}
    assert sum(files.values()) < 5 << 20
    manifest = load(SHIPPED).manifest
    assert set(manifest.files) == set(files) - {"manifest.json"}
    assert files[bundle.REPLAY] < 1 << 20


def test_a_masked_modality_has_no_share_in_the_shipped_head():
    made = load(SHIPPED).engine
    rng = np.random.default_rng(0)
    shape = (preset("first").history, preset("first").embedding)
    item = {name: rng.normal(0, 1, shape).astype(np.float32) for name in MODALITIES}
    for column, name in enumerate(MODALITIES):
        mask = np.ones((shape[0], 3), np.float32)
        mask[:, column] = 0
        clean = made.run("fusion", [{**item, "mask": mask}])[0]
        dirty = made.run("fusion", [{**item, name: np.full(shape, 1e6, np.float32), "mask": mask}])[0]
        assert float(clean["logit"]) == float(dirty["logit"])
