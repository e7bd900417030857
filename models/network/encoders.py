"""One encoder per modality: features in, embedding (N, D) and the modality's own logit out.

Plain 3x3 convolutions, ReLU, residual adds, channels a multiple of 16: the shape that int8 likes on tensor
cores and on VNNI CPUs alike. The logit is linear in the embedding, so the fusion head can always recover it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import SOUNDS


def convolution(inside: int, outside: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution and batch norm; folded into one convolution at export."""
    return nn.Sequential(nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outside))


class Residual(nn.Module):
    """ReLU(x + f(x)) with f two 3x3 convolutions, `width` channels between them (none given: as many as come out); a
    1x1 on the way round where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1, width: int | None = None) -> None:
        super().__init__()
        between = outside if width is None else width
        self.first = convolution(inside, between, stride)
        self.second = convolution(between, outside)
        same = stride == 1 and inside == outside
        self.skip = nn.Identity() if same else convolution(inside, outside, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.second(F.relu(self.first(x))))


class VisionEncoder(nn.Module):
    """(N, 5, H, W) → embedding: features where it is most anomalous; heat (N, H/8, W/8); logit; fire logit.

    channels: of the stem, at a quarter of the size, and inside the blocks at an eighth, whose outputs are as many as
    the embedding has.
    """

    def __init__(self, channels: Sequence[int], embedding: int) -> None:
        super().__init__()
        a, b, c = channels
        self.stem = convolution(5, a, 2)
        self.down = convolution(a, b, 2)
        self.body = nn.Sequential(
            Residual(b, b),
            Residual(b, embedding, 2, c),
            Residual(embedding, embedding, 1, c),
            Residual(embedding, embedding, 1, c),
        )
        self.head = nn.Conv2d(embedding, 1, 1)
        self.fire = nn.Linear(embedding, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.body(F.relu(self.down(F.relu(self.stem(x)))))
        heat = self.head(features)
        # The hottest neighbourhood speaks for the picture: one bright cell is noise, nine are something.
        weight = torch.softmax(F.avg_pool2d(heat, 3, 1, 1, count_include_pad=False).flatten(2) * 2.0, 2)
        # Channels last, as convolutions leave them: a product, and no new order of the features.
        embedding = torch.matmul(weight, features.permute(0, 2, 3, 1).flatten(1, 2))[:, 0]
        # The head's answer to the embedding, for weights that sum to one.
        logit = (heat.flatten(2) * weight).sum(2)[:, 0]
        return embedding, heat[:, 0], logit, self.fire(embedding)[:, 0]


class AudioEncoder(nn.Module):
    """Log-mel (N, 1, MELS, frames) → embedding; sounds (N, len(SOUNDS)) logits; logit = threat against casual."""

    def __init__(self, channels: Sequence[int], embedding: int) -> None:
        super().__init__()
        self.stem = convolution(1, channels[0], 2)
        widths = [channels[0], *channels]
        # The last block keeps its size: small as it is there, it still has a time and a pitch.
        self.body = nn.Sequential(
            *(Residual(widths[i], widths[i + 1], 2 if i < len(channels) - 1 else 1) for i in range(len(channels)))
        )
        self.drop = nn.Dropout(0.2)
        self.project = nn.Linear(channels[-1], embedding)
        self.sounds = nn.Linear(embedding, len(SOUNDS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embedding = self.project(self.drop(self.body(F.relu(self.stem(x))).mean((2, 3))))
        sounds = self.sounds(embedding)
        return embedding, sounds, threat(sounds)


def threat(sounds: Tensor) -> Tensor:
    """Logits (N, len(SOUNDS)) → (N,): the log odds that it is any of them but the first, which is casual."""
    # Spelled out: OpenVINO 2026.4 gives wrong values for ReduceLogSumExp over a part of a batch of more than one.
    return torch.log(torch.exp((sounds[:, 1:] - sounds[:, :1]).clamp(-30.0, 30.0)).sum(1))


class SensorEncoder(nn.Module):
    """(N, 4 * channels, steps) → embedding; logit. A dilated TCN that looks back over the whole window."""

    def __init__(self, channels: int, width: int, embedding: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4 * channels, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(5))
        self.project = nn.Linear(2 * width, embedding)
        self.head = nn.Linear(embedding, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.enter(x))
        for index, layer in enumerate(self.layers):
            y = y + F.relu(layer(F.pad(y, (2 * 2**index, 0))))
        embedding = F.relu(self.project(torch.cat([y[:, :, -1], y.mean(2)], 1)))
        return embedding, self.head(embedding)[:, 0]
