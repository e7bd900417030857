"""Training the head with less than a label for every window: only for bags of them, for few of them, for none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edge_agent.contract.event import MODALITIES
from models.config import Preset
from models.network.fusion import FusionHead
from models.training import objectives
from models.training.terms import Batch, Learner, thinned
from models.training.train import fit

Rng = np.random.Generator
_BAG = 8  #: windows of an episode
#: What the strong view of a window loses and gains: share of steps, and noise in units of each embedding's spread.
_STRONG_DROP, _STRONG_NOISE = 0.3, 0.2


def rows(batch: Batch, index: Tensor) -> Batch:
    """Those windows."""
    return Batch(*(part[index] for part in batch))


def endless(windows: Batch, count: int, rng: Rng) -> Iterator[Batch]:
    """Batches of so many windows, drawn with replacement."""
    while True:
        yield rows(windows, torch.from_numpy(rng.integers(0, len(windows.wrong), count)))


def train_weak(head: FusionHead, preset: Preset, windows: Batch, seed: int) -> None:
    """Weakly supervised: of an episode of windows is known only whether anything in it is wrong."""

    def loss(*parts: Tensor) -> Tensor:
        batch = Batch(*parts)
        logit = head.fused(*batch.embeddings, batch.mask).logit.view(-1, _BAG)
        return objectives.mil_ranking(torch.sigmoid(logit), batch.wrong.view(-1, _BAG).amax(1))

    fit(
        "weak",
        head,
        preset.fusion,
        _bags(windows, preset.fusion.batch, np.random.default_rng([seed, 51])),
        loss,
        run=preset.run,
    )


def _bags(windows: Batch, count: int, rng: Rng) -> Iterator[Batch]:
    """Half of the bags hold one to three windows in which something is wrong, the others none."""
    wrong, normal = (torch.nonzero(windows.wrong == value)[:, 0].numpy() for value in (1, 0))
    while True:
        index = rng.choice(normal, (count // _BAG, _BAG))
        for bag in index[::2]:
            some = int(rng.integers(1, 4))
            bag[:some] = rng.choice(wrong, some)
        yield rows(windows, torch.from_numpy(index.ravel()))


def train_semi(head: FusionHead, preset: Preset, labelled: Batch, windows: Batch, seed: int) -> None:
    """Half of each batch has labels, the other half gets those that the head itself is certain of."""
    half = preset.fusion.batch // 2
    learner = Learner(head, preset.head.terms, preset.head.width)
    known = endless(labelled, half, np.random.default_rng([seed, 52]))
    unknown = endless(windows, half, np.random.default_rng([seed, 53]))

    def batches() -> Iterator[Batch]:
        while True:
            yield Batch(*(torch.stack(pair, 1) for pair in zip(next(known), next(unknown), strict=True)))

    def loss(*pairs: Tensor) -> Tensor:
        sure, free = Batch(*(pair[:, 0] for pair in pairs)), Batch(*(pair[:, 1] for pair in pairs))
        with torch.no_grad():
            weak = head.fused(*free.embeddings, free.mask).logit
        strong = strong_view(free)
        return learner.loss(*sure) + objectives.pseudo_label(weak, head.fused(*strong.embeddings, strong.mask).logit)

    fit("semi", learner, preset.fusion, batches(), loss, run=preset.run)


def strong_view(batch: Batch) -> Batch:
    """Some steps and one modality less, and noise; labels are not looked at."""
    unlabelled = batch._replace(own=torch.full_like(batch.own, -1.0))
    thin = thinned(unlabelled)
    mask = thin * (torch.rand_like(thin) >= _STRONG_DROP).float()
    mask = torch.where(mask.amax((1, 2), keepdim=True) > 0, mask, thin)
    # Nothing that is masked may reach the spread, least of all a NaN.
    seen = [torch.where(batch.mask[:, :, i : i + 1] > 0.5, x, 0.0) for i, x in enumerate(batch.embeddings)]
    noisy = [x + _STRONG_NOISE * x.std() * torch.randn_like(x) for x in seen]
    return batch._replace(mask=mask, **dict(zip(MODALITIES, noisy, strict=True)))


def train_one_class(head: FusionHead, preset: Preset, windows: Batch, seed: int) -> Tensor:
    """Normal windows alone, drawn towards a centre (D,), which is returned: far from it is anomalous."""
    normal = rows(windows, torch.nonzero(windows.wrong == 0)[:, 0])
    with torch.inference_mode():
        centre = head.fused(*normal.embeddings, normal.mask).embedding.mean(0).clone()

    def loss(*parts: Tensor) -> Tensor:
        batch = Batch(*parts)
        return objectives.one_class(head.fused(*batch.embeddings, batch.mask).embedding, centre)

    rng = np.random.default_rng([seed, 54])
    fit("one-class", head, preset.fusion, endless(normal, preset.fusion.batch, rng), loss, run=preset.run)
    return centre
