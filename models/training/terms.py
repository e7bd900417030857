"""Objectives at work on the fusion head: what each needs beside the head, by name. `Learner` adds them up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edge_agent.contract.event import MODALITIES
from edge_agent.errors import ConfigError
from models.network.fusion import Fused, FusionHead
from models.training import objectives

_PAIRS = tuple(combinations(range(len(MODALITIES)), 2))


class Batch(NamedTuple):
    """Windows as tensors; targets of −1 say nothing."""

    vision: Tensor  #: (N, H, D)
    audio: Tensor
    sensors: Tensor
    mask: Tensor  #: (N, H, 3)
    wrong: Tensor  #: (N,)
    own: Tensor  #: (N, 3)
    classes: Tensor  #: (N, C)
    together: Tensor  #: (N,): 1 where the three are of one place and time, 0 where they were composed

    @property
    def embeddings(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.vision, self.audio, self.sensors


def thinned(batch: Batch) -> Tensor:
    """The mask with one more modality taken from every window: one that is no cause of what is wrong, so that the
    answer stays what it was. A window that would have nothing left keeps its own."""
    count = len(MODALITIES)
    chosen = torch.rand(len(batch.mask), count).masked_fill(batch.own > 0.5, -1.0)
    gone = nn.functional.one_hot(chosen.argmax(1), count).float() * (chosen.amax(1, keepdim=True) >= 0)
    thin = batch.mask * (1 - gone[:, None])
    return torch.where(thin.amax((1, 2), keepdim=True) > 0, thin, batch.mask)


class Term(nn.Module):
    """One objective; parameters that it needs of its own are trained with the head and thrown away."""

    def forward(self, head: FusionHead, fused: Fused, batch: Batch) -> Tensor:
        raise NotImplementedError


class _Pairs(Term):
    """Something about pairs of modalities of one place and time, in projections of their pooled features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, width) for _ in MODALITIES)

    def forward(self, head: FusionHead, fused: Fused, batch: Batch) -> Tensor:
        found = torch.zeros(())
        for i, j in _PAIRS:
            rows = ((fused.present[:, i] > 0) & (fused.present[:, j] > 0) & (batch.together > 0)).nonzero()[:, 0]
            found = found + self.pair(head, fused, batch, rows, (i, j)) / len(_PAIRS)
        return found

    def pair(self, head: FusionHead, fused: Fused, batch: Batch, rows: Tensor, which: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class Align(_Pairs):
    """Aligned spaces: InfoNCE, the same place a few steps later as a hard negative."""

    def pair(self, head: FusionHead, fused: Fused, batch: Batch, rows: Tensor, which: tuple[int, int]) -> Tensor:
        i, j = which
        shift = int(torch.randint(2, batch.mask.shape[1] - 1, ()))
        later = torch.roll(batch.embeddings[j][rows], shift, 1), torch.roll(batch.mask[rows][:, :, j], shift, 1)
        shifted = head.towers[j](*later, head.common)[2]
        a, b = self.project[i](fused.pooled[i][rows]), self.project[j](fused.pooled[j][rows])
        return objectives.info_nce(a, b, self.project[j](shifted))


class Coordinate(_Pairs):
    """Coordinated spaces: each modality its own, varying together."""

    def pair(self, head: FusionHead, fused: Fused, batch: Batch, rows: Tensor, which: tuple[int, int]) -> Tensor:
        i, j = which
        return objectives.coordination(self.project[i](fused.pooled[i][rows]), self.project[j](fused.pooled[j][rows]))


class Consistent(Term):
    """The same answer with one modality less."""

    def forward(self, head: FusionHead, fused: Fused, batch: Batch) -> Tensor:
        return objectives.consistency(fused.logit, head.fused(*batch.embeddings, thinned(batch)).logit)


class Adversarial(Term):
    """Features from which nobody can tell of which modality they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.guess = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(MODALITIES)))

    def forward(self, head: FusionHead, fused: Fused, batch: Batch) -> Tensor:
        features = torch.cat(fused.pooled)
        there = fused.present.T.flatten() > 0
        which = torch.arange(len(MODALITIES)).repeat_interleave(len(fused.logit))
        guess = self.guess(objectives.reverse_gradient(features[there]))
        return nn.functional.cross_entropy(guess, which[there])


class Taught(Term):
    """A teacher that sees all there is; the student, with one modality less, should answer as it does."""

    def __init__(self, teacher: FusionHead) -> None:
        super().__init__()
        # In a list, and so no part of this module: it is not trained, averaged or saved.
        self._teacher = [teacher.eval()]

    def forward(self, head: FusionHead, fused: Fused, batch: Batch) -> Tensor:
        with torch.no_grad():
            wise = self._teacher[0].fused(*batch.embeddings, batch.mask)
        return self.compare(head.fused(*batch.embeddings, thinned(batch)), wise)

    def compare(self, student: Fused, teacher: Fused) -> Tensor:
        raise NotImplementedError


class DistilLogits(Taught):
    def compare(self, student: Fused, teacher: Fused) -> Tensor:
        return objectives.distil_logits(student.logit, teacher.logit)


class DistilFeatures(Taught):
    def compare(self, student: Fused, teacher: Fused) -> Tensor:
        return objectives.distil_features(student.embedding, teacher.embedding)


class TransferAttention(Taught):
    def compare(self, student: Fused, teacher: Fused) -> Tensor:
        maps = zip(student.attention, teacher.attention, strict=True)
        return sum((objectives.attention_transfer(a, b) for a, b in maps), student.logit.sum() * 0.0)


#: By name: made for a head's width and, where one is given, with a teacher of its shape or a wider one.
TERMS: dict[str, Callable[[int, FusionHead | None], Term]] = {
    "align": lambda width, teacher: Align(width),
    "coordinate": lambda width, teacher: Coordinate(width),
    "consistency": lambda width, teacher: Consistent(),
    "adversarial": lambda width, teacher: Adversarial(width),
    "distil_logits": lambda width, teacher: DistilLogits(_needed(teacher)),
    "distil_features": lambda width, teacher: DistilFeatures(_needed(teacher)),
    "transfer_attention": lambda width, teacher: TransferAttention(_needed(teacher)),
}


def _needed(teacher: FusionHead | None) -> FusionHead:
    if teacher is None:
        raise ConfigError("an objective that distils needs a teacher: train one first and hand it over", "terms")
    return teacher


class Learner(nn.Module):
    """The head with everything that it learns by: `loss` of a batch, supervised and the terms beside it."""

    def __init__(
        self, head: FusionHead, terms: tuple[tuple[str, float], ...], width: int, teacher: FusionHead | None = None
    ) -> None:
        super().__init__()
        self.head = head
        for name, _ in terms:
            if name not in TERMS:
                raise ConfigError(f"no objective is named {name!r}; there are {', '.join(TERMS)}", "terms")
        self.terms = nn.ModuleList(TERMS[name](width, teacher) for name, _ in terms)
        self._weights = [weight for _, weight in terms]

    def loss(self, *parts: Tensor) -> Tensor:
        batch = Batch(*parts)
        fused = self.head.fused(*batch.embeddings, batch.mask)
        total = supervised(fused, batch)
        for term, weight in zip(self.terms, self._weights, strict=True):
            total = total + weight * term(self.head, fused, batch)
        return total


def supervised(fused: Fused, batch: Batch, weight: Tensor | None = None) -> Tensor:
    """Fused score, each modality's own, and names."""
    logits = (fused.logit, fused.own, fused.classes)
    return objectives.multi_task(logits, batch.wrong, batch.own, batch.classes, weight)
