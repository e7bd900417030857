"""The fusion head: a history of embeddings and a mask in, one score out, whatever is missing.

Two ways to the score, each with its switch. Evidence: each modality's own, gated, only ever added where the modality
is present, so one that is silent or absent cannot pull the others down (plain concatenation was seen to hurt). Block:
the modalities mixed into one embedding, for what shows only in the combination (`models.network.fusion.blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.event import MODALITIES
from models.config import Fusion
from models.network.fusion.blocks import BLOCKS, Parts, Sizes, block
from models.network.fusion.towers import Scale, Tower

__all__ = ["BLOCKS", "Fused", "FusionHead", "Scale"]


@dataclass(frozen=True, slots=True)
class Fused:
    """All that a head makes of N windows; what training goes by. Logits are not scaled by temperatures."""

    logit: Tensor  #: (N,)
    classes: Tensor  #: (N, C)
    own: Tensor  #: (N, 3): each modality's own logit
    embedding: Tensor  #: (N, D)
    pooled: list[Tensor]  #: of each modality (N, W)
    attention: list[Tensor]  #: of each modality (N, H)
    present: Tensor  #: (N, 3)


class FusionHead(nn.Module):
    """(N, history, D) x 3 and mask (N, history, 3) → logit (N,), classes (N, C), modality_logits (N, 3), (N, D)."""

    def __init__(self, history: int, embedding: int, fusion: Fusion, classes: int) -> None:
        super().__init__()
        count, width = len(MODALITIES), fusion.width
        self._evidence = fusion.evidence
        self.towers = nn.ModuleList(
            Tower(history, embedding, width, learned=fusion.learned_tokens) for _ in MODALITIES
        )
        self.common = nn.Linear(width, width) if fusion.space == "shared" else None
        self.evidence = nn.ModuleList(nn.Linear(width, 1) for _ in MODALITIES)
        self.classify = nn.ModuleList(nn.Linear(width, classes) for _ in MODALITIES)
        self.gate = nn.Linear(count * width + count, count)
        self.block = block(fusion.block, Sizes(history, width, fusion.rank, embedding))
        self.score = nn.Linear(embedding, 1)
        self.class_bias = nn.Parameter(torch.full((classes,), -2.0))
        self.scale = Scale(classes)

    def forward(self, vision: Tensor, audio: Tensor, sensors: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        fused = self.fused(vision, audio, sensors, mask)
        return *self.scale(fused.logit, fused.classes, fused.own), fused.embedding

    def fused(self, vision: Tensor, audio: Tensor, sensors: Tensor, mask: Tensor) -> Fused:
        """Everything on the way to the outputs of `forward`."""
        seen = [
            tower(x, mask[:, :, i], self.common)
            for i, (tower, x) in enumerate(zip(self.towers, (vision, audio, sensors), strict=True))
        ]
        steps, attention, pooled = ([parts[i] for parts in seen] for i in range(3))
        present = (mask.amax(1) > 0.5).float()
        own = torch.cat([layer(x) for layer, x in zip(self.evidence, pooled, strict=True)], 1)
        gates = torch.sigmoid(self.gate(torch.cat([*pooled, present], 1)) + 2.0)
        embedding = self.block(Parts(steps, pooled, mask, present, gates))
        named = [
            layer(x) * present[:, i : i + 1] for i, (layer, x) in enumerate(zip(self.classify, pooled, strict=True))
        ]
        classes = self.class_bias + named[0] + named[1] + named[2]
        logit = self._logit(self.score(embedding)[:, 0], own, present, gates)
        return Fused(logit, classes, own, embedding, pooled, attention, present)

    def _logit(self, joint: Tensor, own: Tensor, present: Tensor, gates: Tensor) -> Tensor:
        if self._evidence == "none":
            return joint
        if self._evidence == "mean":  # the naive baseline: whoever is there, equally, and nothing mixed
            return (present * own).sum(1) / present.sum(1).clamp(min=1.0)
        if self._evidence == "alone":
            return (present * gates * F.softplus(own)).sum(1) + self.score.bias
        return (present * gates * F.softplus(own)).sum(1) + joint
