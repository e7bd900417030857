"""The fusion head: a history of embeddings and a mask in, one score out, whatever is missing.

Late and hybrid at once. Late: each modality's own evidence, gated, only ever added where the modality is
present, so one that is silent or absent cannot pull the others down (plain concatenation was seen to hurt).
Hybrid: a low-rank tensor product of the three for what only shows in the combination.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.event import MODALITIES

#: Small enough that a masked step weighs nothing, large enough for float32 (and float16) softmax.
_MASKED = -1e4


class Tower(nn.Module):
    """Attention over the history of one modality: (N, history, D), mask (N, history) → (N, width).

    A masked step is replaced by a learned token *before* anything is computed with it, so not even a NaN
    in the place of a missing embedding can show.
    """

    def __init__(self, history: int, embedding: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(embedding))
        self.enter = nn.Linear(embedding, width)
        self.place = nn.Parameter(torch.zeros(history, width))
        self.attend = nn.Linear(width, 1)
        # The newest step starts with the most attention.
        self.recency = nn.Parameter(torch.linspace(-1.0, 1.0, history))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        present = mask > 0.5
        x = torch.where(present.unsqueeze(2), x, self.token.expand_as(x))
        y = F.relu(self.enter(x) + self.place)
        score = self.attend(y).squeeze(2) + self.recency
        score = torch.where(present, score, torch.full_like(score, _MASKED))
        return (torch.softmax(score, 1).unsqueeze(2) * y).sum(1)


class Scale(nn.Module):
    """One over the temperature of each output (Guo et al. 2017), in the graph: the device's score is a probability.

    1 while the head trains; `models.calibrate` fits them afterwards, so they are buffers and no optimiser moves them.
    """

    logit: Tensor
    classes: Tensor
    modalities: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("logit", torch.ones(()))
        self.register_buffer("classes", torch.ones(classes))
        self.register_buffer("modalities", torch.ones(len(MODALITIES)))

    def forward(self, logit: Tensor, classes: Tensor, modalities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return logit * self.logit, classes * self.classes, modalities * self.modalities

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Weights of a bundle from before there were temperatures: all of them 1.
        for name, buffer in self.named_buffers():
            state.setdefault(prefix + name, torch.ones_like(buffer))
        super()._load_from_state_dict(state, prefix, *rest)


class FusionHead(nn.Module):
    """(N, history, D) x 3 and mask (N, history, 3) → logit (N,), classes (N, C), modality_logits (N, 3), (N, D)."""

    def __init__(self, history: int, embedding: int, width: int, rank: int, classes: int) -> None:
        super().__init__()
        count = len(MODALITIES)
        self.towers = nn.ModuleList(Tower(history, embedding, width) for _ in range(count))
        self.evidence = nn.ModuleList(nn.Linear(width, 1) for _ in range(count))
        self.classify = nn.ModuleList(nn.Linear(width, classes) for _ in range(count))
        self.factors = nn.ModuleList(nn.Linear(width, rank) for _ in range(count))
        self.gate = nn.Linear(count * width + count, count)
        self.fuse = nn.Linear(count * width + rank, embedding)
        self.score = nn.Linear(embedding, 1)
        self.class_bias = nn.Parameter(torch.full((classes,), -2.0))
        self.scale = Scale(classes)

    def forward(self, vision: Tensor, audio: Tensor, sensors: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        inputs = (vision, audio, sensors)
        pooled = [tower(x, mask[:, :, i]) for i, (tower, x) in enumerate(zip(self.towers, inputs, strict=True))]
        present = (mask.amax(1) > 0.5).float()
        own = torch.cat([layer(h) for layer, h in zip(self.evidence, pooled, strict=True)], 1)
        gates = torch.sigmoid(self.gate(torch.cat([*pooled, present], 1)) + 2.0)
        product = torch.ones_like(self.factors[0](pooled[0]))
        for layer, h in zip(self.factors, pooled, strict=True):
            product = product * layer(h)
        gated = [h * gates[:, i : i + 1] for i, h in enumerate(pooled)]
        embedding = F.relu(self.fuse(torch.cat([*gated, product], 1)))
        late = (present * gates * F.softplus(own)).sum(1)
        logit = late + self.score(embedding)[:, 0]
        parts = [
            layer(h) * present[:, i : i + 1] for i, (layer, h) in enumerate(zip(self.classify, pooled, strict=True))
        ]
        classes = self.class_bias + parts[0] + parts[1] + parts[2]
        return *self.scale(logit, classes, own), embedding
