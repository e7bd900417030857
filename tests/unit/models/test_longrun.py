"""The long run: every condition is played and decided upon with and without what the scene learned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.config import SceneConfig
from edge_agent.core.infer import Encoded, sigmoid
from edge_agent.core.records import Scores
from models.config import preset
from models.evaluation import longrun
from tests.parts.bundle import tiny_bundle
from tests.parts.engines import EMBEDDING, manifest


def test_a_bundle_is_played_clean_and_disturbed(tmp_path: Path) -> None:
    scale = longrun.Scale(1, 12.0, 8.0)
    found = json.loads(json.dumps(longrun.run(tiny_bundle(tmp_path), "onnxruntime", preset("tiny"), scale)))
    rows = found["conditions"]
    assert set(rows) == {"clean", *(f"{how.modality} {how.how}" for how in longrun.CONDITIONS)}
    assert len(rows) == 10
    assert {"hours", "first_day", "adapted", "first_day_rate", "adapted_rate"} == set(rows["clean"])
    assert rows["clean"]["hours"] == round(24 / 3600, 2)
    assert "clean" in longrun.text(found)


def test_what_a_place_does_every_half_hour_is_an_alert_on_the_first_day_alone() -> None:
    rng = np.random.default_rng(1)
    usual = Scores("site", 0, -4.0, sigmoid(-4.0), {}, {}, {}, ("vision",), np.zeros(EMBEDDING, np.float32), None)
    encoded = Encoded(np.zeros((3, EMBEDDING), np.float32), np.array([1, 0, 0], np.float32), None)
    loud = replace(usual, logit=1.2, score=sigmoid(1.2))
    lived = [
        (
            loud if index % 300 in (40, 41, 42) else usual,
            replace(encoded, embeddings=rng.normal(size=(3, EMBEDDING)).astype("f4")),
        )
        for index in range(900)
    ]
    scene, shape = SceneConfig(name="site", camera="camera"), manifest(step_ms=4_000)
    normal = longrun.taught(scene, shape, lived)
    first = longrun.decided(scene, shape, lived, None)
    assert [event.calibrating for event in first if event.phase == "new"] == [True] * 3
    assert longrun.decided(scene, shape, lived, normal) == []
