"""One bundle, everything about it: the figures are there, and the page shows them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import BundleError, ConfigError
from models import bundle
from models.config import preset
from models.evaluation.assess import Scale, Wanted, assess
from models.evaluation.disturb import Disturbance
from models.evaluation.variants import Variant, opened
from tests.parts.bundle import tiny_bundle

SCALE = Scale(episodes=0, taught=0, sites=1, site_s=30.0, quiet_sites=2, quiet_s=2.0, films=0)


def test_a_bundle_is_assessed_on_both_engines_and_beside_another(tmp_path: Path) -> None:
    one, other = tiny_bundle(tmp_path), tiny_bundle(tmp_path, seed=1, counter=2)
    silent = Disturbance("audio", "missing")
    wanted = Wanted(one, ("openvino", "onnxruntime"), (other,), scale=SCALE, conditions=(None, silent))
    found = assess(wanted, preset("tiny"))
    figures = json.loads(json.dumps(found.figures, allow_nan=False))
    (sites,) = figures["families"].values()
    assert list(sites["conditions"]) == ["clean", "audio missing"]
    assert sites["conditions"]["clean"]["false_alarms_per_h"] == 0.0
    assert sum(row["n"] for row in sites["by_type"].values()) >= 1
    assert list(sites["variants"]) == [
        "int8 on openvino",
        "int8 on onnxruntime",
        "the same in float32 on openvino",
        "the same in float32 on onnxruntime",
        "tiny-1 on openvino",
    ]
    assert {"fused", "vision alone", "audio alone", "sensors alone", "late mean"} == set(sites["methods"])
    assert sites["methods"]["fused"]["ap"] == sites["conditions"]["clean"]["ap"]
    row = figures["parity"]["int8 on onnxruntime against openvino"]
    assert row["clips"] == row["clips_within"] == 1
    assert row["worst, sessions"] < 1e-3
    assert figures["normal"]["simulated"]["hours"] == pytest.approx(4 / 3600)
    assert "Simulated sites: audio missing" in found.text()
    page = found.html()
    assert page.count("<svg") == 6 + 4 + 1  # reliability of the score and of each modality; the session
    assert "every session" in page


def test_torch_needs_the_weights_of_a_training(tmp_path: Path) -> None:
    with (
        pytest.raises(BundleError, match="network\\.npz"),
        opened([Variant("float32 teacher", tiny_bundle(tmp_path), "torch")]),
    ):
        pass


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path)
    bundle.save_arrays(folder / bundle.NETWORK, {"vision.weight": np.zeros(3, np.float32)})
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / bundle.NETWORK).read_bytes()
    manifest["files"][bundle.NETWORK] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (
        pytest.raises(BundleError, match="another shape than the preset"),
        opened([Variant("float32 teacher", folder, "torch")]),
    ):
        pass


def test_a_folder_without_ablations_is_named(tmp_path: Path) -> None:
    wanted = Wanted(tiny_bundle(tmp_path), ("openvino",), scale=SCALE, conditions=(None,), ablations=tmp_path)
    with pytest.raises(ConfigError, match="ablate --out"):
        assess(wanted, preset("tiny"))
