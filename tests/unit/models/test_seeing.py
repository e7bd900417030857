"""What the vision encoder that ships is taught with."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.manifest import VisionSpec  # noqa: E402
from models.data.staging import Picture, Stage  # noqa: E402
from models.training import seeing  # noqa: E402

SPEC = VisionSpec(width=64, height=48)


def test_batches_say_what_is_wrong_and_repeat_by_seed():
    site = Picture(np.zeros((5, 48, 64), np.uint8), np.zeros((6, 8), np.float32), "nothing")
    one, two = (seeing.batches(Stage([], [], SPEC, 3, made_up=3), [site], 8, seed=1) for _ in range(2))
    seen = set()
    for _ in range(3):
        frames, cells, wrong, fire = next(one)
        assert all(torch.equal(a, b) for a, b in zip((frames, cells, wrong, fire), next(two), strict=True))
        assert frames.shape == (8, 5, SPEC.height, SPEC.width)
        assert frames.dtype == torch.uint8
        assert cells.shape == (8, SPEC.height // 8, SPEC.width // 8)
        # Where nothing is wrong no cell says that something is.
        assert (cells[wrong == 0] < 0.5).all()
        seen |= set(zip(wrong.tolist(), fire.tolist(), strict=True))
    assert seen == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)}
