"""The ways to mix three modalities into one embedding, by name. Each exports to ONNX opset 17.

All see the same parts. What is missing has been replaced by tokens already; where a block could still weigh a token
as if it were evidence, it weighs it by `present` (or `mask`, step by step).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.network.fusion.towers import MASKED

COUNT = len(MODALITIES)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the towers made of the three modalities, N windows of H steps in W dimensions."""

    steps: list[Tensor]  #: of each modality (N, H, W)
    pooled: list[Tensor]  #: of each modality (N, W)
    mask: Tensor  #: (N, H, 3)
    present: Tensor  #: (N, 3): 1 where at least one step is there
    gates: Tensor  #: (N, 3) in 0..1: how far to trust each modality


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a block."""

    history: int
    width: int
    rank: int
    embedding: int


class Concatenation(nn.Module):
    """The naive baseline: everything side by side into one layer, tokens in the places of what is missing."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fuse = nn.Linear(COUNT * sizes.width, sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        return F.relu(self.fuse(torch.cat(parts.pooled, 1)))


class Late(nn.Module):
    """No mixing: the embedding is each modality's own, side by side, zero where it is missing."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.keep = nn.ModuleList(nn.Linear(sizes.width, sizes.embedding) for _ in MODALITIES)

    def forward(self, parts: Parts) -> Tensor:
        kept = [layer(x) * parts.present[:, i : i + 1] for i, (layer, x) in _each(self.keep, parts.pooled)]
        return F.relu(kept[0] + kept[1] + kept[2])


class Early(nn.Module):
    """Step by step side by side, a convolution over time, then attention over the steps that hold anything."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mix = nn.Conv1d(COUNT * sizes.width, 2 * sizes.width, 3, padding=1)
        self.attend = nn.Linear(2 * sizes.width, 1)
        self.fuse = nn.Linear(2 * sizes.width, sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        y = F.relu(self.mix(torch.cat(parts.steps, 2).transpose(1, 2))).transpose(1, 2)
        score = self.attend(y).squeeze(2)
        score = torch.where(parts.mask.amax(2) > 0.5, score, torch.full_like(score, MASKED))
        return F.relu(self.fuse((torch.softmax(score, 1).unsqueeze(2) * y).sum(1)))


class _Product(nn.Module):
    """Low-rank tensor product (LMF, Liu et al. 2018): every factor has a constant part, so single modalities and
    pairs are terms of it too."""

    def __init__(self, sizes: Sizes, outputs: int) -> None:
        super().__init__()
        self.factors = nn.ModuleList(nn.Linear(sizes.width, outputs) for _ in MODALITIES)

    def forward(self, pooled: list[Tensor]) -> Tensor:
        product = self.factors[0](pooled[0])
        for layer, x in list(zip(self.factors, pooled, strict=True))[1:]:
            product = product * layer(x)
        return cast(Tensor, product)


class LowRank(nn.Module):
    """LMF: the sum of `rank` products of one factor per modality."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self._shape = (sizes.rank, sizes.embedding)
        self.product = _Product(sizes, sizes.rank * sizes.embedding)
        self.bias = nn.Parameter(torch.zeros(sizes.embedding))

    def forward(self, parts: Parts) -> Tensor:
        return F.relu(self.product(parts.pooled).unflatten(1, self._shape).sum(1) + self.bias)


class Hybrid(nn.Module):
    """Gated modalities side by side, and beside them a low-rank product for what shows only in the combination."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.product = _Product(sizes, sizes.rank)
        self.fuse = nn.Linear(COUNT * sizes.width + sizes.rank, sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        gated = [x * parts.gates[:, i : i + 1] for i, x in enumerate(parts.pooled)]
        return F.relu(self.fuse(torch.cat([*gated, self.product(parts.pooled)], 1)))


class Gated(nn.Module):
    """Gated multimodal unit (Arevalo et al. 2017): each dimension chooses its modality; a missing one has no say."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.view = nn.ModuleList(nn.Linear(sizes.width, sizes.embedding) for _ in MODALITIES)
        self.gate = nn.Linear(COUNT * sizes.width, COUNT * sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        gates = torch.sigmoid(self.gate(torch.cat(parts.pooled, 1))).chunk(COUNT, 1)
        seen = [
            gates[i] * torch.tanh(layer(x)) * parts.present[:, i : i + 1]
            for i, (layer, x) in _each(self.view, parts.pooled)
        ]
        return seen[0] + seen[1] + seen[2]


class Bilinear(nn.Module):
    """Factorised bilinear pooling of each pair (MFB, Yu et al. 2017): products summed by rank, root, unit length."""

    _PAIRS = ((0, 1), (0, 2), (1, 2))

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self._rank, inside = sizes.rank, sizes.rank * sizes.width
        self.left = nn.ModuleList(nn.Linear(sizes.width, inside) for _ in self._PAIRS)
        self.right = nn.ModuleList(nn.Linear(sizes.width, inside) for _ in self._PAIRS)
        self.fuse = nn.Linear(COUNT * sizes.width, sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        found = []
        for (i, j), left, right in zip(self._PAIRS, self.left, self.right, strict=True):
            product = left(parts.pooled[i]) * right(parts.pooled[j])
            z = product.unflatten(1, (-1, self._rank)).sum(2)
            # Signed root; the small number keeps its slope finite at 0.
            z = torch.sign(z) * (torch.sqrt(torch.abs(z) + 1e-4) - 1e-2)
            found.append(z / torch.sqrt((z * z).sum(1, keepdim=True) + 1e-6))
        return F.relu(self.fuse(torch.cat(found, 1)))


class Pooling(nn.Module):
    """Maximum and mean over the modalities that are there, in one space: no order, no fixed number of them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.view = nn.ModuleList(nn.Linear(sizes.width, sizes.embedding) for _ in MODALITIES)
        self.fuse = nn.Linear(2 * sizes.embedding, sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        # After a ReLU nothing is below 0, so a missing modality, as 0, is never the maximum by itself.
        seen = [F.relu(layer(x)) * parts.present[:, i : i + 1] for i, (layer, x) in _each(self.view, parts.pooled)]
        most = torch.maximum(torch.maximum(seen[0], seen[1]), seen[2])
        mean = (seen[0] + seen[1] + seen[2]) / parts.present.sum(1, keepdim=True).clamp(min=1.0)
        return F.relu(self.fuse(torch.cat([most, mean], 1)))


class _Layer(nn.Module):
    """One transformer layer, pre-norm, one head: tokens (N, T, W), keys (N, T) that may be looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inside = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self._scale = width**-0.5

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        query, key, value = self.inside(self.before(x)).chunk(3, 2)
        score = torch.matmul(query, key.transpose(1, 2)) * self._scale
        score = torch.where(keys.unsqueeze(1) > 0.5, score, torch.full_like(score, MASKED))
        x = x + self.out(torch.matmul(torch.softmax(score, 2), value))
        return cast(Tensor, x + self.narrow(F.relu(self.wide(self.after(x)))))


class Attention(nn.Module):
    """Bottleneck tokens (MBT, Nagrani et al. 2021): modalities look at their own steps and at a few shared tokens."""

    _LAYERS = 2

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.bottleneck = nn.Parameter(torch.randn(sizes.rank // 2, sizes.width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(_Layer(sizes.width) for _ in MODALITIES) for _ in range(self._LAYERS)
        )
        self.fuse = nn.Linear((COUNT + 1) * sizes.width, sizes.embedding)

    def forward(self, parts: Parts) -> Tensor:
        steps, count = list(parts.steps), self.bottleneck.shape[0]
        shared = self.bottleneck.unsqueeze(0) + torch.zeros_like(steps[0][:, :1])
        open_keys = torch.ones_like(shared[:, :, 0])
        there = parts.present / parts.present.sum(1, keepdim=True).clamp(min=1.0)
        for layer in self.layers:
            views = []
            for i, part in enumerate(cast(nn.ModuleList, layer)):
                keys = torch.cat([open_keys, parts.mask[:, :, i]], 1)
                tokens = part(torch.cat([shared, steps[i]], 1), keys)
                views.append(tokens[:, :count] * there[:, i : i + 1].unsqueeze(2))
                steps[i] = tokens[:, count:]
            shared = views[0] + views[1] + views[2]
        last = [x[:, -1] * parts.present[:, i : i + 1] for i, x in enumerate(steps)]
        return F.relu(self.fuse(torch.cat([shared.mean(1), *last], 1)))


def _each(layers: nn.ModuleList, parts: list[Tensor]) -> enumerate[tuple[nn.Module, Tensor]]:
    return enumerate(zip(layers, parts, strict=True))


BLOCKS: dict[str, Callable[[Sizes], nn.Module]] = {
    "concatenation": Concatenation,
    "early": Early,
    "late": Late,
    "hybrid": Hybrid,
    "attention": Attention,
    "gated": Gated,
    "low_rank": LowRank,
    "bilinear": Bilinear,
    "pooling": Pooling,
}


def block(name: str, sizes: Sizes) -> nn.Module:
    """The block of that name; ConfigError lists the names there are."""
    if name not in BLOCKS:
        raise ConfigError(f"no fusion block is named {name!r}; there are {', '.join(BLOCKS)}", "block")
    return BLOCKS[name](sizes)
