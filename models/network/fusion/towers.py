"""From a history of embeddings of one modality to what the blocks mix; and the scale behind all outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.contract.event import MODALITIES

#: Small enough that a masked step weighs nothing, large enough for float32 (and float16) softmax.
MASKED = -1e4


class Tower(nn.Module):
    """One modality: (N, H, D), mask (N, H) → steps (N, H, W), attention over them (N, H), pooled (N, W).

    A masked step is replaced by a token *before* anything is computed with it, so not even a NaN in the place of a
    missing embedding can show. The token is learned, or zero.
    """

    def __init__(self, history: int, embedding: int, width: int, *, learned: bool = True) -> None:
        super().__init__()
        token = torch.zeros(embedding)
        self.token: Tensor
        if learned:
            self.token = nn.Parameter(token)
        else:
            self.register_buffer("token", token)
        self.enter = nn.Linear(embedding, width)
        self.place = nn.Parameter(torch.zeros(history, width))
        self.attend = nn.Linear(width, 1)
        # The newest step starts with the most attention.
        self.recency = nn.Parameter(torch.linspace(-1.0, 1.0, history))

    def forward(self, x: Tensor, mask: Tensor, common: nn.Module | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`common` maps every modality into one space."""
        present = mask > 0.5
        x = torch.where(present.unsqueeze(2), x, self.token.expand_as(x))
        y = F.relu(self.enter(x) + self.place)
        if common is not None:
            y = F.relu(common(y))
        score = self.attend(y).squeeze(2) + self.recency
        score = torch.where(present, score, torch.full_like(score, MASKED))
        attention = torch.softmax(score, 1)
        return y, attention, (attention.unsqueeze(2) * y).sum(1)


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
