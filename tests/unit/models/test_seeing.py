"""What the vision encoder that ships is taught with: pictures of every kind, and a teacher's word on each."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch==2.13.0")

from edge_agent.contract.manifest import VisionSpec  # noqa: E402
from models import seeing  # noqa: E402
from models.data.media import Pictures  # noqa: E402
from models.data.records import Recording  # noqa: E402
from models.data.staging import Stage  # noqa: E402
from tests.unit.models.test_oneclass import walkers  # noqa: E402

SPEC = VisionSpec(width=64, height=48)


@pytest.fixture
def stage() -> Stage:
    film = Recording("made", "walkers", "train", "walkers", pictures=Pictures(held=walkers(60)))
    return Stage([film], [], SPEC, 3, made_up=3)


def test_pictures_come_from_film_and_from_the_stage_and_say_what_is_wrong(stage):
    pool = seeing.Pool(stage, [], np.random.default_rng(0), taught=False)
    for frames, cells, wrong, fire, features in (next(seeing.batches(pool, 8)) for _ in range(3)):
        assert frames.shape == (8, 5, SPEC.height, SPEC.width)
        assert frames.dtype == torch.uint8
        assert cells.shape == (8, SPEC.height // 8, SPEC.width // 8)
        assert features.numel() == 0
        assert (fire <= wrong).all()
        # Where nothing is wrong no cell says that something is.
        assert (cells[wrong == 0] < 0.5).all()
    assert {shown.picture.wrong for shown in pool.kept} == {"nothing", "fire", "odd"}


class Trunk(torch.nn.Module):
    """Stands for the ImageNet trunk: mean colours of blocks of 16 pixels, far from zero."""

    width = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 16) * 40.0 + 7.0


def test_the_teacher_is_scaled_and_turns_with_the_picture(stage, monkeypatch):
    monkeypatch.setattr(seeing, "imagenet", lambda blocks: Trunk())
    pool = seeing.Pool(stage, [], np.random.default_rng(0), taught=True)
    assert pool.width == 3
    drawn = [pool.draw() for _ in range(12)]
    features = np.stack([shown.features for shown in drawn]).astype(float)
    assert abs(features.mean()) < 0.7
    assert 0.3 < features.std() < 2.0
    frames, _, _, _, told = next(seeing.batches(pool, 6))
    assert told.shape == (6, 3, 3, 4)
    # Mirrored pictures come with mirrored features: the red of each block goes with what is told of it.
    red = torch.nn.functional.avg_pool2d(frames[:, :1].float(), 16)
    for picture, said in zip(red, told, strict=True):
        if float(picture.std()) > 5:
            assert float(torch.corrcoef(torch.stack([picture.flatten(), said[0].flatten()]))[0, 1]) > 0.8
