"""What training can go by, each a pure function of tensors with its source. All give one number, lower is better.

Which of them earn their place stands in docs/explanation/ablations.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edge_agent.contract.event import MODALITIES


def multi_task(
    logits: tuple[Tensor, Tensor, Tensor], wrong: Tensor, own: Tensor, classes: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Supervised: fused score, each modality's own, and names (hard sharing of towers, Caruana 1997).

    `logits` are fused (N,), own (N, 3), classes (N, C); targets alike, 0..1; one of −1 says nothing. `weight` (N,).
    """
    fused_logit, own_logit, class_logit = logits
    known = (wrong >= 0).float() * (1.0 if weight is None else weight)
    fused = F.binary_cross_entropy_with_logits(fused_logit, wrong.clamp(min=0) * 0.996 + 0.002, reduction="none")
    each = F.binary_cross_entropy_with_logits(own_logit, own.clamp(min=0) * 0.99 + 0.005, reduction="none")
    names = F.binary_cross_entropy_with_logits(class_logit, classes * 0.99 + 0.005, reduction="none").mean(1)
    heard = (own >= 0).float() * known[:, None]
    total = (fused * known).sum() + (each * heard).sum() / len(MODALITIES) + (names * known).sum()
    return total / known.sum().clamp(min=1.0)


def masked_modelling(guess: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Squared error of what was hidden (N, H) in (N, H, D); targets standardised each by itself (He et al. 2022)."""
    target = F.layer_norm(target, target.shape[-1:])
    error = (guess - target).square().mean(-1)
    return (error * hidden).sum() / hidden.sum().clamp(min=1.0)


def info_nce(a: Tensor, b: Tensor, shifted: Tensor | None = None, temperature: float = 0.1) -> Tensor:
    """Row i of `a` (N, W) belongs to row i of `b`, to no other, and not to its own `shifted` in time.

    Contrastive predictive coding (van den Oord et al. 2018), both ways as in CLIP; negatives from another time of the
    same place are the hard ones (Korbar et al. 2018). 0 for fewer than two rows.
    """
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    table = a @ b.T / temperature
    target = torch.arange(len(a))
    there = table
    if shifted is not None:
        late = (a * F.normalize(shifted, dim=1)).sum(1, keepdim=True) / temperature
        there = torch.cat([table, late], 1)
    return (F.cross_entropy(there, target) + F.cross_entropy(table.T, target)) / 2


def coordination(a: Tensor, b: Tensor, redundancy: float = 0.01) -> Tensor:
    """Two spaces of their own that vary together: cross-correlation towards the identity. 0 for fewer than two rows.

    Barlow twins (Zbontar et al. 2021), a soft form of canonical correlation (Andrew et al. 2013).
    """
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    a = (a - a.mean(0)) / (a.std(0) + 1e-3)
    b = (b - b.mean(0)) / (b.std(0) + 1e-3)
    table = a.T @ b / len(a)
    diagonal = torch.diagonal(table)
    off = table.square().sum() - diagonal.square().sum()
    return ((diagonal - 1).square().sum() + redundancy * off) / len(diagonal)


def mil_ranking(score: Tensor, wrong: Tensor, top: int = 2, sparsity: float = 0.01) -> Tensor:
    """Bags (B, K) of scores in 0..1, of which only is known whether anything in them is wrong (B,).

    The mean of the `top` highest of a wrong bag must exceed that of a normal bag by 1 (Sultani et al. 2018, there 1).
    """
    best = score.topk(top, 1).values.mean(1)
    gap = 1.0 - best[wrong > 0.5][:, None] + best[wrong < 0.5][None, :]
    if gap.numel() == 0:
        return score.sum() * 0.0
    return F.relu(gap).mean() + sparsity * score[wrong > 0.5].mean()


def pseudo_label(weak: Tensor, strong: Tensor, certain: float = 0.95) -> Tensor:
    """What the untouched view (logits (N,), no gradient) is certain of is the label of the disturbed view: FixMatch
    (Sohn et al. 2020) for one logit."""
    sure = torch.sigmoid(weak.detach())
    taken = (torch.maximum(sure, 1 - sure) >= certain).float()
    each = F.binary_cross_entropy_with_logits(strong, (sure > 0.5).float(), reduction="none")
    return (each * taken).sum() / len(taken)


def one_class(embedding: Tensor, centre: Tensor) -> Tensor:
    """Mean squared distance of normal windows (N, D) to a fixed centre (D,): Deep SVDD (Ruff et al. 2018)."""
    return (embedding - centre).square().sum(1).mean()


def distil_logits(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Soft answers of a teacher (Hinton et al. 2015), for one logit (N,)."""
    soft = torch.sigmoid(teacher.detach() / temperature)
    return F.binary_cross_entropy_with_logits(student / temperature, soft) * temperature**2


def distil_features(student: Tensor, teacher: Tensor) -> Tensor:
    """Hints (FitNets, Romero et al. 2015): one less the cosine between features (N, D), so that scale is free."""
    return 1.0 - F.cosine_similarity(student, teacher.detach(), dim=1).mean()


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Where the teacher looks (Zagoruyko & Komodakis 2017): squared distance of unit-length maps (N, H)."""
    return (F.normalize(student, dim=1) - F.normalize(teacher.detach(), dim=1)).square().sum(1).mean()


def consistency(clean: Tensor, disturbed: Tensor) -> Tensor:
    """The same answer to a disturbed view of the same window (Sajjadi et al. 2016): squared difference of scores."""
    return (torch.sigmoid(clean.detach()) - torch.sigmoid(disturbed)).square().mean()


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *slopes: Tensor) -> Tensor:
        return -slopes[0]


def reverse_gradient(x: Tensor) -> Tensor:
    """`x`; backwards its slope with the other sign: its source learns to fool a discriminator (Ganin et al. 2016)."""
    return _Reversed.apply(x)  # type: ignore[no-any-return, no-untyped-call]
