"""The whole way in small: simulated parts alone, from nothing to a bundle that a device opens."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.engine import load, selftest
from models import bundle, recipe
from models.config import CLASSES, preset


@pytest.mark.timeout(600)
def test_without_any_data_set_there_is_still_a_valid_bundle(tmp_path):
    figures = recipe.make(preset("tiny"), None, tmp_path, seed=1)
    assert selftest(load(tmp_path), tmp_path).worst <= bundle.TOLERANCE
    assert load(tmp_path).manifest.classes == CLASSES
    assert "simulated parts alone" in (tmp_path / bundle.CARD).read_text(encoding="utf-8")
    assert "recorded" not in figures
    assert figures["sets"] == []
