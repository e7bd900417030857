"""Training that knows of int8: the rounding of `quantise`, done in torch, with gradients straight through.

torch's own fake-quantisation does not survive its ONNX exporter. So the modules here stand in for the convolutions
during a short training only; what is exported are plain float32 convolutions, and `quantise` writes the Q/DQ
pairs with the same scales (Jacob et al. 2018; straight-through estimator of Bengio et al. 2013).
"""

from __future__ import annotations

import copy

import onnx
import torch
from torch import Tensor, nn

from models.compression.quantise import Scales, convolutions, ways_round

_LEVELS = 127


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """The value that int8 with this step stands for; the gradient is that of cutting off alone."""
    steps = (x / scale).clamp(-_LEVELS - 1, _LEVELS)
    return (steps + (steps.round() - steps).detach()) * scale


class Rounded(nn.Module):
    """A tensor through int8 and back, as a Q/DQ pair does."""

    scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, self.scale)


class RoundedConv(nn.Module):
    """A convolution whose input and weights, and output where a way round ends, go through int8."""

    def __init__(self, inside: nn.Conv2d, before: float, after: float | None) -> None:
        super().__init__()
        self.inside = inside
        self.before = Rounded(before)
        self.after = nn.Identity() if after is None else Rounded(after)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inside.weight
        scale = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-8) / _LEVELS
        around = rounded(weight, scale.view(-1, 1, 1, 1))
        y = self.inside._conv_forward(self.before(x), around, self.inside.bias)
        outside: Tensor = self.after(y)
        return outside


def aware(folded: nn.Module, model: onnx.ModelProto, scales: Scales) -> nn.Module:
    """A copy of a folded module whose convolutions round as the Q/DQ pairs will; `model` is its float32 export."""
    module = copy.deepcopy(folded)
    layers = convolutions(model)
    made = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    after: dict[str, float] = {}
    for skip, main in ways_round(model).values():
        if skip in made:
            after[made[skip]] = scales[skip]
            continue
        parent = module.get_submodule(main.rpartition(".weight")[0].rpartition(".")[0])
        if isinstance(getattr(parent, "skip", None), nn.Identity):
            parent.skip = Rounded(scales[skip])
    for weights, tensor in layers.items():
        path = weights.rpartition(".weight")[0]
        parent = module.get_submodule(path.rpartition(".")[0])
        inside = module.get_submodule(path)
        assert isinstance(inside, nn.Conv2d)
        setattr(parent, path.rpartition(".")[2], RoundedConv(inside, scales[tensor], after.get(weights)))
    return module


def plain(module: nn.Module) -> nn.Module:
    """A copy with ordinary convolutions again, their weights as trained."""
    clean = copy.deepcopy(module)
    for parent in list(clean.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RoundedConv):
                setattr(parent, name, child.inside)
            elif isinstance(child, Rounded) and not isinstance(parent, RoundedConv):
                setattr(parent, name, nn.Identity())
    return clean
