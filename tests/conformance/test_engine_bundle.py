"""A folder that somebody prepared: whatever is wrong with it is a BundleError before a runtime sees a byte."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_agent import engine
from edge_agent.errors import BundleError
from tests.parts.bundle import rewrite, tiny_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def _store(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_whole_bundle_opens_and_is_named_by_its_manifest(folder: Path) -> None:
    bundle = engine.open_bundle(folder)
    assert bundle.manifest.family == "tiny"
    assert len(bundle.hash) == 64
    manifest = _manifest(folder)
    _store(folder, {**manifest, "counter": 2})
    assert engine.open_bundle(folder).hash != bundle.hash


def test_fields_of_a_newer_release_are_ignored(folder: Path) -> None:
    _store(folder, {**_manifest(folder), "mood": "good"})
    engine.open_bundle(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        engine.open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/hostname", "a/b", "..", ".", "", "A.onnx", "x\0y", "manifest.json", "%2e%2e%2fx", "a" * 70, "ü"],
)
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: str) -> None:
    manifest = _manifest(folder)
    manifest["files"][name] = manifest["files"]["card.md"]
    _store(folder, manifest)
    with pytest.raises(BundleError, match="may not name a file"):
        engine.open_bundle(folder)


@pytest.mark.parametrize("name", ["vision.onnx", "manifest.json"])
def test_links_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(BundleError, match="plain files only"):
        engine.open_bundle(folder)


@pytest.mark.parametrize("name", ["vision.onnx", "manifest.json"])
def test_pipes_and_folders_are_refused_without_waiting(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match="not a plain file"):
        engine.open_bundle(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(BundleError, match="not a plain file"):
        engine.open_bundle(folder)


def test_a_changed_byte_a_short_and_a_long_file_are_refused(folder: Path) -> None:
    path = folder / "audio.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match="SHA-256"):
        engine.open_bundle(folder)
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        engine.open_bundle(folder)
    path.write_bytes(whole + b"\0")
    with pytest.raises(BundleError, match="at most"):
        engine.open_bundle(folder)
    path.unlink()
    with pytest.raises(BundleError, match=r"audio\.onnx: No such file"):
        engine.open_bundle(folder)


def test_a_file_that_changes_after_the_look_is_refused(folder: Path) -> None:
    bundle = engine.open_bundle(folder)
    (folder / "card.md").write_bytes(b"x" * bundle.manifest.files["card.md"].size)
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.read("card.md")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 100_000, b"{}", b"\xff\xfe", b'{"v": 1}', b'{"v": 2}', b" " * 200_000],
    ids=["empty", "cut", "deep", "bare", "binary", "fields", "version", "oversize"],
)
def test_manifests_that_are_none_are_refused(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError):
        engine.open_bundle(folder)


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("vision", "width", to=1 << 20), "vision.width"),
        (_set("history", to=100_000), "history"),
        (_set("audio", "samples", to=1 << 20), "audio.samples"),
        (_set("step_ms", to=1), "step_ms"),
        (_set("step_ms", to=100_000), "step_ms"),
        (_set("classes", to=["fire", "fire"]), "classes"),
        (_set("classes", to=[]), "classes"),
        (_set("thresholds", "classes", to={"dragon": 0.5}), "lacks"),
        (_set("thresholds", "off", to=0.9), "above"),
        (_set("sensors", "units", to=["ppm"]), "units"),
        (_set("vision", "past_ms", to=[300, 100]), "past_ms"),
        (_set("tolerance", to=0), "tolerance"),
        (_set("tolerance", to=1e300), "tolerance"),
        (_set("min_agent", to="99.0.0"), "needs agent"),
        (_set("min_agent", to="1.x"), "needs agent"),
        (_set("files", "card.md", "size", to=1 << 40), "files"),
        (_set("files", "card.md", "sha256", to="0" * 64), "SHA-256"),
        (_set("files", to={}), "lack"),
    ],
)
def test_manifests_that_contradict_or_ask_too_much_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    manifest = _manifest(folder)
    change(manifest)
    _store(folder, manifest)
    with pytest.raises(BundleError, match=said):
        engine.open_bundle(folder)


def test_every_cut_of_a_graph_is_refused(folder: Path) -> None:
    whole = (folder / "audio.onnx").read_bytes()
    for length in range(0, len(whole), 37):
        rewrite(folder, "audio.onnx", whole[:length])
        with pytest.raises(BundleError):
            engine.load(folder, "onnxruntime")


@pytest.mark.parametrize("data", [b"", b"MZ\x90", b"\x80\x02]q\x00.", b"\xff" * 64, b"\x3a" + b"\xff" * 9 + b"\x01"])
def test_files_that_are_no_graphs_are_refused(folder: Path, data: bytes) -> None:
    rewrite(folder, "vision.onnx", data)
    with pytest.raises(BundleError):
        engine.open_bundle(folder)


def _external(tensor: onnx.TensorProto, location: str = "/etc/passwd") -> onnx.TensorProto:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def _in_initializer(graph: onnx.GraphProto) -> None:
    _external(graph.initializer[0])


def _in_attribute(graph: onnx.GraphProto) -> None:
    tensor = _external(helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0]))
    graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def _in_branch(graph: onnx.GraphProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    inner.initializer.append(_external(helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])))
    graph.node.append(helper.make_node("If", ["zero"], ["out"], then_branch=inner, else_branch=inner))


def _location_only(graph: onnx.GraphProto) -> None:
    graph.initializer[0].data_location = TensorProto.EXTERNAL


@pytest.mark.parametrize("hide", [_in_initializer, _in_attribute, _in_branch, _location_only])
def test_tensors_outside_of_the_file_are_refused(folder: Path, hide: Callable[[onnx.GraphProto], None]) -> None:
    graph = onnx.load_from_string((folder / "sensors.onnx").read_bytes())
    hide(graph.graph)
    rewrite(folder, "sensors.onnx", graph.SerializeToString())
    with pytest.raises(BundleError, match="outside of the file"):
        engine.open_bundle(folder)


def _golden(folder: Path) -> dict[str, Any]:
    with np.load(folder / "golden.npz") as archive:
        return {name: archive[name] for name in archive.files}


def _pack(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda arrays: b"not a zip", "cannot be read"),
        (lambda arrays: _pack(**arrays)[:-40], "cannot be read"),
        (lambda arrays: _pack(**{**arrays, "score": np.array([{"a": 1}], object)}), "cannot be read"),
        (lambda arrays: _pack(bomb=np.zeros(300 << 20, np.uint8)), "unpacks to"),
        (lambda arrays: _pack(**{k: v for k, v in arrays.items() if k != "mask"}), "expected"),
        (lambda arrays: _pack(**{**arrays, "score": arrays["score"][:2]}), "expected 2 of"),
        (lambda arrays: _pack(**{**arrays, "score": np.float32(1)}), "0 items"),
        (lambda arrays: _pack(**{**arrays, "score": arrays["score"] * np.float32(np.nan)}), "not finite"),
        (lambda arrays: _pack(**{**arrays, "mask": arrays["mask"] * 2}), "other values than 0 and 1"),
        (lambda arrays: _pack(**{**arrays, "pcm": arrays["pcm"].astype(np.float32)}), "pcm is float32"),
    ],
)
def test_golden_vectors_that_are_none_are_refused(
    folder: Path, spoil: Callable[[dict[str, Any]], bytes], said: str
) -> None:
    rewrite(folder, "golden.npz", spoil(_golden(folder)))
    model = engine.load(folder, "onnxruntime")
    with pytest.raises(BundleError, match=said):
        engine.selftest(model, folder)
