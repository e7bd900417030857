"""Before any label: the towers of the head learn from what embeddings say of one another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.config import Preset, Schedule
from models.network.fusion import FusionHead
from models.training import objectives
from models.training.terms import Align, Batch
from models.training.train import fit

TASKS = ("masked", "contrastive")
#: Share of the steps that masked modelling hides, and of the windows in which a whole modality is hidden.
_HIDDEN, _GONE = 0.3, 0.2


def pretrain(
    head: FusionHead, task: str, preset: Preset, schedule: Schedule, batches: Iterator[tuple[Tensor, ...]]
) -> None:
    """Train the towers on windows whose labels are not looked at; the rest of the head stays as it was."""
    if task not in TASKS:
        raise ConfigError(f"no pre-training is named {task!r}; there are {', '.join(TASKS)}", "task")
    learner: Masked | Contrastive = Masked(head, preset) if task == "masked" else Contrastive(head, preset)
    fit(f"pretrain-{task}", learner, schedule, batches, learner.loss, run=preset.run)


class Masked(nn.Module):
    """Masked modelling per modality: guess the embeddings of hidden steps from what is left of all three."""

    def __init__(self, head: FusionHead, preset: Preset) -> None:
        super().__init__()
        width = preset.head.width
        self.towers, self.common = head.towers, head.common
        self.place = nn.Parameter(torch.randn(preset.history, width) * 0.02)
        self.guess = nn.ModuleList(
            nn.Sequential(
                nn.Linear((len(MODALITIES) + 1) * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, preset.embedding)
            )
            for _ in MODALITIES
        )

    def loss(self, *parts: Tensor) -> Tensor:
        """Of one batch, whose labels it does not see."""
        batch = Batch(*parts)
        hidden = (torch.rand_like(batch.mask) < _HIDDEN) | (torch.rand(len(batch.mask), 1, len(MODALITIES)) < _GONE)
        left = batch.mask * (~hidden).float()
        pooled = [
            tower(x, left[:, :, i], self.common)[2]
            for i, (tower, x) in enumerate(zip(self.towers, batch.embeddings, strict=True))
        ]
        history = batch.mask.shape[1]
        seen = torch.cat(pooled, 1).unsqueeze(1).expand(-1, history, -1)
        asked = torch.cat([seen, self.place.expand(len(seen), -1, -1)], 2)
        total = torch.zeros(())
        for i, (guess, x) in enumerate(zip(self.guess, batch.embeddings, strict=True)):
            # What a scene does not have cannot be guessed: nothing of it may reach the loss, not even a NaN.
            target = torch.where(batch.mask[:, :, i : i + 1] > 0.5, x, torch.zeros_like(x))
            known = batch.mask[:, :, i] * hidden[:, :, i].float()
            total = total + objectives.masked_modelling(guess(asked), target, known) / len(MODALITIES)
        return total


class Contrastive(nn.Module):
    """Picture, sound and sensors of one place and time belong together; of other windows, or shifted, they do not."""

    def __init__(self, head: FusionHead, preset: Preset) -> None:
        super().__init__()
        # The block has no part in the loss, and so no gradient: it stays as it was.
        self.head, self.align = head, Align(preset.head.width)

    def loss(self, *parts: Tensor) -> Tensor:
        """Of one batch, whose labels it does not see."""
        batch = Batch(*parts)
        loss: Tensor = self.align(self.head, self.head.fused(*batch.embeddings, batch.mask), batch)
        return loss
