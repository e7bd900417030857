"""Sound as a picture: what a trunk that learned on photographs sees in a log-mel, and a head on whole clips.

The trunk is frozen and hears no label, so one serves all classes and folds. On groups of SESA that nothing trained
on it takes away four in ten errors of a listener that learned from the set alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_agent.contract.manifest import AudioSpec
from edge_agent.core.records import F32, I16, Arrays, Engine
from edge_agent.engine import installed
from models.benchmark.listeners import MOST, PRESET, SPEC, clip_outputs
from models.data.listening import frames_of
from models.network.backbone import Spectrograms, Trunk, imagenet
from models.network.frontend import MELS, AudioFront
from models.runtime import FP32, Made, make, variants
from models.training.kernel import Kernel, kernel_ridge

PICTURE = "picture"
SEEN = "embedding"  #: the name that a looker alone gives it
#: Blocks of the trunk after which its features are taken, from textures to things.
CUTS = (8, 11, 15)
#: Twice the rows and columns of the log-mel: the trunk halves them five times.
HEIGHT, WIDTH = 128, 192
EVERY_S = 1.0  #: between two windows; every half second is twice the time for no gain
_PENALTY, _KERNEL = 0.05, 0.3
#: What the kernel's answers are multiplied with to be log odds.
_SHARP = 3.0


class PictureGraph(nn.Module):
    """int16 (N, samples) → embedding (N, 2 · width): the mean of the features of each cut over the picture, then
    their greatest; logit: how loud it is, for want of a label."""

    def __init__(self, trunk: Trunk, spec: AudioSpec) -> None:
        super().__init__()
        self.front = AudioFront(spec)
        self.picture = Spectrograms(MELS, frames_of(spec), HEIGHT, WIDTH)
        self.trunk = trunk

    def forward(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        x = self.front(pcm)
        features = self.trunk.after(self.picture(x), CUTS)
        parts = [y.mean((2, 3)) for y in features] + [y.amax((2, 3)) for y in features]
        return torch.cat(parts, 1), x.mean((1, 2, 3))


def looker() -> Made:
    """The trunk exported. It stays in float32 where int8 is asked for: that cost one point on ESC-10, six on SESA."""
    graph = PictureGraph(imagenet(max(CUTS)), SPEC)
    with torch.inference_mode():
        size = graph(torch.zeros(1, SPEC.samples, dtype=torch.int16))[0].shape[1]
    return make(replace(PRESET, embedding=size), {"audio": graph}, {})


def seen(sounds: Sequence[I16]) -> F32:
    """`features` of sounds that train, by the fastest engine that is installed: all agree to a part in 100,000."""
    fastest = next(name for name in ("openvino", "onnxruntime", "torch") if name in (*installed(), "torch"))
    found = [
        clip_outputs(engine, sounds, (SEEN,), most=(SEEN,), every_s=EVERY_S)
        for _, precision, engine in variants(looker(), (fastest,))
        if precision == FP32
    ]
    return features(found[0], SEEN)


def features(found: dict[str, F32], name: str = PICTURE) -> F32:
    """What the head learns from, (clips, D): mean and greatest in a picture, pooled over the clip, and the greatest
    mean of its pictures."""
    mean_and_peak, most = found[name], found[f"{MOST} {name}"]
    return np.concatenate([mean_and_peak, most[:, : most.shape[1] // 2]], 1)


@dataclass(frozen=True)
class Together:
    """A listener and a looker behind one `Engine`: of the graph "audio" the outputs of the one, and as PICTURE the
    embedding of the other."""

    ears: Engine
    eyes: Engine

    def run(self, graph: str, items: Sequence[Arrays]) -> list[dict[str, NDArray[Any]]]:
        """Outputs per item, in order."""
        heard, looked = self.ears.run(graph, items), self.eyes.run(graph, items)
        return [{**a, PICTURE: b[SEEN]} for a, b in zip(heard, looked, strict=True)]

    def close(self) -> None:
        """Close both."""
        self.ears.close()
        self.eyes.close()


def together(ears: Made, eyes: Made, engines: Sequence[str]) -> Iterator[tuple[str, str, Together]]:
    """`variants` of both at once."""
    for name, precision, both in together_by_fold({"": ears}, eyes, engines):
        yield name, precision, both[""]


def together_by_fold(
    ears: Mapping[str, Made], eyes: Made, engines: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, Together]]]:
    """The same for a listener of each fold, beside one looker."""
    heard = (variants(made, engines) for made in ears.values())
    for (name, precision, looks), *ways in zip(variants(eyes, engines), *heard, strict=True):
        yield name, precision, {fold: Together(hears, looks) for fold, (_, _, hears) in zip(ears, ways, strict=True)}


@dataclass(frozen=True)
class ClipHead:
    """Classes of whole clips: a kernel head on the pictures, and a listener's own answers with the same weight."""

    kernel: Kernel

    @classmethod
    def fit(cls, looked: F32, label: Sequence[str], names: Sequence[str], weight: F32 | None = None) -> ClipHead:
        """From rows of `features` and their classes. ValueError for a class without a row."""
        return cls(kernel_ridge(looked, label, names, penalty=_PENALTY, width=_KERNEL, weight=weight))

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in order."""
        return self.kernel.names

    def __call__(self, engine: Engine, sounds: Sequence[I16], head: str, columns: Sequence[int]) -> F32:
        """Log probabilities (clips, K), but for a constant of each clip. `columns` of the output `head` are the
        listener's logits of the classes."""
        found = clip_outputs(engine, sounds, (head, PICTURE), most=(PICTURE,), every_s=EVERY_S)
        return self.looked(features(found)) + _log_softmax(found[head][:, columns])

    def looked(self, x: F32) -> F32:
        """Log probabilities (clips, K) of rows of `features`: what the pictures say alone."""
        return _log_softmax(_SHARP * self.kernel(x))


def _log_softmax(x: F32) -> F32:
    x = x - x.max(1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)), np.float32)
