"""A folder that a device can run: graphs, golden vectors, thresholds, card; a manifest names them by hash."""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.contract.event import MODALITIES
from edge_agent.contract.manifest import GRAPHS, FileRef, Manifest, Thresholds
from edge_agent.core.records import F32, Engine
from edge_agent.errors import BundleError
from models.config import CLASSES, FAMILY, Preset

GOLDEN = "golden.npz"
#: Weights of the head and composed embeddings: what a retraining from verdicts starts from, without any data set.
WEIGHTS, REPLAY = "fusion_weights.npz", "replay.npz"
CARD = "card.md"
#: What the graphs were before they were made small, step by step.
COMPRESSION = "compression.json"
#: All weights in float32, of a bundle that stayed beside its training: what torch is held against the engines with.
NETWORK = "network.npz"
#: Largest difference of scores between engines and machines that is rounding, not a different model.
TOLERANCE = 0.08
_EXTRA = (GOLDEN, WEIGHTS, REPLAY, CARD, COMPRESSION, NETWORK)
#: Until thresholds are chosen on dev data.
UNCHOSEN = Thresholds(on=0.9, off=0.7)


def manifest(
    preset: Preset, thresholds: Thresholds, counter: int, files: Mapping[str, FileRef], created: str
) -> Manifest:
    """The manifest of a bundle of this preset."""
    return Manifest(
        family=FAMILY,
        name=f"{preset.name}-{counter}",
        counter=counter,
        created=created,
        step_ms=preset.step_ms,
        history=preset.history,
        embedding=preset.embedding,
        classes=CLASSES,
        vision=preset.vision_spec,
        audio=preset.audio_spec,
        sensors=preset.sensor_spec,
        thresholds=thresholds,
        files=dict(files),
        tolerance=TOLERANCE,
    )


def now() -> str:
    """RFC 3339, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def seal(folder: Path, preset: Preset, thresholds: Thresholds, counter: int) -> Manifest:
    """Write `manifest.json` over the files that lie in `folder`; what is not part of a bundle is not named."""
    names = [*(f"{graph}.onnx" for graph in GRAPHS), *_EXTRA]
    files = {name: _reference(folder / name) for name in names if (folder / name).is_file()}
    sealed = manifest(preset, thresholds, counter, files, now())
    (folder / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(sealed)))
    return sealed


def _reference(path: Path) -> FileRef:
    data = path.read_bytes()
    return FileRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A compressed .npz whose bytes depend on the arrays alone: no time stamps."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue(), zipfile.ZIP_DEFLATED
            )


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz, never unpickled."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def save_weights(path: Path, module: torch.nn.Module) -> None:
    """Weights as plain arrays."""
    save_arrays(path, {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()})


def load_weights(path: Path, module: torch.nn.Module) -> None:
    """Weights of `save_weights` into a module of the same shape. BundleError if it has another."""
    weights = {name: torch.from_numpy(array) for name, array in load_arrays(path).items()}
    # A single number is stored as a list of one.
    wanted, found = (
        {name: tuple(tensor.shape) or (1,) for name, tensor in tensors.items()}
        for tensors in (module.state_dict(), weights)
    )
    if found != wanted:
        raise BundleError(
            f"the weights in {path} are of another shape than the preset's: the bundle was made by another version. "
            "Train from data with this one, or go on with the version that made it"
        )
    module.load_state_dict(weights)


def golden(
    engine: Engine, preset: Preset, frames: NDArray[np.uint8], pcm: NDArray[np.int16], readings: F32
) -> dict[str, NDArray[Any]]:
    """Self-test vectors: a few windows under different masks and the scores that `engine` gives them."""
    count = len(frames)
    mask = np.ones((count, len(MODALITIES)), np.float32)
    for index in range(count):
        if index >= count // 2:  # half of them whole, the others with one modality missing
            mask[index, index % len(MODALITIES)] = 0
    arrays: dict[str, NDArray[Any]] = {"frames": frames, "pcm": pcm, "readings": readings, "mask": mask}
    arrays["score"] = np.array(
        [_score(engine, preset, {name: array[i] for name, array in arrays.items()}) for i in range(count)], np.float32
    )
    return arrays


def _score(engine: Engine, preset: Preset, item: Mapping[str, NDArray[Any]]) -> float:
    inputs: dict[str, NDArray[Any]] = {"mask": np.tile(item["mask"], (preset.history, 1))}
    for name, key, present in zip(MODALITIES, ("frames", "pcm", "readings"), item["mask"], strict=True):
        embedding = (
            engine.run(name, [{key: item[key]}])[0]["embedding"]
            if present
            else np.zeros(preset.embedding, np.float32)
        )
        inputs[name] = np.tile(embedding, (preset.history, 1))
    return float(1 / (1 + np.exp(-np.float64(engine.run("fusion", [inputs])[0]["logit"]))))
