"""Fewer channels and fewer ranks: structured pruning with Torch-Pruning, low-rank layers, distillation to mend both.

Channels go in groups that belong together (what a residual addition ties, with the batch norms and the inputs that
follow), the weakest first, and what is left is a multiple of 16: tensor cores and VNNI pad anything else up to it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F

from edge_agent.errors import BundleError
from models.config import ALONE, Run, Schedule
from models.training.train import fit

#: Channels are kept in multiples of this.
ROUND = 16
#: A factored layer has to save this share of its multiplications to be worth a second call.
_WORTH = 0.25


@dataclass(frozen=True, slots=True)
class Factored:
    """What became of one linear layer: as it was where `rank` is None."""

    name: str
    shape: tuple[int, int]  #: (outputs, inputs)
    rank: int | None
    needed: int  #: rank that holds the energy asked for


def parameters(module: nn.Module) -> int:
    """Numbers that were learned."""
    return sum(parameter.numel() for parameter in module.parameters())


def prune(encoder: nn.Module, example: Tensor, share: float) -> nn.Module:
    """A copy without the weakest `share` of the channels of every group that no output depends on.

    Strength is the mean squared weight over all layers of a group (Fang et al. 2023, "DepGraph: Towards Any
    Structural Pruning"). Outputs keep their shapes; BundleError if they would not. Groups of 16 stay whole.
    """
    pruned = copy.deepcopy(encoder).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = _shapes(pruned, example)
        graph = torch_pruning.DependencyGraph().build_dependency(pruned, example_inputs=example)
        strength = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        for root in _roots(graph):
            group = graph.get_pruning_group(
                root, torch_pruning.prune_conv_out_channels, list(range(root.out_channels))
            )
            gone = _weakest(strength(group), share)
            graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, gone).prune()
    if _shapes(pruned, example) != before:
        raise BundleError(f"pruning {type(encoder).__name__} changed the shape of its outputs")
    return pruned


def _roots(graph: Any) -> list[nn.Conv2d]:
    """One convolution of each group that reaches no output."""
    found = []
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        touched = [dependency.target for dependency, _ in group]
        if not any(type(node.module).__name__ == "_OutputOp" for node in touched):
            found.append(group[0].dep.target.module)
    return found


def _weakest(strength: Tensor, share: float) -> list[int]:
    """Which channels go: those that are left are a multiple of ROUND, and one ROUND at least."""
    count = len(strength)
    kept = max(round(count * (1 - share) / ROUND) * ROUND, min(ROUND, count))
    order = torch.argsort(strength, stable=True)
    return sorted(int(index) for index in order[: count - kept])


def _shapes(module: nn.Module, example: Tensor) -> list[torch.Size]:
    with torch.no_grad():
        return [output.shape for output in module(example)]


def low_rank(module: nn.Module, energy: float) -> list[Factored]:
    """Replace linear layers by two thinner ones where that pays; what was looked at, in order.

    The rank is the smallest whose singular values hold `energy` of the squared norm. It pays where it saves a
    quarter of the multiplications. In place.
    """
    found = []
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in layers:
        outputs, inputs = layer.weight.shape
        u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        held = torch.cumsum(s**2, 0) / (s**2).sum().clamp(min=1e-12)
        needed = min(int((held < energy).sum()) + 1, len(s))
        worth = needed * (outputs + inputs) <= (1 - _WORTH) * outputs * inputs
        found.append(Factored(name, (outputs, inputs), needed if worth else None, needed))
        if not worth:
            continue
        thin, wide = nn.Linear(inputs, needed, bias=False), nn.Linear(needed, outputs, bias=layer.bias is not None)
        root = s[:needed].sqrt()
        with torch.no_grad():
            thin.weight.copy_(root[:, None] * v[:needed])
            wide.weight.copy_(u[:, :needed] * root)
            if layer.bias is not None:
                wide.bias.copy_(layer.bias)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Sequential(thin, wide))
    return found


def distil(
    title: str,
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterator[tuple[Tensor]],
    schedule: Schedule,
    *,
    run: Run = ALONE,
) -> None:
    """Train `student` in place to give the outputs of `teacher`, each weighted by its own spread (Hinton et al. 2015;
    for features Romero et al. 2015). No labels: what the teacher knows of the inputs is all there is to learn."""
    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)

    def loss(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            wanted: Sequence[Tensor] = frozen(inputs)
        parts = [
            F.mse_loss(got, want) / want.var().clamp(min=1e-4)
            for got, want in zip(student(inputs), wanted, strict=True)
        ]
        return torch.stack(parts).sum()

    fit(title, student, schedule, batches, loss, run=run)
