"""The self-test: a bundle's own golden vectors through the graphs, held against the scores that it promised."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.clock import SystemClock
from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import Manifest
from edge_agent.core.records import F32, Model
from edge_agent.engine import ports
from edge_agent.engine.bundle import GOLDEN, Bundle, open_bundle
from edge_agent.errors import BundleError

MAX_ITEMS = 256
_MAX_UNPACKED = 256 << 20


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found; it passed, or BundleError would have been raised."""

    items: int
    worst: float  #: largest |score − golden score|
    tolerance: float
    p50_ms: float  #: all graphs of one item, one after the other
    p99_ms: float
    worst_ms: float


def selftest(model: Model, path: Path) -> SelfTest:
    """Run the golden vectors of the bundle in `path` on `model`.

    Each item is one window repeated `history` times under its mask. BundleError if `path` holds another bundle, the
    vectors do not fit the manifest, or a score is off by more than `manifest.tolerance` (or is not finite).
    """
    bundle = open_bundle(path)
    if bundle.hash != model.hash:
        raise BundleError(f"{path} holds bundle {bundle.hash}, the model is {model.hash}")
    vectors = _vectors(bundle)
    clock = SystemClock()
    worst = 0.0
    spent: list[float] = []
    for index in range(len(vectors["score"])):
        begin_ns = clock.monotonic_ns()
        score = _score(model, {name: array[index] for name, array in vectors.items()})
        spent.append((clock.monotonic_ns() - begin_ns) / 1e6)
        off = abs(score - float(vectors["score"][index]))
        if not off <= model.manifest.tolerance:
            raise BundleError(
                f"{path}: golden item {index} scores {score:.4f}, promised {float(vectors['score'][index]):.4f}; "
                f"the tolerance is {model.manifest.tolerance}. This engine does not compute what was trained"
            )
        worst = max(worst, off)
    p50, p99 = (float(value) for value in np.percentile(spent, (50, 99)))
    return SelfTest(len(spent), worst, model.manifest.tolerance, p50, p99, max(spent))


def _score(model: Model, item: Mapping[str, NDArray[Any]]) -> float:
    manifest = model.manifest
    inputs: dict[str, NDArray[Any]] = {}
    for name, key, present in zip(MODALITIES, ("frames", "pcm", "readings"), item["mask"], strict=True):
        embedding: F32 = np.zeros(manifest.embedding, np.float32)
        if present:
            embedding = model.engine.run(name, [{key: item[key]}])[0]["embedding"]
        inputs[name] = np.tile(embedding, (manifest.history, 1))
    inputs["mask"] = np.tile(item["mask"], (manifest.history, 1))
    try:
        logit = float(model.engine.run("fusion", [inputs])[0]["logit"])
    except ValueError as error:  # an encoder gave NaN
        raise BundleError(f"self-test: {error}") from error
    return float(1.0 / (1.0 + np.exp(-np.float64(logit))))


def _vectors(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The arrays of golden.npz, sized before they are unpacked and never unpickled."""
    data = bundle.read(GOLDEN)
    where = f"{bundle.path / GOLDEN}"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_UNPACKED:
            raise BundleError(f"{where}: unpacks to {size} bytes, at most {_MAX_UNPACKED}")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError) as error:
        raise BundleError(f"{where}: cannot be read: {error}") from error
    _check_vectors(arrays, bundle.manifest, where)
    return arrays


def _check_vectors(arrays: Mapping[str, NDArray[Any]], manifest: Manifest, where: str) -> None:
    graphs = ports.promised(manifest)
    wanted = {
        **graphs["vision"].inputs,
        **graphs["audio"].inputs,
        **graphs["sensors"].inputs,
        "mask": ports.Port("float32", (len(MODALITIES),)),
        "score": ports.Port("float32", ()),
    }
    if arrays.keys() != wanted.keys():
        raise BundleError(f"{where}: holds {sorted(arrays)}, expected {sorted(wanted)}")
    count = len(arrays["score"]) if arrays["score"].ndim else 0
    if not 1 <= count <= MAX_ITEMS:
        raise BundleError(f"{where}: {count} items; 1..{MAX_ITEMS} expected")
    for name, port in wanted.items():
        array = arrays[name]
        if array.dtype != np.dtype(port.dtype) or array.shape != (count, *(axis or 0 for axis in port.shape)):
            raise BundleError(f"{where}: {name} is {array.dtype} {array.shape}, expected {count} of {port}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BundleError(f"{where}: {name} holds a value that is not finite")
    if not np.isin(arrays["mask"], (0.0, 1.0)).all():
        raise BundleError(f"{where}: mask holds other values than 0 and 1")
