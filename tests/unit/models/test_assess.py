"""One bundle, everything about it: the figures are there, and the page shows them."""

from __future__ import annotations

import json
from pathlib import Path

from models.config import preset
from models.evaluation.assess import Scale, Wanted, assess
from models.evaluation.disturb import Disturbance
from tests.parts.bundle import tiny_bundle


def test_a_bundle_is_assessed_on_both_engines_and_beside_another(tmp_path: Path) -> None:
    one, other = tiny_bundle(tmp_path), tiny_bundle(tmp_path, seed=1, counter=2)
    silent = Disturbance("audio", "missing")
    scale = Scale(sites=1, site_s=30.0, quiet_sites=2, quiet_s=2.0)
    wanted = Wanted(one, ("openvino", "onnxruntime"), (other,), scale, conditions=(None, silent))
    found = assess(wanted, preset("tiny"))
    figures = json.loads(json.dumps(found.figures, allow_nan=False))
    assert list(figures["conditions"]) == ["clean", "audio missing"]
    assert figures["conditions"]["clean"]["false_alarms_per_h"] == 0.0
    assert sum(row["n"] for row in figures["by_type"].values()) >= 1
    assert len(figures["engines"]) == 3
    first, second, _ = figures["engines"].values()
    assert first["largest_difference"] == 0.0
    assert second["largest_difference"] < 1e-3
    assert {"fused", "vision", "audio", "sensors", "late mean", "PyOD KNN"} <= set(figures["baselines"])
    assert "audio missing" in found.text()
    page = found.html()
    assert page.count("<svg") == 6
    assert "Every session" in page
